"""Work in parallel without a say in the result.

The numerical library runs every operation on one thread, because at these sizes several cost more than they
bring, many times more on a busy machine (measured: 553 against 77 CPU-ms a step). Parallel are whole subnets,
on threads of our own, and their results are put together in a fixed order: the number of threads changes the
time, not one bit.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


class Crew:
    """A number of threads.

    Args:
        threads: How many may compute at once, this one included; >= 1.
    """

    def __init__(self, threads: int) -> None:
        self._alone = threads == 1
        # The limit is a property of each thread, so each sets its own.
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def together(self, one: Callable[[], A], other: Callable[[], B]) -> tuple[A, B]:
        """Return the results of two functions that may run at once."""
        if self._alone:
            return one(), other()
        second = self._pool.submit(other)
        first = one()
        return first, second.result()

    def map(self, function: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """Return the results of one function over items, in their order."""
        return [function(item) for item in items] if self._alone else list(self._pool.map(function, items))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
