"""From the spool to signals: what control feeds its monitors, samples and tallies with.

* Every record is seen once by all monitors, every turn, also after one fired.
* A new live generation starts a new watch: its reference is its own.
* Labels are durable before they are acknowledged; the monitors learn of them in the next turn.
* The snapshot holds the cursors beside the monitors' state, so that a restart neither skips nor repeats.
"""

import io
import json
import logging
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daemon.ops.files import persist
from daemon.store.samples import Samples
from monitors.spool import Cursor, SpoolReader
from monitors.tally import Tally
from monitors.watch import Watch
from policies.clauses import Monitoring
from policies.errors import InstarError, PermanentError
from policies.telemetry import row_key
from policies.terms import Arm, Signal, Task

log = logging.getLogger(__name__)

_ROWS_A_TURN = 50_000
_TALLY = "tally/"


@dataclass(frozen=True)
class Labels:
    """Labels that came in together."""

    keys: np.ndarray
    values: np.ndarray
    at: float


class Sensors:
    """The monitors of the live generation and their sources."""

    def __init__(
        self, task: Task, clause: Monitoring, spool: Path, samples: Samples, snapshots: Path, seed: int
    ) -> None:
        self._task = task
        self._clause = clause
        self._samples = samples
        self._snapshots = snapshots
        self._seed = seed
        self._telemetry = SpoolReader(spool, "telemetry", Cursor(0, 0))
        self._inputs = SpoolReader(spool, "samples", Cursor(0, 0))
        self._lock = threading.Lock()
        self._pending: list[Labels] = []
        self.saved: dict[str, Cursor] = {}
        self.watch: Watch | None = None
        self.tally: Tally | None = None

    # -- intake -----------------------------------------------------------------------------------------

    def take_labels(self, labels: list[tuple[str, int | str]], at: float) -> int:
        """Store labels by request id, durably, and queue them for the monitors.

        Raises:
            ValueError: A label is not one of the task's classes.
        """
        index = {name: number for number, name in enumerate(self._task.classes)}
        keys = np.empty(len(labels), dtype="V16")
        values = np.empty(len(labels), dtype=np.int64)
        for place, (request, label) in enumerate(labels):
            number = index.get(label, -1) if isinstance(label, str) else label
            if not 0 <= number < len(index):
                raise ValueError(
                    f"expected a label among {', '.join(self._task.classes)} or its index, got {label!r}"
                )
            keys[place] = np.void(row_key(request, 0, 1))
            values[place] = number
        self._samples.label(keys, values, at)
        with self._lock:
            self._pending.append(Labels(keys, values, at))
        return len(labels)

    def follow(self, generation: int | None) -> None:
        """Watch this generation from now on."""
        if generation is None:
            self.watch = None
        elif self.watch is None or self.watch.generation != generation:
            self.watch = Watch(self._task, self._clause, generation, self._seed)

    def compare(self, since: float | None) -> None:
        """Tally newcomer and incumbent since a moment; None ends it."""
        if since is None:
            self.tally = None
        elif self.tally is None or self.tally.since != since:
            self.tally = Tally(since)

    def read(self) -> None:
        """Feed everything that the spool and the label queue hold."""
        while True:
            block, _ = self._telemetry.read(_ROWS_A_TURN)
            if block is None:
                break
            if self.watch is not None:
                self.watch.observe(block)
            if self.tally is not None:
                self.tally.observe(block)
        while True:
            before = self._inputs.cursor
            inputs, _ = self._inputs.read(_ROWS_A_TURN)
            if inputs is None:
                break
            try:
                self._samples.ingest(inputs)
            except InstarError:
                self._inputs.cursor = before  # nothing is lost: the next turn reads them again
                raise
        with self._lock:
            pending, self._pending = self._pending, []
        for labels in pending:
            if self.watch is not None:
                self.watch.label(labels.keys, labels.values, labels.at)
            if self.tally is not None:
                self.tally.label(labels.keys, labels.values)

    # -- answers ----------------------------------------------------------------------------------------

    def assess(self, now: float) -> tuple[Signal, ...]:
        """Return what every monitor says."""
        return () if self.watch is None else tuple(self.watch.assess(now))

    def arm(self, generation: int | None) -> Arm | None:
        """Return what a generation did since the comparison began."""
        if self.tally is None or generation is None:
            return None
        return self.tally.arm(generation)

    # -- memory -----------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write cursors and monitors to one file, atomically."""
        cursors = {
            name: [reader.cursor.segment, reader.cursor.offset]
            for name, reader in (("telemetry", self._telemetry), ("samples", self._inputs))
        }
        held = b"" if self.watch is None else self.watch.snapshot()
        buffer = io.BytesIO()
        text = json.dumps({"cursors": cursors, "generation": getattr(self.watch, "generation", None)})
        counted = {} if self.tally is None else self.tally.snapshot()
        np.savez(
            buffer,
            allow_pickle=False,
            head=np.frombuffer(text.encode(), np.uint8),
            watch=np.frombuffer(held, np.uint8),
            **{f"{_TALLY}{name}": array for name, array in counted.items()},
        )
        persist(self._path, buffer.getvalue())
        # Up to here nobody will ever read again: what lies before may be deleted.
        self.saved = {"telemetry": self._telemetry.cursor, "samples": self._inputs.cursor}

    def load(self, generation: int | None) -> bool:
        """Take up a saved file, when there is one of this generation."""
        try:
            with np.load(io.BytesIO(self._path.read_bytes()), allow_pickle=False) as saved:
                head = json.loads(saved["head"].tobytes())
                held = saved["watch"].tobytes()
                counted = {n.removeprefix(_TALLY): saved[n] for n in saved.files if n.startswith(_TALLY)}
            tally = Tally.restore(counted) if counted else None
            cursors = {name: Cursor(*head["cursors"][name]) for name in ("telemetry", "samples")}
            saved_generation = head["generation"]
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            # The monitors' memory is a cache: losing it costs a new commissioning, and says so.
            log.warning("monitors start anew: %s is unreadable: %s", self._path, error)
            return False
        self._telemetry.cursor, self._inputs.cursor = cursors["telemetry"], cursors["samples"]
        self.tally = tally
        if generation is None or saved_generation != generation or not held:
            return False
        try:
            self.watch = Watch.restore(held, self._task, self._clause)
        except PermanentError as error:
            log.warning("monitors start anew: %s", error)
            return False
        return True

    @property
    def _path(self) -> Path:
        return self._snapshots / "monitors.npz"
