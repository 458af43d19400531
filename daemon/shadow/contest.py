"""Newcomer and incumbent on the same rows: counted, timed side by side, and looked at when it was said.

* Each row is run alone through both, the one that goes first by turns, so that whatever else the machine does
  hits both alike.
* The newcomer's answer is compared with what the client was told, its time with the incumbent's own on the
  same row.
* What cannot wait (an answer that is not finite, too many rows without any answer) ends it at once; all else
  is looked at when ``policies.shadow`` says.

Called by ``python -m daemon.shadow``; knows no file and no clock but the stopwatch that it is given.
"""

from collections.abc import Callable
from math import ceil, floor, sqrt
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daemon.serving.refusals import ModelFailed
from daemon.shadow.pairs import Pair
from policies.shadow import ShadowCase, ShadowResult, ShadowVerdict, Times, judge, level, look_at
from policies.terms import Finding

_WARM_RUNS = 5


class Runs(Protocol):
    """A model that answers ``(1, ...)`` with logits ``(1, classes)`` and an embedding."""

    def run(self, x: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits and embedding.

        Raises:
            ModelFailed: It could not.
        """
        ...


class Contest:
    """Counts until a verdict stands.

    Args:
        case: What is asked.
        newcomer: The model that is to be trusted with traffic.
        incumbent: The one that has it.
        stopwatch: Returns seconds that never go back.
    """

    def __init__(
        self, case: ShadowCase, newcomer: Runs, incumbent: Runs, stopwatch: Callable[[], float]
    ) -> None:
        self._case = case
        self._newcomer, self._incumbent, self._stopwatch = newcomer, incumbent, stopwatch
        self._begun = stopwatch()
        self._rows = self._disagreed = self._errors = self._not_finite = self._looks = 0
        self._times: list[tuple[float, float]] = []
        self._last: ShadowResult | None = None

    def take(self, pair: Pair) -> ShadowVerdict | None:
        """Run a row through both; return a verdict once one stands, else None."""
        if self._rows == 0:
            for model in (self._incumbent, self._newcomer) * _WARM_RUNS:
                self._timed(model, pair.x[np.newaxis])
        if not self._count(pair):
            now = self._now()
            verdict = judge(now, self._case.clause)
            if verdict.finding is Finding.FAIL:
                self._last = now
                return verdict
        if self._rows == look_at(self._case.clause, self._looks + 1):
            self._looks += 1
            self._last = self._now()
            verdict = judge(self._last, self._case.clause)
            return None if verdict.finding is Finding.INCONCLUSIVE else verdict
        return None

    def result(self) -> ShadowResult:
        """Return the counts of the last look; before the first one, what there is."""
        if self._last is None:
            return self._now()
        return self._last.model_copy(update={"wall_s": self._wall_s()})

    def _count(self, pair: Pair) -> bool:
        """Count a row in; return whether the newcomer could answer it."""
        x = pair.x[np.newaxis]
        if self._newcomer_first():
            ours, theirs = self._timed(self._newcomer, x), self._timed(self._incumbent, x)
        else:
            theirs, ours = self._timed(self._incumbent, x), self._timed(self._newcomer, x)
        self._rows += 1
        if ours is None:
            self._errors += 1
            return False
        seconds, logits, embedding = ours
        if not (np.isfinite(logits).all() and np.isfinite(embedding).all()):
            self._not_finite += 1
            return False
        self._disagreed += int(logits[0].argmax()) != pair.told
        if theirs is not None:
            self._times.append((seconds, theirs[0]))
        return True

    def _newcomer_first(self) -> bool:
        return self._rows % 2 == 0

    def _timed(
        self, model: Runs, x: NDArray[Any]
    ) -> tuple[float, NDArray[np.float32], NDArray[np.float32]] | None:
        start = self._stopwatch()
        try:
            logits, embedding = model.run(x)
        except ModelFailed:
            return None
        return self._stopwatch() - start, logits, embedding

    def _now(self) -> ShadowResult:
        times = np.array(self._times, dtype=np.float64).reshape(-1, 2)
        ratio, interval = _ratio(times, level(self._case.clause, max(1, self._looks)))
        return ShadowResult(
            candidate=self._case.candidate,
            bundle=self._case.newcomer.bundle,
            rows=self._rows,
            looks=self._looks,
            disagreed=self._disagreed,
            errors=self._errors,
            not_finite=self._not_finite,
            newcomer=_summary(times[:, 0]),
            incumbent=_summary(times[:, 1]),
            ratio=ratio,
            ratio_interval=interval,
            wall_s=self._wall_s(),
        )

    def _wall_s(self) -> float:
        return round(self._stopwatch() - self._begun, 3)


def _summary(seconds: NDArray[np.float64]) -> Times | None:
    if not len(seconds):
        return None
    p50, p99 = (float(value) for value in np.quantile(seconds * 1e3, (0.5, 0.99)))
    return Times(p50_ms=p50, p99_ms=p99)


def _ratio(times: NDArray[np.float64], alpha: float) -> tuple[float | None, tuple[float, float] | None]:
    """Return the median of the rows' ratios, and two one-sided bounds at ``alpha``.

    Source: order statistics around the median by the normal approximation of the binomial, Conover,
    Practical Nonparametric Statistics (1999), section 3.2.
    """
    rows = len(times)
    if rows == 0 or (times <= 0.0).any():
        return None, None
    ratios = np.sort(times[:, 0] / times[:, 1])
    reach = NormalDist().inv_cdf(1 - alpha) * sqrt(rows) / 2
    low, high = max(0, floor(rows / 2 - reach) - 1), min(rows - 1, ceil(rows / 2 + reach))
    return float(np.median(ratios)), (float(ratios[low]), float(ratios[high]))
