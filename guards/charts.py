"""Where things lie in a drawing: axes, ticks, bars. Numbers in, numbers out; the template draws.

Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10

_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """A straight scale from values to places.

    Args:
        low: Value at ``start``.
        high: Value at ``end``; > ``low``.
        start: Place of ``low``, in drawing units.
        end: Place of ``high``; may lie before ``start``.

    >>> Axis(0.0, 2.0, 100.0, 200.0).at(0.5)
    125.0
    >>> Axis(0.0, 2.0, 100.0, 200.0).at(9.0)
    200.0
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the place of a value, cut to the ends."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[float]:
        """Return round values on the axis, about five."""
        return ticks(self.low, self.high)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values in ``[low, high]``.

    >>> ticks(-0.11, 0.07)
    [-0.1, -0.05, 0.0, 0.05]
    """
    rough = (high - low) / about
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * s for s in _STEPS if unit * s >= rough * 0.999)
    first = ceil(low / step - 1e-9)
    last = floor(high / step + 1e-9)
    return [round(step * k, 10) for k in range(first, last + 1)]


def span(values: Iterable[float], margin: float = 0.06, least: float = 1e-6) -> tuple[float, float]:
    """Return ends that hold all values with some air.

    >>> span([0.0, 1.0], margin=0.1)
    (-0.1, 1.1)
    """
    all_values = list(values)
    low, high = min(all_values), max(all_values)
    air = max(high - low, least) * margin
    return low - air, high + air


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (cost, gain) that no other beats in both, by rising cost.

    >>> front([(1.0, 0.5), (2.0, 0.4), (3.0, 0.9)])
    [(1.0, 0.5), (3.0, 0.9)]
    """
    found: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda p: (p[0], -p[1])):
        if not found or gain > found[-1][1]:
            found.append((cost, gain))
    return found
