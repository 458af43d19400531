"""The systemd protocols that need no library: notify, inherited sockets, watchdog.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
"""

import os
import socket

_FIRST_FD = 3


def notify(**fields: str) -> bool:
    """Tell the service manager something, e.g. ``notify(READY="1")``; False where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{key}={value}" for key, value in fields.items()).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall(message)
    return True


def listen_fds() -> list[socket.socket]:
    """Return the listening sockets that systemd opened for this process, in the order of its unit."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=_FIRST_FD + number) for number in range(count)]


def watchdog_s() -> float | None:
    """Return within how many seconds the watchdog wants to hear of us, or None."""
    text = os.environ.get("WATCHDOG_USEC")
    if not text or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 1e6
