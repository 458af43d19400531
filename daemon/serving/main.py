"""The process ``instar-serve``: puts the data plane together, opens its doors, and drains it at the end.

* Doors: the inference protocol and the metrics over TCP (inherited from systemd when it activates us, in this
  order), the admin socket in the state folder, mode 0600; gRPC where the settings say so, and only then is
  it loaded. gRPC takes no socket from others: it opens its own.
* One instar-serve a state folder: the second one exits with a clear word.
* READY is said when the doors are open; whether a model is there, ``/v2/health/ready`` says.
* SIGTERM and SIGINT: stop accepting, answer what is open, write the telemetry that is queued, leave.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from daemon.ops import logs, sd
from daemon.ops.doors import bind, bind_unix, door, opened
from daemon.ops.scheduling import yield_nothing
from daemon.rooms import check_rooms
from daemon.serving.admin import Admin, Exposition
from daemon.serving.engine import Engine
from daemon.serving.front import Front
from daemon.serving.keeper import Keeper
from daemon.serving.metrics import ServeMetrics
from daemon.serving.reception import Reception
from daemon.serving.recorder import Recorder, Silence
from daemon.serving.sampler import Sampler
from daemon.serving.settings import ServeSettings
from daemon.serving.spool import Spool
from policies.clock import Clock, SystemClock
from policies.errors import InstarError, PermanentError

if TYPE_CHECKING:
    from daemon.serving.exchange import Exchange

log = logging.getLogger(__name__)

EXIT_CONFIG = 78


class Plane:
    """A data plane, whole, without doors; tests make one too."""

    def __init__(self, settings: ServeSettings, clock: Clock) -> None:
        self._settings, self._clock, self._release = settings, clock, version("instar")
        self.exchange: Exchange | None = None
        self.metrics = ServeMetrics(settings.model, self._release)
        self.spool = Spool(settings.spool, settings.spool_bytes, self.metrics.drop)
        kept = Recorder(self.spool, Sampler(settings.sample_bytes_per_s), clock)
        recorder = kept if settings.telemetry else Silence()
        self.spool.gather = recorder.gather_gently
        self.keeper = Keeper(
            settings.model, settings.blobs, settings.deployment, settings.max_batch, self.metrics, clock
        )
        self.engine = Engine(
            lambda: self.keeper.table,
            recorder,
            self.metrics,
            clock,
            settings.max_batch,
            settings.max_waiting,
        )
        self.metrics.in_flight = lambda: self.engine.open
        self.front = Front(
            lambda: self.keeper.table,
            self.engine,
            recorder,
            self.metrics,
            clock,
            self.keeper,
            version=self._release,
            max_rows=settings.max_batch,
            max_body=settings.max_body_bytes,
            controlled=settings.repository_control,
        )
        self.reception = Reception(
            self.front.handle,
            self.metrics,
            clock,
            max_body=settings.max_body_bytes,
            max_connections=settings.max_connections,
            head_s=settings.head_timeout_s,
            body_s=settings.body_timeout_s,
            idle_s=settings.idle_timeout_s,
        )
        self.metrics.connections = self._connections
        self.admin = Admin(self.keeper)
        self.exposition = Exposition(self.metrics)

    def _connections(self) -> int:
        return self.reception.count + (self.exchange.count if self.exchange else 0)

    def open_grpc(self, address: str, loop: asyncio.AbstractEventLoop) -> str:
        """Begin to take gRPC calls in at ``HOST:PORT`` or ``unix:PATH``; return the address that came of it.

        Raises:
            PermanentError: The address cannot be had, or what gRPC needs is not installed.
        """
        try:
            from daemon.serving.exchange import Exchange
            from daemon.serving.rpc import Rpc
        except (ImportError, RuntimeError) as error:
            # RuntimeError is how the package of the messages says that a part of it is not there, or too old.
            raise PermanentError(
                f"expected what --grpc needs, got: {error}; install it with: pip install 'instar[grpc]'"
            ) from error
        rpc = Rpc(
            self.front,
            self.engine,
            self.keeper,
            self.metrics,
            version=self._release,
            max_rows=self._settings.max_batch,
        )
        self.exchange = Exchange(
            rpc.service(),
            self._clock,
            max_body=self._settings.max_body_bytes,
            max_connections=self._settings.max_connections,
            head_s=self._settings.head_timeout_s,
            body_s=self._settings.body_timeout_s,
            idle_s=self._settings.idle_timeout_s,
        )
        return self.exchange.start(address, loop)

    async def drain(self, seconds: float) -> None:
        """Answer what is open, for at most so many seconds, and write the telemetry that is queued."""
        self.front.draining = True
        doors = [self.reception.drain(seconds)]
        if self.exchange is not None:
            doors.append(self.exchange.drain(seconds))
        await asyncio.gather(*doors)
        self.engine.close()
        await asyncio.to_thread(self.spool.close)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the state's serving lock.

    Raises:
        PermanentError: Another instar-serve holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermanentError(
                f"expected to be the only instar-serve of {path.parent.parent}, another one holds {path}"
            ) from error
        yield


async def serve(settings: ServeSettings, clock: Clock) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        PermanentError: A door cannot be opened.
    """
    plane = Plane(settings, clock)
    inherited = sd.listen_fds()
    public = inherited[:2] or [bind(settings.listen), bind(settings.metrics)]
    if len(public) != 2:
        raise PermanentError(f"expected 2 inherited sockets (REST, metrics), got {len(public)}")
    scrape, admin = door(plane.exposition, 1.0), door(plane.admin, settings.drain_s)
    plane.spool.start()
    await plane.keeper.restore()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await plane.reception.open(public[0])
    doors = [
        asyncio.create_task(scrape.serve([public[1]])),
        asyncio.create_task(admin.serve([bind_unix(settings.admin_socket)])),
    ]
    watchdog = asyncio.create_task(_watch())
    await opened([scrape, admin], doors)
    grpc = "" if settings.grpc is None else f" grpc={plane.open_grpc(settings.grpc, loop)}"
    sd.notify(READY="1", STATUS=f"model {settings.model}")
    addresses = [":".join(map(str, each.getsockname()[:2])) for each in public]
    log.info("open: inference=%s metrics=%s admin=%s%s", *addresses, settings.admin_socket, grpc)
    await asyncio.wait([asyncio.create_task(stop.wait()), *doors], return_when="FIRST_COMPLETED")
    sd.notify(STOPPING="1")
    log.info("draining for at most %g s", settings.drain_s)
    await plane.drain(settings.drain_s)
    scrape.should_exit = admin.should_exit = True
    await asyncio.gather(*doors)
    watchdog.cancel()
    log.info("drained")


async def _watch() -> None:
    """Pet the service manager's watchdog from the loop, so that a loop that hangs is restarted."""
    demanded_s = sd.watchdog_s()
    while demanded_s is not None:
        sd.notify(WATCHDOG="1")
        await asyncio.sleep(demanded_s / 2)


def _open_many() -> None:
    """Allow as many open files as this process may: every connection is one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Run the data plane; the command ``instar-serve``."""
    settings = ServeSettings.from_args(sys.argv[1:], dict(os.environ))
    logs.setup(settings.log_level)
    try:
        check_rooms()
        for fact in yield_nothing(settings.pin):
            log.info("%s", fact)
        _open_many()
        with alone(settings.lock):
            uvloop.run(serve(settings, SystemClock()))
    except (InstarError, OSError) as error:
        log.critical("%s", error)
        sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
