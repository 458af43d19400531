"""The systemd protocols that need no library: notify, inherited sockets, watchdog.

Where there is no service manager they do nothing. A service manager that cannot be told is logged, not fatal:
it has its own time-outs, and a daemon that works shall not die of it.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
"""

import logging
import os
import socket

log = logging.getLogger(__name__)

_FIRST_FD = 3


def notify(**fields: str) -> bool:
    """Tell the service manager something, e.g. ``notify(READY="1")``; return whether it was told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{key}={' '.join(value.split())}" for key, value in fields.items()).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(address)
            channel.sendall(message)
    except OSError as error:
        log.warning("the service manager could not be told %s: %s", ", ".join(fields), error)
        return False
    return True


def listen_fds() -> list[socket.socket]:
    """Return the listening sockets that systemd opened for this process, in the order of its unit."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    numbers = range(_FIRST_FD, _FIRST_FD + int(os.environ.get("LISTEN_FDS", "0")))
    for number in numbers:
        # A worker that inherited a listener would keep its port after we are gone.
        os.set_inheritable(number, False)
    return [socket.socket(fileno=number) for number in numbers]


def watchdog_s() -> float | None:
    """Return within how many seconds the watchdog wants to hear of us, or None."""
    text = os.environ.get("WATCHDOG_USEC")
    if not text or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 1e6
