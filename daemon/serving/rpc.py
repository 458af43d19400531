"""The front over gRPC: what each call of the Open Inference Protocol means; ``front.py``'s twin.

* Server and model live, ready, metadata; infer; model configuration, statistics, model repository. Streams,
  shared memory, trace and log settings are not offered (UNIMPLEMENTED).
* Metadata ``instar-route`` is what a request is routed by, as the header of that name is over HTTP; the
  call's deadline and the parameter ``timeout`` say how long its answer is of use, whichever is shorter.
* Orders go to the event loop, where ``Front.order`` has the rules; a call waits for them in its own thread.
* Every request to the model is counted once, and recorded once for every row; of a call whose message never
  came whole, or whose client left or had no time any more before it was read, only the count stays.

Called by ``exchange.py`` with whole messages, in threads of its own.

Source: Open Inference Protocol v2, gRPC, and Triton's extensions of it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Protocol

from tritonclient.grpc import service_pb2 as pb

from daemon.serving import description
from daemon.serving.ask import Ask
from daemon.serving.engine import Engine
from daemon.serving.exchange import Call, Service
from daemon.serving.front import REFUSALS, Front
from daemon.serving.ids import Ids
from daemon.serving.messages import answer_of, ask_of, fill, plain, read
from daemon.serving.metrics import ServeMetrics
from daemon.serving.refusals import Busy, Late, NotReady, Unknown
from daemon.serving.table import Table

ORDER_S = 60.0
ROUTE = "instar-route"

_NAME = "/inference.GRPCInferenceService/"
_INFER = _NAME + "ModelInfer"


class Kept(Protocol):
    """What is served: the keeper, as far as a front looks at it."""

    table: Table
    unloaded: bool


class Rpc:
    """Answers calls; one a process."""

    def __init__(
        self,
        front: Front,
        engine: Engine,
        kept: Kept,
        metrics: ServeMetrics,
        loop: asyncio.AbstractEventLoop,
        *,
        version: str,
        max_rows: int,
    ) -> None:
        self._front, self._engine, self._kept, self._metrics = front, engine, kept, metrics
        self._loop, self._version, self._max_rows = loop, version, max_rows
        self._ids = Ids()

    def service(self) -> Service:
        """Return what the exchange offers."""
        methods: dict[str, Callable[[Call], bytes]] = {
            "ServerLive": lambda _call: fill(pb.ServerLiveResponse, {"live": True}),
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _call: fill(
                pb.ServerMetadataResponse, description.server(self._version)
            ),
            "ModelMetadata": self._metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._configuration,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": lambda call: self._order(call, load=True),
            "RepositoryModelUnload": lambda call: self._order(call, load=False),
        }
        return Service(
            {_NAME + name: method for name, method in methods.items()},
            _INFER,
            busy=self._turn_away,
            lost=self._metrics.count,
        )

    # -- inference ------------------------------------------------------------------------------------------

    def _infer(self, call: Call) -> bytes:
        ask: Ask | None = None
        try:
            message = read(pb.ModelInferRequest, call.raw)
            slot = description.slot_of(self._kept.table, message.model_name, message.model_version or None)
            ask = ask_of(message, slot.meta.input, self._max_rows, self._ids, call.said(ROUTE), call.within_s)
        except REFUSALS as error:
            self._front.refuse(ask, error)
            raise
        return answer_of(ask, self._engine.answer(ask, call.received))

    def _turn_away(self, busy: Busy) -> None:
        self._front.refuse(None, busy)

    # -- questions ------------------------------------------------------------------------------------------

    def _server_ready(self, _call: Call) -> bytes:
        ready = self._kept.table.stable is not None and not self._front.draining
        return fill(pb.ServerReadyResponse, {"ready": ready})

    def _model_ready(self, call: Call) -> bytes:
        asked = read(pb.ModelReadyRequest, call.raw)
        try:
            description.slot_of(self._kept.table, asked.name, asked.version or None)
        except (Unknown, NotReady):
            # As Triton answers it: not ready, whatever the reason.
            return fill(pb.ModelReadyResponse, {"ready": False})
        return fill(pb.ModelReadyResponse, {"ready": not self._front.draining})

    def _metadata(self, call: Call) -> bytes:
        asked, table = read(pb.ModelMetadataRequest, call.raw), self._kept.table
        slot = description.slot_of(table, asked.name, asked.version or None)
        return fill(pb.ModelMetadataResponse, description.metadata(table, slot))

    def _configuration(self, call: Call) -> bytes:
        asked, table = read(pb.ModelConfigRequest, call.raw), self._kept.table
        slot = description.slot_of(table, asked.name, asked.version or None)
        return fill(
            pb.ModelConfigResponse, {"config": description.configuration(table, slot, self._max_rows)}
        )

    def _statistics(self, call: Call) -> bytes:
        asked, table = read(pb.ModelStatisticsRequest, call.raw), self._kept.table
        version = asked.version or None
        if asked.name or version is not None:
            description.slot_of(table, asked.name, version)
        return fill(pb.ModelStatisticsResponse, description.statistics(table, version))

    def _index(self, call: Call) -> bytes:
        asked = read(pb.RepositoryIndexRequest, call.raw)
        told = description.index(self._kept.table, asked.ready, self._kept.unloaded)
        return fill(pb.RepositoryIndexResponse, {"models": told})

    # -- orders ---------------------------------------------------------------------------------------------

    def _order(self, call: Call, load: bool) -> bytes:
        kind: Any = pb.RepositoryModelLoadRequest if load else pb.RepositoryModelUnloadRequest
        order = read(kind, call.raw)
        given = self._front.order(order.model_name, load, plain(order.parameters))
        under_way = asyncio.run_coroutine_threadsafe(given, self._loop)
        try:
            under_way.result(min(call.within_s, ORDER_S))
        except (TimeoutError, CancelledError):
            raise Late(
                "expected the order to be done in time, it is still under way; ask the index"
            ) from None
        return b""
