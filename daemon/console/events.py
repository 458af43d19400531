"""Events: the journal as it grows, for who waits for it.

* ``GET /v1/events?after=N``: the entries after a sequence number, in order; when there are none yet, the
  answer waits for one, up to ``wait_s``. An empty list says that nothing happened.
* Read-only, and never more than ``MOST_WAITING`` wait at once: the next one is told to come again.
* A writer rings from its own thread and waits for nobody.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MOST_WAITING = 64
MOST_AT_ONCE = 1000
LONGEST_WAIT_S = 60
_DEFAULT_WAIT_S = 25

_BOUNDS = f"expected whole numbers: after >= 0, limit in 1..{MOST_AT_ONCE}, wait_s in 0..{LONGEST_WAIT_S}"

History = Callable[[int, int, str | None], list[dict[str, Any]]]


class Bell:
    """Rung whenever the journal grows; made in the loop that answers."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = asyncio.Event()
        self._closed = False

    def ring(self) -> None:
        """Wake everybody who waits; from any thread."""
        self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Wake everybody, and let nobody wait any more."""
        self._closed = True
        self._wake()

    def listen(self) -> asyncio.Event | None:
        """Return what the next ring sets; None when there will be none."""
        return None if self._closed else self._next

    def _wake(self) -> None:
        self._next.set()
        self._next = asyncio.Event()


def events(history: History, bell: Bell) -> Route:
    """Return the route; ``history`` gives (after, limit, kind) in order, and may block."""
    waiting = 0

    async def follow(request: Request) -> Response:
        nonlocal waiting
        asked = _asked(request)
        if asked is None:
            return JSONResponse({"error": _BOUNDS}, 400)
        if waiting >= MOST_WAITING:
            sentence = f"expected at most {MOST_WAITING} who wait; ask again"
            return JSONResponse({"error": sentence}, 429, {"Retry-After": "1"})
        waiting += 1
        try:
            found = await _wait(history, bell, *asked)
        finally:
            waiting -= 1
        return JSONResponse(found, headers={"Cache-Control": "no-store"})

    return Route("/v1/events", follow)


async def _wait(history: History, bell: Bell, after: int, limit: int, wait_s: int) -> list[dict[str, Any]]:
    until = asyncio.get_running_loop().time() + wait_s
    while True:
        # Listened for before looking: what is written in between rings.
        ring = bell.listen()
        found = await run_in_threadpool(history, after, limit, None)
        left_s = until - asyncio.get_running_loop().time()
        if found or ring is None or left_s <= 0:
            return found
        try:
            await asyncio.wait_for(ring.wait(), left_s)
        except TimeoutError:
            return []


def _asked(request: Request) -> tuple[int, int, int] | None:
    """Return after, limit and wait_s; None when one of them is out of bounds."""
    given = []
    for name, default in (("after", 0), ("limit", MOST_AT_ONCE), ("wait_s", _DEFAULT_WAIT_S)):
        text = request.query_params.get(name, str(default))
        if not text.isascii() or not text.isdigit() or len(text) > 15:
            return None
        given.append(int(text))
    after, limit, wait_s = given
    return (after, limit, wait_s) if 1 <= limit <= MOST_AT_ONCE and wait_s <= LONGEST_WAIT_S else None
