"""How many devices one hub bears: simulated devices, each with a certificate and a TLS connection of its own.

``python -m benchmarks.serving.devices`` prints the CPU-seconds a second that the hub's process takes. Every
device sends one piece of ``ROWS`` telemetry records a second over a kept connection, at its own moment of the
second, and a report every ten. The hub is that of ``instard``: TLS 1.3 with client certificates, admission,
positions, durable segments. Beside it, in the same process, a lane's monitors read what came (``Watch``), as
the turn does every second.

* Loopback only; the senders are a process of their own, and their CPU time is not the hub's.
* What is not in it: releases are looked at once a minute by each device, two small requests.
* All pieces are waited for: what is late or refused is told, never left out.
* Every record that was acknowledged is counted again in the spool at the end.
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.serving.row import Figure, Row, at_most
from daemon.fleet import enrol
from daemon.fleet.certificates import client_tls, tls
from daemon.fleet.desk import TimingDesk
from daemon.fleet.door import tls_door
from daemon.fleet.hardware import hardware
from daemon.fleet.hub import Hub
from daemon.fleet.intake import Intake
from daemon.fleet.lane import HubLane
from daemon.fleet.releases import Releases
from daemon.fleet.roll import HubTable, Lane
from daemon.fleet.roster import Roster
from daemon.fleet.terms import Report
from daemon.ops.doors import bind
from daemon.store.blobs import Blobs
from monitors.spool import Cursor, SpoolReader, record_dtype
from monitors.watch import Watch
from policies.clock import SystemClock
from policies.document import load, load_task
from policies.telemetry import FORMAT, MAGIC, telemetry_fields
from policies.wire import canonical

EXAMPLE = Path(__file__).parents[2] / "examples" / "meter-reader"
LANE, ROWS, EMBEDDING = "pi5", 10, 32
SECONDS, REPORT_EVERY = 20, 10
MOST_CORES = 1.0


def names(count: int) -> tuple[str, ...]:
    return tuple(f"d{place}" for place in range(count))


# -- the hub ------------------------------------------------------------------------------------------------


def hub(folder: Path, count: int, with_monitors: bool) -> None:
    """Serve until told to stop; say on standard output where, and at the end what was used."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    task, clock = load_task(EXAMPLE / "task.toml"), SystemClock()
    terms = Lane(
        policy=EXAMPLE / "policy.toml",
        roots=folder / LANE,
        release_key=folder / LANE / "release.key",
        devices=names(count),
        inherit=True,
        fresh_s=600.0,
        converged=1.0,
        offline_s=60.0,
        timed_by=1,
        telemetry_bytes=256 << 20,
        device_bytes_per_s=1 << 20,
    )
    blobs = Blobs(folder / "blobs")
    lane = HubLane(
        LANE,
        terms,
        Releases(folder / "releases", terms.roots, terms.release_key, blobs, terms.fresh_s, clock),
        Roster(terms.devices, clock),
        Intake(task, folder / "spool", folder / "positions.log"),
        TimingDesk(folder / "timings", blobs, clock, 1),
        blobs,
        clock.monotonic,
    )
    table = HubTable(
        listen="127.0.0.1:1", cert=folder / "hub.pem", key=folder / "hub.key", ca=folder / "ca.pem"
    )
    door = tls_door(Hub({LANE: lane}, dict.fromkeys(terms.devices, LANE)), tls(table), 1.0)
    listener = bind("127.0.0.1:0")
    print(listener.getsockname()[1], flush=True)
    ended = threading.Event()
    rows = [0]
    reading = threading.Thread(target=_monitors, args=(folder, lane, ended, rows))
    if with_monitors:
        reading.start()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: setattr(door, "should_exit", True))
        loop.add_signal_handler(signal.SIGUSR1, lambda: print(_used_s(), flush=True))
        await door.serve([listener])

    asyncio.run(serve())
    ended.set()
    if with_monitors:
        reading.join()
    lane.intake.close()
    print(json.dumps({"read": rows[0]}), flush=True)


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _monitors(folder: Path, lane: HubLane, ended: threading.Event, rows: list[int]) -> None:
    """Read what comes, once a second, as a lane's turn does; forget it as its snapshot does."""
    task = load_task(EXAMPLE / "task.toml")
    clause = load(EXAMPLE / "policy.toml")[0].modification_protocol.monitoring
    watch = Watch(task, clause, 1, 1)
    reader = SpoolReader(folder / "spool", "telemetry", Cursor(0, 0))
    last = False
    while not last:
        last = ended.wait(1.0)
        while (block := reader.read(50_000)[0]) is not None:
            watch.observe(block)
            rows[0] += len(block)
        watch.assess(time.time())
        lane.intake.forget("telemetry", reader.cursor.segment, reader.cursor.offset)


# -- the devices --------------------------------------------------------------------------------------------


class Sender:
    """One device: a connection, a segment that grows, a moment of the second."""

    def __init__(self, name: str, contexts: ssl.SSLContext, port: int, moment: float) -> None:
        self._context, self._port, self._moment = contexts, port, moment
        self.name, self.acknowledged, self.refused, self.late = name, 0, 0, 0
        self._header, self._block = _segment(task_classes=10)
        self._turn, self._report = int(moment * REPORT_EVERY), _report()
        self._offset = len(self._header)

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._context)

    async def live(self, began: float, seconds: int) -> None:
        """Send a piece a second."""
        for second in range(seconds):
            due = began + second + self._moment
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            body = self._header + self._block
            place = f"kind=telemetry&epoch={0:016x}&segment=1&offset={self._offset}"
            status = await self._ask(f"/v1/telemetry?{place}", body)
            if second % REPORT_EVERY == self._turn:
                await self._ask("/v1/report", self._report)
            if status == 200:
                self._offset += len(self._block)
                self.acknowledged += ROWS
            self.refused += status != 200
            self.late += time.monotonic() > due + 1.0

    async def _ask(self, path: str, body: bytes) -> int:
        head = f"POST {path} HTTP/1.1\r\nhost: hub\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await self._reader.readexactly(int(length.partition(b":")[2]))
        return int(head[9:12])


def _report() -> bytes:
    report = Report(observed=None, revision=0, problem=None, idle=False, lost_segments=0, hardware=hardware())
    return canonical(report)


def _segment(task_classes: int) -> tuple[bytes, bytes]:
    fields = telemetry_fields(task_classes, EMBEDDING)
    plain = [[name, dtype, list(shape)] for name, dtype, shape in fields]
    head = {"magic": MAGIC, "format": FORMAT, "kind": "telemetry", "model": "meter-reader", "fields": plain}
    rng = np.random.default_rng(3)
    block = np.zeros(ROWS, record_dtype(fields))
    block["at"], block["generation"], block["batch"], block["latency_ms"] = time.time(), 1, 1, 0.2
    for name in ("logits", "embedding", "summary"):
        block[name] = rng.normal(size=block[name].shape)
    return json.dumps(head).encode() + b"\n", block.tobytes()


async def fleet(folder: Path, count: int, port: int, seconds: int, hub_pid: int) -> dict[str, float]:
    """Let all devices live; return what they saw."""
    senders = []
    for place, name in enumerate(names(count)):
        own = folder / "devices" / name
        context = client_tls(own / "device.pem", own / "device.key", folder / "ca.pem")
        context.check_hostname = False
        senders.append(Sender(name, context, port, place / count))
    for place in range(0, count, 50):
        await asyncio.gather(*(sender.connect() for sender in senders[place : place + 50]))
    began = time.monotonic() + 1.0
    used = _process_s(hub_pid)
    await asyncio.gather(*(sender.live(began, seconds) for sender in senders))
    # By the seconds that were sent: a machine that is busy with other work answers later, not with more.
    return {
        "cores": (_process_s(hub_pid) - used) / seconds,
        "acknowledged": sum(sender.acknowledged for sender in senders),
        "refused": sum(sender.refused for sender in senders),
        "late": sum(sender.late for sender in senders),
    }


def _process_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def papers(folder: Path, count: int) -> None:
    """Make certificates for all devices."""
    now = time.time()
    enrol.init(folder, ["127.0.0.1"], [LANE], now)
    for name in names(count):
        enrol.enrol(folder, LANE, name, now)


def run(count: int, seconds: int, with_monitors: bool) -> dict[str, float]:
    """Return what one hub took with so many devices."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        papers(folder, count)
        words = [sys.executable, "-m", "benchmarks.serving.devices", "--hub", place, "--devices", str(count)]
        words += ["--monitors"] if with_monitors else []
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                port = int(process.stdout.readline())
                found = asyncio.run(fleet(folder, count, port, seconds, process.pid))
            finally:
                process.terminate()
            told = json.loads(process.stdout.readline())
        if with_monitors and told["read"] != found["acknowledged"]:
            raise AssertionError(
                f"acknowledged {found['acknowledged']} rows, the monitors read {told['read']}"
            )
        return found


def measure(runs: int, quick: bool) -> list[Row]:
    """Return the rows of the table."""
    count, seconds = (200, 5) if quick else (1000, SECONDS)
    rows = []
    for with_monitors in (False, True):
        seen = [run(count, seconds, with_monitors) for _ in range(runs)]
        refused, late = (max(one[name] for one in seen) for name in ("refused", "late"))
        cores = Figure.of([one["cores"] for one in seen])
        what = f"{count} devices, one piece of {ROWS} records a second each"
        rows.append(
            Row(
                what=f"{what}, monitors reading them in the same process"
                if with_monitors
                else f"{what}: the hub",
                target="1,000 devices, ≤ 1 core",
                ours=cores,
                unit="CPU-seconds a second",
                met=None if quick else at_most(cores, MOST_CORES) and refused == 0,
                note=f"of {count * seconds} pieces {refused:.0f} refused, {late:.0f} answered after 1 s",
            )
        )
    return rows


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hub", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--monitors", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=1000, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    # A connection is a file: a thousand of them are more than a shell's usual limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if options.hub is not None:
        hub(options.hub, options.devices, options.monitors)
        return
    for row in measure(options.runs, options.quick):
        print(f"{row.what}: {row.measured} {row.unit}, target {row.target}: {row.verdict}. {row.note}")


if __name__ == "__main__":
    main(sys.argv[1:])
