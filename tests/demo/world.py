"""A daemon that plays a script: status and journal behind a UNIX socket, and a camera's record that grows.

Its journal is a real one, and it checks approvals as control does. Time moves only when the story waits.
"""

import json
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np

from daemon.console.demo.processes import Processes
from daemon.console.demo.scene import Scene, prepare
from daemon.console.demo.wishes import Ports, Wishes
from daemon.store.journal import Journal
from guards import approval
from guards.signing import Signers
from policies.clauses import Policy
from policies.clock import StandingClock
from policies.document import load
from policies.errors import InstarError
from policies.status import CandidateView, Status
from policies.terms import Approval, Genome, Level, Subject, Trigger, TriggerKind

DIGEST = "sha256:" + "a" * 64
GENOME = Genome(space="image", genes=(1, 2, 3))


def wishes(state: Path, example: Path, **other: Any) -> Wishes:
    plain: dict[str, Any] = {
        "rate": 100.0,
        "drift": "tilt-fade",
        "strength": 1.0,
        "budget_cpu_s": None,
        "seed": 1,
        "quiet_s": 20.0,
        "wait_for_me": False,
        "leave": True,
        "keep": False,
        "ports": Ports(1, 2, 3),
    }
    return Wishes(state=state, example=example, **(plain | other))


class FakeProcesses(Processes):
    """Starts nothing; tells the world what was asked for."""

    def __init__(self, world: "World") -> None:
        super().__init__(world.scene.logs)
        self.world = world
        self.started: dict[str, Sequence[str]] = {}

    def start(self, name: str, argv: Sequence[str], *, passing: bool = False) -> None:
        self.started[name] = argv
        if name == "oracle":
            said = {"accuracy": self.world.oracle, "n": 800, "cpu_s": 60.0, "epochs": 9.0}
            Path(argv[-1]).write_text(json.dumps(said))
        if name == "camera":
            self.world.filming = True

    def tell(self, name: str, line: str) -> None:
        self.world.drift_at = self.world.clock.now() + 1.0

    def ended(self, name: str) -> bool:
        return True

    def check(self) -> None:
        self.world.checks += 1

    def stop(self, *names: str) -> None:
        self.world.filming = False


@dataclass
class World:
    """The script: what comes after how many seconds; knobs make it go wrong."""

    scene: Scene
    wishes: Wishes
    clock: StandingClock = field(default_factory=StandingClock)
    ready: bool = False
    filming: bool = False
    drift_at: float | None = None
    right: tuple[float, float, float] = (0.97, 0.64, 0.96)
    oracle: float = 0.97
    false_trigger_after: float | None = None
    fail_request: int | None = None
    answers: bool = True
    guards: str = "pass"
    phase: str = "founding"
    candidate: str | None = None
    stage: str = ""
    generation: int | None = None
    sent: int = 0
    checks: int = 0
    refused: list[str] = field(default_factory=list)
    approved: list[Approval] = field(default_factory=list)
    policy: Policy = field(init=False)
    digest: str = field(init=False)
    journal: Journal = field(init=False)
    lock: Any = field(default_factory=threading.RLock)
    _due: list[tuple[float, Any]] = field(default_factory=list)

    @classmethod
    def make(cls, state: Path, example: Path, **other: Any) -> "World":
        flags = wishes(state, example, **other)
        world = cls(prepare(flags), flags)
        world.policy, world.digest = load(world.scene.folder / "policy.toml")
        world.journal = Journal(world.scene.journal)
        world._start_search("founding", 1)
        return world

    # -- time -------------------------------------------------------------------------------------------

    def pause(self, _seconds: float) -> None:
        """Let one second pass."""
        with self.lock:
            self.clock.advance(1.0)
            now = self.clock.now()
            if self.filming:
                self._film(now)
            due = [act for at, act in self._due if at <= now]
            self._due = [(at, act) for at, act in self._due if at > now]
            for act in due:
                act()
            drifted = self.drift_at is not None and now > self.drift_at + 25
            if drifted and self.phase == "watching" and self.generation == 1 and not self._due:
                self._write("signal", monitor="drift", level="alarm", score=2.0, reason="far off")
                self._trigger("data-1")
                self._start_search("data", 2)

    def later(self, seconds: float, act: Any) -> None:
        self._due.append((self.clock.now() + seconds, act))

    def _film(self, now: float) -> None:
        level = 0.0 if self.drift_at is None else min(1.0, max(0.0, (now - self.drift_at) / 20))
        with self.scene.requests.open("a") as file:
            for k in range(100):
                n = self.sent
                self.sent += 1
                generation = self.generation or 1
                rate = self.right[2] if generation > 1 else self.right[0] if level < 1 else self.right[1]
                failed = n == self.fail_request
                record = {"n": n, "at": now + k / 100, "ms": 1.0 + k / 100, "wire_ms": 1.0}
                record |= {"status": 0 if failed else 200, "generation": None if failed else generation}
                record |= {"right": k < round(100 * rate), "level": level}
                file.write(json.dumps(record) + "\n")

    # -- the script -------------------------------------------------------------------------------------

    def _write(self, kind: str, /, **body: Any) -> None:
        self.journal.append(kind, body, self.clock.now())

    def _trigger(self, name: str, kind: str = "data") -> None:
        self._write("trigger", id=name, kind=kind, reason="it is so", clause="MP-3.1")

    def _start_search(self, kind: str, number: int) -> None:
        if kind == "founding":
            self._write("policy.loaded", digest=self.digest, version=1, signer="UnsafeDemoApprover")
            self._trigger("founding-1", "founding")
        self.phase = "founding" if kind == "founding" else "searching"
        self._write("search.started", id=f"search-{number}", kind=kind, budget_cpu_s=45.0, attempt=1)
        self.later(5, lambda: self._propose(kind, number))

    def _propose(self, kind: str, number: int) -> None:
        self._write(
            "search.ended", id=f"search-{number}", outcome="done", kind=kind, cpu_s=40.0 + number, wall_s=5.0
        )
        self.candidate = f"c{number}-abc"
        record = {"kind": "founding" if kind == "founding" else "adaptation"}
        self._move("PROPOSED", record=record)
        self._move("EXPORTED")
        self.phase = "judging"
        self.later(3, self._clear)

    def _clear(self) -> None:
        self._write(
            "dossier.sealed", candidate=self.candidate, digest=DIGEST, findings={"parity": self.guards}
        )
        if self.guards != "pass":
            self._move("REJECTED")
            return
        self._move("CLEARED")
        self.phase = "approval"

    def _move(self, to: str, reason: str = "because", **other: Any) -> None:
        source = None if to == "PROPOSED" else self.stage
        self._write(
            "candidate.moved", candidate=self.candidate, **{"from": source, "to": to}, reason=reason, **other
        )
        self.stage = to

    def _stage(self) -> None:
        self._move("APPROVED")
        self._write("deploy.done", revision=1)
        self._move("STAGED", generation=(self.generation or 0) + 1)
        self._write("deploy.done", revision=2)
        self._move("PROBATION")
        self.phase = "probation"
        if self.generation is None:
            self.ready = True
        self.later(6, self._go_live)

    def _go_live(self) -> None:
        self._move("LIVE")
        self.generation = (self.generation or 0) + 1
        self.phase = "commissioning"
        self.later(4, self._seal)

    def _seal(self) -> None:
        self._write("reference.sealed", generation=self.generation, rows=5000, arl0=50_000.0)
        self.phase = "watching"
        if self.generation == 1 and self.false_trigger_after is not None:
            self.later(self.false_trigger_after, lambda: self._trigger("data-0"))

    # -- the door ---------------------------------------------------------------------------------------

    def subject(self) -> Subject:
        return Subject(
            candidate=self.candidate,
            bundle=DIGEST,
            incumbent=None,
            policy=self.digest,
            dossier=DIGEST,
            report=DIGEST,
            nonce="0123456789abcdef",
        )

    def view(self) -> CandidateView:
        founding = self.generation is None
        trigger = Trigger(
            id="t",
            kind=TriggerKind.FOUNDING if founding else TriggerKind.DATA,
            at=self.clock.now(),
            clause="MP-3",
            reason="it is so",
            signals=(),
            policy=self.digest,
            generation=self.generation or 0,
        )
        return CandidateView(
            id=self.candidate,
            stage=self.stage,
            since=self.clock.now(),
            reason="because",
            trigger=trigger,
            genome=GENOME,
            bundle=DIGEST,
            dossier=DIGEST,
            report=None,
            generation=None,
            expires_at=None,
            approvals=(),
            quorum=1,
            verdicts=(),
        )

    def status(self) -> Status:
        opened = self.candidate is not None and self.stage not in ("LIVE", "REJECTED")
        return Status(
            at=self.clock.now(),
            task="meter-reader",
            model="meter-reader",
            generation=self.generation,
            bundle=None if self.generation is None else DIGEST,
            stage=None,
            phase=self.phase,
            frozen=None,
            open_candidate=self.view() if opened else None,
            drift=Level.QUIET,
            signals=(),
            reference_rows=10,
            reference_needed=5000,
            last_swap=None,
            blocked=(),
            serving="ok",
            newcomer_share=0.0,
            search_cpu_s_today=0.0,
            search_cpu_s_budget=400.0,
            swaps_today=0,
            swaps_allowed=6,
            policy=self.digest,
            policy_version=1,
            policy_problem=None,
            journal_entries=1,
            journal_valid=True,
            demo_key=True,
            trust="demo key",
            pid=1,
            version="0",
        )

    def get(self, path: str) -> Any:
        if path == "/v1/status":
            return self.status().model_dump(mode="json")
        if path.startswith("/v1/history"):
            after = int(path.partition("after=")[2].partition("&")[0])
            return [vars(entry) for entry in self.journal.entries(after=after, limit=500)]
        return {
            "candidate": self.view().model_dump(mode="json"),
            "subject": self.subject().model_dump(mode="json"),
        }

    def post(self, body: dict[str, str]) -> tuple[int, Any]:
        try:
            said = approval.verify(
                body["approval"].encode(),
                body["signature"],
                signers=Signers.parse((self.scene.folder / "allowed_signers").read_text()),
                clause=self.policy.modification_protocol.approval,
                subject=self.subject(),
                now=self.clock.now(),
                spent_nonces=(),
            )
        except InstarError as error:
            self.refused.append(str(error))
            return 403, {"error": str(error)}
        self.approved.append(said)
        self._write(
            "approval.received", candidate=self.candidate, principal=said.principal, decision=said.decision
        )
        if said.decision == "approve":
            self.later(1, self._stage)
        else:
            self._move("REJECTED", reason=f"declined by {said.principal}: {said.reason}")
        return 200, {"seq": 1, "state": "approved"}

    @contextmanager
    def door(self) -> Iterator[None]:
        """Serve the socket until the block ends."""
        self.scene.socket.parent.mkdir(parents=True, exist_ok=True)
        server = _Server(str(self.scene.socket), _handler(self))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            self.journal.close()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def get_request(self) -> tuple[Any, Any]:
        request, _ = super().get_request()
        return request, ("local", 0)


def _handler(world: World) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not world.answers:
                self.close_connection = True
                return
            with world.lock:
                self._answer(200, world.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with world.lock:
                self._answer(*world.post(body))

        def _answer(self, code: int, body: Any) -> None:
            raw = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            """Stay silent."""

    return Handler


def picture(n: int = 1) -> np.ndarray[Any, Any]:
    """A white bar, upright, on black."""
    x = np.zeros((n, 28, 28), np.uint8)
    x[:, 6:22, 13:15] = 200
    return x
