"""The front over gRPC: what each call of the Open Inference Protocol means; ``front.py``'s twin.

* Server and model live, ready, metadata; infer; model configuration, statistics, model repository. Streams,
  shared memory, trace and log settings are not offered (UNIMPLEMENTED).
* Metadata ``instar-route`` is what a request is routed by, as the header of that name is over HTTP; the
  call's deadline and the parameter ``timeout`` say how long its answer is of use, whichever is shorter.
* ``Front.order`` has the rules of orders; one goes on when the call that gave it has no time any more.
* Every request to the model is counted once, and recorded once for every row; of a call whose message never
  came whole, or whose client left or had no time any more before it was read, only the count stays.

Called by ``line.py`` with whole messages, in the event loop. Requests of one turn share a run with REST's.

Source: Open Inference Protocol v2, gRPC, and Triton's extensions of it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from tritonclient.grpc import service_pb2 as pb

from daemon.serving import description
from daemon.serving.answer import Answer
from daemon.serving.ask import Ask
from daemon.serving.call import Call, Reply
from daemon.serving.connection import Work
from daemon.serving.engine import Engine
from daemon.serving.exchange import Method, Service
from daemon.serving.front import REFUSALS, Front
from daemon.serving.ids import Ids
from daemon.serving.messages import answer_of, ask_of, fill, plain, read
from daemon.serving.metrics import ServeMetrics
from daemon.serving.refusals import Late, NotReady, Unknown, broke_off
from daemon.serving.table import Table
from policies.errors import InstarError

ORDER_S = 60.0
ROUTE = b"instar-route"

_NAME = b"/inference.GRPCInferenceService/"
_INFER = _NAME + b"ModelInfer"


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
        *,
        version: str,
        max_rows: int,
    ) -> None:
        self._front, self._engine, self._kept, self._metrics = front, engine, kept, metrics
        self._version, self._max_rows = version, max_rows
        self._ids = Ids()
        self._orders: set[asyncio.Task[None]] = set()

    def service(self) -> Service:
        """Return what the exchange offers."""
        questions: dict[bytes, Callable[[Call], bytes]] = {
            b"ServerLive": lambda _call: fill(pb.ServerLiveResponse, {"live": True}),
            b"ServerReady": self._server_ready,
            b"ModelReady": self._model_ready,
            b"ServerMetadata": lambda _call: fill(
                pb.ServerMetadataResponse, description.server(self._version)
            ),
            b"ModelMetadata": self._metadata,
            b"ModelConfig": self._configuration,
            b"ModelStatistics": self._statistics,
            b"RepositoryIndex": self._index,
        }
        methods: dict[bytes, Method] = {name: _at_once(ask) for name, ask in questions.items()}
        methods |= {
            b"ModelInfer": self._infer,
            b"RepositoryModelLoad": partial(self._order, True),
            b"RepositoryModelUnload": partial(self._order, False),
        }
        return Service(
            {_NAME + name: method for name, method in methods.items()}, _INFER, lost=self._metrics.count
        )

    # -- inference ------------------------------------------------------------------------------------------

    def _infer(self, call: Call, reply: Reply) -> Work | None:
        ask: Ask | None = None
        try:
            message = read(pb.ModelInferRequest, call.raw)
            slot = description.slot_of(self._kept.table, message.model_name, message.model_version or None)
            key = call.text(ROUTE)
            ask = ask_of(message, slot.meta.input, self._max_rows, self._ids, key, call.within_s)

            def done(asked: Ask, said: Answer | InstarError) -> None:
                try:
                    response = said if isinstance(said, InstarError) else answer_of(asked, said)
                except Exception as error:
                    reply(broke_off(error))
                    raise
                reply(response)

            return self._engine.submit(ask, call.received, done)
        except REFUSALS as error:
            self._front.refuse(ask, error)
            reply(error)
            return None

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

    def _order(self, load: bool, call: Call, reply: Reply) -> None:
        kind: Any = pb.RepositoryModelLoadRequest if load else pb.RepositoryModelUnloadRequest
        try:
            order = read(kind, call.raw)
        except REFUSALS as error:
            reply(error)
            return
        given = self._front.order(order.model_name, load, plain(order.parameters))
        self._keep(self._ordered(self._keep(given), call, reply))

    def _keep(self, given: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done, whoever waits for it or does not any more."""
        task = asyncio.get_running_loop().create_task(given)
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)
        return task

    @staticmethod
    async def _ordered(order: asyncio.Task[None], call: Call, reply: Reply) -> None:
        await asyncio.wait({order}, timeout=min(call.within_s, ORDER_S))
        if not order.done():
            reply(Late("expected the order to be done in time, it is still under way; ask the index"))
            return
        try:
            order.result()
        except REFUSALS as error:
            reply(error)
        except Exception as error:
            reply(broke_off(error))
            raise
        else:
            reply(b"")


def _at_once(method: Callable[[Call], bytes]) -> Method:
    """Return a method that answers a question, or says why not."""

    def answered(call: Call, reply: Reply) -> None:
        try:
            said: bytes | InstarError = method(call)
        except REFUSALS as error:
            said = error
        reply(said)

    return answered
