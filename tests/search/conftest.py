"""A tiny task that can be learned in seconds, and searches over it that all tests share."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from policies.terms import (
    Artefact,
    Augmentation,
    Brief,
    Datatype,
    Limits,
    Modality,
    SearchResult,
    Task,
    TensorSpec,
    TriggerKind,
)
from policies.wire import canonical, digest_bytes
from search.__main__ import search
from search.run import Tools
from search.spaces.image import ImageSpace, image_space
from search.strategies import BUILTIN as STRATEGIES

SIDE = 20
CLASSES = 3


def _bars(n: int, rng: np.random.Generator, *, turned: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images of a bar: level, upright or both. A turned camera makes level ones upright."""
    y = rng.integers(0, CLASSES, n)
    x = rng.integers(0, 60, (n, SIDE, SIDE))
    for image, label in zip(x, y, strict=True):
        row, column = rng.integers(6, SIDE - 6, 2)
        if label != 1:
            image[row - 1 : row + 2, 3:-3] = 200
        if label != 0:
            image[3:-3, column - 1 : column + 2] = 200
    if turned:
        x = x.transpose(0, 2, 1) // 2
    return x.astype(np.uint8), y


@dataclass(frozen=True)
class Searched:
    """One search that ran."""

    brief: Brief
    out: Path
    result: SearchResult


@pytest.fixture(scope="session")
def task() -> Task:
    return Task(
        name="bars",
        modality=Modality.IMAGE,
        model="bars",
        input=TensorSpec(name="image", datatype=Datatype.UINT8, shape=(-1, SIDE, SIDE)),
        classes=("level", "upright", "cross"),
        group_parameter="id",
        sources=(),
        augmentation=Augmentation(rotate_deg=3.0, shift_px=1.0, scale=0.02, gain=0.1, noise=0.02),
    )


@pytest.fixture(scope="session")
def space(task: Task) -> ImageSpace:
    return image_space(task)


@pytest.fixture(scope="session")
def limits() -> Limits:
    return Limits(max_params=400_000, max_size_bytes=2_000_000, max_p99_ms=200.0, max_edit_distance=1000)


@pytest.fixture(scope="session")
def write_data() -> Callable[..., Artefact]:
    """Return a writer of data files: new rows, turned or not, and old rows, never turned."""

    def write(path: Path, new: int, old: int = 0, *, turned: bool = False, **changed: object) -> Artefact:
        rng = np.random.default_rng(3)
        parts = [_bars(new, rng, turned=turned), _bars(old, rng, turned=False)]
        arrays: dict[str, object] = {
            "x": np.concatenate([x for x, _ in parts]),
            "y": np.concatenate([y for _, y in parts]),
            "role": (np.arange(new + old) % 4 == 0).astype(np.uint8),
            "regime": (np.arange(new + old) < new).astype(np.uint8),
        }
        np.savez(path, **(arrays | changed))
        return Artefact(path=path.name, digest=digest_bytes(path.read_bytes()))

    return write


@pytest.fixture(scope="session")
def founding_brief(task: Task, limits: Limits, write_data: Callable[..., Artefact]) -> Callable[..., Brief]:
    """Return a maker of founding briefs whose data lie in a folder."""

    def make(folder: Path, **changed: object) -> Brief:
        fields: dict[str, object] = {
            "id": "search-1",
            "kind": TriggerKind.FOUNDING,
            "task": task,
            "seed": 5,
            "budget_cpu_s": 13.0,
            "max_memory_bytes": 3_000_000_000,
            "threads": 1,
            "limits": limits,
            "data": write_data(folder / "founding.npz", 800) if "data" not in changed else None,
            "parent_generation": 0,
            "parent_genome": None,
            "parent_state": None,
            "parent_archive": None,
        }
        return Brief.model_validate(fields | changed)

    return make


@pytest.fixture(scope="session")
def run_search() -> Callable[..., Searched]:
    """Return a runner of one search in this process, its CPU time counted from its own beginning."""

    def run(brief: Brief, folder: Path, out: Path, cpu: Callable[[], float] | None = None) -> Searched:
        out.mkdir()
        path = folder / f"{out.name}.json"
        path.write_bytes(canonical(brief))
        began = time.process_time()
        own = cpu or (lambda: time.process_time() - began)
        tools = Tools(STRATEGIES["nsga2"], own, time.perf_counter, lambda _: None)
        return Searched(brief, out, search(path, out, tools))

    return run


@pytest.fixture(scope="session")
def founded(
    tmp_path_factory: pytest.TempPathFactory,
    founding_brief: Callable[..., Brief],
    run_search: Callable[..., Searched],
) -> Searched:
    folder = tmp_path_factory.mktemp("founded")
    return run_search(founding_brief(folder), folder, folder / "out")


@pytest.fixture(scope="session")
def child_brief(founded: Searched, founding_brief: Callable[..., Brief]) -> Callable[..., Brief]:
    """Return a maker of briefs that start from the founded generation."""

    def make(folder: Path, kind: TriggerKind, **changed: object) -> Brief:
        def left(name: str) -> Artefact:
            path = founded.out / name
            return Artefact(path=str(path), digest=digest_bytes(path.read_bytes()))

        fields: dict[str, object] = {
            "id": "search-2",
            "kind": kind,
            "parent_generation": 1,
            "parent_genome": founded.result.winner,
            "parent_state": left("state.safetensors"),
            "parent_archive": left("archive.json"),
            "limits": founded.brief.limits.model_copy(update={"max_edit_distance": 6}),
        }
        return founding_brief(folder, **(fields | changed))

    return make
