"""The panel: every guard the policy requires answers, or its silence is recorded.

* Guards sit in a process of their own, forked before any runtime is loaded. One that hangs is killed, one
  that takes the process down takes only that; the next guard gets a fresh one. The process has bounded
  memory, and ends when the panel does.
* A crash, a time-out, a refusal of material or an answer that is not a verdict is inconclusive; so is a name
  that no guard has. Inconclusive is asked again, up to the policy's attempts, and then stands.
* ``integrity`` answers first. A file that it does not pass is not run: the others say so instead.
* Here is the one catch-all of this room, and it records what it caught.

It judges nothing itself, and clears nothing: that is ``policies.clearance``.
"""

import logging
import multiprocessing
import os
import resource
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import TYPE_CHECKING

from pydantic import ValidationError

from policies.case import Case
from policies.errors import InstarError
from policies.terms import Finding, Verdict
from policies.wire import canonical

if TYPE_CHECKING:  # a runtime must not be loaded before the fork
    from guards.contract import Guard, Roster
    from guards.material import Material

log = logging.getLogger(__name__)

FIRST = "integrity"

_MEMORY_BYTES = 3_000_000_000
_FORK = multiprocessing.get_context("fork")


def sit(case: Case, roster: "Roster", clock: Callable[[], float]) -> tuple[Verdict, ...]:
    """Return the verdicts of all required guards, in the policy's order.

    Args:
        case: What is judged.
        roster: Returns all guards by name; called in the guards' process.
        clock: Returns seconds that never go back; for guards that time.
    """
    panel = case.policy.modification_protocol.evaluation.panel
    required = panel.required_founding if case.founding else panel.required
    found: dict[str, Verdict] = {}
    bench = _Bench(case, roster, clock)
    try:
        for name in sorted(required, key=lambda name: name != FIRST):
            first = found.get(FIRST)
            if first is not None and first.finding is not Finding.PASS:
                found[name] = _silent(case, name, f"not run: {FIRST} is {first.finding} ({first.clause})")
                continue
            found[name] = _ask(bench, case, name)
            told = found[name]
            log.info("candidate=%s guard=%s %s: %s", case.candidate, name, told.finding, told.reason)
    finally:
        bench.close()
    return tuple(found[name] for name in required)


def _ask(bench: "_Bench", case: Case, name: str) -> Verdict:
    panel = case.policy.modification_protocol.evaluation.panel
    answer = _silent(case, name, "never asked")
    for attempt in range(1, panel.attempts + 1):
        answer = bench.ask(name, panel.timeout_s).model_copy(update={"attempts": attempt})
        if answer.finding is not Finding.INCONCLUSIVE:
            break
    return answer


def _silent(case: Case, name: str, reason: str) -> Verdict:
    """Return the verdict of a guard that gave none."""
    evaluation = case.policy.modification_protocol.evaluation
    known = name in type(evaluation).model_fields
    clause = getattr(evaluation, name).clause if known else evaluation.panel.clause
    return Verdict(guard=name, clause=clause, finding=Finding.INCONCLUSIVE, reason=reason)


class _Bench:
    """The guards' process, started when it is needed, and again after it was lost."""

    def __init__(self, case: Case, roster: "Roster", clock: Callable[[], float]) -> None:
        self._case = case
        self._roster = roster
        self._clock = clock
        self._process: ForkProcess | None = None
        self._line: Connection | None = None

    def ask(self, name: str, timeout_s: float) -> Verdict:
        """Return what a guard says, or that it said nothing."""
        line = self._open()
        try:
            line.send_bytes(name.encode())
            if not line.poll(timeout_s):
                self.close()
                return _silent(self._case, name, f"took longer than {timeout_s:g} s and was ended")
            raw = line.recv_bytes()
        except (EOFError, OSError):
            code = self.close()
            return _silent(self._case, name, f"its process ended with exit code {code} and no verdict")
        try:
            answer = Verdict.model_validate_json(raw)
        except ValidationError as error:
            return _silent(self._case, name, f"gave {error.error_count()} faults instead of a verdict")
        if answer.guard != name:
            return _silent(self._case, name, f"answered in the name of {answer.guard}")
        return answer

    def close(self) -> int | None:
        """End the process; return its exit code when it had ended by itself."""
        process, line = self._process, self._line
        self._process = self._line = None
        if line is not None:
            line.close()
        if process is None:
            return None
        process.join(timeout=0.2)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        process.close()
        return code

    def _open(self) -> Connection:
        if self._line is None:
            ours, theirs = _FORK.Pipe()
            self._process = _FORK.Process(
                target=_serve,
                args=(theirs, ours, self._case, self._roster, self._clock),
                name="guards",
                daemon=True,
            )
            self._process.start()
            theirs.close()
            self._line = ours
        return self._line


def _serve(
    line: Connection, other_end: Connection, case: Case, roster: "Roster", clock: Callable[[], float]
) -> None:
    """Answer for guards by name until the line ends; runs in the guards' process."""
    from guards.material import Material

    # Our copy of the panel's end would keep the line alive after the panel is gone.
    other_end.close()
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    threading.Thread(target=_end_with_panel, daemon=True).start()
    material = Material(case, clock)
    while True:
        try:
            name = line.recv_bytes().decode()
        except EOFError:
            return
        line.send_bytes(canonical(_judge(case, material, name, roster)))


def _end_with_panel() -> None:
    """Wait until the panel is gone, and go too: a guard that hangs would not see the line end."""
    panel = multiprocessing.parent_process()
    if panel is not None:
        panel.join()
        os._exit(1)


def _judge(case: Case, material: "Material", name: str, roster: "Roster") -> Verdict:
    try:
        known = roster()
        if name not in known:
            return _silent(case, name, f"expected a guard of this name, there are {', '.join(known)}")
        guard: Guard = known[name]()
        return Verdict.model_validate(guard.judge(case, material))
    except InstarError as error:
        return _silent(case, name, str(error))
    except Exception as error:  # a guard's defect is an answer too: it has not passed
        log.exception("candidate=%s guard=%s crashed", case.candidate, name)
        return _silent(case, name, f"crashed: {type(error).__name__}: {error}"[:500])
