"""What each generation did since a moment: the counts that probation compares.

Called by control while a newcomer and its incumbent share the traffic.

* A request that was answered, failed or timed out counts for its generation; one that was shed or was wrong
  itself says nothing of the model, and does not count.
* An answer that is not finite is an error, and is counted apart too: one of them is reason enough.
* Latencies are those of answered rows, the latest ``_MAX_LATENCIES`` of them.
* A label counts for the generation that answered its row.

It does not compare: ``policies.probation`` does.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from monitors.awaiting import Awaiting
from monitors.contract import Arrays
from monitors.spool import Block
from policies.telemetry import OUTCOMES
from policies.terms import Arm

_MAX_LATENCIES = 100_000
_OK = OUTCOMES.index("ok")
_FAILED = tuple(OUTCOMES.index(name) for name in ("error", "timeout"))
_NOT_FINITE = OUTCOMES.index("not_finite")


@dataclass(slots=True)
class _Count:
    """The running counts of one generation."""

    requests: int = 0
    errors: int = 0
    not_finite: int = 0
    labels: int = 0
    correct: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_LATENCIES))
    awaiting: Awaiting = field(default_factory=Awaiting)

    def learn(self, guess: int, label: int) -> None:
        self.labels += 1
        self.correct += guess == label


class Tally:
    """Counts by generation of rows at or after ``since`` (seconds since the epoch)."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._counts: dict[int, _Count] = {}

    def observe(self, block: Block) -> None:
        """Take telemetry records as the spool gives them."""
        rows = block[(block["at"] >= self.since) & (block["generation"] > 0)]
        for generation in np.unique(rows["generation"]).tolist():
            count = self._counts.setdefault(generation, _Count())
            ours = rows[rows["generation"] == generation]
            answered = ours[ours["outcome"] == _OK]
            finite = np.isfinite(answered["logits"]).all(axis=1)
            # A server of another make tells no outcome of its own for it: then the numbers do.
            refused = int((ours["outcome"] == _NOT_FINITE).sum())
            failed = int(np.isin(ours["outcome"], _FAILED).sum()) + refused
            not_finite = refused + int((~finite).sum())
            count.requests += len(answered) + failed
            count.errors += failed + int((~finite).sum())
            count.not_finite += not_finite
            count.latencies.extend(answered["latency_ms"].tolist())
            fine = answered[finite]
            for pair in count.awaiting.predict(fine["row_key"], fine["logits"].argmax(axis=1)):
                count.learn(*pair)

    def label(self, row_keys: npt.NDArray[np.void], labels: npt.NDArray[np.int64]) -> None:
        """Take labels by row key (V16); a label of a row not seen yet waits for it in every generation."""
        for count in self._counts.values():
            for pair in count.awaiting.label(row_keys, labels):
                count.learn(*pair)

    def snapshot(self) -> Arrays:
        """Return all counts, so that a restart forgets no error of a newcomer."""
        state: dict[str, npt.NDArray[np.generic]] = {"since": np.array(self.since)}
        for generation, count in self._counts.items():
            numbers = (count.requests, count.errors, count.not_finite, count.labels, count.correct)
            state[f"{generation}/counts"] = np.array(numbers, dtype=np.int64)
            state[f"{generation}/latencies"] = np.fromiter(count.latencies, dtype=np.float64)
            state |= {f"{generation}/awaiting/{k}": v for k, v in count.awaiting.snapshot().items()}
        return state

    @classmethod
    def restore(cls, state: Arrays) -> "Tally":
        """Return a tally that goes on where the snapshot was taken.

        Raises:
            KeyError: A part of the snapshot is missing.
            ValueError: It counts other things than we do.
        """
        tally = cls(float(state["since"]))
        for name in [key for key in state if key.endswith("/counts")]:
            mark = name.removesuffix("counts")
            requests, errors, not_finite, labels, correct = (int(number) for number in state[name])
            count = _Count(requests, errors, not_finite, labels, correct)
            count.latencies.extend(state[f"{mark}latencies"].tolist())
            inner = f"{mark}awaiting/"
            count.awaiting.restore({k.removeprefix(inner): state[k] for k in state if k.startswith(inner)})
            tally._counts[int(mark.rstrip("/"))] = count
        return tally

    def arm(self, generation: int) -> Arm:
        """Return what ``generation`` did; nothing, when none of its rows came."""
        count = self._counts.get(generation, _Count())
        p50, p99 = None, None
        if count.latencies:
            times = np.fromiter(count.latencies, dtype=np.float64)
            p50, p99 = (float(value) for value in np.quantile(times, (0.5, 0.99)))
        return Arm(
            generation=generation,
            requests=count.requests,
            errors=count.errors,
            not_finite=count.not_finite,
            p50_ms=p50,
            p99_ms=p99,
            labels=count.labels,
            correct=count.correct,
        )
