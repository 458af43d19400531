"""Ids for requests that have none: unique over processes and restarts, and cheap to make."""

import os
from itertools import count


class Ids:
    """A source of ids: random once, then counted.

    >>> ids = Ids()
    >>> first, second = ids(), ids()
    >>> (first != second, len(first), first[:20] == second[:20])
    (True, 36, True)
    """

    def __init__(self) -> None:
        self._prefix, self._count = os.urandom(10).hex(), count()

    def __call__(self) -> str:
        """Return a new id."""
        return f"{self._prefix}{next(self._count):016x}"
