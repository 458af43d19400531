"""Telemetry that comes in over HTTP: read within bounds, checked whole, handed on; all or nothing.

* A body is read up to its bound and not a byte further; no more than ``MOST_AT_ONCE`` are held at a time.
* ``Idempotency-Key`` names a batch: one that is sent again under its key is taken once.
* Every refusal is a sentence. 4xx but 429 will be refused again; 429 and 503 say when to come again.
* A browser is refused: see ``pages``.
* Where the data plane writes the spool itself, nothing is taken: 409.

What a record means is for whoever takes it.
"""

import asyncio
import math
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.outside.records import Busy, Record, parse
from policies.errors import PermanentError, TemporaryError

MAX_BODY_BYTES = 8_000_000
MOST_AT_ONCE = 4
MAX_KEY = 128
BODY_S = 20.0

OnTelemetry = Callable[[str, str, list[Record]], tuple[int, bool]]
"""Takes (task, key, records); returns how many, and whether they were there before."""


class _Refusal(Exception):  # noqa: N818  carries an answer, not a mistake
    def __init__(self, code: int, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.code, self.sentence, self.retry_after_s = code, sentence, retry_after_s


def telemetry(on_telemetry: OnTelemetry | None) -> Route:
    """Return the route.

    Args:
        on_telemetry: Takes a batch; None where the data plane writes the spool itself. Raises KeyError for an
            unknown task, ValueError and PermanentError for what does not fit, Busy for too much at once, and
            TemporaryError for what ends by itself.
    """
    held = 0

    async def take(request: Request) -> Response:
        nonlocal held
        try:
            _check(request, on_telemetry is not None)
            if held >= MOST_AT_ONCE:
                raise _Refusal(429, f"expected at most {MOST_AT_ONCE} batches at once; send it again", 1.0)
            held += 1
            try:
                count, repeated = await _take(request, on_telemetry)
            finally:
                held -= 1
        except _Refusal as refusal:
            headers = {}
            if refusal.retry_after_s is not None:
                headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after_s)))
            return JSONResponse({"error": refusal.sentence}, refusal.code, headers)
        return JSONResponse({"accepted": count, "repeated": repeated})

    return Route("/v1/telemetry/{task}", take, methods=["POST"])


def _check(request: Request, wanted: bool) -> None:
    if "origin" in request.headers:
        raise _Refusal(403, "expected telemetry from a machine, got a request from a web page")
    if not wanted:
        raise _Refusal(409, "instar-serve writes the telemetry itself; see --target")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _Refusal(415, f"expected content-type application/json, got {kind or 'none'}")
    key = request.headers.get("idempotency-key", "")
    if not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise _Refusal(400, f"expected a header Idempotency-Key of 1 to {MAX_KEY} printable characters")


async def _take(request: Request, on_telemetry: OnTelemetry | None) -> tuple[int, bool]:
    assert on_telemetry is not None, "checked before"
    raw = await _bounded(request)
    task, key = request.path_params["task"], request.headers["idempotency-key"]

    def work() -> tuple[int, bool]:
        return on_telemetry(task, key, parse(raw))

    try:
        return await run_in_threadpool(work)
    except KeyError as error:
        raise _Refusal(404, f"expected the name of a task that is kept here, got {task!r}") from error
    except (ValueError, PermanentError) as error:
        raise _Refusal(422, str(error)) from error
    except TemporaryError as error:
        code = 429 if isinstance(error, Busy) else 503
        raise _Refusal(code, str(error), error.retry_after_s) from error


async def _bounded(request: Request) -> bytes:
    raw = bytearray()
    try:
        # Few may send at once, so nobody may take for ever.
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_BODY_BYTES:
                    raise _Refusal(
                        413, f"expected a body of at most {MAX_BODY_BYTES} bytes; send fewer records"
                    )
    except TimeoutError as error:
        raise _Refusal(408, f"expected the whole body within {BODY_S:g} s") from error
    return bytes(raw)
