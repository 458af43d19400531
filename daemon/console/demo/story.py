"""The story of the demo, part by part: found, commission, be quiet, drift, adapt, measure.

* It is an audience with a camera and a key. It starts the processes, lets the camera drift, and signs what
  the guards cleared; everything else is the daemon's own doing, read from its status and its journal.
* Nothing but the images tells the daemon of the drift.
* A part that does not come in time ends the story as stuck; what is known by then is still told.
"""

import json
from collections.abc import Callable
from dataclasses import replace

from daemon.console.client import Refused
from daemon.console.demo import casting
from daemon.console.demo.approver import UnsafeDemoApprover
from daemon.console.demo.chronicle import Chronicle
from daemon.console.demo.footage import Footage
from daemon.console.demo.line import Line
from daemon.console.demo.narrative import Narrative
from daemon.console.demo.oracle import Oracle
from daemon.console.demo.processes import Processes
from daemon.console.demo.reckoning import Moments
from daemon.console.demo.scene import Scene
from daemon.console.demo.wishes import HOST, Wishes
from policies.clock import Clock
from policies.errors import InstarError, TemporaryError
from policies.status import CandidateView, Status

LOOK_S = 0.25
RAMP_S = 12.0
AFTER_S = 16.0
_FOUNDING_LIMIT_S = 900.0
_SLACK_S = 180.0
_ADAPTING_LIMIT_S = 900.0
_ORACLE_LIMIT_S = 600.0
_PAGE_ENTRIES = 500


class Stuck(InstarError):  # noqa: N818  a state of the story
    """A part of the story did not come."""


class Story:
    """One run; ``pause`` waits for some seconds and ``clock`` is read after it."""

    def __init__(
        self,
        scene: Scene,
        wishes: Wishes,
        processes: Processes,
        line: Line,
        narrative: Narrative,
        clock: Clock,
        pause: Callable[[float], None],
    ) -> None:
        self._scene = scene
        self._wishes = wishes
        self._processes = processes
        self._line = line
        self._tell = narrative
        self._clock = clock
        self._pause = pause
        self._approver = UnsafeDemoApprover(scene)
        self._seq = 0
        self._asked: set[str] = set()
        self.chronicle = Chronicle()
        self.moments = Moments(began=clock.now())
        self.oracle = Oracle(scene, wishes, processes)
        self.bundles: dict[int, str] = {}
        self.status: Status | None = None

    def play(self) -> None:
        """Play all parts.

        Raises:
            Stuck: A part did not come in time, or a person said no.
            PermanentError: A process ended by itself.
        """
        self._found()
        self._commission()
        self._be_quiet()
        self._drift()
        self._adapt()
        self._measure()

    def linger(self) -> None:
        """Go on telling what happens, also after a story that got stuck; an interrupt ends it."""
        while True:
            try:
                self._tell.live(self._pulse(self._look()))
            except Stuck as error:
                self._tell.say(str(error), "bold red")
            self._pause(LOOK_S)

    # -- the parts --------------------------------------------------------------------------------------

    def _found(self) -> None:
        self._tell.act("Founding: train a supernet, choose, judge and serve generation 1")
        self._processes.start("instar-serve", casting.serve(self._scene, self._wishes))
        self._processes.start("instard", casting.control(self._scene, self._wishes))
        self._until("generation 1 to serve", _FOUNDING_LIMIT_S, lambda _: self._is_ready(), self._searching)
        self._mark(ready=self._clock.now())
        self._tell.say("the data plane is ready: the camera starts")
        camera = casting.camera(self._scene, self._wishes, self._clock.now())
        self._processes.start("camera", camera)

    def _commission(self) -> None:
        rate = self._wishes.rate
        self._tell.act(f"Commissioning: a reference for the monitors from live traffic, {rate:g} requests/s")
        needed = 10_000 if self.status is None else self.status.reference_needed
        self._until(
            "the monitors to be calibrated",
            needed / rate + _SLACK_S,
            lambda status: status is not None and status.phase == "watching",
            lambda status: (
                ""
                if status is None
                else f"{status.reference_rows:,} of {status.reference_needed:,} reference rows"
            ),
        )
        self._mark(watching=self._clock.now())
        self._note_bundle()

    def _be_quiet(self) -> None:
        quiet_s = self._wishes.quiet_s
        self._tell.act(f"A quiet while of {quiet_s:g} s: whatever alarms now is a false alarm")
        ends = self._clock.monotonic() + quiet_s
        self._until(
            "the quiet while to pass", quiet_s + 60.0, lambda _: self._clock.monotonic() >= ends, self._pulse
        )

    def _drift(self) -> None:
        wishes = self._wishes
        self._tell.act(
            f"Drift: {wishes.drift}, strength {wishes.strength:g}, over {RAMP_S:g} s; nobody is told"
        )
        order = {"kind": wishes.drift, "strength": wishes.strength, "ramp_s": RAMP_S}
        self._processes.tell("camera", json.dumps({"drift": order}))
        self._mark(drift_asked=self._clock.now())

    def _adapt(self) -> None:
        self._until(
            "an adapted generation to be live",
            _ADAPTING_LIMIT_S,
            lambda _: self.chronicle.adapted is not None,
            lambda status: self._searching(status) if _is_searching(status) else self._pulse(status),
        )
        self._note_bundle()

    def _measure(self) -> None:
        self._tell.act("Measuring what was regained, and what an oracle would reach")
        ends = self._clock.monotonic() + AFTER_S
        self._until(
            "enough requests after the swap",
            AFTER_S + 60.0,
            lambda _: self._clock.monotonic() >= ends,
            self._pulse,
        )
        self._note_bundle()
        self._mark(measured=self._clock.now())
        self._until(
            "the oracle to end",
            _ORACLE_LIMIT_S,
            lambda _: self.oracle.step(),
            lambda _: "the oracle trains the same genome on the drifted digits",
        )

    # -- looking ----------------------------------------------------------------------------------------

    def _until(
        self,
        what: str,
        limit_s: float,
        done: Callable[[Status | None], bool],
        line: Callable[[Status | None], str],
    ) -> None:
        ends = self._clock.monotonic() + limit_s
        seen = self._clock.monotonic()
        while not done(status := self._look()):
            self._check_no()
            now = self._clock.monotonic()
            if self._waits_for_person(status):
                ends += now - seen  # a person takes the time that a person takes; the policy bounds it
            seen = now
            if now > ends:
                raise Stuck(
                    f"expected {what} within {limit_s:.0f} s, it did not come; logs: {self._scene.logs}"
                )
            self._tell.live(line(status))
            self._pause(LOOK_S)
        self._tell.still()

    def _look(self) -> Status | None:
        """Read what is new, sign what is cleared, and return the status, or None while control is not up."""
        self._processes.check()
        try:
            self._read_journal()
            self.status = self._line.open().status()
        except TemporaryError:
            self._line.drop()
            return None
        self._approve(self.status.open_candidate)
        self._attend_oracle(self.status.open_candidate)
        return self.status

    def _read_journal(self) -> None:
        entries = self._line.open().history(self._seq, _PAGE_ENTRIES)
        for entry in entries:
            self._seq = entry.seq
            if entry.at >= self.moments.began:
                self.chronicle.add(entry)
                self._tell.entry(entry, self.moments.began)

    def _check_no(self) -> None:
        """End the story when a person declined: the incumbent serves on, as it should."""
        if not self._wishes.wait_for_me:
            return
        for name in self.chronicle.adaptations:
            why = self.chronicle.reason(name, "REJECTED")
            if why.startswith("declined by"):
                raise Stuck(f"candidate {name} was {why}; the incumbent serves on")

    def _approve(self, candidate: CandidateView | None) -> None:
        if candidate is None or candidate.stage != "CLEARED" or candidate.id in self._asked:
            return
        if self._waits_for_person(self.status):
            self._ask_person(candidate)
        else:
            try:
                self._approver.approve(self._line.open(), candidate.id, self._clock.now())
            except TemporaryError:
                return  # the next look tries again
            except Refused as error:
                self._asked.add(candidate.id)
                raise Stuck(f"the demo's approval was refused: {error}") from error
        self._asked.add(candidate.id)

    def _waits_for_person(self, status: Status | None) -> bool:
        """Tell whether a person is asked: the founding never waits for one, there is nothing to serve yet."""
        if status is None or status.open_candidate is None or not self._wishes.wait_for_me:
            return False
        return status.open_candidate.stage == "CLEARED" and status.generation is not None

    def _ask_person(self, candidate: CandidateView) -> None:
        where = f"--state {self._scene.state}"
        self._tell.act(f"Candidate {candidate.id} waits for you. Read its report: {candidate.report}")
        self._tell.say(f'instar approve {candidate.id} {where} --reason "I read the report"', "bold green")
        self._tell.say(
            f'instar decline {candidate.id} {where} --reason "I read the report, and no"', "bold red"
        )

    def _attend_oracle(self, candidate: CandidateView | None) -> None:
        on_probation = candidate is not None and candidate.stage == "PROBATION"
        if candidate is not None and on_probation and candidate.id in self.chronicle.adaptations:
            genome = candidate.genome
            if genome is not None and genome != self.oracle.genome:
                self.oracle.begin(genome)
        self.oracle.step()

    def _note_bundle(self) -> None:
        status = self.status
        if status is not None and status.generation is not None and status.bundle is not None:
            self.bundles[status.generation] = status.bundle

    def _mark(self, **moments: float) -> None:
        self.moments = replace(self.moments, **moments)

    def close(self) -> None:
        """Note the end."""
        self._tell.still()
        self._mark(ended=self._clock.now())

    # -- the live line ----------------------------------------------------------------------------------

    def _is_ready(self) -> bool:
        return casting.is_ready(f"http://{HOST}:{self._wishes.ports.serve}")

    def _pulse(self, status: Status | None) -> str:
        footage = Footage.load_last(self._scene.requests, 500)
        latest = footage.accuracy(footage.within((0.0, float("inf")))).value
        told = ["control does not answer" if status is None else status.phase]
        if latest is not None:
            told.append(f"{100 * latest:.1f} % of the last {footage.sent} right")
        if status is not None:
            told += [
                f"{s.monitor} {s.level.value} {s.score:.2f}" for s in status.signals if s.score is not None
            ]
            told += [f"{b.what}: {b.why}" for b in status.blocked][:1]
        return " · ".join(told)

    def _searching(self, status: Status | None) -> str:
        if not _is_searching(status):
            return "starting" if status is None else status.phase
        folders = self._scene.state.glob("jobs/search-*")
        latest = max(folders, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
        try:
            # The one before may have left its last words; a search that begins has said nothing yet.
            said = json.loads((latest / "out" / "progress.json").read_bytes()) if latest else None
            if said is None:
                return "the search begins"
            return f"{said['phase']}: {said['done']} of {said['total']}, {said['cpu_s']:.0f} CPU-s"
        except FileNotFoundError:
            return "the search begins"


def _is_searching(status: Status | None) -> bool:
    return status is not None and status.phase in ("founding", "searching")
