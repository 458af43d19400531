"""The process ``instar-serve``: puts the data plane together, opens its doors, and drains it at the end.

* Doors: the inference protocol and the metrics over TCP (inherited from systemd when it activates us, in this
  order), the admin socket in the state folder, mode 0600. Port 8081 is reserved for gRPC and not opened.
* One instar-serve a state folder: the second one exits with a clear word.
* READY is said when the doors are open; whether a model is there, ``/v2/health/ready`` says.
* SIGTERM and SIGINT: stop accepting, answer what is open, write the telemetry that is queued, leave.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import uvloop

from daemon.ops import logs, sd
from daemon.ops.doors import bind, bind_unix, door, opened
from daemon.rooms import check_rooms
from daemon.serving.admin import Admin, Exposition
from daemon.serving.batcher import Batcher
from daemon.serving.front import Front
from daemon.serving.keeper import Keeper
from daemon.serving.metrics import ServeMetrics
from daemon.serving.recorder import Recorder
from daemon.serving.sampler import Sampler
from daemon.serving.settings import ServeSettings
from daemon.serving.spool import Spool
from policies.clock import Clock, SystemClock
from policies.errors import InstarError, PermanentError

log = logging.getLogger(__name__)

EXIT_CONFIG = 78


class Plane:
    """A data plane, whole, without doors; tests make one too."""

    def __init__(self, settings: ServeSettings, clock: Clock) -> None:
        release = version("instar")
        self.metrics = ServeMetrics(settings.model, release)
        self.spool = Spool(settings.spool, settings.spool_bytes, self.metrics.drop)
        recorder = Recorder(self.spool, Sampler(settings.sample_bytes_per_s), clock)
        self.keeper = Keeper(
            settings.model, settings.blobs, settings.deployment, settings.max_batch, self.metrics, clock
        )
        self.batcher = Batcher(
            lambda: self.keeper.table, recorder, self.metrics, clock, max_batch=settings.max_batch
        )
        self.front = Front(
            settings.model,
            release,
            lambda: self.keeper.table,
            self.batcher,
            recorder,
            self.metrics,
            clock,
            (settings.max_body_bytes, settings.max_batch, settings.body_timeout_s),
        )
        self.admin = Admin(self.keeper)
        self.exposition = Exposition(self.metrics)


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
    front, scrape = door(plane.front, settings.drain_s), door(plane.exposition, 1.0)
    admin = door(plane.admin, settings.drain_s)
    plane.spool.start()
    await plane.keeper.restore()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    open_front = asyncio.create_task(front.serve([public[0]]))
    others = [
        asyncio.create_task(scrape.serve([public[1]])),
        asyncio.create_task(admin.serve([bind_unix(settings.admin_socket)])),
    ]
    watchdog = asyncio.create_task(_watch())
    await opened([front, scrape, admin], [open_front, *others])
    sd.notify(READY="1", STATUS=f"model {settings.model}")
    addresses = [":".join(map(str, each.getsockname()[:2])) for each in public]
    log.info("open: inference=%s metrics=%s admin=%s", *addresses, settings.admin_socket)
    await asyncio.wait([asyncio.create_task(stop.wait()), open_front, *others], return_when="FIRST_COMPLETED")
    sd.notify(STOPPING="1")
    log.info("draining for at most %g s", settings.drain_s)
    plane.front.draining = True
    front.should_exit = True
    await open_front
    scrape.should_exit = admin.should_exit = True
    await asyncio.gather(*others)
    watchdog.cancel()
    await asyncio.to_thread(plane.spool.close)
    log.info("drained")


async def _watch() -> None:
    """Pet the service manager's watchdog from the loop, so that a loop that hangs is restarted."""
    demanded_s = sd.watchdog_s()
    while demanded_s is not None:
        sd.notify(WATCHDOG="1")
        await asyncio.sleep(demanded_s / 2)


def main() -> None:
    """Run the data plane; the command ``instar-serve``."""
    settings = ServeSettings.from_args(sys.argv[1:], dict(os.environ))
    logs.setup(settings.log_level)
    try:
        check_rooms()
        if settings.pin is not None:
            os.sched_setaffinity(0, {settings.pin})
        with alone(settings.lock):
            uvloop.run(serve(settings, SystemClock()))
    except (InstarError, OSError) as error:
        log.critical("%s", error)
        sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
