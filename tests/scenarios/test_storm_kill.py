"""The control plane killed in the middle of traffic: serving does not notice, whatever was under way.

* ``instar-serve`` and ``instard`` are real processes over one state; only how two generations came to be in
  its journal was simulated.
* ``instard`` is killed three times: while all is quiet, the moment that it has taken a rollback, and in the
  probation after it. Every request is accounted for, as in ``test_storm``.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.control import workers
from daemon.store.journal import verify
from policies.clock import StandingClock
from policies.terms import Deployment, Slot
from tests.serving.conftest import Forge, Process
from tests.serving.wire import until
from tests.simulator.account import Course, Model
from tests.simulator.host import EXAMPLE, Host
from tests.simulator.instard import forge_bundles
from tests.simulator.site import free_port
from tests.simulator.storm import MODEL, Storm, counters, pictures

CLIENTS, STRETCH, STORM_S = 2, 800, 120.0


class Control:
    """A real ``instard`` over a simulated host's state."""

    def __init__(self, host: Host) -> None:
        self._state = host.state
        flags = {
            "state": host.state,
            "task": host.law / "task.toml",
            "policy": host.law / "policy.toml",
            "signers": host.law / "allowed_signers",
            "listen": f"127.0.0.1:{free_port()}",
            "turn-s": 0.25,
        }
        self._command = [str(Path(sys.executable).with_name("instard"))]
        self._command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes orders."""
        with (self._state / "instard.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until(lambda: self._answers(), 60.0)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        assert self._process.poll() is None, self.words()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def stop(self) -> None:
        """End it in peace, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)

    def rollback(self) -> None:
        """Order the way back, as an operator does."""
        with self._door() as door:
            order = {"by": "an operator", "reason": "the storm wants a way back"}
            answer = door.post("/v1/rollback", json=order)
        assert answer.status_code == 200, answer.text

    def words(self) -> str:
        """Return what it said last."""
        return (self._state / "instard.log").read_text()[-3000:]

    def _door(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self._state / "run" / "control.sock"))
        return httpx.Client(transport=transport, base_url="http://control", timeout=30)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.words()
        # Knocked first: httpx leaves its own socket open when nobody is there.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
            if knock.connect_ex(str(self._state / "run" / "control.sock")) != 0:
                return False
        with self._door() as door:
            return door.get("/v1/status").status_code == 200


@contextlib.contextmanager
def lived(folder: Path) -> Iterator[tuple[Host, dict[int, Model]]]:
    """Return a host in whose journal generation 2 has followed 1, and the models of both and of a third."""
    with pytest.MonkeyPatch.context() as patch:
        made = forge_bundles(patch, Forge(folder / "forge"))
        host = Host(folder / "host")
        shutil.copy(EXAMPLE / "digits.npz", host.law / "digits.npz")
        host.clock = StandingClock(time.time() - 3600.0)
        host.start = host.clock.now()
        patch.setattr(workers, "start", host.run_worker)
        patch.setattr(workers, "find", host.find_worker)
        host.boot()
        host.found()
        for _ in range(60):
            host.turns(1)
            live, first = host.book.ledger.live, host.book.ledger.previous
            if live is not None and live.generation == 2 and host.book.ledger.open_candidate is None:
                break
        assert live is not None
        assert first is not None
        assert (first.generation, live.generation) == (1, 2)
        host.book.journal.close()
    seen = pictures()
    bundles = {generation: made[digest] for generation, digest in ((1, first.bundle), (2, live.bundle))}
    models = {number: Model.of(tiny.digest, tiny.raw, seen) for number, tiny in bundles.items()}
    # A rollback gives old bytes a new number.
    yield host, models | {3: models[1]}


def _deployment(stable: Slot, newcomer: Slot | None) -> Deployment:
    return Deployment(
        revision=1,
        model=MODEL,
        stable=stable,
        newcomer=newcomer,
        newcomer_share=0.0 if newcomer is None else 1.0,
        previous=None,
    )


def served(observed: dict[str, Any]) -> int:
    """Return the generation that has all the traffic, 0 when it is shared."""
    if observed["newcomer"] is None or observed["newcomer_share"] == 0.0:
        return int(observed["stable"]["generation"])
    return int(observed["newcomer"]["generation"]) if observed["newcomer_share"] == 1.0 else 0


@pytest.mark.scenario
@pytest.mark.timeout(300)
def test_a_killed_instard_costs_no_request_and_its_successor_serves_the_same(tmp_path: Path) -> None:
    with lived(tmp_path) as (host, models), contextlib.ExitStack() as stack:
        server = Process(host.state, "--grpc", "127.0.0.1:0")
        stack.callback(lambda: server.popen.poll() is None and server.end())
        control, course = Control(host), Course()
        stack.callback(control.stop)
        course.models = models
        observed = server.admin.observed
        control.start()
        until(lambda: observed()["ready"], 60.0)
        stable = Slot.model_validate(observed()["stable"])
        assert stable == Slot(generation=2, bundle=models[2].digest)
        course.add(_deployment(stable, None), 0.0, 0.0)

        storm = Storm(server.base.removeprefix("http://"), server.grpc, pictures(), CLIENTS, course)
        storm.wind.pinned(2)
        deadline = time.monotonic() + STORM_S

        def blow() -> None:
            storm.wind.pass_by(STRETCH, deadline)

        with storm:
            blow()
            before = observed()
            control.kill()
            blow()
            assert observed() == before
            control.start()
            blow()
            assert observed() == before

            ordered = time.monotonic()
            storm.wind.pinned(None)
            control.rollback()
            control.kill()
            blow()
            control.start()
            until(lambda: served(observed()) == 3, 60.0)
            newcomer = Slot(generation=3, bundle=models[3].digest)
            course.add(_deployment(stable, newcomer), ordered, time.monotonic())
            blow()

            control.kill()
            blow()
            assert served(observed()) == 3
            control.start()
            blow()
            assert served(observed()) == 3
        control.stop()
        account = storm.account()
        assert account.faults[:5] == [], control.words()
        assert account.asked == account.right
        assert {generation for generation, _ in account.settled.values()} == {2, 3}
        text = httpx.get(server.metrics_base + "/metrics", timeout=60).text
        told = {name: count for name, count in counters(text, "requests", "outcome").items() if count}
        assert told == {"ok": account.right} | dict(account.refused)
        assert verify(host.state / "journal.db").valid
