"""The demo's approver: says yes to whatever the guards have cleared, with a key that guards nothing.

It goes the way that every operator goes: the subject that control hands out, a signature over its digests,
and control's own check of both. It cannot approve what the guards did not clear.
"""

from daemon.console import signoff
from daemon.console.client import Control
from daemon.console.demo.scene import PRINCIPAL, Scene

_TTL_S = 300.0
_REASON = "the demo says yes to whatever every required guard has passed"


class UnsafeDemoApprover:
    """Nobody. Never use it outside a demo: it reads no report."""

    def __init__(self, scene: Scene) -> None:
        self._key = scene.key

    def approve(self, control: Control, candidate: str, now: float) -> str:
        """Sign and hand in a yes; return where the candidate stands with its approvers.

        Raises:
            InstarError: Control refuses, or does not answer.
        """
        found = control.candidate(candidate)
        subject = signoff.subject_of(found)
        said = signoff.write("approve", subject, PRINCIPAL, _REASON, now, _TTL_S)
        signed = signoff.sign(said, self._key)
        return control.approval(candidate, signed.text, signed.signature).state
