"""Tiny worlds that can be learned in seconds, one of each modality, and searches in them.

* A world is a task with a law that makes rows of it; a turned world follows another law.
* Costs are stated, not measured, and clocks count calls or stand: the same search takes the same steps on any
  machine, and no test waits for a clock.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.terms import (
    Artefact,
    Augmentation,
    Brief,
    Datatype,
    Limits,
    Modality,
    Precision,
    SearchResult,
    Task,
    TensorSpec,
    TriggerKind,
)
from policies.wire import canonical, digest_bytes
from search.__main__ import search
from search.admission import admit
from search.blueprint import Block
from search.bounds import Bounds
from search.budget import Budget
from search.costs import Costs
from search.crew import Crew
from search.desk import Desk, Record
from search.profile import Profile, entry_key, key
from search.progress import Progress
from search.run import Tools
from search.space import Space
from search.spaces import BUILTIN
from search.strategies import BUILTIN as STRATEGIES
from search.supernet import Supernet

SIDE = 20
STEPS = 32
FEATURES = 8
COMMAND = [sys.executable, "-m", "search"]
BOTH = (Precision.FP32, Precision.INT8)
STILL = Augmentation()
ROOMY = Limits(max_params=400_000, max_size_bytes=2_000_000, max_p99_ms=200.0, max_edit_distance=1000)

Law = Callable[[int, np.random.Generator, bool], tuple[NDArray[Any], NDArray[np.int64]]]


@dataclass(frozen=True)
class World:
    """A task, and the law of its rows: how many, by which chance, turned or not."""

    task: Task
    law: Law

    def space(self, precisions: tuple[Precision, ...] = (Precision.FP32,)) -> Space:
        return BUILTIN[self.task.modality](self.task, precisions)


@dataclass(frozen=True)
class Searched:
    """One search that ran."""

    brief: Brief
    out: Path
    result: SearchResult

    @property
    def evidence(self) -> dict[str, float]:
        return {one.name: one.value for one in self.result.evidence}

    def left(self, name: str) -> Artefact:
        """Return a file that it left, as another brief names it."""
        return artefact(self.out / name, str(self.out / name))


def task(modality: Modality, shape: tuple[int, ...], classes: int = 3, augmentation: Augmentation = STILL):
    datatype = Datatype.UINT8 if modality is Modality.IMAGE else Datatype.FP32
    return Task(
        name=f"tiny-{modality}",
        modality=modality,
        model="tiny",
        input=TensorSpec(name="rows", datatype=datatype, shape=(-1, *shape)),
        classes=tuple("abcdefghij"[:classes]),
        group_parameter="id",
        sources=(),
        augmentation=augmentation,
    )


def _bars(n: int, rng: np.random.Generator, turned: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images of a bar: level, upright or both. A turned camera makes level ones upright."""
    y = rng.integers(0, 3, n)
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


def _waves(n: int, rng: np.random.Generator, turned: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return sines of 2, 4 or 7 turns a window, at any phase; a turned world numbers them the other way."""
    y = rng.integers(0, 3, n)
    turns = np.array([2.0, 4.0, 7.0])[:: -1 if turned else 1][y]
    phase = rng.random((n, 1)) * 2 * np.pi
    x = np.sin(np.arange(STEPS) / STEPS * 2 * np.pi * turns[:, None] + phase)
    return (10 + 3 * (x + 0.2 * rng.standard_normal(x.shape)))[:, None].astype(np.float32), y


def _clouds(n: int, rng: np.random.Generator, turned: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return rows of three clouds; in a turned world each feature means what its neighbour meant."""
    centres = np.random.default_rng(0).normal(0, 1.5, (3, FEATURES))
    y = rng.integers(0, 3, n)
    x = centres[y] + rng.standard_normal((n, FEATURES))
    return np.roll(x, 3 if turned else 0, axis=1).astype(np.float32), y


BARS = World(
    task(
        Modality.IMAGE,
        (SIDE, SIDE),
        augmentation=Augmentation(rotate_deg=3.0, shift_px=1.0, scale=0.02, gain=0.1, noise=0.02),
    ),
    _bars,
)
WAVES = World(task(Modality.WINDOW, (1, STEPS), augmentation=Augmentation(shift_steps=4, noise=0.02)), _waves)
CLOUDS = World(task(Modality.TABLE, (FEATURES,)), _clouds)


def artefact(path: Path, name: str | None = None) -> Artefact:
    return Artefact(path=name or path.name, digest=digest_bytes(path.read_bytes()))


def write_rows(
    world: World, path: Path, new: int, old: int = 0, *, turned: bool = False, **changed: object
) -> Artefact:
    """Write a data file: new rows, turned or not, and old rows, never turned."""
    rng = np.random.default_rng(3)
    parts = [world.law(new, rng, turned), world.law(old, rng, False)]
    arrays: dict[str, Any] = {
        "x": np.concatenate([x for x, _ in parts]),
        "y": np.concatenate([y for _, y in parts]),
        "role": (np.arange(new + old) % 4 == 0).astype(np.uint8),
        "regime": (np.arange(new + old) < new).astype(np.uint8),
    }
    np.savez(path, **(arrays | changed))
    return artefact(path)


def stated_profile(space: Space, **changed: object) -> Profile:
    """Return costs that nobody measured: a microsecond a part, and one for every twenty thousand products."""

    def us(block: Block) -> float:
        return 1.0 + block.macs / 20_000

    fields: dict[str, Any] = {
        "format": 1,
        "space": space.name,
        "machine": "stated",
        "runtime": "stated",
        "blocks_us": {key(block): us(block) for block in space.blocks()},
        "entries_us": {entry_key(entry): 1.0 for entry in space.entries()},
        "line": (0.005, 1.0),
        "int8_line": (0.4, 0.001, 0.001, 0.001, 0.01),
        "seconds_per_mac": 1e-10,
        "seconds_per_net": 3e-3,
        "seconds_per_step": 1e-4,
        "watts": 10.0,
        "energy": "model",
    }
    return Profile.model_validate(fields | changed)


def founding_brief(world: World, folder: Path, **changed: object) -> Brief:
    """Return a founding brief whose files lie in a folder."""
    (folder / "device.json").write_bytes(canonical(stated_profile(world.space(BOTH))))
    fields: dict[str, object] = {
        "id": "search-1",
        "kind": TriggerKind.FOUNDING,
        "task": world.task,
        "seed": 5,
        "budget_cpu_s": 15.0 if world is BARS else 10.0,
        "max_memory_bytes": 3_000_000_000,
        "threads": 1,
        "limits": ROOMY,
        "data": None if "data" in changed else write_rows(world, folder / "founding.npz", 800),
        "parent_generation": 0,
        "parent_genome": None,
        "parent_state": None,
        "parent_archive": None,
        "profile": artefact(folder / "device.json"),
    }
    return Brief.model_validate(fields | changed)


def child_brief(parent: Searched, world: World, folder: Path, kind: TriggerKind, **changed: object) -> Brief:
    """Return a brief that starts from a generation that was found."""
    fields: dict[str, object] = {
        "id": "search-2",
        "kind": kind,
        "parent_generation": 1,
        "parent_genome": parent.result.winner,
        "parent_state": parent.left("state.safetensors"),
        "parent_archive": parent.left("archive.json"),
    }
    return founding_brief(world, folder, **(fields | changed))


def standing() -> float:
    """A CPU clock by which nothing takes any time: no phase is cut."""
    return 0.0


def ticking(step_s: float) -> Callable[[], float]:
    """Return a clock that goes on by a step each time it is read."""
    ticks = itertools.count(1)
    return lambda: next(ticks) * step_s


def run(brief: Brief, folder: Path, out: Path, **changed: Any) -> Searched:
    """Search in this process; ``changed`` are tools."""
    out.mkdir(exist_ok=True)
    path = folder / f"{out.name}.json"
    path.write_bytes(canonical(brief))
    tools: dict[str, Any] = {
        "strategy": STRATEGIES["nsga2"],
        "cpu": standing,
        "clock": ticking(0.0005),
        "say": lambda _: None,
    }
    return Searched(brief, out, search(path, out, Tools(**(tools | changed))))


def desk(brief: Brief, folder: Path) -> Desk:
    """Return a desk as ``search.run`` lays it, with fresh weights and stated costs."""
    admission = admit(brief, folder, BUILTIN)
    space = admission.space
    net = Supernet(space.shapes(), space.entries()[0], brief.seed)
    net.standardise(admission.data.train_new.x)
    parent = None if admission.parent is None else admission.parent.genes
    costs = Costs(space, stated_profile(space))
    return Desk(
        admission=admission,
        tools=Tools(STRATEGIES["nsga2"], standing, ticking(0.0005), lambda _: None),
        net=net,
        costs=costs,
        bounds=Bounds(space, brief.limits, costs, brief.limits.max_p99_ms, parent, len(brief.precisions) > 1),
        budget=Budget(brief.budget_cpu_s, standing),
        progress=Progress(folder, standing, lambda _: None),
        crew=Crew(brief.threads),
        record=Record(),
    )
