"""Searches over the shifts, as the daemon would order them, in this process, with a clock that can be
stopped.

What a benchmark asks in between (accuracy on rows that nobody learned from) must not count as the search's
work; so CPU time is taken by a ``Watch`` that stops for questions.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.search.shifts import Part, Shift
from policies.terms import Artefact, Brief, Heirloom, Limits, Precision, SearchResult, TriggerKind
from policies.wire import digest_bytes
from search.admission import admit
from search.dataset import Rows
from search.run import Run, Tools
from search.spaces import BUILTIN as SPACES
from search.strategies import BUILTIN as STRATEGIES

LIMITS = Limits(max_params=400_000, max_size_bytes=2_000_000, max_p99_ms=25.0, max_edit_distance=12)
_MEMORY_BYTES = 3 * 2**29
_MOST_REPLAY = 3000


@dataclass
class Watch:
    """CPU-seconds of this process since it was made, but for what was asked while it stood."""

    began: float = field(default_factory=time.process_time)
    stood: float = 0.0
    _since: float = 0.0

    def read(self) -> float:
        """Return CPU-seconds."""
        return time.process_time() - self.began - self.stood

    def stop(self) -> None:
        """Stand still."""
        self._since = time.process_time()

    def go(self) -> None:
        """Go on."""
        self.stood += time.process_time() - self._since


def found(shift: Shift, seed: int, folder: Path, budget_cpu_s: float) -> Path:
    """Return the folder of a founding search over the first regime; one that is there already is taken."""
    first = shift.regimes[0]
    brief = _brief(shift, seed, budget_cpu_s, folder, [(first.train, 0, 1), (first.search, 1, 1)], None, ())
    return _search(brief, folder)


def adapt(
    shift: Shift,
    new: Part,
    old: Sequence[Part],
    seed: int,
    folder: Path,
    budget_cpu_s: float,
    parent: Path,
    library: Sequence[Heirloom] = (),
) -> Path:
    """Return the folder of a data search over new rows, with replay of the old."""
    return _search(adaptation(shift, new, old, seed, folder, budget_cpu_s, parent, library), folder)


def adaptation(
    shift: Shift,
    new: Part,
    old: Sequence[Part],
    seed: int,
    folder: Path,
    budget_cpu_s: float,
    parent: Path,
    library: Sequence[Heirloom] = (),
) -> Brief:
    """Return the brief of a data search; its rows are written into ``folder``."""
    rng = np.random.default_rng([seed, 23])
    share = max(1, _MOST_REPLAY // max(1, len(old)))
    rows = [(new.train, 0, 1), (new.search, 1, 1)]
    rows += [(part.train.some(share, rng), 0, 0) for part in old]
    rows += [(part.search.some(share // 3, rng), 1, 0) for part in old]
    return _brief(shift, seed, budget_cpu_s, folder, rows, parent, library)


def result_of(folder: Path) -> SearchResult:
    """Return what a search left in a folder."""
    return SearchResult.model_validate_json((folder / "result.json").read_bytes())


def artefact(path: Path) -> Artefact:
    """Return a file with its digest."""
    return Artefact(path=str(path), digest=digest_bytes(path.read_bytes()))


def _brief(
    shift: Shift,
    seed: int,
    budget_cpu_s: float,
    folder: Path,
    rows: Sequence[tuple[Rows, int, int]],
    parent: Path | None,
    library: Sequence[Heirloom],
) -> Brief:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "x": np.concatenate([part.x for part, _, _ in rows]),
        "y": np.concatenate([part.y for part, _, _ in rows]),
        "role": np.concatenate([np.full(len(part), role, np.uint8) for part, role, _ in rows]),
        "regime": np.concatenate([np.full(len(part), regime, np.uint8) for part, _, regime in rows]),
    }
    np.savez(folder / "data.npz", **arrays)
    result = None if parent is None else result_of(parent)
    return Brief(
        id=f"{shift.name}-{seed}",
        kind=TriggerKind.FOUNDING if parent is None else TriggerKind.DATA,
        task=shift.task,
        seed=seed,
        budget_cpu_s=budget_cpu_s,
        max_memory_bytes=_MEMORY_BYTES,
        threads=1,
        limits=LIMITS,
        data=artefact(folder / "data.npz"),
        parent_generation=0 if parent is None else 1,
        parent_genome=None if result is None else result.winner,
        parent_state=None if parent is None else artefact(parent / "state.safetensors"),
        parent_archive=None if parent is None else artefact(parent / "archive.json"),
        precisions=(Precision.FP32, Precision.INT8),
        library=tuple(library),
    )


def _search(brief: Brief, folder: Path) -> Path:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    if not (out / "result.json").is_file():
        watch = Watch()
        tools = Tools(STRATEGIES["nsga2"], watch.read, time.perf_counter, lambda _: None)
        Run(admit(brief, folder, SPACES), out, tools).search()
    return out
