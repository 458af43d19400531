"""A simulated host: a data plane, workers, sensors and a clock that outlive a killed control plane."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from daemon.control.book import Book
from daemon.control.jobs import Jobs
from daemon.control.law import Law
from daemon.control.operators import Operators
from daemon.control.performer import Performer
from daemon.control.shadows import Shadows
from daemon.control.targets.target import Abilities, Observed, Unreachable
from daemon.control.turn import Turn
from daemon.ops.metrics import ControlMetrics
from daemon.store.blobs import Blobs
from daemon.store.journal import Journal
from guards.signing import make_key, sign
from policies.case import Case, PanelResult
from policies.clock import StandingClock
from policies.document import load_task
from policies.errors import PermanentError
from policies.lifecycle import Stage
from policies.shadow import ShadowCase, ShadowResult, Times
from policies.terms import (
    Approval,
    Arm,
    Artefact,
    Brief,
    Deployment,
    Evidence,
    Finding,
    Genome,
    Level,
    SearchResult,
    Signal,
    Verdict,
)
from policies.wire import canonical, digest_bytes
from policies.world import JobState

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "meter-reader"
PRINCIPAL = "UnsafeDemoApprover"


class Killed(BaseException):
    """The control plane dies here, as by SIGKILL: nothing catches it."""


class Hooks:
    """Counts the places that a kill can strike, and strikes at one."""

    def __init__(self, strike: int | None = None) -> None:
        self.places: list[str] = []
        self.strike = strike

    def __call__(self, place: str) -> None:
        self.places.append(place)
        if self.strike is not None and len(self.places) == self.strike + 1:
            raise Killed(place)


class Plane:
    """A data plane that keeps what it was told, and refuses what it cannot load."""

    def __init__(self) -> None:
        self.abilities = Abilities(splits=True, previous=True, spool=True)
        self.deployment = Deployment(
            revision=0, model="meter-reader", stable=None, newcomer=None, newcomer_share=0.0, previous=None
        )
        self.refuse: set[str] = set()
        self.up = True
        self.seen: list[Deployment] = []
        self.hook: Callable[[str], None] = lambda _place: None

    def observed(self) -> Observed:
        if not self.up:
            raise Unreachable("expected instar-serve to answer, got nothing")
        kept = self.deployment
        return Observed(
            revision=kept.revision,
            stable=kept.stable,
            newcomer=kept.newcomer,
            previous=kept.previous,
            newcomer_share=kept.newcomer_share,
            exit_confidence=kept.exit_confidence,
            ready=kept.stable is not None,
        )

    def apply(self, deployment: Deployment) -> Observed:
        if not self.up:
            raise Unreachable("expected instar-serve to answer, got nothing")
        self.hook("before apply")
        for slot in (deployment.stable, deployment.newcomer):
            if slot is not None and slot.bundle in self.refuse:
                raise PermanentError(f"instar-serve refused: {slot.bundle} is not its bytes")
        assert deployment.revision >= self.deployment.revision, "revisions only grow"
        self.deployment = deployment
        self.seen.append(deployment)
        self.hook("after apply")
        return self.observed()


class SimulatedSensors:
    """Signals and arms as the script of the day has them."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self.watch: SimpleNamespace | None = None
        self.tally: float | None = None

    def follow(self, generation: int | None) -> None:
        self.watch = (
            None
            if generation is None
            else SimpleNamespace(generation=generation, calibrated=True, reference_rows=6000)
        )

    def compare(self, since: float | None) -> None:
        self.tally = since
        self._host.windows.append(since)

    def read(self) -> None:
        """Read nothing: there is no spool."""

    def assess(self, now: float) -> tuple[Signal, ...]:
        if self.watch is None:
            return ()
        level = Level.ALARM if self._host.drifted(self.watch.generation) else Level.QUIET
        facts = {"loss_lower": 0.2 if level is Level.ALARM else 0.0}
        return tuple(
            Signal(monitor=m, level=level, since=self._host.start, at=now, n=500, reason="seen", facts=facts)
            for m in ("drift", "errors")
        )

    def arm(self, generation: int | None) -> Arm | None:
        return None if generation is None else self._host.arm(generation)


class SimulatedSamples:
    """Plenty of rows, and exports that name no user data."""

    def __init__(self, vault: Path) -> None:
        self.vault = vault

    def counts(self, since: float) -> SimpleNamespace:
        return SimpleNamespace(train=9000, search=9000, gate=9000)

    def export(self, path: Path, **_query: Any) -> Artefact:
        np.savez(path, x=np.zeros((1, 28, 28), np.uint8))
        return Artefact(path=str(path), digest=digest_bytes(path.read_bytes()))

    export_search = export_gate = export_traffic = export


class SimulatedWorker:
    """A worker that has ended by the time anybody looks, or that is at work until it is stopped."""

    def __init__(self, ended: str, caged: bool = False) -> None:
        self.ended: str | None = None if ended == "running" else ended
        self.caged = caged
        self.cpu_s = 12.5

    def poll(self, monotonic: float) -> JobState:
        if self.ended is None:
            return JobState.RUNNING
        return JobState.DONE if self.ended == "done" else JobState.FAILED

    def stop(self) -> None:
        self.ended = self.ended or "stopped"


class Host:
    """Everything that goes on when control is killed."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.law = folder / "law"
        self.law.mkdir(parents=True)
        (self.state / "jobs").mkdir(parents=True)
        self.clock = StandingClock()
        self.start = self.clock.now()
        self.plane = Plane()
        self.search_outcomes: list[str] = []
        self.panel_outcomes: list[str] = []
        self.shadow_outcomes: list[str] = []
        self.shadow: dict[str, Any] = {}
        self.findings: dict[str, Finding] = {}
        self.newcomer: dict[str, Any] = {}
        self.windows: list[float | None] = []
        self.drift = True
        self.operator: Callable[[Host], None] = approve_all
        self.searches_run = 0
        self.caged = True
        self.accuracy: float | None = 0.9
        make_key(self.law / "approver", PRINCIPAL)
        self.key = (self.law / "approver").read_bytes()
        public = (self.law / "approver.pub").read_text().split()
        (self.law / "allowed_signers").write_text(f"{PRINCIPAL} {public[0]} {public[1]}\n")
        shutil.copy(EXAMPLE / "task.toml", self.law / "task.toml")
        self.write_policy(
            (EXAMPLE / "policy.toml").read_text().replace("cooldown_s = 60.0", "cooldown_s = 3.0")
        )

    def write_policy(self, text: str, signed: bool = True) -> None:
        path = self.law / "policy.toml"
        path.write_text(text)
        if signed:
            (self.law / "policy.toml.sig").write_text(sign(self.key, text.encode(), "instar-policy@v1"))

    # -- the outside world ------------------------------------------------------------------------------

    def drifted(self, generation: int) -> bool:
        return self.drift and generation == 1

    def arm(self, generation: int) -> Arm:
        good = {
            "requests": 5000,
            "errors": 0,
            "not_finite": 0,
            "p50_ms": 1.0,
            "p99_ms": 2.0,
            "labels": 5000,
            "correct": 4800,
        }
        if generation > 1:
            good |= self.newcomer
        elif self.drift:
            good["correct"] = 3500
        return Arm(generation=generation, **good)

    def run_worker(self, module: str, case: Path, folder: Path, *_rest: Any) -> SimulatedWorker:
        out = folder / "out"
        out.mkdir(parents=True, exist_ok=True)
        (folder / "pid").write_text("0")
        outcomes = {
            "search": self.search_outcomes,
            "guards": self.panel_outcomes,
            "daemon.shadow": self.shadow_outcomes,
        }[module]
        ended = outcomes.pop(0) if outcomes else "done"
        if module == "search":
            self.searches_run += 1
        if ended == "done":
            {"search": self._search, "guards": self._panel, "daemon.shadow": self._shadow}[module](case, out)
        return SimulatedWorker(ended, self.caged and module == "search")

    def find_worker(self, folder: Path, result: str, *_rest: Any) -> SimulatedWorker | None:
        done = (folder / "out" / result).is_file()
        return SimulatedWorker("done", self.caged and result == "result.json") if done else None

    def _search(self, path: Path, out: Path) -> None:
        _search(path, out, self.accuracy)

    def _panel(self, path: Path, out: Path) -> None:
        case = Case.model_validate_json(path.read_bytes())
        panel = case.policy.modification_protocol.evaluation.panel
        names = panel.required_founding if case.founding else panel.required
        report = b"<!doctype html><title>report</title>"
        (out / "report.html").write_bytes(report)
        result = PanelResult(
            candidate=case.candidate,
            verdicts=tuple(
                Verdict(
                    guard=n,
                    clause="MP-5",
                    finding=self.findings.get(n, Finding.PASS),
                    reason="simulated, n=1",
                )
                for n in names
            ),
            report=digest_bytes(report),
            report_json=digest_bytes(b"{}"),
            wall_s=1.0,
        )
        (out / "panel.json").write_bytes(canonical(result))

    def _shadow(self, path: Path, out: Path) -> None:
        case = ShadowCase.model_validate_json(path.read_bytes())
        counts: dict[str, Any] = {
            "rows": 200,
            "looks": 1,
            "disagreed": 60,
            "errors": 0,
            "not_finite": 0,
            "newcomer": Times(p50_ms=1.0, p99_ms=2.0),
            "incumbent": Times(p50_ms=1.0, p99_ms=2.0),
            "ratio": 1.0,
            "ratio_interval": (0.9, 1.1),
            "wall_s": 5.0,
        }
        result = ShadowResult(candidate=case.candidate, bundle=case.newcomer.bundle, **(counts | self.shadow))
        (out / "shadow.json").write_bytes(canonical(result))

    # -- control ----------------------------------------------------------------------------------------

    def boot(self, hook: Callable[[str], None] = lambda _place: None) -> None:
        """Start control over the state folder, as ``daemon.compose`` does."""
        self.hook = hook
        task = load_task(self.law / "task.toml")
        journal = Journal(self.state / "journal.db")
        append = journal.append

        def append_hooked(kind: str, body: dict[str, Any], at: float) -> Any:
            hook(f"before {kind}")
            entry = append(kind, body, at)
            hook(f"after {kind}")
            return entry

        journal.append = append_hooked  # type: ignore[method-assign]
        self.plane.hook = hook
        self.book = Book(journal, self.clock)
        self.blobs = Blobs(self.state / "blobs")
        self.policy = Law(self.law / "policy.toml", self.law / "allowed_signers", task, self.book, self.blobs)
        samples: Any = SimulatedSamples(self.state)
        sensors: Any = SimulatedSensors(self)
        link: Any = self.plane
        self.jobs = Jobs(task, self.policy, self.book, self.blobs, samples, self.state / "jobs", 1)
        self.shadows = Shadows(
            task.model, self.policy, self.book, self.blobs.root, self.state / "spool", self.state / "jobs"
        )
        performer = Performer(
            *(self.book, self.policy, self.jobs, self.shadows, self.blobs, link, task.model),
            self.state / "reports",
        )
        self.turn = Turn(
            self.book,
            self.policy,
            self.jobs,
            self.shadows,
            sensors,
            samples,
            link,
            performer,
            ControlMetrics(task.model),
            hook,
        )
        self.operators = Operators(self.book, self.policy, self.blobs, link, performer)
        self.turn.verify()
        self.jobs.recover()
        self.shadows.recover()

    def turns(self, number: int) -> None:
        """Run turns, one second and one look of the operator each."""
        for _ in range(number):
            self.turn.run()
            self.operator(self)
            self.clock.advance(1.0)

    def found(self) -> None:
        """Run until the first generation is live."""
        for _ in range(40):
            if self.book.ledger.live is not None:
                return
            self.turns(1)
        raise AssertionError(f"no generation went live: {self.stages()}")

    def until(self, stage: Stage, generation: int | None = None) -> None:
        """Run until the open candidate stands in a stage; a generation's, where one is named."""
        for _ in range(40):
            candidate = self.book.ledger.open_candidate
            named = candidate is not None and generation in (None, candidate.generation)
            if named and candidate is not None and candidate.stage is stage:
                return
            self.turns(1)
        raise AssertionError(f"no candidate came to {stage}: {self.stages()}")

    def stages(self) -> dict[str, str]:
        return {c.id: c.stage.value for c in self.book.ledger.candidates.values()}

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.book.journal.entries()]

    def stage_of(self, generation: int) -> str:
        return next(c.stage.value for c in self.book.ledger.candidates.values() if c.generation == generation)

    def signed(self, decision: str = "approve", **changes: Any) -> tuple[str, bytes, str]:
        """Return an open candidate's id with a signed approval of it."""
        candidate = self.book.ledger.open_candidate
        assert candidate is not None
        subject = self.operators.subject(candidate)
        assert subject is not None
        now = self.clock.now()
        plain = {
            "decision": decision,
            "subject": subject,
            "principal": PRINCIPAL,
            "reason": "I looked at it",
            "at": now,
            "expires_at": now + 600.0,
        }
        raw = canonical(Approval.model_validate(plain | changes))
        return candidate.id, raw, sign(self.key, raw, "instar-approve@v1")


def _search(path: Path, out: Path, accuracy: float | None) -> None:
    brief = Brief.model_validate_json(path.read_bytes())
    bundle = f"bundle of {brief.id} seed {brief.seed}".encode()
    files = {"bundle.onnx": bundle, "state.safetensors": b"state", "archive.json": b"{}"}
    for name, raw in files.items():
        (out / name).write_bytes(raw)
    artefact = {name: Artefact(path=name, digest=digest_bytes(raw)) for name, raw in files.items()}
    result = SearchResult(
        brief=brief.id,
        seed=0,
        winner=Genome(space="image", genes=(1, 2, brief.parent_generation)),
        bundle=artefact["bundle.onnx"],
        state=artefact["state.safetensors"],
        archive=artefact["archive.json"],
        evidence=()
        if accuracy is None
        else (Evidence(name="accuracy_search", value=accuracy, unit="share", n=400),),
        points=(),
        cpu_s=12.5,
        wall_s=20.0,
        architectures=100,
        versions={},
        phases_s={},
    )
    (out / "result.json").write_bytes(canonical(result))


def approve_all(host: Host) -> None:
    """Say yes to whatever waits for it."""
    candidate = host.book.ledger.open_candidate
    if candidate is not None and candidate.stage.value == "CLEARED" and not candidate.approvals:
        host.operators.approve(*host.signed())


def nobody(_host: Host) -> None:
    """Have no operator at hand."""
