"""Memory of instar-serve over hundreds of swaps: after 500 against after 20.

    python -m benchmarks.serving.memory [--runs 3] [--quick]

* Resident memory (``/proc/PID/statm``), read after each swap and 40 answers. Six bundles take turns: MLPs of
  2 MB, a convolutional network of 1 MB, networks of 32 MB and 540 nodes; the slot before the present one is
  kept warm. Every swap loads and proves a bundle that is not loaded.
* What is held depends on which bundles are: so the greatest of the last six swaps stands for a moment.
* A right answer is demanded of each generation (``witness``).
"""

import argparse
import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.search.table import say
from benchmarks.serving import models, stage
from benchmarks.serving.asks import Form
from benchmarks.serving.row import Figure, Row, at_most
from benchmarks.serving.swap import MODEL, Desk, large
from benchmarks.serving.witness import Case, Rest
from policies.errors import PermanentError

EARLY, LATE, QUICK_LATE, MOST_RUNS = 20, 500, 80, 3
CEILING = 1.10
_BURST = 40
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass(frozen=True)
class Soak:
    """Resident MB after each swap; ``cycle`` swaps bring every bundle once."""

    resident_mb: tuple[float, ...]
    cycle: int

    def held_mb(self, swaps: int) -> float:
        """Return the greatest of the cycle that ends with the swap of this number.

        >>> Soak((1.0, 5.0, 2.0, 3.0), cycle=2).held_mb(4)
        3.0
        """
        return max(self.resident_mb[swaps - self.cycle : swaps])


def bundles() -> list[bytes]:
    """Return what takes turns."""
    conv = models.with_meta(models.GRAPHS["conv"](0), MODEL, 100)
    mlps = [models.make_bundle(MODEL, seed) for seed in range(3)]
    return [mlps[0], large(0), mlps[1], conv, large(1), mlps[2]]


def resident_mb(pid: int) -> float:
    """Return a process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MB


def soak(swaps: int) -> Soak:
    """Swap so many times.

    Raises:
        PermanentError: An answer was wrong, refused or lost.
    """
    files = bundles()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        desk = Desk(state, tuple(stage.put(state, each) for each in files))
        served = stage.start(state, MODEL)
        found = []
        try:
            desk.swap()
            witness = Rest(
                f"{served.host}:{served.port}", Form.BINARY, Case.of(files, tuple(range(len(files))))
            )
            with contextlib.closing(witness):
                for _ in range(swaps):
                    desk.swap()
                    tally = witness.run(_BURST)
                    found.append(resident_mb(served.process.pid))
            if tally.right != tally.asked:
                raise PermanentError(f"expected {tally.asked} right answers, got {tally}")
        finally:
            desk.close()
            served.stop()
    return Soak(tuple(found), len(files))


def measure(runs: int, quick: bool) -> list[Row]:
    """Return the row of this part; a soak takes minutes, so there are at most three."""
    late, soaks = QUICK_LATE if quick else LATE, []
    for number in range(min(runs, MOST_RUNS)):
        soaks.append(soak(late))
        curve = [round(soaks[-1].held_mb(swaps)) for swaps in range(EARLY, late + 1, 20)]
        say(f"memory: run {number + 1}, MB each 20 swaps: {curve}")
    growth = Figure.of([round(one.held_mb(late) / one.held_mb(EARLY), 4) for one in soaks])
    early, last = (Figure.of([round(one.held_mb(swaps), 1) for one in soaks]) for swaps in (EARLY, late))
    return [
        Row(
            f"resident memory after {late} swaps, against after {EARLY}",
            f"<= {CEILING:g} after {LATE}",
            growth,
            "ratio",
            met=None if quick else at_most(growth, CEILING),
            note=f"{early} MB, then {last} MB",
        )
    ]


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(description="Memory of instar-serve over swaps.")
    parser.add_argument("--runs", type=int, default=MOST_RUNS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LATE} swaps, judged by nobody")
    flags = parser.parse_args()
    for row in measure(flags.runs, flags.quick):
        print(f"{row.what}: {row.ours} {row.unit}, wanted {row.target}: {row.verdict} ({row.note})")


if __name__ == "__main__":
    main()
