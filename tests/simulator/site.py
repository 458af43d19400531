"""A small site over real processes: a data plane, a control plane, a camera and an approver, on free ports.

The policy is the example's with small counts and budgets, so that a whole loop takes about a minute. What it
decides with is otherwise the same.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from scipy.ndimage import rotate

from daemon.store.journal import Entry
from guards.signing import make_key, sign
from policies.lifecycle import Stage
from policies.terms import Approval, Subject
from policies.wire import canonical

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "meter-reader"
PRINCIPAL = "UnsafeDemoApprover"
DEADLINE_S = 240.0
PAUSE_S = 0.05

SMALL = {
    "false_alarm_every": "20000",
    "min_reference_rows": "1000",
    "min_train_rows": "450",
    "min_search_rows": "100",
    "min_gate_rows": "300",
    "block_rows": "10",
    "window_rows": "300",
    "founding_cpu_s": "16.0",
    "budget_cpu_s": "20.0",
    "cooldown_s": "5.0",
    "hold_s": "0.5",
    "min_requests": "60",
    "min_labels": "30",
    "margin": "0.05",
    "min_accuracy": "0.60",
}
"""Keys of the example's policy, and what a small site says instead."""


def small_policy(**more: str) -> str:
    """Return the example's policy with small counts."""
    text = (EXAMPLE / "policy.toml").read_text()
    for key, value in (SMALL | more).items():
        text, count = re.subn(rf"(?m)^{key} = \S+", f"{key} = {value}", text)
        assert count, f"expected {key} in the policy"
    return text


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Camera(threading.Thread):
    """Posts one digit after the other over one connection, and its label at once; counts what fails."""

    def __init__(self, port: int, labels_port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._labels = labels_port
        with np.load(EXAMPLE / "digits.npz") as digits:
            self._x, self._y = digits["x"][6000:], digits["y"][6000:]
        self._rng = np.random.default_rng(7)
        self._ended = threading.Event()
        self.drifted = False
        self.sent = 0
        self.failed: list[str] = []
        self.versions: list[str] = []
        self.pause_s = 0.004

    def run(self) -> None:
        """Send until told to stop."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        waiting: list[dict[str, Any]] = []
        while not self._ended.wait(self.pause_s):
            place = int(self._rng.integers(len(self._x)))
            name = f"r{self.sent}"
            self._ask(connection, name, place)
            waiting.append({"id": name, "label": int(self._y[place])})
            self.sent += 1
            if len(waiting) >= 25 and self._post(waiting):
                waiting = []
        connection.close()

    def stop(self) -> None:
        """Stop sending and wait for the last answer."""
        self._ended.set()
        self.join(timeout=20)

    def _ask(self, connection: http.client.HTTPConnection, name: str, place: int) -> None:
        body = {
            "id": name,
            "parameters": {"group": f"meter-{place}"},
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 28, 28],
                    "data": self._picture(place).ravel().tolist(),
                }
            ],
        }
        try:
            connection.request("POST", "/v2/models/meter-reader/infer", json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(repr(error))
            connection.close()
            return
        if answer.status != 200:
            self.failed.append(f"{answer.status} {text[:200]!r}")
        else:
            self.versions.append(json.loads(text)["model_version"])

    def _picture(self, place: int) -> np.ndarray:
        angle = float(self._rng.uniform(-6, 6)) + (35.0 if self.drifted else 0.0)
        turned = rotate(self._x[place].astype(np.float32), angle, reshape=False, order=1)
        gain = float(self._rng.uniform(0.9, 1.1)) * (0.5 if self.drifted else 1.0)
        noise = self._rng.normal(0, 5, turned.shape)
        return np.clip(turned * gain + noise, 0, 255).astype(np.uint8)

    def _post(self, labels: list[dict[str, Any]]) -> bool:
        try:
            answer = httpx.post(
                f"http://127.0.0.1:{self._labels}/api/v1/tasks/meter-reader/labels",
                json={"labels": labels},
                timeout=10,
            )
        except httpx.TransportError:
            return False  # control is down: the labels wait, as a real sender's would
        return answer.status_code == 200


class Site:
    """The processes of one site; a context manager that leaves none behind."""

    def __init__(self, folder: Path, **policy: str) -> None:
        self.state = folder / "state"
        self.law = folder / "law"
        self.law.mkdir(parents=True)
        self.state.mkdir()
        for name in ("task.toml", "digits.npz"):
            (self.law / name).symlink_to(EXAMPLE / name)
        make_key(self.law / "approver", PRINCIPAL)
        self.key = (self.law / "approver").read_bytes()
        public = (self.law / "approver.pub").read_text().split()
        (self.law / "allowed_signers").write_text(f"{PRINCIPAL} {public[0]} {public[1]}\n")
        text = small_policy(**policy)
        (self.law / "policy.toml").write_text(text)
        (self.law / "policy.toml.sig").write_text(sign(self.key, text.encode(), "instar-policy@v1"))
        self.ports = {name: free_port() for name in ("rest", "metrics", "control")}
        self.serve: subprocess.Popen[bytes] | None = None
        self.control: subprocess.Popen[bytes] | None = None
        self.camera = Camera(self.ports["rest"], self.ports["control"])
        self.approving = True

    def __enter__(self) -> Self:
        self.start_serve()
        self.start_control()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.camera.is_alive():
            self.camera.stop()
        for process in (self.control, self.serve):
            if process is not None and process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def start_serve(self) -> None:
        """Start the data plane."""
        self.serve = self._start(
            "instar-serve",
            *("--state", str(self.state), "--model", "meter-reader"),
            *("--listen", f"127.0.0.1:{self.ports['rest']}"),
            *("--metrics", f"127.0.0.1:{self.ports['metrics']}"),
        )

    def start_control(self) -> None:
        """Start the control plane."""
        self.control = self._start("instard", *self.control_args())

    def control_args(self) -> tuple[str, ...]:
        """Return the control plane's flags."""
        return (
            *("--state", str(self.state), "--task", str(self.law / "task.toml")),
            *("--policy", str(self.law / "policy.toml"), "--signers", str(self.law / "allowed_signers")),
            *("--listen", f"127.0.0.1:{self.ports['control']}", "--turn-s", "0.25"),
        )

    def kill_control(self) -> None:
        """Kill the control plane as a power cut would, and start it again."""
        assert self.control is not None
        self.control.send_signal(signal.SIGKILL)
        self.control.wait()
        self.start_control()

    def kill_search(self) -> None:
        """Kill the search worker that is at work."""
        pids = [int(path.read_text()) for path in self.state.glob("jobs/search-*/pid")]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        command = Path(sys.executable).with_name(name)
        with (self.state / f"{name}.log").open("ab") as log:
            return subprocess.Popen([str(command), *argv], stdout=log, stderr=log)

    # -- looking ----------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Return the journal as it lies on the disk."""
        path = self.state / "journal.db"
        if not path.is_file():
            return []
        query = "SELECT seq, at, kind, body, prev, digest FROM entries ORDER BY seq"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            rows = journal.execute(query).fetchall()
        return [Entry(seq, at, kind, json.loads(body), prev, own) for seq, at, kind, body, prev, own in rows]

    def status(self) -> dict[str, Any] | None:
        """Return control's status, or None while it is down."""
        if not self._answers():
            return None
        transport = httpx.HTTPTransport(uds=str(self.state / "run" / "control.sock"))
        with httpx.Client(transport=transport, base_url="http://control", timeout=10) as client:
            try:
                found: dict[str, Any] = client.get("/v1/status").json()
            except httpx.TransportError:
                return None
            if self.approving:
                self._approve(client, found["open_candidate"])
            return found

    def _answers(self) -> bool:
        """Knock first: httpx leaves its own socket open when nobody is there."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
            return knock.connect_ex(str(self.state / "run" / "control.sock")) == 0

    def wait(self, until: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Look until a status is as wanted; fail with the site's last words after ``DEADLINE_S``."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            found = self.status()
            if found is not None and until(found):
                return found
            assert self.serve is not None
            assert self.serve.poll() is None, self.words()
            time.sleep(PAUSE_S)
        raise AssertionError(f"not within {DEADLINE_S:.0f} s: {what}\n{self.words()}")

    def words(self) -> str:
        """Return what the processes said last."""
        logs = [self.state / "instard.log", self.state / "instar-serve.log", *self.state.glob("jobs/*/log")]
        return "\n".join(f"== {log.name}\n{log.read_text()[-2500:]}" for log in logs if log.is_file())

    def _approve(self, client: httpx.Client, candidate: dict[str, Any] | None) -> None:
        if candidate is None or candidate["stage"] != Stage.CLEARED or candidate["approvals"]:
            return
        name, raw, signature = self.signed(client, candidate["id"])
        client.post(f"/v1/candidates/{name}/approval", json={"approval": raw, "signature": signature})

    def signed(self, client: httpx.Client, name: str, decision: str = "approve") -> tuple[str, str, str]:
        """Return an id with a signed approval of it."""
        subject = client.get(f"/v1/candidates/{name}").json()["subject"]
        now = time.time()
        plain = {
            "decision": decision,
            "subject": Subject.model_validate(subject),
            "principal": PRINCIPAL,
            "reason": "the simulated operator looked at it",
            "at": now,
            "expires_at": now + 600,
        }
        raw = canonical(Approval.model_validate(plain))
        return name, raw.decode(), sign(self.key, raw, "instar-approve@v1")
