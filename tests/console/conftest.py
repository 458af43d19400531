"""A control plane that is only its socket: what it says is set by the test, what it is told is kept."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from policies.status import Blocked, CandidateView, Freeze, Status, Swap
from policies.terms import (
    Evidence,
    Finding,
    Genome,
    Level,
    Signal,
    Subject,
    Trigger,
    TriggerKind,
    Verdict,
)
from policies.wire import digest_bytes

NOW = 1_800_000_000.0


def digest_of(name: str) -> str:
    """Return a digest that stands for a name."""
    return digest_bytes(name.encode())


def signal(monitor: str, level: Level, score: float | None, reason: str) -> Signal:
    return Signal(
        monitor=monitor, level=level, score=score, since=NOW - 190, at=NOW, n=5000, reason=reason, facts={}
    )


DRIFT = signal("drift", Level.ALARM, 2.31, "embedding channel 7 left its reference: score 2.31 (n=5000)")
ERRORS = signal("errors", Level.WARNING, 0.83, "accuracy 0.86 [0.82, 0.89], reference 0.97 (n=500)")
LATENCY = signal("latency", Level.QUIET, 0.12, "burn rate 0.3, alarm at 2.5 (n=1000)")


def verdict(guard: str, clause: str, finding: Finding, reason: str, *evidence: Evidence) -> Verdict:
    return Verdict(guard=guard, clause=clause, finding=finding, reason=reason, evidence=evidence)


def candidate(name: str = "adapt-1800000000", stage: str = "CLEARED", **changes: Any) -> CandidateView:
    facts: dict[str, Any] = {
        "id": name,
        "stage": stage,
        "since": NOW - 65,
        "reason": "all guards pass",
        "trigger": Trigger(
            id="data-1799999800",
            kind=TriggerKind.DATA,
            at=NOW - 200,
            clause="MP-3.1",
            reason="drift alarms and accuracy fell by at least 0.05",
            signals=(DRIFT, ERRORS),
            policy=digest_of("policy"),
            generation=1,
        ),
        "genome": Genome(space="image", genes=(1, 0, 2, 3, 1)),
        "bundle": digest_of("bundle"),
        "dossier": digest_of("dossier"),
        "report": None,
        "generation": None,
        "expires_at": NOW + 1735,
        "approvals": (),
        "quorum": 1,
        "verdicts": (
            verdict("integrity", "MP-5.1", Finding.PASS, "one file, 14 nodes, all of allowed kinds"),
            verdict(
                "latency",
                "MP-5.4",
                Finding.PASS,
                "p99 0.41 ms, ceiling 5 ms (n=400)",
                Evidence(name="p99", value=0.41, unit="ms", n=400, limit=5.0),
                Evidence(name="ratio of medians", value=1.08, unit="1", n=400, limit=1.5),
            ),
            verdict(
                "incumbent",
                "MP-5.6",
                Finding.PASS,
                "better by 0.113 on what it sees now; lower bound 0.094 above -0.03 (n=1012)",
                Evidence(
                    name="difference", value=0.113, unit="1", n=1012, interval=(0.094, 1.0), limit=-0.03
                ),
            ),
        ),
    }
    return CandidateView(**(facts | changes))


def subject(view: CandidateView, report: str | None = None) -> Subject:
    return Subject(
        candidate=view.id,
        bundle=view.bundle or "",
        incumbent=digest_of("incumbent"),
        policy=digest_of("policy"),
        dossier=view.dossier or "",
        report=report or digest_of("report"),
        nonce="0123456789abcdef",
    )


def status(**changes: Any) -> Status:
    facts: dict[str, Any] = {
        "at": NOW,
        "task": "meter-reader",
        "model": "meter-reader",
        "generation": 1,
        "bundle": digest_of("incumbent"),
        "stage": "LIVE",
        "phase": "watching",
        "frozen": None,
        "open_candidate": None,
        "drift": Level.QUIET,
        "signals": (signal("drift", Level.QUIET, 0.34, "no channel moved (n=5000)"), LATENCY),
        "reference_rows": 5000,
        "reference_needed": 5000,
        "last_swap": Swap(at=NOW - 7260, generation=1, candidate="founding-1799990000", kind="founding"),
        "blocked": (),
        "serving": "ok",
        "newcomer_share": 0.0,
        "search_cpu_s_today": 214.0,
        "search_cpu_s_budget": 3600.0,
        "swaps_today": 1,
        "swaps_allowed": 4,
        "policy": digest_of("policy"),
        "policy_version": 3,
        "policy_problem": None,
        "journal_entries": 61,
        "journal_valid": True,
        "demo_key": False,
        "trust": "/etc/instar/allowed_signers",
        "pid": 4242,
        "version": "0.1.0",
    }
    return Status(**(facts | changes))


def busy_status(**changes: Any) -> Status:
    """Return the middle of the story: drift alarms, a candidate waits for a signature, a demo key."""
    view = candidate()
    facts: dict[str, Any] = {
        "phase": "approval",
        "stage": "CLEARED",
        "drift": Level.ALARM,
        "signals": (DRIFT, ERRORS, LATENCY),
        "open_candidate": view,
        "demo_key": True,
        "trust": "demo key (.instar/demo/demo/allowed_signers)",
        "blocked": (
            Blocked(
                what=f"candidate {view.id} waits for approval",
                why="0 of 1 signatures (MP-6), 1735 s left",
                remedy=f"instar approve {view.id} --key KEY --reason …, or instar decline",
            ),
        ),
    }
    return status(**(facts | changes))


def frozen_status() -> Status:
    return status(
        frozen=Freeze(at=NOW - 30, by="ada", reason="the camera is being moved"),
        blocked=(Blocked(what="adaptation is frozen", why="by ada", remedy="instar thaw --reason …"),),
    )


def entries(count: int) -> list[dict[str, Any]]:
    made = []
    for seq in range(1, count + 1):
        moved = {
            "candidate": "adapt-1800000000",
            "from": "EXPORTED",
            "to": "CLEARED",
            "reason": "all guards pass",
        }
        alarm = {
            "monitor": "drift",
            "level": "alarm",
            "score": 2.31,
            "reason": "channel 7 left its reference",
        }
        made.append(
            {
                "seq": seq,
                "at": NOW - 10 * (count - seq),
                "kind": "signal" if seq % 3 else "candidate.moved",
                "body": alarm if seq % 3 else moved,
                "prev": digest_of(f"entry {seq - 1}"),
                "digest": digest_of(f"entry {seq}"),
            }
        )
    return made


@dataclass
class FakeControl:
    """What control would say, and what it was told."""

    state: Path
    status: Status = field(default_factory=status)
    candidates: list[CandidateView] = field(default_factory=list)
    subject: Subject | None = None
    entries: list[dict[str, Any]] = field(default_factory=lambda: entries(61))
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    told: list[tuple[str, Any]] = field(default_factory=list)

    def get(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path in self.answers:
            return self.answers[path]
        match path.split("/")[2:]:
            case ["status"]:
                return 200, self.status.model_dump(mode="json")
            case ["candidates"]:
                return 200, [view.model_dump(mode="json") for view in self.candidates]
            case ["candidates", name]:
                return self._find(name)
            case ["history"]:
                after, limit = int(query["after"][0]), int(query["limit"][0])
                kind = query.get("kind", [None])[0]
                found = [e for e in self.entries if e["seq"] > after and kind in (None, e["kind"])]
                return 200, found[:limit]
        return 404, {"error": f"no such page: {path}"}

    def _find(self, prefix: str) -> tuple[int, Any]:
        found = [view for view in self.candidates if view.id.startswith(prefix)]
        if len(found) != 1:
            told = f"expected {prefix!r} to name one candidate, {len(found)} do; see instar candidates"
            return 409, {"error": told}
        plain = None if self.subject is None else self.subject.model_dump(mode="json")
        return 200, {"candidate": found[0].model_dump(mode="json"), "subject": plain}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        self.told.append((path, body))
        if path in self.answers:
            return self.answers[path]
        if path.endswith("/approval"):
            decision = json.loads(body["approval"])["decision"]
            return 200, {"seq": 62, "state": "approved" if decision == "approve" else "declined"}
        if path == "/v1/policy/reload":
            return 200, {"digest": digest_of("policy 4"), "version": 4}
        return 200, {"seq": 62}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = True


def _handler(control: FakeControl) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self._answer(*control.get(parts.path, parse_qs(parts.query)))

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            self._answer(*control.post(self.path, json.loads(raw)))

        def _answer(self, code: int, body: Any) -> None:
            if code == 0:  # hang up without a word, after the order was read
                return
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def control(tmp_path: Path) -> Iterator[FakeControl]:
    """A control plane's socket in a state folder of its own."""
    fake = FakeControl(tmp_path)
    (tmp_path / "run").mkdir()
    with _Server(str(tmp_path / "run" / "control.sock"), _handler(fake)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Instar = Callable[..., Outcome]


@pytest.fixture
def instar(
    control: FakeControl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Instar:
    """Run ``instar`` against the fake control plane."""
    from daemon.console.cli import main

    monkeypatch.setenv("INSTAR_STATE", str(control.state))
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*argv: str) -> Outcome:
        code = main(list(argv))
        seen = capsys.readouterr()
        return Outcome(code, seen.out, seen.err)

    return run


class Made:
    """The builders above, for tests: modules under importlib mode cannot import one another."""

    now = NOW
    candidate = staticmethod(candidate)
    subject = staticmethod(subject)
    status = staticmethod(status)
    busy_status = staticmethod(busy_status)
    frozen_status = staticmethod(frozen_status)
    entries = staticmethod(entries)
    digest_of = staticmethod(digest_of)
    signal = staticmethod(signal)


@pytest.fixture
def made() -> type[Made]:
    """The builders of terms."""
    return Made
