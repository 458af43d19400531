"""A fleet in small: a CA, one lane, a hub over real TLS in a thread, and a spool that is written as it is."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np

from daemon.fleet.caller import client
from daemon.fleet.certificates import client_tls, tls
from daemon.fleet.desk import TimingDesk
from daemon.fleet.door import tls_door, unix_door
from daemon.fleet.hub import Hub
from daemon.fleet.intake import Intake
from daemon.fleet.lane import HubLane
from daemon.fleet.releases import Releases
from daemon.fleet.roll import HubTable, Lane
from daemon.fleet.roster import Roster
from daemon.ops.doors import Door, bind, bind_unix, opened
from daemon.store.blobs import Blobs
from monitors.spool import record_dtype
from policies.clock import StandingClock
from policies.telemetry import FORMAT, MAGIC, sample_fields, telemetry_fields
from policies.terms import Deployment, Slot, Task

EXAMPLE = Path(__file__).parents[2] / "examples" / "meter-reader"
LANE, DEVICES = "pi5", ("pi5-1", "pi5-2")


def terms_of(papers: Path, **changes: object) -> Lane:
    plain = {
        "policy": papers / "policy.toml",
        "roots": papers / LANE,
        "release_key": papers / LANE / "release.key",
        "devices": DEVICES,
        "inherit": True,
        "fresh_s": 600.0,
        "converged": 1.0,
        "offline_s": 60.0,
        "timed_by": 1,
        "telemetry_bytes": 64 << 20,
        "device_bytes_per_s": 64 << 20,
    }
    return Lane.model_validate(plain | changes)


def hub_lane(folder: Path, papers: Path, task: Task, clock: StandingClock, **changes: object) -> HubLane:
    terms = terms_of(papers, **changes)
    blobs = Blobs(folder / "blobs")
    return HubLane(
        LANE,
        terms,
        Releases(folder / "releases", terms.roots, terms.release_key, blobs, terms.fresh_s, clock),
        Roster(terms.devices, clock),
        Intake(task, folder / "spool", folder / "positions.log"),
        TimingDesk(folder / "timings", blobs, clock, terms.timed_by),
        blobs,
        clock.monotonic,
    )


def deployment(blobs: Blobs, revision: int, bundle: bytes = b"bundle", generation: int = 1) -> Deployment:
    slot = Slot(generation=generation, bundle=blobs.put(bundle))
    plain = {"revision": revision, "model": "meter-reader", "stable": slot, "newcomer": None}
    return Deployment.model_validate(plain | {"newcomer_share": 0.0, "previous": None})


@contextlib.contextmanager
def hub_at_work(
    lane: HubLane, papers: Path, devices: tuple[str, ...] = DEVICES, host: str = "127.0.0.1"
) -> Iterator[int]:
    """Serve a hub over TLS in a thread; yields its port."""
    table = HubTable(
        listen="127.0.0.1:1", cert=papers / "hub.pem", key=papers / "hub.key", ca=papers / "ca.pem"
    )
    listener = bind(f"{host}:0")
    hub = Hub({LANE: lane}, dict.fromkeys(devices, LANE))
    with at_work(lambda: tls_door(hub, tls(table), 1.0), listener):
        yield listener.getsockname()[1]


@contextlib.contextmanager
def unix_hub_at_work(lane: HubLane, path: Path) -> Iterator[None]:
    """Serve a hub over a UNIX socket in a thread."""
    hub = Hub({LANE: lane}, dict.fromkeys(DEVICES, LANE))
    with at_work(lambda: unix_door(hub, 1.0), bind_unix(path)):
        yield


@contextlib.contextmanager
def at_work(make: Callable[[], Door], listener: socket.socket) -> Iterator[None]:
    ready = threading.Event()
    ended: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def work() -> None:
        door, stop = make(), asyncio.Event()
        ended.append((asyncio.get_running_loop(), stop))
        serving = asyncio.create_task(door.serve([listener]))
        await opened([door], [serving])
        ready.set()
        await stop.wait()
        door.should_exit = True
        await serving

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    assert ready.wait(20)
    try:
        yield
    finally:
        loop, stop = ended[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        listener.close()


def caller(papers: Path, port: int, name: str = "pi5-1") -> httpx.Client:
    own = papers / "devices" / name
    context = client_tls(own / "device.pem", own / "device.key", own / "ca.pem")
    return client(f"https://127.0.0.1:{port}", name, context)


class SpoolWriter:
    """Writes segments as the data plane does, record by record, and remembers what it wrote."""

    def __init__(self, folder: Path, task: Task, kind: str = "telemetry", embedding: int = 4) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fields = telemetry_fields(len(task.classes), embedding)
        if kind == "samples":
            fields = sample_fields("|u1", task.input.shape[1:])
        self.dtype = record_dtype(fields)
        plain = [[name, dtype, list(shape)] for name, dtype, shape in fields]
        head = {"magic": MAGIC, "format": FORMAT, "kind": kind, "model": task.model, "fields": plain}
        self.header = json.dumps(head).encode() + b"\n"
        self._folder, self._kind = folder, kind
        self.segment, self.count = 0, 0
        self.begin()

    @property
    def path(self) -> Path:
        return self._folder / f"{self._kind}-{self.segment:012d}.seg"

    def begin(self) -> None:
        """Begin a new segment."""
        self.segment += 1
        self.path.write_bytes(self.header)

    def records(self, n: int) -> bytes:
        """Return the next so many records, each with its number in ``at``."""
        block = np.zeros(n, self.dtype)
        block["at"] = np.arange(self.count, self.count + n)
        block["generation"] = 1
        self.count += n
        return block.tobytes()

    def write(self, n: int) -> None:
        with self.path.open("ab") as file:
            file.write(self.records(n))
