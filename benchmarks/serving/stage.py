"""What every serving benchmark sets up: bundles in a state folder, a server on one core, what it shall serve.

* `put` lays a bundle where ``instar-serve`` looks for it, `start` starts one, `apply` says what it serves, as
  control would over the admin socket.
* A server runs on ``SERVER_CORE`` and everything that asks it on ``CLIENT_CORE``, so that neither has the
  other's time.
* `supports` tells whether today's ``instar-serve`` has a flag; nothing is measured of one that it has not.
"""

import functools
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from policies.errors import PermanentError
from policies.terms import Deployment, Slot
from policies.wire import canonical, digest_bytes

ROOT = Path(__file__).resolve().parents[2]
SERVER_CORE, CLIENT_CORE = 0, 1
HOST = "127.0.0.1"
_STOP_S = 30.0
_SERVE = (sys.executable, "-m", "daemon.serving.main")


@dataclass(frozen=True)
class Served:
    """A server that runs: where it listens, and where its state lies. ``grpc`` is None without that door."""

    process: subprocess.Popen[str]
    host: str
    port: int
    grpc: int | None
    state: Path

    def stop(self) -> None:
        """End it, and wait until it has drained."""
        self.process.terminate()
        self.process.wait(_STOP_S)


def put(state: Path, raw: bytes) -> str:
    """Put a bundle into the state's blobs; return its digest."""
    digest = digest_bytes(raw)
    hexes = digest.removeprefix("sha256:")
    path = state / "blobs" / "sha256" / hexes[:2] / hexes[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return digest


def start(state: Path, model: str, *flags: str, grpc: bool = False) -> Served:
    """Start ``instar-serve`` on ``SERVER_CORE`` with free ports.

    Args:
        state: Its state folder.
        model: The name that clients use.
        *flags: More of its flags.
        grpc: Whether it opens its gRPC door too.

    Raises:
        PermanentError: It ended before its doors were open.
    """
    door = free_port() if grpc else None
    command = [*_SERVE, "--state", str(state), "--model", model, "--listen", f"{HOST}:0"]
    command += ["--metrics", f"{HOST}:0", "--pin", str(SERVER_CORE), *flags]
    command += ["--grpc", f"{HOST}:{door}"] if door else []
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"open: inference=([^:\s]+):(\d+)", line):
            # A log that nobody reads would stop the server once the pipe is full.
            threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
            return Served(process, found[1], int(found[2]), door, state)
    process.stderr.close()
    process.wait()
    raise PermanentError(
        f"expected instar-serve to open its doors, it ended with {process.returncode}; its last words:\n"
        f"{''.join(said[-15:])}"
    )


def _drain(log: IO[str]) -> None:
    """Read a log to its end and close it."""
    with log:
        for _ in log:
            pass


def apply(state: Path, model: str, generation: int, digest: str) -> float:
    """Make a bundle the stable one; return how long that took, in seconds.

    Raises:
        PermanentError: The server refused it.
    """
    wanted = Deployment(
        revision=generation,
        model=model,
        stable=Slot(generation=generation, bundle=digest),
        newcomer=None,
        newcomer_share=0.0,
        previous=None,
    )
    transport = httpx.HTTPTransport(uds=str(state / "run" / "serve.sock"))
    with httpx.Client(transport=transport, base_url="http://serve", timeout=60.0) as client:
        began = time.perf_counter()
        answer = client.post("/apply", content=canonical(wanted))
        took_s = time.perf_counter() - began
    if answer.status_code != 200:
        raise PermanentError(f"expected {model} to be deployed, instar-serve says: {answer.text[:300]}")
    return took_s


@functools.cache
def supports(flag: str) -> bool:
    """Tell whether ``instar-serve`` has a flag, such as ``--grpc``."""
    told = subprocess.run([*_SERVE, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", told.stdout) is not None


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
