"""What a deployment target is, whoever serves in the end.

* One wanted state goes down, one observed state comes back; applying the same deployment twice is applying
  it once, so that a turn that was killed between asking and recording asks again.
* A target says what it can do. What it cannot do is not asked of it: where the traffic cannot be split, a
  newcomer on probation takes all of it, and every record says so.
* ``Unreachable`` is a state of the world and ends by itself; a ``PermanentError`` is a refusal, after which
  what was served before is served on.

Called by the turn, the performer and the operators. The implementations lie beside this file.
"""

from typing import Protocol

from policies.clauses import Policy
from policies.errors import PolicyError, TemporaryError
from policies.terms import Deployment, Share, Slot, Term


class Unreachable(TemporaryError):  # noqa: N818  a state of the world, not a mistake
    """What serves does not answer."""


class Observed(Term):
    """What a target says is served."""

    revision: int
    stable: Slot | None
    newcomer: Slot | None
    previous: Slot | None
    newcomer_share: Share
    exit_confidence: float | None = None
    ready: bool
    problem: str | None = None

    def matches(self, wanted: Deployment) -> bool:
        """Tell whether the wanted slots are served; the previous one is a comfort, not a promise."""
        return (
            self.stable == wanted.stable
            and self.newcomer == wanted.newcomer
            and self.newcomer_share == wanted.newcomer_share
            and self.exit_confidence == wanted.exit_confidence
        )


class Abilities(Term):
    """What a target can do."""

    splits: bool  # Splits the traffic between stable and newcomer.
    previous: bool  # Keeps the previous generation ready for an instant way back.
    spool: bool  # Writes the telemetry spool itself.
    exits: bool = True  # Lets a row leave early; a server that is not ours computes the whole network.

    def check(self, policy: Policy) -> None:
        """Refuse a policy that asks for what this target cannot do.

        Raises:
            PolicyError: Names the key and the clause.
        """
        clause = policy.modification_protocol.exits
        if clause.threshold is not None and not self.exits:
            raise PolicyError(
                f'modification_protocol.exits.confidence ({clause.clause}): expected "off", got '
                f"{clause.threshold:g}: this --target computes the whole network for every row, and guards "
                "would judge answers that nobody gets"
            )


class Target(Protocol):
    """Where deployments go."""

    @property
    def abilities(self) -> Abilities:
        """What this target can do; the same for all its life."""
        ...

    def observed(self) -> Observed:
        """Return what is served now.

        Raises:
            Unreachable: What serves does not answer.
        """
        ...

    def apply(self, deployment: Deployment) -> Observed:
        """Have a wanted state served, proven before it is visible.

        Raises:
            Unreachable: What serves does not answer.
            PermanentError: It refuses; what it served before it serves on.
        """
        ...

    def close(self) -> None:
        """Let go of what is held open; what is served is served on."""
        ...


def active(deployment: Deployment) -> Slot | None:
    """Return the slot that answers where the traffic is not split: a newcomer once it has a share.

    >>> old, new = (Slot(generation=n, bundle="sha256:" + str(n) * 64) for n in (1, 2))
    >>> staged = Deployment(
    ...     revision=1, model="m", stable=old, newcomer=new, newcomer_share=0.0, previous=None
    ... )
    >>> active(staged).generation, active(staged.model_copy(update={"newcomer_share": 1.0})).generation
    (1, 2)
    """
    if deployment.newcomer is not None and deployment.newcomer_share > 0.0:
        return deployment.newcomer
    return deployment.stable
