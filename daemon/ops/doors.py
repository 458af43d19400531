"""Doors: listeners with an application behind each, opened and closed by their process.

* Signals are the process's; a door captures none.
* A UNIX socket is closed to others from its first moment.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Generator
from pathlib import Path

import uvicorn

from policies.errors import PermanentError

BACKLOG = 2048


class Door(uvicorn.Server):
    """One listener. Signals are the process's, not a single door's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture nothing."""
        yield


def door(app: object, drain_s: float) -> Door:
    """Return a door before an ASGI application."""
    return Door(
        uvicorn.Config(
            app,  # type: ignore[arg-type]  # uvicorn's own alias wants typed dicts of every event
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(drain_s)),
            backlog=BACKLOG,
        )
    )


def bind(address: str) -> socket.socket:
    """Return a TCP socket bound to ``HOST:PORT``; uvicorn makes it listen.

    Raises:
        PermanentError: The address cannot be had.
    """
    host, _, port = address.rpartition(":")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
    except (OSError, OverflowError) as error:
        listener.close()
        raise PermanentError(f"expected to listen on {address}, got {error}; is it taken?") from error
    return listener


def bind_unix(path: Path, mode: int = 0o600) -> socket.socket:
    """Return a UNIX socket, of this mode from its first moment; a dead predecessor's file gives way.

    Raises:
        PermanentError: The path cannot be bound, for example because it is too long.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise PermanentError(f"expected to bind the socket {path}, got {error}") from error
    finally:
        os.umask(before)
    return listener


async def opened(doors: list[Door], tasks: list[asyncio.Task[None]]) -> None:
    """Wait until all doors are open."""
    while not all(each.started for each in doors):
        for task in tasks:
            if task.done():
                task.result()
        await asyncio.sleep(0.005)
