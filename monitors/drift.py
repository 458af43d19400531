"""The label-free monitor: does the stream still look like the one the model was commissioned on?

Decides on the largest of two-sided CUSUMs over all channels, against one threshold.

* The first ``min_reference_rows`` usable rows are the reference; until then the level is unknown.
* The reference is dealt in chunks to two halves. Channels and a threshold come from the calibration half;
  the held-out half then says what false-alarm rate that threshold really keeps (``arl0_held_out``). Where
  it is shorter than promised, the threshold is raised until the held-out half agrees (``arl0``).
* A score of 1 is the threshold. Warning begins at ``warning_ratio``. An alarm ends below ``warning_ratio``:
  it does not flicker, and it speaks of the present, because the statistic has a ceiling (``monitors.cusum``).
* ``since`` is the time of the very row that changed the level.
* Rows that failed or are not finite feed no channel; when they are most of the latest, the level is unknown.
* A new generation has a new reference; within one, the reference stays fixed, so that slow drift cannot hide
  in it.

It does not say whether the drift costs accuracy: labels do.
"""

import numpy as np
import numpy.typing as npt

from monitors.bootstrap import Tail, simulate, window_rows
from monitors.channels import Channels, usable
from monitors.contract import Arrays, Floats, Post
from monitors.cusum import Cusum
from monitors.spool import Block
from policies.clauses import DriftMonitoring
from policies.errors import PolicyError
from policies.support import MAX_HORIZON
from policies.telemetry import OUTCOMES
from policies.terms import Level, Signal

_RECENT = 200
_CHUNK_BLOCKS = 10
_MIN_BLOCKS = 50
_TOP = 3
_LEVELS = (Level.QUIET, Level.WARNING, Level.ALARM)
_ANSWERED = tuple(OUTCOMES.index(name) for name in ("ok", "error", "timeout", "not_finite"))


def check_support(clause: DriftMonitoring) -> None:
    """Refuse a clause whose promise its reference cannot support.

    The threshold sits in the tail of what resampled reference rows do. A tail read from n rows says little of
    events much rarer than once in n rows: beyond ``MAX_HORIZON`` times n it is the fitted exponential that
    speaks, not the data. And a bootstrap of fewer than 50 blocks repeats the same few excursions.

    Raises:
        PolicyError: Names the clause, what it asks, and the most that its reference supports.
    """
    most = MAX_HORIZON * clause.min_reference_rows
    if clause.false_alarm_every > most:
        raise PolicyError(
            f"{clause.clause}: expected false_alarm_every <= {most} ({MAX_HORIZON} x min_reference_rows), "
            f"got {clause.false_alarm_every}; raise min_reference_rows or promise less"
        )
    least = _MIN_BLOCKS * clause.block_rows
    if clause.min_reference_rows < least:
        raise PolicyError(
            f"{clause.clause}: expected min_reference_rows >= {least} ({_MIN_BLOCKS} blocks of block_rows), "
            f"got {clause.min_reference_rows}; raise it or shorten block_rows"
        )


class Drift:
    """Monitor ``drift``.

    Raises:
        PolicyError: The clause promises more than its reference can support.
    """

    name = "drift"

    def __init__(self, post: Post) -> None:
        check_support(post.monitoring.drift)
        self._clause = post.monitoring.drift
        self._seed = (post.seed, post.generation)
        self._reference: list[Block] = []
        self._collected = 0
        self._channels: Channels | None = None
        self._cusum: Cusum | None = None
        self._height = 0.0
        self._arl0 = 0.0
        self._arl0_held_out = 0.0
        self._score = 0.0
        self._level = Level.QUIET
        self._since: float | None = None
        self._rows = 0
        self._unusable = 0
        self._recent = np.zeros(0, dtype=np.bool_)

    @property
    def calibrated(self) -> bool:
        """Tell whether the reference is full and the threshold known."""
        return self._cusum is not None

    @property
    def reference_rows(self) -> int:
        """Return the rows of the reference so far."""
        return self._collected

    def observe(self, block: Block) -> None:
        """Take rows: first for the reference, then against it."""
        answered = block[np.isin(block["outcome"], _ANSWERED)]
        fine = usable(answered)
        self._unusable += int((~fine).sum())
        self._recent = np.concatenate([self._recent, fine])[-_RECENT:]
        rows = answered[fine]
        if self._cusum is None:
            missing = self._clause.min_reference_rows - self._collected
            taken, rows = rows[:missing], rows[missing:]
            if len(taken):
                self._reference.append(taken)
                self._collected += len(taken)
                self._since = float(taken["at"][-1])
            if self._collected < self._clause.min_reference_rows:
                return
            self._calibrate(np.concatenate(self._reference))
            self._reference = []
        if len(rows):
            self._compare(rows)

    def _calibrate(self, reference: Block) -> None:
        clause = self._clause
        rng = np.random.default_rng(self._seed)
        # Chunks in turn: both halves cover the same time, and stay contiguous over many bootstrap blocks.
        chunk = np.arange(len(reference)) // (_CHUNK_BLOCKS * clause.block_rows)
        ours, held_out = reference[chunk % 2 == 0], reference[chunk % 2 == 1]
        self._channels = Channels.fit(ours)
        window = window_rows(clause.false_alarm_every)

        def tail(block: Block, imprecise_rows: int | None) -> Tail:
            rows = self._standardise(block)
            streams = simulate(rows, clause.allowance, clause.block_rows, window, rng, imprecise_rows)
            return Tail.of(streams, window)

        own = tail(ours, len(ours)).threshold(clause.false_alarm_every)
        # The held-out half carries the imprecision of our mean itself: none is added.
        other = tail(held_out, None)
        self._height = max(own, other.threshold(clause.false_alarm_every))
        self._arl0_held_out = other.arl0(own)
        self._arl0 = other.arl0(self._height)
        self._cusum = Cusum(len(self._channels.names), self._height, clause.allowance)

    def _standardise(self, block: Block) -> Floats:
        assert self._channels is not None, "channels are fitted before rows are compared"
        return self._channels.standardise(block)

    def _compare(self, rows: Block) -> None:
        assert self._cusum is not None, "calibrated before rows are compared"
        scores = self._cusum.run(self._standardise(rows))
        ratio = self._clause.warning_ratio
        for score, at in zip(scores.tolist(), rows["at"].tolist(), strict=True):
            if score >= 1.0 or (self._level is Level.ALARM and score >= ratio):
                level = Level.ALARM
            else:
                level = Level.WARNING if score >= ratio else Level.QUIET
            if level is not self._level:
                self._level, self._since = level, at
        self._score = float(scores[-1])
        self._rows += len(rows)

    def assess(self, now: float) -> Signal:
        """Return the level and the channels that carry it."""
        needed = self._clause.min_reference_rows
        facts = {"reference_rows": float(self._collected), "reference_needed": float(needed)}
        facts["unusable_rows"] = float(self._unusable)
        silent = self._silence()
        if silent is not None or self._cusum is None or self._channels is None:
            reason = silent or f"collecting reference {self._collected} of {needed}"
            return Signal(
                monitor=self.name, level=Level.UNKNOWN, at=now, n=self._rows, reason=reason, facts=facts
            )
        scores = self._cusum.by_channel()
        top = np.argsort(-scores, kind="stable")[:_TOP]
        told = [f"{self._channels.names[i]} {scores[i]:.2f}" for i in top]
        facts |= {f"top_channel.{self._channels.names[i]}": float(scores[i]) for i in top}
        facts |= {"threshold": self._height, "arl0": self._arl0, "arl0_held_out": self._arl0_held_out}
        return Signal(
            monitor=self.name,
            level=self._level,
            score=self._score,
            since=None if self._since is None else min(self._since, now),
            at=now,
            n=self._rows,
            reason=f"{', '.join(told)} of the threshold (CUSUM {self._height:.1f}, n={self._rows})",
            facts=facts,
        )

    def _silence(self) -> str | None:
        """Return why nothing can be said though the reference is full, or None."""
        bad = int((~self._recent).sum())
        if 2 * bad > len(self._recent):
            return f"{bad} of the latest {len(self._recent)} rows failed or are not finite"
        if self.calibrated and self._rows == 0:
            return "the reference is full, no row came since"
        return None

    def snapshot(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the reference while it is collected, then the fitted channels and the statistics."""
        since = np.nan if self._since is None else self._since
        numbers = (self._height, self._arl0, self._arl0_held_out, self._score, since)
        counts = (self._collected, self._rows, self._unusable, _LEVELS.index(self._level))
        state: dict[str, npt.NDArray[np.generic]] = {
            "numbers": np.array(numbers, dtype=np.float64),
            "counts": np.array(counts, dtype=np.int64),
            "recent": self._recent,
        }
        if self._reference:
            state["reference"] = np.concatenate(self._reference)
        if self._channels is not None and self._cusum is not None:
            state |= {f"channels.{name}": array for name, array in self._channels.snapshot().items()}
            state["scores"] = self._cusum.scores.copy()
        return state

    def restore(self, state: Arrays) -> None:
        """Take up a snapshot."""
        self._height, self._arl0, self._arl0_held_out, self._score, since = map(float, state["numbers"])
        self._collected, self._rows, self._unusable, level = map(int, state["counts"])
        self._since = None if np.isnan(since) else since
        self._level = _LEVELS[level]
        self._recent = np.asarray(state["recent"], dtype=np.bool_)
        self._reference = [np.asarray(state["reference"])] if "reference" in state else []
        self._channels, self._cusum = None, None
        if "scores" in state:
            own = {key.removeprefix("channels."): state[key] for key in state if key.startswith("channels.")}
            self._channels = Channels.restore(own)
            self._cusum = Cusum(len(self._channels.names), self._height, self._clause.allowance)
            self._cusum.scores[:] = state["scores"]
