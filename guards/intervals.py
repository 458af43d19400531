"""Confidence bounds of one share, and of the difference of two shares on the same rows.

* Exact for one share (Clopper-Pearson), score for a paired difference (Tango): both hold their level where
  the textbook formula, estimate plus or minus z standard errors, collapses to a point on perfect rows.
* ``alpha`` is one-sided everywhere: a two-sided 95 % interval is two bounds at 0.025.

Pure; guards call it, and decide.
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from scipy.special import betaincinv

_STEPS = 60
"""Halvings of an interval of width 2: the bound is good to 2e-18, that is, to the last bit."""


def share_bounds(good: int, n: int, alpha: float) -> tuple[float, float]:
    """Return the lower and the upper one-sided bound of a share, each at level ``1 - alpha``.

    Args:
        good: Rows that count; 0 <= good <= n.
        n: All rows; > 0.
        alpha: One-sided, in (0, 0.5).

    Raises:
        ValueError: The counts are impossible.

    Source: Clopper and Pearson, Biometrika 26 (1934); Brown, Cai and DasGupta, Statistical Science 16 (2001).

    >>> [round(bound, 4) for bound in share_bounds(90, 100, 0.05)]
    [0.8363, 0.9447]
    >>> [round(bound, 4) for bound in share_bounds(20, 20, 0.05)]
    [0.8609, 1.0]
    """
    if n <= 0 or not 0 <= good <= n:
        raise ValueError(f"expected 0 <= good <= n and n > 0, got good={good}, n={n}")
    lower = 0.0 if good == 0 else float(betaincinv(good, n - good + 1, alpha))
    upper = 1.0 if good == n else float(betaincinv(good + 1, n - good, 1 - alpha))
    return lower, upper


@dataclass(frozen=True)
class Paired:
    """Two models on the same rows: who was right where the other was wrong.

    Args:
        won: Rows that only the candidate had right.
        lost: Rows that only the other had right.
        n: All rows.
    """

    won: int
    lost: int
    n: int

    def __post_init__(self) -> None:
        if self.n <= 0 or self.won < 0 or self.lost < 0 or self.won + self.lost > self.n:
            raise ValueError(f"expected counts that fit into n > 0 rows, got {self}")

    @property
    def difference(self) -> float:
        """Return the candidate's accuracy less the other's."""
        return (self.won - self.lost) / self.n

    @property
    def discordance(self) -> float:
        """Return the share of rows on which exactly one was right."""
        return (self.won + self.lost) / self.n

    def bounds(self, alpha: float) -> tuple[float, float]:
        """Return the lower and the upper one-sided bound of the difference, each at level ``1 - alpha``.

        The bounds are the differences at which the score statistic equals the normal quantile.

        Source: Tango, Statistics in Medicine 17 (1998), 891-908.

        >>> [round(bound, 3) for bound in Paired(won=150, lost=86, n=1600).bounds(0.025)]
        [0.021, 0.059]
        >>> [round(bound, 4) for bound in Paired(won=0, lost=0, n=200).bounds(0.05)]
        [-0.0133, 0.0133]
        """
        z = NormalDist().inv_cdf(1 - alpha)
        lower = self._root(-1.0, self.difference, z)
        # The upper bound of a difference is the lower bound of its mirror image.
        mirror = Paired(self.lost, self.won, self.n)
        return lower, -mirror._root(-1.0, mirror.difference, z)

    def _root(self, low: float, high: float, z: float) -> float:
        """Return where the score statistic, which falls from ``low`` to ``high``, passes ``z``."""
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if self.score(middle) > z:
                low = middle
            else:
                high = middle
        return low

    def score(self, delta: float) -> float:
        """Return Tango's statistic for the hypothesis that the difference is ``delta``, in (-1, 1)."""
        b, c, n = self.won, self.lost, self.n
        # The likeliest share of lost rows, given the difference: the root of a quadratic (Tango, eq. 4).
        linear = -b - c + (2 * n - b + c) * delta
        constant = -c * delta * (1 - delta)
        q = (sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        excess = b - c - n * delta
        if variance <= 0.0:
            return 0.0 if excess == 0 else float("inf") if excess > 0 else float("-inf")
        return excess / sqrt(variance)
