"""The engine: runs all requests that became readable in one turn of the event loop, in as few runs as it may.

* No timer and no extra delay: the flush is scheduled once, for the next turn of the loop. What runs longer
  than ``INLINE_S`` runs in a pool of one thread, and what came meanwhile is its next batch.
* A flush reads the table once, so that no batch mixes two tables; what waits for the pool is routed when its
  run begins.
* Requests share a run only in sizes in which the slot's answers are bit-equal to those alone (``pace.py``).
* When a shared run fails, its requests run one by one, so that one that poisons the batch fails alone.
* An answer that is not finite is an error: the client gets no number that is none.
* An error that nobody foresaw is told to everybody who waits for the run, and then goes on to the loop's log;
  runs that are over are answered before. Everybody is told before anything is counted or recorded.
* More than ``max_waiting`` requests at once are turned away (``Busy``), before they cost anything. One whose
  time is over before its run began is not run (``Late``); neither is one whose client left.

``front.py`` and ``rpc.py`` submit from the loop. Counts and records everything that was submitted; refusals
before that are counted by the fronts.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.serving.answer import Answer
from daemon.serving.ask import Ask
from daemon.serving.metrics import ServeMetrics
from daemon.serving.recorder import Recorder, Silence, Told
from daemon.serving.refusals import RETRY_S, Busy, Late, ModelFailed, NotFinite, NotReady, Unknown
from daemon.serving.slot import Outputs, Slot
from daemon.serving.table import Table
from policies.clock import Clock
from policies.errors import InstarError

INLINE_S = 0.002
"""A longer run would keep everything else waiting; a shorter one costs less than going to a thread."""

Done = Callable[[Ask, Answer | InstarError], None]


@dataclass(slots=True)
class Job:
    """An ask that waits for its run; times are on the monotonic clock. ``told``: nothing is owed any more."""

    ask: Ask
    received: float
    done: Done
    gone: bool = False
    told: bool = False

    def tell(self, said: Answer | InstarError) -> None:
        """Answer it; a client that is gone is told nothing."""
        self.told = True
        if not self.gone:
            self.done(self.ask, said)

    @property
    def due(self) -> float:
        """Until when an answer is of use."""
        return self.received + self.ask.timeout_s


@dataclass(slots=True)
class Ran:
    """One run of a slot: what it was given, and what it said or why it failed."""

    jobs: list[Job]
    x: NDArray[Any]
    out: Outputs | ModelFailed
    began: float
    gathered: float
    ended: float


class Engine:
    """One a process."""

    def __init__(
        self,
        table: Callable[[], Table],
        recorder: Recorder | Silence,
        metrics: ServeMetrics,
        clock: Clock,
        max_batch: int,
        max_waiting: int = 1024,
    ) -> None:
        self._table, self._recorder, self._metrics, self._clock = table, recorder, metrics, clock
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._waiting: list[Job] = []
        self._long: deque[Job] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._pooled = 0

    @property
    def open(self) -> int:
        """How many requests wait or run."""
        return len(self._waiting) + len(self._long) + self._pooled

    def submit(self, ask: Ask, received: float, done: Done) -> Job:
        """Have an ask of at most ``max_batch`` rows answered; ``done`` is called in the loop, exactly once.

        It is called with a refusal when there is no answer: ``NotReady``, ``Unknown``, ``Late`` or
        ``ModelFailed``; never when the job's client is ``gone``.

        Raises:
            Busy: Too many requests wait.
        """
        if self.open >= self._max_waiting:
            raise Busy(f"expected at most {self._max_waiting} waiting requests; send again later", RETRY_S)
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        job = Job(ask, received, done)
        self._waiting.append(job)
        return job

    def close(self) -> None:
        """End the pool's thread after its run, without waiting: who has time for it has waited already."""
        self._pool.shutdown(wait=False)

    # -- in the loop ----------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Answer everything that waits and runs shortly; have the rest run in the pool."""
        batch, self._waiting = self._waiting, []
        try:
            self._run_shortly(batch)
        except Exception as error:
            self._give_up(batch, error)
            raise
        finally:
            self._pump()

    def _run_shortly(self, batch: list[Job]) -> None:
        table = self._table()
        ran: deque[tuple[Slot, Ran]] = deque()
        held_s = 0.0
        try:
            for slot, part in self._routed(table, batch):
                run_s = slot.pace.seconds(sum(len(job.ask.x) for job in part))
                if run_s > INLINE_S:
                    self._long.extend(part)
                    continue
                # Runs beside runs and answers beside answers keep the processor's caches warm; answers that
                # are there wait for others no longer than one run may take.
                if held_s + run_s > INLINE_S:
                    self._finish_all(table.model, ran)
                    held_s = 0.0
                ran.extend((slot, run) for run in self._compute(slot, part, table.exit_confidence))
                held_s += run_s
        finally:
            self._finish_all(table.model, ran)

    def _give_up(self, batch: list[Job], error: Exception) -> None:
        """Tell who still waits that there will be no answer."""
        later = {id(job) for job in self._long}
        left = [job for job in batch if not job.told and id(job) not in later]
        failed = ModelFailed(f"expected a run, it broke off: {type(error).__name__}; see the log")
        self._refuse(self._table(), left, failed, "error")

    def _refuse(self, table: Table, jobs: list[Job], refusal: InstarError, outcome: str) -> None:
        """Tell jobs that never got an answer why; then count and record them."""
        now = self._clock.monotonic()
        try:
            _tell((job, refusal) for job in jobs)
        finally:
            for job in jobs:
                self._metrics.count(outcome)
                told = Told(job.ask.id, job.ask.group, len(job.ask.x), outcome, (now - job.received) * 1e3)
                self._recorder.unanswered(table.stable, 0, told, 0)

    def _finish_all(self, model: str, ran: deque[tuple[Slot, Ran]]) -> None:
        while ran:
            self._finish(model, *ran.popleft())

    def _pump(self) -> None:
        """Have the pool run the next batch of what is long, when it is idle."""
        while self._long and not self._pooled:
            # One turn's worth: more than a batch would be routed by a table that is old when it runs.
            taken = [self._long.popleft() for _ in range(min(len(self._long), self._max_batch))]
            try:
                self._pool_runs(self._table(), taken)
            except Exception as error:
                self._give_up(taken, error)
                asyncio.get_running_loop().call_soon(self._pump)
                raise

    def _pool_runs(self, table: Table, taken: list[Job]) -> None:
        parts = list(self._routed(table, taken))
        for _, part in reversed(parts[1:]):
            self._long.extendleft(reversed(part))
        if parts:
            slot, part = parts[0]
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._pool, self._compute, slot, part, table.exit_confidence)
            self._pooled = len(part)
            running.add_done_callback(lambda done: self._back(table.model, slot, part, done))

    def _back(self, model: str, slot: Slot, part: list[Job], done: asyncio.Future[list[Ran]]) -> None:
        self._pooled = 0
        try:
            self._finish_all(model, deque((slot, run) for run in done.result()))
        except Exception as error:
            self._give_up(part, error)
            raise
        finally:
            # Also after an error that nobody foresaw: the pool is not its hostage.
            self._pump()

    # -- runs -----------------------------------------------------------------------------------------------

    def _routed(self, table: Table, batch: list[Job]) -> Iterator[tuple[Slot, list[Job]]]:
        """Give every job a slot, and every slot its jobs in parts that may share a run."""
        now = self._clock.monotonic()
        members: dict[int, tuple[Slot, list[Job]]] = {}
        for job in batch:
            if job.gone:
                job.told = True
                self._metrics.count("client_error")
                continue
            slot = self._slot_of(table, job, now)
            if slot is not None:
                members.setdefault(slot.generation, (slot, []))[1].append(job)
        for slot, jobs in members.values():
            for part in self._parts(slot, jobs):
                yield slot, part

    def _slot_of(self, table: Table, job: Job, now: float) -> Slot | None:
        ask = job.ask
        if now > job.due:
            refusal: InstarError = Late(
                f"expected an answer within {ask.timeout_s:g} s, it waited {now - job.received:.3f} s; "
                "send again with more time, or later"
            )
            outcome = "timeout"
        else:
            slot = table.route(ask.key) if ask.version is None else table.version(ask.version)
            if slot is not None:
                return slot
            # Both were checked when the request came; the table changed in between.
            refusal, outcome = (
                (NotReady("expected a stable model, there is none any more; send again later"), "shed")
                if ask.version is None
                else (Unknown(f"expected a served version, {ask.version} just left"), "client_error")
            )
        self._refuse(table, [job], refusal, outcome)
        return None

    def _parts(self, slot: Slot, jobs: list[Job]) -> list[list[Job]]:
        sizes = slot.pace.sizes
        if len(jobs) == 1 or len(sizes) == 1:
            return [[job] for job in jobs]
        most = min(self._max_batch, max(sizes))
        while most > 1 and slot.pace.seconds(most) > INLINE_S and slot.pace.row_s <= INLINE_S:
            most -= 1
        parts: list[list[Job]] = [[]]
        rows = 0
        for job in jobs:
            own = len(job.ask.x)
            grown = rows + own
            # Whose own size is not among them is answered in that size always, whoever comes with it.
            if parts[-1] and (grown > most or not {rows, own, grown} <= sizes):
                parts.append([])
                grown = own
            parts[-1].append(job)
            rows = grown
        return parts

    def _compute(self, slot: Slot, part: list[Job], confidence: float | None) -> list[Ran]:
        """Run a part; one by one when that fails."""
        began = self._clock.monotonic()
        x = part[0].ask.x if len(part) == 1 else np.concatenate([job.ask.x for job in part])
        gathered = self._clock.monotonic()
        out: Outputs | ModelFailed
        try:
            out = slot.answer(x, confidence)
        except ModelFailed as error:
            if len(part) > 1:
                return [ran for job in part for ran in self._compute(slot, [job], confidence)]
            out = error
        return [Ran(part, x, out, began, gathered, self._clock.monotonic())]

    def _finish(self, model: str, slot: Slot, ran: Ran) -> None:
        """Answer, count and record what ran."""
        said = self._said(model, slot, ran)
        try:
            _tell((job, answer) for job, (answer, _) in zip(ran.jobs, said, strict=True))
        finally:
            slot.stats.output_s += self._clock.monotonic() - ran.ended
            self._count(slot, ran, said)

    @staticmethod
    def _said(model: str, slot: Slot, ran: Ran) -> list[tuple[Answer | ModelFailed, str]]:
        """Return what every job of a run is told, and its outcome."""
        if isinstance(ran.out, ModelFailed):
            return [(ran.out, "error") for _ in ran.jobs]
        logits, embedding, _ = ran.out
        # One look at all, since one that is not finite is rare: a finite sum of squares has finite parts.
        whole = math.isfinite(_squares(logits) + _squares(embedding))
        if whole and len(ran.jobs) == 1:
            return [(Answer(model, slot.generation, logits, embedding), "ok")]
        said: list[tuple[Answer | ModelFailed, str]] = []
        start = 0
        for job in ran.jobs:
            end = start + len(job.ask.x)
            mine = Answer(model, slot.generation, logits[start:end], embedding[start:end])
            if whole or (np.isfinite(mine.logits).all() and np.isfinite(mine.embedding).all()):
                said.append((mine, "ok"))
            else:
                said.append(
                    (NotFinite(f"expected finite outputs of generation {slot.generation}"), "not_finite")
                )
            start = end
        return said

    def _count(self, slot: Slot, ran: Ran, said: list[tuple[Answer | ModelFailed, str]]) -> None:
        rows, now, stats = len(ran.x), self._clock.now(), slot.stats
        stats.run(rows, ran.gathered - ran.began, ran.ended - ran.gathered)
        told: list[Told] = []
        for job, (_, outcome) in zip(ran.jobs, said, strict=True):
            received, ask = job.received, job.ask
            whole = ran.ended - received
            stats.request(outcome == "ok", len(ask.x), whole, ran.began - received, now)
            told.append(Told(ask.id, ask.group, len(ask.x), outcome, whole * 1e3))
        self._metrics.ran(rows, told)
        if isinstance(ran.out, ModelFailed):
            for each in told:
                self._recorder.unanswered(slot, slot.generation, each, rows)
        else:
            self._recorder.answered(slot, told, ran.x, *ran.out)
            if (gone := ran.out[2]) is not None:
                early = int(np.count_nonzero(gone))
                self._metrics.left(early, rows - early)


def _tell(told: Iterable[tuple[Job, Answer | InstarError]]) -> None:
    """Tell everybody, also after one whom telling broke off."""
    broken: list[Exception] = []
    for job, said in told:
        try:
            job.tell(said)
        except Exception as error:  # noqa: BLE001  all of them are raised below
            broken.append(error)
    if broken:
        raise ExceptionGroup("expected everybody to be told", broken)


def _squares(array: NDArray[np.float32]) -> float:
    return float(np.vdot(array, array))
