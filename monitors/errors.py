"""Delayed labels: has the share of wrong answers risen, and by how much at least?

ADWIN watches the 0/1 errors in the order in which labels arrive; a window of the latest labels gives the
accuracy with its Wilson interval, against the accuracy while the model was commissioned.

* The first 1000 labels are the reference; before, the level is unknown.
* Alarm when ADWIN finds that errors became more. It ends when a whole window of labels came since and its
  interval overlaps the reference's again.
* Warning when the interval lies below the reference's, or when fewer labels than ``min_label_share`` come.
* ``loss_lower`` is what was lost at least: the reference's lower bound minus the window's upper bound.
* Coverage counts labels against rows over tumbling stretches of rows, so that a constant delay cancels out.
  A stretch is closed when the next rows come, after the labels of the same turn.

ADWIN has no way to be written down, so its input since it last began is kept and replayed; beyond
``_HISTORY`` errors it begins anew with the latest half, live and restored alike.

Source: Bifet & Gavalda, SDM (2007); Wilson, JASA 22 (1927).
"""

from collections.abc import Iterable
from math import ceil, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from river.drift import ADWIN

from monitors.awaiting import Awaiting
from monitors.channels import usable
from monitors.contract import Arrays, Post
from monitors.spool import Block
from policies.terms import Level, Signal

REFERENCE_LABELS = 1000
_HISTORY = 100_000
_LEVELS = (Level.UNKNOWN, Level.QUIET, Level.WARNING, Level.ALARM)


def wilson(right: int, total: int, confidence: float) -> tuple[float, float]:
    """Return the two-sided Wilson interval of a share.

    Raises:
        ValueError: Not 0 <= right <= total with total > 0.

    >>> [round(bound, 3) for bound in wilson(95, 100, 0.95)]
    [0.888, 0.978]
    """
    if not 0 <= right <= total or total <= 0:
        raise ValueError(f"expected 0 <= right <= total and total > 0, got {right} of {total}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = right / total
    centre = share + z * z / (2 * total)
    width = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    whole = 1 + z * z / total
    return max(0.0, (centre - width) / whole), min(1.0, (centre + width) / whole)


def _adwin(delta: float) -> Any:
    """Return a fresh detector; river's is not typed."""
    return ADWIN(delta=delta)  # type: ignore[no-untyped-call]


class Errors:
    """Monitor ``errors``."""

    name = "errors"

    def __init__(self, post: Post) -> None:
        self._clause = post.monitoring.errors
        # Long enough that a stretch at the least share still fills a window.
        self._stretch = max(1000, ceil(self._clause.window_rows / max(self._clause.min_label_share, 0.05)))
        self._awaiting = Awaiting()
        self._window = np.zeros(0, dtype=np.bool_)
        self._labels = 0
        self._reference_wrong = 0
        self._since_alarm: int | None = None
        self._stretch_rows = 0
        self._stretch_labels = 0
        self._coverage: float | None = None
        self._level = Level.UNKNOWN
        self._since: float | None = None
        self._begin(np.zeros(0, dtype=np.bool_))

    def observe(self, block: Block) -> None:
        """Remember what was predicted for usable rows."""
        if self._stretch_rows >= self._stretch:
            self._coverage = self._stretch_labels / self._stretch_rows
            self._stretch_rows = self._stretch_labels = 0
        rows = block[usable(block)]
        if not len(rows):
            return
        self._stretch_rows += len(rows)
        predicted = rows["logits"].argmax(axis=1)
        self._learn(self._awaiting.predict(rows["row_key"], predicted), float(rows["at"][-1]))

    def label(self, row_keys: npt.NDArray[np.void], labels: npt.NDArray[np.int64], at: float) -> None:
        """Take labels in the order of their arrival; those of rows not seen wait for them."""
        self._learn(self._awaiting.label(row_keys, labels), at)

    def _learn(self, pairs: Iterable[tuple[int, int]], at: float) -> None:
        wrong = np.fromiter((guess != label for guess, label in pairs), dtype=np.bool_)
        for error in wrong.tolist():
            self._take(error)
        self._stretch_labels += len(wrong)
        self._window = np.concatenate([self._window, wrong])[-self._clause.window_rows :]
        level = self._judge()
        if level is not self._level:
            self._level, self._since = level, at

    def _take(self, error: bool) -> None:
        if self._labels < REFERENCE_LABELS:
            self._reference_wrong += error
        self._labels += 1
        if self._since_alarm is not None:
            self._since_alarm += 1
        if self._adwin_step(error) and self._labels > REFERENCE_LABELS:
            self._since_alarm = 0

    def _adwin_step(self, error: bool) -> bool:
        """Feed ADWIN; tell whether it found that errors became more."""
        if self._adwin.drift_detected:
            # It forgets its window with the next value.
            self._begin(np.zeros(0, dtype=np.bool_))
        elif len(self._history) >= _HISTORY:
            self._begin(np.array(self._history[-_HISTORY // 2 :], dtype=np.bool_))
        before = self._adwin.estimation
        self._adwin.update(error)
        self._history.append(error)
        return bool(self._adwin.drift_detected) and self._adwin.estimation > before

    def _begin(self, history: npt.NDArray[np.bool_]) -> None:
        self._adwin = _adwin(self._clause.delta)
        self._history: list[bool] = history.tolist()
        for error in self._history:
            self._adwin.update(error)

    def _judge(self) -> Level:
        if self._labels < REFERENCE_LABELS:
            return Level.UNKNOWN
        _, high = self._interval()
        low_reference, _ = self._reference_interval()
        below = high < low_reference
        if self._since_alarm is not None:
            if below or self._since_alarm < self._clause.window_rows:
                return Level.ALARM
            self._since_alarm = None
        return Level.WARNING if below or self._uncovered() else Level.QUIET

    def _uncovered(self) -> bool:
        return self._coverage is not None and self._coverage < self._clause.min_label_share

    def _interval(self) -> tuple[float, float]:
        total = len(self._window)
        return wilson(total - int(self._window.sum()), total, self._clause.confidence)

    def _reference_interval(self) -> tuple[float, float]:
        right = REFERENCE_LABELS - self._reference_wrong
        return wilson(right, REFERENCE_LABELS, self._clause.confidence)

    def assess(self, now: float) -> Signal:
        """Return the accuracy of the window against the reference."""
        facts = {"labels": float(self._labels), "unknown_labels": float(self._unknown())}
        if self._coverage is not None:
            facts["label_share"] = self._coverage
        n = len(self._window)
        if self._level is Level.UNKNOWN:
            reason = f"collecting labels {self._labels} of {REFERENCE_LABELS}"
            return Signal(monitor=self.name, level=Level.UNKNOWN, at=now, n=n, reason=reason, facts=facts)
        low, high = self._interval()
        reference_low, reference_high = self._reference_interval()
        accuracy = 1.0 - float(self._window.mean())
        reference = 1.0 - self._reference_wrong / REFERENCE_LABELS
        loss = max(0.0, reference_low - high)
        facts |= {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "loss_lower": loss}
        facts |= {"reference_accuracy": reference, "reference_accuracy_low": reference_low}
        facts["reference_accuracy_high"] = reference_high
        reason = (
            f"accuracy {100 * accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f}, n={n}) against "
            f"{100 * reference:.1f} % when commissioned"
        )
        if self._uncovered():
            reason += f"; labels for {100 * facts['label_share']:.0f} % of rows, "
            reason += f"expected {100 * self._clause.min_label_share:.0f} %"
        return Signal(
            monitor=self.name,
            level=self._level,
            score=self._score(low, high, reference_low),
            since=None if self._since is None else min(self._since, now),
            at=now,
            n=n,
            reason=reason,
            facts=facts,
        )

    def _score(self, low: float, high: float, reference_low: float) -> float:
        """Return 1 where the window's interval just leaves the reference's; at least 1 in alarm."""
        gap = max(0.0, (reference_low - low) / max(high - low, 1e-9))
        return max(1.0, gap) if self._level is Level.ALARM else gap

    def _unknown(self) -> int:
        return self._awaiting.unknown_labels + self._awaiting.waiting_labels

    def snapshot(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the join, the window, the counts and ADWIN's input."""
        counts = (
            self._labels,
            self._reference_wrong,
            -1 if self._since_alarm is None else self._since_alarm,
            self._stretch_rows,
            self._stretch_labels,
            _LEVELS.index(self._level),
        )
        numbers = [np.nan if value is None else value for value in (self._coverage, self._since)]
        state = {f"awaiting.{name}": array for name, array in self._awaiting.snapshot().items()}
        return state | {
            "counts": np.array(counts, dtype=np.int64),
            "numbers": np.array(numbers, dtype=np.float64),
            "window": self._window,
            "history": np.array(self._history, dtype=np.bool_),
        }

    def restore(self, state: Arrays) -> None:
        """Take up a snapshot."""
        mark = "awaiting."
        self._awaiting.restore({key.removeprefix(mark): state[key] for key in state if key.startswith(mark)})
        counts = [int(value) for value in state["counts"]]
        self._labels, self._reference_wrong, since_alarm, self._stretch_rows, self._stretch_labels = counts[
            :5
        ]
        self._since_alarm = None if since_alarm < 0 else since_alarm
        self._level = _LEVELS[counts[5]]
        coverage, since = (float(value) for value in state["numbers"])
        self._coverage = None if np.isnan(coverage) else coverage
        self._since = None if np.isnan(since) else since
        self._window = np.asarray(state["window"], dtype=np.bool_)
        self._begin(np.asarray(state["history"], dtype=np.bool_))
