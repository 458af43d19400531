"""Predictions that wait for their label, and labels that wait for their prediction; bounded.

Called by whoever counts right and wrong: the errors monitor and the tally.

* A row is joined once: a second label for it finds nothing.
* A label may come before its row was read from the spool: it waits, too, for a while.
* When a side is full, its oldest goes; a label that goes unmatched is counted in ``unknown_labels``.

It knows neither time nor accuracy.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from monitors.contract import Arrays

MAX_ROWS = 100_000
MAX_LABELS = 10_000


class Awaiting:
    """Joins rows and labels by row key.

    Args:
        max_rows: Predictions kept.
        max_labels: Labels kept that came before their row.
    """

    def __init__(self, max_rows: int = MAX_ROWS, max_labels: int = MAX_LABELS) -> None:
        self._max_rows = max_rows
        self._max_labels = max_labels
        self._rows: dict[bytes, int] = {}
        self._labels: dict[bytes, int] = {}
        self.unknown_labels = 0

    def predict(
        self, keys: npt.NDArray[np.void], predicted: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, int]]:
        """Take rows; yield (predicted, label) of those whose label was here first."""
        for key, guess in zip(keys.tolist(), predicted.tolist(), strict=True):
            label = self._labels.pop(key, None)
            if label is not None:
                yield guess, label
                continue
            # A key that comes again is a new row under an old id: it goes to the end of the queue.
            self._rows.pop(key, None)
            self._rows[key] = guess
            if len(self._rows) > self._max_rows:
                del self._rows[next(iter(self._rows))]

    def label(self, keys: npt.NDArray[np.void], labels: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Take labels; yield (predicted, label) of those whose row is known, in the order given."""
        for key, label in zip(keys.tolist(), labels.tolist(), strict=True):
            guess = self._rows.pop(key, None)
            if guess is not None:
                yield guess, label
                continue
            self._labels.pop(key, None)
            self._labels[key] = label
            if len(self._labels) > self._max_labels:
                del self._labels[next(iter(self._labels))]
                self.unknown_labels += 1

    @property
    def waiting_labels(self) -> int:
        """Return how many labels have no row yet."""
        return len(self._labels)

    def snapshot(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return both queues in order."""
        state: dict[str, npt.NDArray[np.generic]] = {"unknown": np.array(self.unknown_labels)}
        for side, queue in (("rows", self._rows), ("labels", self._labels)):
            state[f"{side}.keys"] = np.frombuffer(b"".join(queue), dtype="V16")
            state[f"{side}.values"] = np.fromiter(queue.values(), dtype=np.int64, count=len(queue))
        return state

    def restore(self, state: Arrays) -> None:
        """Take up a snapshot."""
        self.unknown_labels = int(state["unknown"])
        self._rows, self._labels = (
            dict(zip(state[f"{side}.keys"].tolist(), state[f"{side}.values"].tolist(), strict=True))
            for side in ("rows", "labels")
        )
