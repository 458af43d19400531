"""When to try again: only what is safe to repeat, later and later, and as the server says.

Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog (2015): full jitter.
"""

import random
from dataclasses import dataclass, field

AGAIN = frozenset({408, 429, 502, 503, 504})
"""Answers after which the same request may succeed."""


@dataclass(frozen=True)
class Retry:
    """How often, and how far apart."""

    attempts: int = 6
    first_s: float = 0.2
    longest_s: float = 30.0
    rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        """Refuse what would never try, or never wait.

        Raises:
            ValueError: With what was expected.
        """
        if self.attempts < 1 or not 0.0 < self.first_s <= self.longest_s:
            raise ValueError(
                f"expected attempts >= 1 and 0 < first_s <= longest_s, got {self.attempts}, "
                f"{self.first_s:g} and {self.longest_s:g}"
            )

    def pause_s(self, attempt: int, asked: str | None) -> float:
        """Return how long to wait after a failed attempt.

        Args:
            attempt: 0 for the first.
            asked: The answer's ``Retry-After``, if any; a date counts as none.

        >>> Retry().pause_s(0, "7") >= 7.0
        True
        >>> 0.0 <= Retry(first_s=1.0).pause_s(2, None) <= 4.0
        True
        """
        least = float(asked) if asked is not None and asked.isascii() and asked.isdigit() else 0.0
        spread = min(self.longest_s, self.first_s * 2.0**attempt)
        return min(self.longest_s, least + self.rng.uniform(0.0, spread))
