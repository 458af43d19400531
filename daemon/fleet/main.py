"""The process ``instar-device``: one device's beat, until a signal.

* One a state folder. It ends with code 78 when its settings or files are refused, which no restart mends.
* SIGTERM and SIGINT end it after the beat at hand; what is served is served on.
"""

import logging
import os
import signal
import sys
import threading

from daemon.control.targets.serve import ServeTarget
from daemon.fleet.caller import client
from daemon.fleet.certificates import client_tls
from daemon.fleet.device import Device, Place
from daemon.fleet.settings import DeviceSettings
from daemon.ops import logs, sd
from daemon.rooms import check_rooms
from daemon.store.lock import StateLock
from policies.clock import SystemClock
from policies.errors import InstarError, PermanentError

log = logging.getLogger(__name__)

EXIT_CONFIG = 78


def device(settings: DeviceSettings) -> Device:
    """Put a device together.

    Raises:
        InstarError: A file is missing, or is not what it should be.
    """
    context = None
    if not settings.hub.startswith("unix:"):
        context = client_tls(settings.cert, settings.key, settings.ca)
    try:
        root = settings.root.read_bytes()
    except OSError as error:
        raise PermanentError(f"expected the lane's root at {settings.root}, got {error}") from error
    place = Place(settings.state.absolute())
    place.own.mkdir(parents=True, exist_ok=True)
    return Device(
        settings.name,
        place,
        client(settings.hub, settings.name, context),
        ServeTarget(place.state / "run" / "serve.sock"),
        root,
        SystemClock(),
        settings.idle_rows_per_s,
        settings.report_s,
    )


def run(one: Device, beat_s: float, stop: threading.Event) -> None:
    """Let a device beat until told to stop; pets the service manager's watchdog after every beat."""
    sd.notify(READY="1")
    while not stop.is_set():
        one.beat()
        sd.notify(WATCHDOG="1")
        stop.wait(beat_s)
    sd.notify(STOPPING="1")


def main() -> None:
    """Run a device; the command ``instar-device``."""
    settings = DeviceSettings.from_args(sys.argv[1:], dict(os.environ))
    logs.setup(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        check_rooms()
        with StateLock(settings.state / "device" / "instar-device.lock"):
            one = device(settings)
            log.info("device=%s hub=%s", settings.name, settings.hub)
            try:
                run(one, settings.beat_s, stop)
            finally:
                one.close()
    except (InstarError, OSError) as error:
        log.critical("%s", error)
        sys.stderr.write(f"instar-device: {error}\n")
        sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
