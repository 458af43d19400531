"""Two-sided CUSUMs over many channels at once, with a ceiling.

Called by the drift monitor, row by row of its standardised channels.

* ``S = max(0, S + z - k)`` upwards, and the same for ``-z``; the score is the largest ``S / height``.
* A channel that says nothing of a row (not a number) stays where it was: silence is neither calm nor change.
* ``S`` is held at ``CEILING`` heights, so that the score speaks of the present: when the cause has gone it
  comes down from the ceiling in about ``2 * height / k`` rows, however long the cause had lasted.

Source: Page, Biometrika 41 (1954).
"""

import numpy as np

from monitors.contract import Floats

CEILING = 2.0


class Cusum:
    """The family's statistics.

    Args:
        channels: How many.
        height: The threshold of all of them; positive.
        allowance: k, in standard deviations.
    """

    def __init__(self, channels: int, height: float, allowance: float) -> None:
        self._rate = 1.0 / height
        self._allowance = allowance
        self.scores: Floats = np.zeros((2, channels))

    def run(self, rows: Floats) -> Floats:
        """Take rows (n, c) and return the family's score after each, (n,); 1 is the threshold.

        A number that is none changes nothing in its channel.

        >>> Cusum(1, height=1.0, allowance=0.5).run(np.array([[1.5], [1.5], [-0.5]])).tolist()
        [1.0, 2.0, 1.0]
        """
        peaks = np.empty(len(rows))
        scores = self.scores
        steps = np.nan_to_num((np.stack([rows, -rows], axis=1) - self._allowance) * self._rate, nan=0.0)
        for place, step in enumerate(steps):
            scores += step
            np.maximum(scores, 0.0, out=scores)
            np.minimum(scores, CEILING, out=scores)
            peaks[place] = scores.max()
        return peaks

    def by_channel(self) -> Floats:
        """Return each channel's larger side, (c,)."""
        return np.asarray(self.scores.max(axis=0), dtype=np.float64)
