"""Calibration: one height for a family of CUSUMs, from nothing but a reference.

Called by the drift monitor when its reference is full.

* A moving-block bootstrap keeps the dependence of neighbouring rows; resampled as if independent, correlated
  rows would alarm many times more often than promised.
* Every bootstrap stream gets a mean and a scale estimated from a bootstrap reference of its own. The real
  reference is as imprecise, and a mean that is off by a tenth of the allowance costs false alarms; a
  threshold that ignores it keeps its promise on paper only.
* The family alarms as one maximum over both sides of all channels, with one height for all. Calibrated as
  such, it needs no correction for multiple tests and gets none. (A height for each channel was tried: read
  from tails of a few thousand rows, it kept a tenth of the promise.)
* A channel that says nothing of a row is resampled with its silence: one that speaks seldom alarms seldom.
* A window without alarm is as likely as exp(-window / ARL0); heights are read from the tail of window maxima,
  which falls exponentially.

Source: Page, Biometrika 41 (1954) for CUSUM; Kuensch, Annals of Statistics 17 (1989) for blocks.
It knows no channels and no policy.
"""

from dataclasses import dataclass
from math import exp, log

import numpy as np

from monitors.contract import Floats

_STREAMS = 128
_WINDOWS = 26
_TAIL = 0.1


@dataclass(frozen=True)
class Tail:
    """The upper tail of window maxima: ``P(max > h) = share * exp(-(h - start) / mean_excess)``.

    Attributes:
        window: Rows of a window.
        start: Where the tail begins.
        share: Of the windows in the tail.
        mean_excess: Of the maxima in the tail over ``start``.
    """

    window: int
    start: float
    share: float
    mean_excess: float

    @classmethod
    def of(cls, maxima: Floats, window: int) -> "Tail":
        """Fit the tail of window maxima, any shape."""
        start = float(np.quantile(maxima, 1.0 - _TAIL))
        excess = maxima[maxima > start] - start
        # Maxima that never vary have no tail: the least excess keeps the threshold finite.
        return cls(window, start, _TAIL, max(float(excess.mean()), 1e-6) if len(excess) else 1e-6)

    def threshold(self, arl0: float) -> float:
        """Return the height that is passed once in ``arl0`` rows.

        >>> round(Tail(window=1000, start=20.0, share=0.1, mean_excess=2.0).threshold(50_000), 3)
        23.219
        """
        return self.start + self.mean_excess * log(self.share * arl0 / self.window)

    def arl0(self, threshold: float) -> float:
        """Return the mean number of rows between two passings of ``threshold``.

        >>> round(Tail(window=1000, start=20.0, share=0.1, mean_excess=2.0).arl0(23.2188758))
        50000
        """
        return self.window / (self.share * exp(-(threshold - self.start) / self.mean_excess))


def window_rows(arl0: int) -> int:
    """Return the rows of a simulated window, well below the wanted ARL0.

    >>> window_rows(50_000), window_rows(4_000)
    (1000, 200)
    """
    return max(1, min(1000, arl0 // 20))


def simulate(
    rows: Floats,
    allowance: float,
    block_rows: int,
    window: int,
    rng: np.random.Generator,
    imprecise_rows: int | None,
) -> Floats:
    """Return the family's largest CUSUM in each window of bootstrap streams, (windows,).

    Args:
        rows: Standardised channels in the order of arrival, (n, c); not a number where one says nothing.
        allowance: CUSUM k, in standard deviations.
        block_rows: Length of a bootstrap block; 1 treats rows as independent.
        window: Rows of a window.
        rng: The only source of chance.
        imprecise_rows: Size of the reference whose imprecision the streams shall carry; None for a reference
            that is taken as exact.
    """
    n, channels = rows.shape
    span = min(block_rows, n)
    shift, scale = np.zeros((_STREAMS, channels)), np.ones((_STREAMS, channels))
    if imprecise_rows is not None:
        shift, scale = _estimates(rows, span, imprecise_rows, rng)
    starts = rng.integers(0, n, size=(window * _WINDOWS // span + 1, _STREAMS))
    source, heard = np.nan_to_num(rows, nan=0.0).astype(np.float32), ~np.isnan(rows)
    silences = not heard.all()
    gain = (1.0 / scale).astype(np.float32)
    lift, drop = ((sign * shift / scale - allowance).astype(np.float32) for sign in (-1, 1))
    up, down = np.zeros((2, _STREAMS, channels), dtype=np.float32)
    maxima = np.zeros((_WINDOWS, 2, _STREAMS, channels), dtype=np.float32)
    for step in range(window * _WINDOWS):
        at = (starts[step // span] + step % span) % n
        value = source[at]
        value *= gain
        up += value
        up += lift * heard[at] if silences else lift
        np.maximum(up, 0.0, out=up)
        down -= value
        down += drop * heard[at] if silences else drop
        np.maximum(down, 0.0, out=down)
        held = maxima[step // window]
        np.maximum(held[0], up, out=held[0])
        np.maximum(held[1], down, out=held[1])
    # The first window starts from zero and is lower than the others.
    largest: Floats = maxima[1:].max(axis=(1, 3)).ravel().astype(np.float64)
    return largest


def _estimates(rows: Floats, span: int, size: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return mean and scale of a bootstrap reference for each stream, both (streams, c)."""
    n = len(rows)
    blocks = max(2, size // span)
    starts = rng.integers(0, n, size=(_STREAMS, blocks))
    around = np.concatenate([rows, rows[:span]])
    filled = np.nan_to_num(around, nan=0.0)

    def resampled(values: Floats) -> Floats:
        sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(values, axis=0)])
        total: Floats = (sums[starts + span] - sums[starts]).sum(axis=1)
        return total

    count = resampled((~np.isnan(around)).astype(np.float64))
    mean, square = (resampled(values) / np.maximum(count, 1.0) for values in (filled, filled**2))
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    whole = moments(rows)[1]
    # A channel that hardly varies (a rare class) may be constant in a resample: bounded by the whole's scale.
    ratio = np.where((whole > 0.0) & (count > 0.0), deviation / np.maximum(whole, 1e-12), 1.0)
    return mean, np.clip(ratio, 0.5, 2.0)


def moments(rows: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each column over its numbers, both (c,); 0 where it has none.

    >>> moments(np.array([[1.0, np.nan], [3.0, np.nan]]))
    (array([2., 0.]), array([1., 0.]))
    """
    heard = ~np.isnan(rows)
    filled, counted = np.where(heard, rows, 0.0), heard | ~heard.any(axis=0)
    return filled.mean(axis=0, where=counted), filled.std(axis=0, where=counted)
