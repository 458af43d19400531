"""Latency against its objective: how fast does the live generation burn its budget of slow answers?

* The window is the latest ``window_rows`` answered rows; before a tenth of it (at least 100) the level is
  unknown.
* A time-out is an answer that was too slow, whatever time it took.
* Score 1 is ``burn_rate``: alarm. Warning while the budget burns faster than allowed (a burn above 1).

It does not tell a slow model from a slow device: the guards measure a candidate beside the incumbent.
"""

from math import ceil

import numpy as np
import numpy.typing as npt

from monitors.contract import Arrays, Post
from monitors.spool import Block
from policies.telemetry import OUTCOMES
from policies.terms import Level, Signal

_MIN_ROWS = 100
_OK, _TIMEOUT = OUTCOMES.index("ok"), OUTCOMES.index("timeout")
_LEVELS = (Level.UNKNOWN, Level.QUIET, Level.WARNING, Level.ALARM)


def burn_rate(over: int, total: int, budget: float) -> float:
    """Return how many times faster than allowed the budget of slow answers is spent.

    Args:
        over: Answers slower than the objective in the window.
        total: All answers in the window; must be > 0.
        budget: Allowed share of slow answers, in (0, 1).

    Raises:
        ValueError: ``total`` or ``budget`` out of range.

    Source: Beyer et al., The Site Reliability Workbook (2018), ch. 5.

    >>> burn_rate(over=20, total=1000, budget=0.01)
    2.0
    """
    if total <= 0 or not 0.0 < budget < 1.0:
        raise ValueError(f"expected total > 0 and budget in (0, 1), got {total} and {budget}")
    return over / total / budget


class Latency:
    """Monitor ``latency``."""

    name = "latency"

    def __init__(self, post: Post) -> None:
        self._clause = post.monitoring.latency
        self._needed = max(_MIN_ROWS, ceil(self._clause.window_rows / 10))
        self._ms = np.zeros(0, dtype=np.float64)
        self._over = np.zeros(0, dtype=np.bool_)
        self._level = Level.UNKNOWN
        self._since: float | None = None

    def observe(self, block: Block) -> None:
        """Take the latencies of answered rows; others say nothing of speed."""
        took_part = np.isin(block["outcome"], (_OK, _TIMEOUT)) & np.isfinite(block["latency_ms"])
        rows = block[took_part]
        if not len(rows):
            return
        kept = self._clause.window_rows
        over = (rows["latency_ms"] > self._clause.objective_ms) | (rows["outcome"] == _TIMEOUT)
        self._ms = np.concatenate([self._ms, rows["latency_ms"].astype(np.float64)])[-kept:]
        self._over = np.concatenate([self._over, over])[-kept:]
        level = self._judge()
        if level is not self._level:
            self._level, self._since = level, float(rows["at"][-1])

    def _judge(self) -> Level:
        if len(self._ms) < self._needed:
            return Level.UNKNOWN
        burn = self._burn()
        if burn >= self._clause.burn_rate:
            return Level.ALARM
        return Level.WARNING if burn > 1.0 else Level.QUIET

    def _burn(self) -> float:
        return burn_rate(int(self._over.sum()), len(self._over), self._clause.budget)

    def assess(self, now: float) -> Signal:
        """Return the burn rate of the window with its p50 and p99."""
        n = len(self._ms)
        if self._level is Level.UNKNOWN:
            reason = f"collecting latencies {n} of {self._needed}"
            return Signal(monitor=self.name, level=Level.UNKNOWN, at=now, n=n, reason=reason)
        burn = self._burn()
        p50, p99 = (float(value) for value in np.quantile(self._ms, (0.5, 0.99)))
        return Signal(
            monitor=self.name,
            level=self._level,
            score=burn / self._clause.burn_rate,
            since=None if self._since is None else min(self._since, now),
            at=now,
            n=n,
            reason=(
                f"{int(self._over.sum())} of {n} answers over {self._clause.objective_ms:g} ms: budget burns "
                f"{burn:.1f} times as fast as allowed, alarm at {self._clause.burn_rate:g} (p99 {p99:.1f} ms)"
            ),
            facts={"p50_ms": p50, "p99_ms": p99, "burn": burn},
        )

    def snapshot(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the window and the level."""
        since = np.nan if self._since is None else self._since
        return {
            "ms": self._ms,
            "over": self._over,
            "level": np.array(_LEVELS.index(self._level)),
            "since": np.array(since, dtype=np.float64),
        }

    def restore(self, state: Arrays) -> None:
        """Take up a snapshot."""
        self._ms = np.asarray(state["ms"], dtype=np.float64)
        self._over = np.asarray(state["over"], dtype=np.bool_)
        self._level = _LEVELS[int(state["level"])]
        since = float(state["since"])
        self._since = None if np.isnan(since) else since
