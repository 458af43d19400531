"""A burst of requests against one door, from the other core: how many a second, how slow, at what cost.

* REST: ``wrk``, one thread, 16 kept connections, each with one request under way.
* gRPC: ``h2load``, one thread, 4 connections of 4 streams.
* Neither knows parts of a second.
* A burst with one answer that is not a right one is no measurement: HTTP statuses are counted, and a gRPC
  refusal, which HTTP calls a success, is seen by the bytes that are missing.
* CPU time is that of the server's whole process tree over the burst.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.serving import tree
from benchmarks.serving.asks import Ask
from benchmarks.serving.quiet import Watch
from benchmarks.serving.stage import CLIENT_CORE
from policies.errors import PermanentError

CONNECTIONS, STREAMS = 16, 4
TOOLS = {"wrk": "wrk", "h2load": "nghttp2-client", "taskset": "util-linux"}
_LUA = Path(__file__).with_name("post.lua")
_GRACE_S = 30.0
# h2load counts the frames of answers that it had not awaited when it stopped, and rounds.
_LEAST_SHARE_OF_BYTES = 0.95


@dataclass(frozen=True)
class Burst:
    """What a burst gave: ``cpu_us`` of the server for a request, and the cores that ``others`` had."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    others: float


def joined(laps: Sequence[Burst]) -> Burst:
    """Return bursts of equal length as one; its percentiles are the medians of theirs.

    >>> joined([Burst(100.0, 1.0, 2.0, 30.0, 0.0), Burst(300.0, 1.0, 4.0, 10.0, 0.1)])
    Burst(rate=200.0, p50_ms=1.0, p99_ms=3.0, cpu_us=15.0, others=0.05)
    """
    requests = sum(lap.rate for lap in laps)
    return Burst(
        requests / len(laps),
        median(lap.p50_ms for lap in laps),
        median(lap.p99_ms for lap in laps),
        sum(lap.rate * lap.cpu_us for lap in laps) / requests,
        sum(lap.others for lap in laps) / len(laps),
    )


@dataclass(frozen=True)
class Door:
    """Where a server is asked: ``HOST:PORT``, and the process whose tree serves."""

    address: str
    pid: int


def check_tools() -> None:
    """Look whether the load generators are here.

    Raises:
        PermanentError: One is not.
    """
    missing = [
        f"{tool} (apt-get install {package})" for tool, package in TOOLS.items() if not shutil.which(tool)
    ]
    if missing:
        raise PermanentError(f"expected the load generators on this machine, missing: {', '.join(missing)}")


def rest(door: Door, ask: Ask, body: Path, warm_s: int, seconds: int) -> Burst:
    """Measure a REST door.

    Args:
        door: Where.
        ask: What; ``body`` is the file that holds its body.
        body: See there.
        warm_s: Seconds before anything counts.
        seconds: Of the burst.

    Raises:
        PermanentError: An answer was refused or lost.
    """
    headers = [word for header in ask.headers.items() for word in header]
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", "-s", str(_LUA), f"http://{door.address}{ask.path}"]

    def burst(length_s: int) -> dict[str, int]:
        timed = [*command[:3], f"-d{length_s}s", *command[3:], "--", str(body), *headers]
        return read_wrk(_on_client_core(timed, length_s))

    burst(warm_s)
    watch, before = Watch.start(), tree.cpu_s(door.pid)
    told = burst(seconds)
    used_s = tree.cpu_s(door.pid) - before
    others = watch.others(used_s)
    if told["refused"] or told["broken"] or not told["requests"]:
        raise PermanentError(f"expected {door.address} to answer every request, wrk says {told}")
    return Burst(
        told["requests"] / (told["duration_us"] / 1e6),
        told["p50_us"] / 1e3,
        told["p99_us"] / 1e3,
        used_s / told["requests"] * 1e6,
        others,
    )


def read_wrk(output: str) -> dict[str, int]:
    """Return what ``post.lua`` said at the end.

    Raises:
        PermanentError: It said nothing.

    >>> read_wrk('Running 3s test\\n{"requests": 3, "refused": 0}\\n')
    {'requests': 3, 'refused': 0}
    """
    last = output.strip().rpartition("\n")[2]
    if not last.startswith("{"):
        raise PermanentError(f"expected a JSON object as wrk's last line, got {last[:200]!r}")
    return dict(json.loads(last))


def grpc(door: Door, ask: Ask, body: Path, frame_bytes: int, warm_s: int, seconds: int) -> Burst:
    """Measure a gRPC door.

    Args:
        door: Where.
        ask: What; ``body`` is the file that holds its body.
        body: See there.
        frame_bytes: Of a right answer, with its prefix.
        warm_s: Seconds before anything counts.
        seconds: Of the burst.

    Raises:
        PermanentError: An answer was refused or lost.
    """
    log = body.with_suffix(".log")
    log.unlink(missing_ok=True)
    command = ["h2load", "-t1", f"-c{CONNECTIONS // STREAMS}", f"-m{STREAMS}", "-d", str(body)]
    for header in ask.headers.items():
        command += ["-H", ": ".join(header)]
    url = f"http://{door.address}{ask.path}"
    _on_client_core([*command, f"--duration={warm_s}", url], warm_s)
    watch, before = Watch.start(), tree.cpu_s(door.pid)
    timed = [*command, f"--duration={seconds}", f"--log-file={log}", url]
    told = read_h2load(_on_client_core(timed, seconds))
    used_s = tree.cpu_s(door.pid) - before
    others = watch.others(used_s)
    check_h2load(told, frame_bytes, door.address)
    slow_us = latencies_us(log.read_text().splitlines())
    p50, p99 = np.percentile(slow_us, [50, 99])
    return Burst(told["rate"], float(p50) / 1e3, float(p99) / 1e3, used_s / told["done"] * 1e6, others)


def read_h2load(output: str) -> dict[str, float]:
    """Return the counts of ``h2load``: ``rate``, ``done``, ``succeeded``, ``failed``, ``data_bytes``.

    Raises:
        PermanentError: It said something else.
    """
    wanted = {
        "rate": r"finished in [\d.]+m?s, ([\d.]+) req/s",
        "done": r"requests: .* (\d+) done",
        "succeeded": r"status codes: (\d+) 2xx",
        "failed": r"requests: .* (\d+) failed",
        "data_bytes": r"\((\d+)\) data",
    }
    found = {name: re.search(pattern, output) for name, pattern in wanted.items()}
    if absent := [name for name, match in found.items() if match is None]:
        raise PermanentError(f"expected {', '.join(absent)} from h2load, got:\n{output[-600:]}")
    return {name: float(match[1]) for name, match in found.items() if match is not None}


def check_h2load(told: dict[str, float], frame_bytes: int, where: str) -> None:
    """Look whether every answer was a right one, by its status and its size.

    Raises:
        PermanentError: One was not.
    """
    full = told["data_bytes"] >= _LEAST_SHARE_OF_BYTES * told["done"] * frame_bytes
    if not told["done"] or told["failed"] or told["succeeded"] < told["done"] or not full:
        raise PermanentError(
            f"expected {where} to answer every request with {frame_bytes} bytes, h2load says {told}"
        )


def latencies_us(lines: Sequence[str]) -> list[int]:
    """Return the third column of ``h2load``'s log.

    >>> latencies_us(["1795535981881056\\t200\\t13704"])
    [13704]
    """
    return [int(line.split("\t")[2]) for line in lines]


def _on_client_core(command: list[str], length_s: int) -> str:
    """Run a load generator; return what it printed."""
    pinned = ["taskset", "-c", str(CLIENT_CORE), *command]
    done = subprocess.run(pinned, capture_output=True, text=True, check=False, timeout=length_s + _GRACE_S)
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip()[-300:]
        raise PermanentError(f"expected {command[0]} to end with 0, got {done.returncode}: {last}")
    return done.stdout
