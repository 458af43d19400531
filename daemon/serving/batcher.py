"""The batcher: runs every request that became readable in one turn of the event loop as one batch a slot.

* No timer and no extra delay: the flush is scheduled once, for the next turn.
* A flush reads the table once, so that no batch mixes two tables.
* At most ``max_batch`` rows a run. When a run fails, its requests run one by one, so that one that poisons
  the batch fails alone.
* An answer that is not finite is an error: the client gets no number that is none.
* More than ``max_waiting`` requests at once are turned away (``Busy``), before they cost anything.

Called by ``front.py``. Counts and records ok and error; refusals before the model are counted by the front.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.serving.answer import Answer
from daemon.serving.ask import Ask
from daemon.serving.metrics import ServeMetrics
from daemon.serving.recorder import Recorder, Row, rows_of
from daemon.serving.refusals import Busy, ModelFailed, NotReady, Unknown
from daemon.serving.slot import Slot
from daemon.serving.table import Table
from policies.clock import Clock

RETRY_S = 1.0


@dataclass(slots=True)
class Waiting:
    """An ask that waits for its batch; ``received`` is on the monotonic clock."""

    ask: Ask
    received: float
    answer: asyncio.Future[Answer]


Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]


class Batcher:
    """One a process; used in one event loop."""

    def __init__(
        self,
        table: Callable[[], Table],
        recorder: Recorder,
        metrics: ServeMetrics,
        clock: Clock,
        max_batch: int,
        max_waiting: int = 1024,
    ) -> None:
        self._table, self._recorder, self._metrics, self._clock = table, recorder, metrics, clock
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._waiting: list[Waiting] = []

    async def answer(self, ask: Ask, received: float) -> Answer:
        """Return the model's answer to an ask of at most ``max_batch`` rows.

        Raises:
            Busy: Too many requests wait.
            NotReady: There is no stable model any more.
            Unknown: The pinned version is not served any more.
            ModelFailed: The model could not answer, or not with finite numbers.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Busy(f"expected at most {self._max_waiting} waiting requests; send again later", RETRY_S)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self.flush)
        waiting = Waiting(ask, received, loop.create_future())
        self._waiting.append(waiting)
        return await waiting.answer

    def flush(self) -> None:
        """Answer everything that waits."""
        batch, self._waiting = self._waiting, []
        table = self._table()
        by_slot: dict[int, tuple[Slot, list[Waiting]]] = {}
        for waiting in batch:
            slot = self._slot_of(table, waiting)
            if slot is not None:
                by_slot.setdefault(slot.generation, (slot, []))[1].append(waiting)
        for slot, members in by_slot.values():
            for part in self._parts(members):
                self._run(table.model, slot, part)

    @staticmethod
    def _slot_of(table: Table, waiting: Waiting) -> Slot | None:
        version = waiting.ask.version
        slot = table.route(waiting.ask.id) if version is None else table.version(version)
        if slot is None:
            # Both were checked when the request came; the table changed in between.
            gone = NotReady("expected a stable model, there is none any more; send again later", RETRY_S)
            refusal = gone if version is None else Unknown(f"expected a served version, {version} just left")
            _fail(waiting, refusal)
        return slot

    def _parts(self, members: list[Waiting]) -> list[list[Waiting]]:
        parts: list[list[Waiting]] = []
        rows = self._max_batch
        for waiting in members:
            if rows + len(waiting.ask.x) > self._max_batch:
                parts.append([])
                rows = 0
            parts[-1].append(waiting)
            rows += len(waiting.ask.x)
        return parts

    def _run(self, model: str, slot: Slot, part: list[Waiting]) -> None:
        x = part[0].ask.x if len(part) == 1 else np.concatenate([waiting.ask.x for waiting in part])
        self._metrics.batch_size.observe(len(x))
        try:
            logits, embedding = slot.run(x)
        except ModelFailed as error:
            if len(part) == 1:
                self._failed(slot, part[0], error)
            else:
                for waiting in part:
                    self._run(model, slot, [waiting])
            return
        self._answered(model, slot, part, x, (logits, embedding))

    def _answered(self, model: str, slot: Slot, part: list[Waiting], x: NDArray[Any], out: Outputs) -> None:
        logits, embedding = out
        finite: NDArray[np.bool_] = np.isfinite(np.concatenate([logits, embedding], axis=1)).all(axis=1)
        now, start = self._clock.monotonic(), 0
        rows: list[Row] = []
        for waiting in part:
            ask, end = waiting.ask, start + len(waiting.ask.x)
            good = bool(finite[start:end].all())
            outcome = "ok" if good else "error"
            self._metrics.count(outcome, now - waiting.received)
            rows += rows_of(ask.id, ask.group, end - start, outcome, (now - waiting.received) * 1e3)
            if not good:
                _fail(
                    waiting, ModelFailed(f"expected finite outputs of generation {slot.generation}", RETRY_S)
                )
            elif not waiting.answer.done():
                answer = Answer(model, slot.generation, logits[start:end], embedding[start:end])
                waiting.answer.set_result(answer)
            start = end
        self._recorder.answered(slot, rows, x, logits, embedding)

    def _failed(self, slot: Slot, waiting: Waiting, error: ModelFailed) -> None:
        seconds = self._clock.monotonic() - waiting.received
        self._metrics.count("error", seconds)
        ask = waiting.ask
        rows = rows_of(ask.id, ask.group, len(ask.x), "error", seconds * 1e3)
        self._recorder.unanswered(slot, slot.generation, rows, batch=len(ask.x))
        _fail(waiting, error)


def _fail(waiting: Waiting, error: Exception) -> None:
    # Done already means that the client went away.
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
