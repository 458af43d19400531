"""The asking side of a search that is driven from outside.

One JSON object a line. The peer writes ``{"ask": [[gene, ...], ...], "cpu_s": s}``, where ``cpu_s`` is its
own CPU time since the answer before (since its imports, the first time). It reads
``{"objectives": [[error, ms], ...]}``, one pair for each row of the ask, both to be minimised, or
``{"stop": true}``. An empty ask means that it has nothing more to ask: it reads no answer and ends. It also
ends when its input does.
"""

import json
import sys
import time

import numpy as np
from numpy.typing import NDArray


class Asker:
    """Asks for objectives and keeps the clock that runs while the peer thinks.

    Args:
        cardinalities: Number of values of each gene. Those with one value are kept from the peer and put
            back into what is asked: there is nothing to search in them.

    Raises:
        ValueError: A cardinality is below 1, or none is above it.
    """

    def __init__(self, cardinalities: list[int]) -> None:
        if min(cardinalities, default=0) < 1 or max(cardinalities) < 2:
            raise ValueError(f"expected cardinalities >= 1 and one of them >= 2, got {cardinalities}")
        self._all = len(cardinalities)
        self._free = np.array(
            [place for place, count in enumerate(cardinalities) if count > 1], dtype=np.int64
        )
        self._since = time.process_time()
        self.choices = np.array(cardinalities, dtype=np.int64)[self._free]
        """(free genes,) int64, each >= 2."""

    def free(self, genes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return genomes (n, genes) without the genes that are kept from the peer; (n, free genes)."""
        return genes[:, self._free] if len(genes) else np.zeros((0, len(self._free)), dtype=np.int64)

    def ask(self, genes: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Return the objectives (n, 2) of genes (n, free genes), or None at the end.

        The end is a stop, the end of the input, or an empty ask.

        Raises:
            ValueError: The answer is not one pair for each row.
        """
        rows = np.zeros((len(genes), self._all), dtype=np.int64)
        rows[:, self._free] = genes
        spent_s = time.process_time() - self._since
        print(json.dumps({"ask": rows.tolist(), "cpu_s": round(spent_s, 6)}), flush=True)
        if len(rows) == 0:
            return None
        line = sys.stdin.readline()
        self._since = time.process_time()
        answer = json.loads(line) if line.strip() else {"stop": True}
        if answer.get("stop"):
            return None
        objectives = np.array(answer["objectives"], dtype=np.float64)
        if objectives.shape != (len(rows), 2):
            raise ValueError(f"expected {len(rows)} pairs of error and ms, got shape {objectives.shape}")
        return objectives


def genomes_of(text: str) -> NDArray[np.int64]:
    """Return the genomes (n, genes) of a list with commas within and semicolons between; none if empty.

    >>> genomes_of("0,1;2,3").tolist(), len(genomes_of(""))
    ([[0, 1], [2, 3]], 0)
    """
    return np.array(
        [[int(part) for part in row.split(",")] for row in text.split(";") if row], dtype=np.int64
    )


def cardinalities_of(text: str) -> list[int]:
    """Return the numbers of a list with commas.

    >>> cardinalities_of("2,3,2")
    [2, 3, 2]
    """
    return [int(part) for part in text.split(",")]
