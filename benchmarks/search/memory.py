"""Memory of a search worker: the peak of a whole founding search.

    python -m benchmarks.search.memory [--seeds 5] [--quick]

Measured: the greatest resident memory that the kernel counted for ``python -m search`` on a founding brief of
the example's 8,000 digits, 75 CPU-s, both precisions, one thread; libraries included. ``--quick``: one seed,
40 CPU-s; the peak is reached in the first exams, so it is judged all the same.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.search import digits, table
from benchmarks.search.row import Figure, Row

CEILING_MIB = 1536
BUDGET_S, QUICK_BUDGET_S = 75.0, 40.0


def rows(seeds: Sequence[int], quick: bool) -> list[Row]:
    """Return the row of this part."""
    peaks = []
    for seed in seeds[:1] if quick else seeds:
        table.say(f"memory: seed {seed}")
        with tempfile.TemporaryDirectory() as folder:
            founded = digits.found(Path(folder), seed, QUICK_BUDGET_S if quick else BUDGET_S)
        peaks.append(founded.peak_bytes / 2**20)
    peak = Figure.of(peaks)
    return [Row("memory of a search worker, peak", "<= 1,536 MiB", peak, "MiB", met=peak.high <= CEILING_MIB)]


if __name__ == "__main__":
    table.alone(rows, __doc__)
