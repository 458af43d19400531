"""Is one model worse than another on some classes? Exact, and honest about many questions at once.

* Only rows on which exactly one of two models was right say anything (McNemar); under equality each is a
  fair coin, so the test is exact at any size.
* Ten classes are ten questions: Holm keeps the chance of any false accusation at ``alpha``.
* A test that finds nothing says little unless it says what it could have found: ``detectable_drop``.

Pure.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import comb, sqrt
from statistics import NormalDist


def worse_p(won: int, lost: int) -> float:
    """Return the one-sided p-value of "the candidate is not worse": P(Binomial(won + lost, 1/2) >= lost).

    Source: McNemar, Psychometrika 12 (1947), exact form.

    >>> worse_p(won=1, lost=7)
    0.03515625
    >>> worse_p(won=0, lost=0)
    1.0
    """
    if won < 0 or lost < 0:
        raise ValueError(f"expected counts >= 0, got won={won}, lost={lost}")
    n = won + lost
    return float(Fraction(sum(comb(n, k) for k in range(lost, n + 1)), 2**n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being asked together, in the order they came.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted


def detectable_drop(n: int, alpha: float, questions: int, power: float, discordance: float) -> float:
    """Return the drop of accuracy that would be found with probability ``power``.

    Args:
        n: Rows of the class; > 0.
        alpha: Of the whole family.
        questions: How many classes are asked; the smallest p-value meets ``alpha / questions``.
        power: In (0.5, 1).
        discordance: Share of rows expected to differ; at least the drop itself.

    Returns:
        A share, at most 1.

    Source: normal approximation, as ``policies.support.required_rows``.

    >>> round(detectable_drop(100, 0.05, 10, 0.8, 0.145), 3)
    0.13
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha / questions) + normal.inv_cdf(power)
    drop = z * sqrt(discordance / n)
    return min(1.0, drop if drop <= discordance else z * z / n)
