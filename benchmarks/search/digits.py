"""The meter reader's digits, and founding searches over them, each a process as the daemon would start it.

* Rows 0 to 6,999 may train. Rows 7,000 to 9,999 are held out: 1,000 rank in the search (role search), and
  2,000 are seen by nobody.
* What a process used is told by the kernel (``usage``), not by itself.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.document import load_task
from policies.errors import PermanentError
from policies.terms import Artefact, Brief, Limits, Precision, SearchResult, Task, TriggerKind
from policies.wire import canonical, digest_bytes
from search.dataset import Rows

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "meter-reader"
KEPT = ROOT / ".instar" / "bench"
TRAIN, SEARCH = slice(0, 7000), slice(7000, 8000)
HELD_OUT = slice(8000, 10_000)
LOOSE = Limits(max_params=10_000_000, max_size_bytes=50_000_000, max_p99_ms=1000.0, max_edit_distance=1000)
_MEMORY_BYTES = 3 * 2**29


@dataclass(frozen=True)
class Founded:
    """What a founding search left, and what it used."""

    folder: Path
    result: SearchResult
    cpu_s: float
    peak_bytes: int

    @property
    def state(self) -> Path:
        """Return the supernet's file."""
        return self.folder / self.result.state.path


def task() -> Task:
    """Return the example's task."""
    return load_task(EXAMPLE / "task.toml")


def rows(part: slice) -> Rows:
    """Return some of the digits: x (n, 28, 28) uint8, y (n,)."""
    with np.load(EXAMPLE / "digits.npz", allow_pickle=False) as file:
        return Rows(file["x"][part], file["y"][part].astype(np.int64))


def found(folder: Path, seed: int, budget_s: float) -> Founded:
    """Run a founding search, or return the one that the folder holds.

    Args:
        folder: For the brief, the rows and the result.
        seed: Of the search.
        budget_s: CPU-seconds that it may use.

    Raises:
        PermanentError: It did not end with a winner.
    """
    out, record = folder / "out", folder / "usage.json"
    if not record.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path = _brief(folder, seed, budget_s)
        command = [sys.executable, "-m", "search", str(path), str(out)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.search.usage", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise PermanentError(
                f"expected a founding search in {folder.name} that ends with 0, got {done.returncode}; its "
                "words are above"
            )
        record.write_text(done.stdout.strip().rpartition("\n")[2])
    used = json.loads(record.read_text())
    result = SearchResult.model_validate_json((out / "result.json").read_bytes())
    return Founded(out, result, used["cpu_s"], used["peak_bytes"])


def _brief(folder: Path, seed: int, budget_s: float) -> Path:
    parts = [(rows(TRAIN), 0), (rows(SEARCH), 1)]
    data = folder / "data.npz"
    np.savez(
        data,
        x=np.concatenate([part.x for part, _ in parts]),
        y=np.concatenate([part.y for part, _ in parts]),
        role=np.concatenate([np.full(len(part), role, np.uint8) for part, role in parts]),
        regime=np.ones(sum(len(part) for part, _ in parts), np.uint8),
    )
    brief = Brief(
        id="bench-founding",
        kind=TriggerKind.FOUNDING,
        task=task(),
        seed=seed,
        budget_cpu_s=budget_s,
        max_memory_bytes=_MEMORY_BYTES,
        threads=1,
        limits=LOOSE,
        data=Artefact(path=data.name, digest=digest_bytes(data.read_bytes())),
        parent_generation=0,
        parent_genome=None,
        parent_state=None,
        parent_archive=None,
        precisions=(Precision.FP32, Precision.INT8),
    )
    path = folder / "brief.json"
    path.write_bytes(canonical(brief))
    return path
