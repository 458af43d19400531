"""What a monitor is: the contract that the room's battery holds every monitor to.

* ``observe`` sees every record of its generation, in order, also after an alarm; it never changes the block.
* ``assess`` says what is known at ``now`` and changes nothing.
* Too little, or nothing usable, is ``unknown``: never quiet, never alarm.
* ``snapshot`` and ``restore`` round-trip through plain arrays: a restored monitor goes on exactly as the
  original would have.
* Equal blocks under an equal seed give equal signals. No clock, no randomness of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from monitors.spool import Block
from policies.clauses import Monitoring
from policies.terms import Signal, Task

Arrays = Mapping[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Post:
    """Where a monitor stands: what it is made from.

    Attributes:
        task: What is watched.
        monitoring: The policy's clauses.
        generation: The live one.
        seed: For calibration.
    """

    task: Task
    monitoring: Monitoring
    generation: int
    seed: int


class Monitor(Protocol):
    """From records to a signal."""

    name: str

    def observe(self, block: Block) -> None:
        """Take telemetry records of one generation, in the order they were written."""
        ...

    def assess(self, now: float) -> Signal:
        """Return what is known at ``now``, in seconds since the epoch."""
        ...

    def snapshot(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return everything that was learned, as arrays without objects."""
        ...

    def restore(self, state: Arrays) -> None:
        """Take up a snapshot of a monitor made with the same arguments."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A monitor that also learns from labels, which come late."""

    def label(self, row_keys: npt.NDArray[np.void], labels: npt.NDArray[np.int64], at: float) -> None:
        """Take the labels of rows by key, in the order of their arrival at ``at``."""
        ...


@runtime_checkable
class Referenced(Protocol):
    """A monitor that first collects a reference of its own."""

    @property
    def calibrated(self) -> bool:
        """Tell whether the reference is full."""
        ...

    @property
    def reference_rows(self) -> int:
        """Return the rows collected so far."""
        ...


Factory = Callable[[Post], Monitor]
