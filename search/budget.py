"""How much CPU time a search has used, and how many steps fit into what is left.

* The number of steps comes from the budget and from nominal costs, not from the clock, so that the same brief
  takes the same steps wherever the machine keeps the nominal pace.
* On a machine that does not, a phase ends at its share of the budget, and ``cut`` says that it did.
"""

from collections.abc import Callable

_PACE_STEPS = 20


class Budget:
    """CPU-seconds of this process.

    Args:
        total_s: What may be used in all; > 0.
        cpu: Returns the CPU-seconds that the process has used since it began.
    """

    def __init__(self, total_s: float, cpu: Callable[[], float]) -> None:
        self._total_s = total_s
        self._cpu = cpu
        self.cut: list[str] = []

    @property
    def total_s(self) -> float:
        """Return the whole budget."""
        return self._total_s

    @property
    def used_s(self) -> float:
        """Return what has been used."""
        return self._cpu()

    def stop(self, phase: str, share: float) -> bool:
        """Tell whether a phase must end, and note that it was cut.

        Args:
            phase: Its name.
            share: The share of the whole budget that may be gone by its end, in (0, 1].
        """
        if self._cpu() <= share * self._total_s:
            return False
        if phase not in self.cut:
            self.cut.append(phase)
        return True

    def replan(self, phase: str, done: int, planned: int, began_s: float, share: float) -> int:
        """Return how many steps a phase will reach at its pace so far; never more than planned.

        A pace is known after some steps; before, the plan stands.

        Args:
            phase: Its name.
            done: Steps so far.
            planned: Steps planned at first.
            began_s: What had been used when the phase began.
            share: As in ``stop``.
        """
        if self.stop(phase, share):
            return done
        allowed = share * self._total_s - began_s
        spent = self._cpu() - began_s
        if done < _PACE_STEPS or spent * planned <= allowed * done:
            return planned
        if phase not in self.cut:
            self.cut.append(phase)
        return max(done, int(done * allowed / spent))


def steps(seconds: float, cost_s: float) -> int:
    """Return how many steps of a nominal cost fit; at least one.

    >>> steps(10.0, 0.4), steps(0.1, 0.4)
    (25, 1)
    """
    return max(1, int(seconds / cost_s + 1e-9))
