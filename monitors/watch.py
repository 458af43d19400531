"""All monitors of one live generation, fed with the same records and labels.

Called by control: a new live generation gets a new watch, for its reference is its own.

* Only rows of the watched generation reach the monitors; others are counted.
* Every monitor sees every row, every turn, also after one fired.
* A snapshot is one npz without objects. It names what it belongs to, and is taken up by nothing else: a
  threshold calibrated under one clause means nothing under another.

It decides nothing: rules over signals are the policy's.
"""

import io
import json
import zipfile
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from monitors import BUILTIN
from monitors.contract import Factory, Labelled, Post, Referenced
from monitors.spool import Block
from policies.clauses import Monitoring
from policies.errors import PermanentError
from policies.terms import Signal, Task
from policies.wire import digest

_FORMAT = 2


class Watch:
    """One instance of each monitor for one generation.

    Args:
        task: What is watched.
        monitoring: The policy's clauses.
        generation: The live one; > 0.
        seed: For calibration.
        factories: The monitors to make, by name.

    Raises:
        PolicyError: A clause that cannot be supported.
    """

    def __init__(
        self,
        task: Task,
        monitoring: Monitoring,
        generation: int,
        seed: int,
        factories: Mapping[str, Factory] = BUILTIN,
    ) -> None:
        self.generation = generation
        self.other_rows = 0
        self._seed = seed
        self._owner = _owner(task, monitoring)
        post = Post(task, monitoring, generation, seed)
        self._monitors = {name: make(post) for name, make in factories.items()}

    def observe(self, block: Block) -> None:
        """Take telemetry records as the spool gives them."""
        ours = block[block["generation"] == self.generation]
        self.other_rows += len(block) - len(ours)
        if not len(ours):
            return
        for monitor in self._monitors.values():
            monitor.observe(ours)

    def label(self, row_keys: npt.NDArray[np.void], labels: npt.NDArray[np.int64], at: float) -> None:
        """Take labels by row key (V16), as they arrived at ``at``.

        Raises:
            ValueError: Not as many labels as keys.
        """
        if len(row_keys) != len(labels):
            raise ValueError(f"expected a label for each of {len(row_keys)} keys, got {len(labels)}")
        for monitor in self._monitors.values():
            if isinstance(monitor, Labelled):
                monitor.label(row_keys, labels, at)

    def assess(self, now: float) -> tuple[Signal, ...]:
        """Return what every monitor says at ``now``, in the order of their names."""
        return tuple(self._monitors[name].assess(now) for name in sorted(self._monitors))

    @property
    def calibrated(self) -> bool:
        """Tell whether every monitor that needs a reference has it."""
        return all(monitor.calibrated for monitor in self._referenced())

    @property
    def reference_rows(self) -> int:
        """Return the rows of the reference so far (the smallest, when monitors keep several)."""
        return min((monitor.reference_rows for monitor in self._referenced()), default=0)

    def _referenced(self) -> list[Referenced]:
        return [monitor for monitor in self._monitors.values() if isinstance(monitor, Referenced)]

    def snapshot(self) -> bytes:
        """Return all that the monitors learned."""
        head = {
            "format": _FORMAT,
            "owner": self._owner,
            "generation": self.generation,
            "seed": self._seed,
            "other_rows": self.other_rows,
            "monitors": sorted(self._monitors),
        }
        arrays: dict[str, npt.NDArray[np.generic]] = {
            f"{name}/{key}": array
            for name, monitor in self._monitors.items()
            for key, array in monitor.snapshot().items()
        }
        arrays["head"] = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def restore(
        cls,
        data: bytes,
        task: Task,
        monitoring: Monitoring,
        factories: Mapping[str, Factory] = BUILTIN,
    ) -> "Watch":
        """Return a watch that goes on exactly where the snapshot was taken.

        Raises:
            PermanentError: Not a snapshot, or one of another task, clause, format or set of monitors. Begin a
                new watch: it costs a new commissioning.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
                arrays = {name: loaded[name] for name in loaded.files}
            head = json.loads(arrays.pop("head").tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise PermanentError(f"expected a snapshot of monitors, got {len(data)} other bytes") from error
        expected = (_FORMAT, _owner(task, monitoring), sorted(factories))
        came = (head.get("format"), head.get("owner"), head.get("monitors"))
        if came != expected:
            raise PermanentError(f"expected a snapshot of {expected}, got {came}; begin a new watch")
        watch = cls(task, monitoring, head["generation"], head["seed"], factories)
        watch.other_rows = head["other_rows"]
        for name, monitor in watch._monitors.items():
            mark = f"{name}/"
            monitor.restore({key.removeprefix(mark): arrays[key] for key in arrays if key.startswith(mark)})
        return watch


def _owner(task: Task, monitoring: Monitoring) -> str:
    """Return the digest of what a snapshot's numbers depend on."""
    return digest({"task": task.model_dump(mode="json"), "monitoring": monitoring.model_dump(mode="json")})
