"""The exchange: takes gRPC calls in, bounds their number and patience, and sees them out.

* Requests to the model are answered by ``HANDS`` threads, everything else by ``DESK`` others, so that health
  is told while the model is busy.
* A call that comes while ``max_waiting`` wait is turned away before its message is read, and at once: who is
  turned away waits for no thread. gRPC's own limit, beyond which a call is let in here and then not answered,
  lies above what is let in, so that it is never reached.
* A message must come within ``body_s`` of its call; within ``SCARCE_S`` when half the threads wait for one:
  a thread reads for one client, and slow clients shall not have them all. That is why every method is
  registered as one that streams its request, which looks the same on the wire: only those can be cancelled.
* Connections, streams, metadata, messages (also after decompression) and pings are bounded by gRPC's core.
* ``drain``: no new call; who waits gets an answer, for at most so many seconds.

Called by ``main.py``; knows no model. What the calls mean, ``rpc.py`` knows.
"""

import asyncio
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from daemon.serving.front import REFUSALS
from daemon.serving.reading import MOST_HEAD_BYTES
from daemon.serving.refusals import (
    RETRY_S,
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
)
from policies.clock import Clock
from policies.errors import InstarError, PermanentError

HANDS = 8
"""More run the model at once, which costs memory; fewer wait for slow clients together sooner."""
DESK = 4
MOST_AT_DESK = 256
MOST_STREAMS = 256
SCARCE_S = 1.0
SWEEP_S = 0.25
PING_S = 10.0
"""How often a client may ping on an idle connection."""

CODES: dict[type[InstarError], Any] = {
    Malformed: grpc.StatusCode.INVALID_ARGUMENT,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    Unknown: grpc.StatusCode.NOT_FOUND,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    DeploymentRefused: grpc.StatusCode.UNAVAILABLE,
    Late: grpc.StatusCode.DEADLINE_EXCEEDED,
    ModelFailed: grpc.StatusCode.INTERNAL,
    NotFinite: grpc.StatusCode.INTERNAL,
}
# Source: gRPC proposal A6: a client that retries waits so long.
_AGAIN = (("grpc-retry-pushback-ms", str(int(RETRY_S * 1000))),)

_ARRIVED: ContextVar[float] = ContextVar("arrived")


@dataclass(slots=True)
class Call:
    """One whole request; ``received`` is on the monotonic clock, ``within_s`` its deadline after that."""

    raw: bytes
    received: float
    within_s: float
    context: Any

    def said(self, name: str) -> str:
        """Return a piece of the request's metadata, or an empty text."""
        for key, value in self.context.invocation_metadata():
            if key == name:
                return value if isinstance(value, str) else ""
        return ""


Method = Callable[[Call], bytes]


@dataclass(frozen=True, slots=True)
class Service:
    """What is answered. ``methods`` by their whole names; ``model`` is the one that needs a run.

    ``busy`` counts a call to ``model`` that is turned away; ``lost``, by its outcome, one whose message was
    never read.
    """

    methods: Mapping[str, Method]
    model: str
    busy: Callable[[Busy], None]
    lost: Callable[[str], None]


class Pool(ThreadPoolExecutor):
    """Threads for calls. ``open`` is how many they were given, ``reading`` which wait for their message."""

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self.threads, self.open = threads, 0
        self.reading: dict[Any, float] = {}
        self._lock = threading.Lock()

    def count(self, calls: int) -> None:
        """Count calls that come, or go (negative)."""
        with self._lock:
            self.open += calls

    def dawdlers(self, now: float, patience_s: float) -> list[Any]:
        """Return the calls whose message has not come in time."""
        waiting = list(self.reading.items())
        if len(waiting) * 2 >= self.threads:
            patience_s = min(patience_s, SCARCE_S)
        return [context for context, since in waiting if now - since > patience_s]


class AtOnce(ThreadPoolExecutor):
    """A pool without threads (gRPC takes nothing else): runs what it is given, before it takes the next."""

    def submit(self, call: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        """Run a call that raises nothing, and return its future, which is done."""
        done: Future[Any] = Future()
        done.set_result(call(*given, **named))
        return done


@dataclass(slots=True)
class _Behaviour:
    """How calls of a method are answered; gRPC runs it in the pool that it names."""

    run: Callable[[Iterator[bytes], Any], bytes]
    experimental_thread_pool: ThreadPoolExecutor

    def __call__(self, messages: Iterator[bytes], context: Any) -> bytes:
        return self.run(messages, context)


class Exchange:
    """One a process; its ``service`` is what gRPC asks for each call's handler."""

    def __init__(
        self,
        service: Service,
        clock: Clock,
        *,
        max_body: int,
        max_waiting: int,
        max_connections: int,
        head_s: float,
        body_s: float,
        idle_s: float,
    ) -> None:
        self._answers, self._now = service, clock.monotonic
        self._max_waiting, self._body_s = max_waiting, body_s
        self._hands, self._desk = Pool(HANDS, "grpc"), Pool(DESK, "grpc-desk")
        self._handlers = {name: self._handler(name) for name in service.methods}
        self._turned_away = _handler(self._turn_away, AtOnce(1))
        self._over = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="grpc-sweeper", daemon=True)
        options = {
            # A taken port is an error, not a second server.
            "grpc.so_reuseport": 0,
            "grpc.max_receive_message_length": max_body,
            "grpc.max_metadata_size": MOST_HEAD_BYTES,
            "grpc.absolute_max_metadata_size": MOST_HEAD_BYTES,
            "grpc.max_allowed_incoming_connections": max_connections,
            "grpc.max_concurrent_streams": MOST_STREAMS,
            "grpc.server_handshake_timeout_ms": _ms(head_s),
            "grpc.max_connection_idle_ms": _ms(idle_s),
            "grpc.keepalive_time_ms": _ms(idle_s),
            "grpc.http2.min_ping_interval_without_data_ms": _ms(PING_S),
        }
        self._server = grpc.server(
            self._hands,
            handlers=(self,),
            options=list(options.items()),
            # Above what ``service`` lets in by more than there are threads: what ended a moment ago counts.
            maximum_concurrent_rpcs=max_waiting + MOST_AT_DESK + 2 * (HANDS + DESK),
        )

    @property
    def open(self) -> int:
        """How many requests to the model wait or run."""
        return self._hands.open

    # -- for gRPC -------------------------------------------------------------------------------------------

    def service(self, details: Any) -> Any:
        """Return how a call is answered; None when its method is not offered."""
        handler = self._handlers.get(details.method)
        if handler is None:
            return None
        to_model = details.method == self._answers.model
        if self._desk.open >= MOST_AT_DESK or (to_model and self._hands.open >= self._max_waiting):
            if to_model:
                self._answers.busy(self._busy())
            return self._turned_away
        (self._hands if to_model else self._desk).count(1)
        # gRPC runs this and the answer in one context.
        _ARRIVED.set(self._now())
        return handler

    def _handler(self, name: str) -> Any:
        pool = self._hands if name == self._answers.model else self._desk
        method = self._answers.methods[name]

        def run(messages: Iterator[bytes], context: Any) -> bytes:
            try:
                return self._answered(method, pool, messages, context)
            finally:
                pool.count(-1)

        return _handler(run, pool)

    def _answered(self, method: Method, pool: Pool, messages: Iterator[bytes], context: Any) -> bytes:
        taken = self._now()
        pool.reading[context] = taken
        try:
            raw = next(messages, None)
        except grpc.RpcError:
            # It was cancelled: by its client, by the core (too large, too late), or by ``sweep``.
            self._lost(pool, "timeout" if context.time_remaining() == 0.0 else "client_error")
            raise
        finally:
            del pool.reading[context]
        if raw is None:
            self._lost(pool, "client_error")
            return _refuse(context, Malformed("expected one message, the call ended without"))
        read, left = self._now(), context.time_remaining()
        # From the whole request on, as over HTTP: what it waited for a thread counts, what it took to come
        # does not.
        received = read - (taken - _ARRIVED.get())
        call = Call(raw, received, math.inf if left is None else read + left - received, context)
        try:
            return method(call)
        except REFUSALS as error:
            return _refuse(context, error)

    def _turn_away(self, _messages: Iterator[bytes], context: Any) -> bytes:
        return _refuse(context, self._busy())

    def _busy(self) -> Busy:
        return Busy(f"expected at most {self._max_waiting} waiting requests; send again later", RETRY_S)

    def _lost(self, pool: Pool, outcome: str) -> None:
        if pool is self._hands:
            self._answers.lost(outcome)

    # -- for the process ------------------------------------------------------------------------------------

    def start(self, address: str) -> str:
        """Take calls in at ``HOST:PORT`` or ``unix:PATH``; return the address, with the port that it has.

        Raises:
            PermanentError: The address cannot be had.
        """
        # A UNIX socket is closed to others from its first moment.
        before = os.umask(0o177)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise PermanentError(
                f"expected to listen on {address} for gRPC, got {error}; is it taken?"
            ) from error
        finally:
            os.umask(before)
        self._server.start()
        self._sweeper.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def drain(self, seconds: float) -> None:
        """See everybody out, for at most so many seconds."""
        stopped = self._server.stop(seconds)
        await asyncio.to_thread(self._leave, stopped)

    def _leave(self, stopped: threading.Event) -> None:
        stopped.wait()
        self._over.set()
        self._hands.shutdown()
        self._desk.shutdown()

    def _sweep(self) -> None:
        while not self._over.wait(SWEEP_S):
            self.sweep()

    def sweep(self) -> None:
        """End the calls whose message does not come."""
        now = self._now()
        for pool in (self._hands, self._desk):
            for context in pool.dawdlers(now, self._body_s):
                context.cancel()


def _handler(run: Callable[[Iterator[bytes], Any], bytes], pool: ThreadPoolExecutor) -> Any:
    return grpc.stream_unary_rpc_method_handler(_Behaviour(run, pool))


def _refuse(context: Any, error: InstarError) -> bytes:
    code = CODES[type(error)]
    if type(error) in (Busy, NotReady, DeploymentRefused):
        context.set_trailing_metadata(_AGAIN)
    context.abort(code, str(error))
    raise AssertionError("abort raises")


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
