"""The front: the Open Inference Protocol over HTTP, and the only place that knows HTTP codes.

* Server and model live, ready, metadata; infer; model configuration, statistics, model repository.
* Not ready until a stable model is proven; a malformed request is the client's error (400, 404, 405, 413),
  never ours. Too many at once: 429. No model, or draining: 503. Out of its own time: 504. Both of the former
  say when to come again. A failed model: 500.
* ``Instar-Route`` is what a request is routed by (sticky); ``Instar-Timeout-Ms`` how long its answer is of
  use. Without the first, the request's id routes it.
* The repository's index is there for all; ``load`` and ``unload`` only where the settings say so, and never
  with a model or a configuration from the network.
* Every request to a model is counted once, and recorded once for every row; of a client that left before
  its request was whole, only the count stays.

Called by ``connection.py`` with whole requests. Source: Open Inference Protocol v2, REST, and Triton's
extensions of it.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import msgspec
import orjson

from daemon.serving import description
from daemon.serving.answer import Answer, encode
from daemon.serving.ask import Ask, parse
from daemon.serving.body import plain
from daemon.serving.connection import AGAIN, JSON, Header, Respond, Work, error_body
from daemon.serving.engine import Engine
from daemon.serving.ids import Ids
from daemon.serving.metrics import ServeMetrics
from daemon.serving.reading import Request
from daemon.serving.recorder import Recorder, Silence, Told
from daemon.serving.refusals import (
    Busy,
    DeploymentRefused,
    Late,
    Malformed,
    ModelFailed,
    NotAllowed,
    NotFinite,
    NotReady,
    TooLarge,
    Unknown,
    broke_off,
)
from daemon.serving.slot import Slot
from daemon.serving.table import Table
from policies.clock import Clock
from policies.errors import InstarError

CODES: dict[type[InstarError], tuple[int, str]] = {
    Malformed: (400, "client_error"),
    NotAllowed: (403, "client_error"),
    Unknown: (404, "client_error"),
    TooLarge: (413, "client_error"),
    Busy: (429, "shed"),
    NotReady: (503, "shed"),
    DeploymentRefused: (503, "shed"),
    Late: (504, "timeout"),
    ModelFailed: (500, "error"),
    NotFinite: (500, "error"),
}
REFUSALS = tuple(CODES)
_MODEL = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer|/config|/stats)?")
_HOST = re.compile(rb"^https?://[^/]*", re.IGNORECASE)
_INDEX_PATH = b"/v2/repository/index"
_POSTS, _ASKS = (b"POST",), (b"GET", b"HEAD")
_REPOSITORY = re.compile(rb"/v2/repository/models/([^/]+)/(load|unload)")
_PLACES = (b"/v2", b"/v2/", b"/v2/health/live", b"/v2/health/ready", _INDEX_PATH)
_BINARY: Header = (b"content-type", b"application/octet-stream")
_MOST_TIMEOUT_MS = 86_400_000


class _Index(msgspec.Struct):
    ready: bool = False


class _Load(msgspec.Struct):
    parameters: dict[str, Any] = {}


_INDEX, _LOAD = msgspec.json.Decoder(_Index), msgspec.json.Decoder(_Load)


class Repository(Protocol):
    """What ``load`` and ``unload`` reach."""

    unloaded: bool

    async def load(self) -> None:
        """Serve the deployment again."""

    async def unload(self) -> None:
        """Serve nothing until ``load``."""


class Front:
    """The inference port's application."""

    def __init__(
        self,
        table: Callable[[], Table],
        engine: Engine,
        recorder: Recorder | Silence,
        metrics: ServeMetrics,
        clock: Clock,
        repository: Repository,
        *,
        version: str,
        max_rows: int,
        max_body: int,
        controlled: bool,
    ) -> None:
        self._table, self._engine, self._recorder, self._metrics = table, engine, recorder, metrics
        self._clock, self._repository = clock, repository
        self._version, self._max_rows, self._max_body = version, max_rows, max_body
        self._controlled = controlled
        self._ids = Ids()
        self._infer_target = f"/v2/models/{table().model}/infer".encode()
        self._orders: set[asyncio.Task[None]] = set()
        self.draining = False

    def handle(self, request: Request, respond: Respond) -> Work | None:
        """Answer one request, now or when its run is over; returns what it waits for."""
        if request.target == self._infer_target and request.method == b"POST":
            return self._infer(request, self._table().model, None, respond)
        path, _, _query = request.target.partition(b"?")
        # The whole address, as a proxy is asked, means the same here (RFC 9112, 3.2.2).
        path = path if path.startswith(b"/") else _HOST.sub(b"", path)
        path = unquote_to_bytes(path) if b"%" in path else path
        match = _MODEL.fullmatch(path)
        if match is not None and match[3] == b"/infer" and request.method == b"POST":
            return self._infer(request, _text(match[1]), _pinned(match[2]), respond)
        if (order := _REPOSITORY.fullmatch(path)) is not None and request.method == b"POST":
            self._order(request, _text(order[1]), order[2] == b"load", respond)
            return None
        if match is None and order is None and path not in _PLACES:
            unknown = Unknown(f"expected a path of the Open Inference Protocol v2, got {_text(path)!r}")
            respond(*_refusal(unknown))
            return None
        allowed = _allowed(path, match)
        if request.method not in allowed:
            wanted, came = b" or ".join(allowed).decode(), _text(request.method)
            text = f"expected {wanted} on {_text(path)}, got {came}"
            respond(405, error_body(text), (JSON, (b"allow", b", ".join(allowed))))
            return None
        try:
            status, value = self._told(request, path, match)
        except REFUSALS as error:
            respond(*_refusal(error))
        else:
            respond(status, orjson.dumps(value), (JSON,))
        return None

    # -- questions ------------------------------------------------------------------------------------------

    def _told(self, request: Request, path: bytes, match: re.Match[bytes] | None) -> tuple[int, Any]:
        table = self._table()
        if path == _INDEX_PATH:
            ready_only = _decoded(_INDEX, request.body).ready
            return 200, description.index(table, ready_only, self._repository.unloaded)
        if match is not None:
            return self._told_of_model(table, _text(match[1]), _pinned(match[2]), match[3])
        ready = table.stable is not None and not self.draining
        if path in (b"/v2", b"/v2/"):
            return 200, description.server(self._version)
        if path == b"/v2/health/live":
            return 200, {"live": True}
        return (200 if ready else 503), {"ready": ready}

    def _told_of_model(
        self, table: Table, model: str, version: str | None, part: bytes | None
    ) -> tuple[int, Any]:
        if part is None and model == "stats" and version is None:
            return 200, description.statistics(table, None)
        slot = description.slot_of(table, model, version)
        if part == b"/ready":
            return (503 if self.draining else 200), {"name": model, "ready": not self.draining}
        if part == b"/config":
            return 200, description.configuration(table, slot, self._max_rows)
        if part == b"/stats":
            return 200, description.statistics(table, version)
        return 200, description.metadata(table, slot)

    # -- orders ---------------------------------------------------------------------------------------------

    def _order(self, request: Request, model: str, load: bool, respond: Respond) -> None:
        task = asyncio.get_running_loop().create_task(self._ordered(request, model, load, respond))
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)

    async def _ordered(self, request: Request, model: str, load: bool, respond: Respond) -> None:
        try:
            await self.order(model, load, _decoded(_LOAD, request.body).parameters)
        except REFUSALS as error:
            respond(*_refusal(error))
        except Exception as error:
            respond(*_refusal(broke_off(error)))
            raise
        else:
            respond(200, b"", ())

    async def order(self, model: str, load: bool, parameters: dict[str, Any]) -> None:
        """Load the deployed model again, or unload it.

        Raises:
            NotAllowed: Clients may not, here; or they brought a model or a configuration.
            Unknown: It is another model.
            DeploymentRefused: Its bundle does not prove itself any more.
        """
        if brought := sorted(key for key in parameters if key == "config" or key.startswith("file:")):
            raise NotAllowed(
                f"expected no model and no configuration from the network, got {', '.join(brought)[:200]}; "
                "generations come through policy, guards and people"
            )
        if model != self._table().model:
            raise Unknown(f"expected model {self._table().model!r}, got {model[:80]!r}")
        if not self._controlled:
            raise NotAllowed(
                "expected an order from instard alone, got one from a client; "
                "start instar-serve with --repository-control on to let clients load and unload"
            )
        await (self._repository.load() if load else self._repository.unload())

    # -- inference ------------------------------------------------------------------------------------------

    def _infer(self, request: Request, model: str, version: str | None, respond: Respond) -> Work | None:
        ask: Ask | None = None
        try:
            slot = description.slot_of(self._table(), model, version)
            ask = self._read(request, slot, version)

            def done(asked: Ask, said: Answer | InstarError) -> None:
                try:
                    response = _refusal(said) if isinstance(said, InstarError) else _answer(asked, said)
                except Exception as error:
                    respond(*_refusal(broke_off(error)))
                    raise
                respond(*response)

            return self._engine.submit(ask, request.received, done)
        except REFUSALS as error:
            self.refuse(ask, error)
            respond(*_refusal(error))
            return None

    def _read(self, request: Request, slot: Slot, version: str | None) -> Ask:
        headers, body = request.headers, request.body
        coding = headers.get(b"content-encoding")
        if coding is not None:
            body = plain(body, coding, self._max_body)
        length = headers.get(b"inference-header-content-length")
        text = None if length is None else length.decode("latin-1")
        key = headers.get(b"instar-route", b"").decode("latin-1")
        ask = parse(body, text, slot.meta.input, self._max_rows, self._ids, version, key)
        given = headers.get(b"instar-timeout-ms")
        return (
            ask
            if given is None
            else msgspec.structs.replace(ask, timeout_s=min(ask.timeout_s, _seconds(given)))
        )

    def refuse(self, ask: Ask | None, error: InstarError) -> None:
        """Count and record a request that never came to the engine."""
        outcome = CODES[type(error)][1]
        self._metrics.count(outcome)
        if ask is not None:
            told = Told(ask.id, ask.group, len(ask.x), outcome, 0.0)
        else:
            id_ = self._ids()
            told = Told(id_, id_, 1, outcome, 0.0)
        self._recorder.unanswered(self._table().stable, 0, told, 0)


def _allowed(path: bytes, match: re.Match[bytes] | None) -> tuple[bytes, ...]:
    posts = path == _INDEX_PATH or _REPOSITORY.fullmatch(path) is not None
    return _POSTS if posts or (match is not None and match[3] == b"/infer") else _ASKS


def _answer(asked: Ask, said: Answer) -> tuple[int, bytes, tuple[Header, ...]]:
    body, head = encode(asked, said)
    if head is None:
        return 200, body, (JSON,)
    return 200, body, (_BINARY, (b"inference-header-content-length", b"%d" % head))


def _refusal(error: InstarError) -> tuple[int, bytes, tuple[Header, ...]]:
    status = CODES[type(error)][0]
    return status, error_body(str(error)), (JSON, AGAIN) if status in (429, 503) else (JSON,)


def _decoded(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body or b"{}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"expected a request of the model repository as JSON, got {error}") from error


def _text(raw: bytes) -> str:
    return raw[:200].decode("latin-1")


def _pinned(raw: bytes | None) -> str | None:
    return None if raw is None else _text(raw)


def _seconds(raw: bytes) -> float:
    if not raw.isdigit() or len(raw) > 8 or not 0 < int(raw) <= _MOST_TIMEOUT_MS:
        raise Malformed(f"expected Instar-Timeout-Ms from 1 to {_MOST_TIMEOUT_MS}, got {raw[:40]!r}")
    return int(raw) / 1e3
