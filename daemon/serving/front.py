"""The front: the Open Inference Protocol over ASGI, and the only place that knows HTTP codes.

* ``/v2``, ``/v2/health/live|ready``, ``/v2/models/M[/versions/N]``, its ``/ready`` and its ``/infer``.
* Not ready until a stable model is proven; a malformed request is the client's error (400, 404, 405, 413),
  never ours; an overloaded or unready server says 503, a failed model 500.
* Every request to a model is counted once, and recorded once for every row; of a client that left before
  its request was whole, only the count stays.

Called by uvicorn for every request. Source: Open Inference Protocol v2, REST.
"""

import asyncio
import re
import uuid
from collections.abc import Callable
from typing import Any

import orjson

from daemon.serving.answer import encode
from daemon.serving.ask import Ask, parse
from daemon.serving.batcher import RETRY_S, Batcher
from daemon.serving.body import Gone, Headers, Message, Receive, Send, read_body
from daemon.serving.metrics import ServeMetrics
from daemon.serving.recorder import Recorder, rows_of
from daemon.serving.refusals import Busy, Malformed, ModelFailed, NotReady, TooLarge, Unknown
from daemon.serving.slot import Slot
from daemon.serving.table import Table
from policies.clock import Clock
from policies.errors import InstarError
from policies.terms import TensorSpec

CODES: dict[type[InstarError], tuple[int, str]] = {
    Malformed: (400, "client_error"),
    Unknown: (404, "client_error"),
    TooLarge: (413, "client_error"),
    NotReady: (503, "shed"),
    Busy: (503, "shed"),
    ModelFailed: (500, "error"),
}
REFUSALS = tuple(CODES)
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_JSON = (b"content-type", b"application/json")


def new_id() -> str:
    """Return an id for a request that has none."""
    return uuid.uuid4().hex


async def reply(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send one whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def reply_json(send: Send, status: int, value: Any) -> None:
    """Send one JSON response."""
    # A refused body may still be on its way: only a new connection is sure to be in step again.
    close = [(b"connection", b"close")] if status == 413 else []
    await reply(send, status, orjson.dumps(value), [_JSON, *close])


class Front:
    """The ASGI application of the inference port."""

    def __init__(
        self,
        model: str,
        version: str,
        table: Callable[[], Table],
        batcher: Batcher,
        recorder: Recorder,
        metrics: ServeMetrics,
        clock: Clock,
        limits: tuple[int, int, float],
    ) -> None:
        self._model, self._version, self._table = model, version, table
        self._batcher, self._recorder, self._metrics, self._clock = batcher, recorder, metrics, clock
        self._max_body, self._max_rows, self._body_timeout_s = limits
        self.draining = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, method = scope["path"], scope["method"]
        match = _MODEL.fullmatch(path)
        if match is not None and match[3] == "/infer":
            if method == "POST":
                await self._infer(scope, match[1], match[2], receive, send)
            else:
                await reply_json(send, 405, {"error": f"expected POST on {path}, got {method}"})
            return
        if method not in ("GET", "HEAD"):
            await reply_json(send, 405, {"error": f"expected GET on {path}, got {method}"})
            return
        try:
            status, value = self._about(path, match)
        except REFUSALS as error:
            status, value = CODES[type(error)][0], {"error": str(error)}
        await reply_json(send, status, value)

    def _about(self, path: str, match: re.Match[str] | None) -> tuple[int, dict[str, Any]]:
        ready = self._table().stable is not None and not self.draining
        if path in ("/v2", "/v2/"):
            extensions = ["binary_tensor_data"]
            return 200, {"name": "instar", "version": self._version, "extensions": extensions}
        if path == "/v2/health/live":
            return 200, {"live": True}
        if path == "/v2/health/ready":
            return (200 if ready else 503), {"ready": ready}
        if match is None:
            raise Unknown(f"expected a path of the Open Inference Protocol v2, got {path[:200]!r}")
        slot = self._slot(match[1], match[2])
        if match[3] == "/ready":
            return (503 if self.draining else 200), {"name": self._model, "ready": not self.draining}
        return 200, self._metadata(slot)

    def _slot(self, model: str, version: str | None) -> Slot:
        """Return the slot that speaks for a path: the pinned one, or the stable one."""
        if model != self._model:
            raise Unknown(f"expected model {self._model!r}, got {model[:80]!r}")
        table = self._table()
        if table.stable is None:
            raise NotReady("expected a stable model, there is none yet; send again later", RETRY_S)
        slot = table.stable if version is None else table.version(version)
        if slot is None:
            served = [str(slot.generation) for slot in table.open()]
            raise Unknown(f"expected a version among {served}, got {(version or '')[:40]!r}")
        return slot

    def _metadata(self, slot: Slot) -> dict[str, Any]:
        return {
            "name": self._model,
            "versions": [str(each.generation) for each in self._table().open()],
            "platform": "onnxruntime_onnx",
            "inputs": [_tensor(slot.meta.input)],
            "outputs": [_tensor(spec) for spec in slot.meta.outputs],
        }

    async def _infer(
        self, scope: Message, model: str, version: str | None, receive: Receive, send: Send
    ) -> None:
        self._metrics.in_flight.inc()
        try:
            status, body, headers = await self._answer(scope, model, version, receive)
        except Gone:
            # Nobody is there to be answered; the request was never whole.
            self._metrics.count("client_error")
            return
        except asyncio.CancelledError:
            # The drain's time is over; the client sees its connection close.
            self._metrics.count("timeout")
            raise
        finally:
            self._metrics.in_flight.dec()
        if status == 413:
            headers.append((b"connection", b"close"))
        await reply(send, status, body, headers)

    async def _answer(
        self, scope: Message, model: str, version: str | None, receive: Receive
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        ask: Ask | None = None
        try:
            slot = self._slot(model, version)
            headers: Headers = dict(scope["headers"])
            body = await read_body(headers, receive, self._max_body, self._body_timeout_s)
            received = self._clock.monotonic()
            length = headers.get(b"inference-header-content-length")
            text = None if length is None else length.decode("latin-1")
            ask = parse(body, text, slot.meta.input, self._max_rows, new_id, version)
            answer = await self._batcher.answer(ask, received)
        except REFUSALS as error:
            return self._refused(ask, error)
        body, head = encode(ask, answer)
        if head is None:
            return 200, body, [_JSON]
        binary = (b"content-type", b"application/octet-stream")
        return 200, body, [binary, (b"inference-header-content-length", str(head).encode())]

    def _refused(self, ask: Ask | None, error: InstarError) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        status, outcome = CODES[type(error)]
        if not isinstance(error, ModelFailed):
            # What reached the model is counted and recorded where it ran.
            self._metrics.count(outcome)
            id_, rows = (ask.id, len(ask.x)) if ask is not None else (new_id(), 1)
            group = ask.group if ask is not None else id_
            self._recorder.unanswered(self._table().stable, 0, rows_of(id_, group, rows, outcome, 0.0), 0)
        headers = [_JSON]
        if status == 503:
            headers.append((b"retry-after", str(int(RETRY_S)).encode()))
        return status, orjson.dumps({"error": str(error)}), headers


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": list(spec.shape)}
