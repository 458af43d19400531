"""Real shifts: what was learned from, what came after, and rows that nobody learns from.

* ``digits``: the meter reader's camera tilts by 35 degrees and the light halves.
* ``bearings``: the load of the machine rises from 0 to 1, 2 and 3 hp (CWRU; read from a folder ``data``
  beside the checkout or from INSTAR_DATA, and left out where it is absent).
* ``shuttle``: a table by time, first the early flight, then the late one (ships with river).
* ``elec2``: a table by time (as ``bearings``, from a file). Its labels are strongly autocorrelated: always
  compare with the last label, which is right in 85 % of all rows.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from policies.terms import Augmentation, Datatype, Modality, Task, TensorSpec
from search.dataset import Rows

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """Rows of one regime by what they are for."""

    name: str
    train: Rows
    search: Rows
    test: Rows


@dataclass(frozen=True)
class Shift:
    """A task, and its regimes in order; the first founds it."""

    name: str
    task: Task
    regimes: tuple[Part, ...]
    founding_cpu_s: float


def shifts(seed: int) -> Iterator[Shift]:
    """Yield every shift whose data are here; says which are not."""
    yield digits(seed)
    for name, make in (("cwru_12k_de.npz", bearings), ("elec2.npz", elec2)):
        path = found(name)
        if path is None:
            print(f"left out: {name} is neither in $INSTAR_DATA nor in a folder data nearby", file=sys.stderr)
        else:
            yield make(path, seed)
    yield shuttle(seed)


def digits(seed: int) -> Shift:
    """Return the meter reader's shift."""
    x, y = _digits()
    camera, rng = _camera(), np.random.default_rng([seed, 21])
    drifted = camera.view(x[6000:], camera.KINDS["tilt-fade"], rng)
    early = Part("upright", Rows(x[:4500], y[:4500]), Rows(x[4500:6000], y[4500:6000]), Rows(x[:0], y[:0]))
    later = y[6000:]
    late = Part(
        "tilted",
        Rows(drifted[:1500], later[:1500]),
        Rows(drifted[1500:2000], later[1500:2000]),
        Rows(drifted[2000:], later[2000:]),
    )
    return Shift("digits", digits_task(), (early, late), 80.0)


def digits_regimes(seed: int) -> Shift:
    """Return the meter reader's camera, well, tilted, noisy and blurred."""
    x, y = _digits()
    camera, rng = _camera(), np.random.default_rng([seed, 24])
    parts = []
    for index, kind in enumerate(("none", "tilt-fade", "noise", "blur")):
        rows = slice(2500 * index, 2500 * (index + 1))
        parts.append(_split(kind, Rows(camera.view(x[rows], camera.KINDS[kind], rng), y[rows]), seed))
    return Shift("digits", digits_task(), tuple(parts), 60.0)


def digits_task() -> Task:
    """Return the meter reader's task."""
    jitter = Augmentation(rotate_deg=8.0, shift_px=1.5, scale=0.08, gain=0.15, noise=0.03)
    return _task("digits", Modality.IMAGE, Datatype.UINT8, (28, 28), 10, jitter)


def bearings(path: Path, seed: int) -> Shift:
    """Return the machine's shift."""
    with np.load(path, allow_pickle=False) as file:
        kept = file["y"] != 9
        x, y, load = file["x"][kept].astype(np.float32)[:, None], file["y"][kept], file["load_hp"][kept]
    task = _task(
        "bearings",
        Modality.WINDOW,
        Datatype.FP32,
        (1, 1024),
        9,
        Augmentation(shift_steps=128, gain=0.1, noise=0.05),
    )
    rows = Rows(x, y.astype(np.int64))
    parts = tuple(_split(f"{hp} hp", rows.take(load == hp), seed) for hp in range(4))
    return Shift("bearings", task, parts, 60.0)


def shuttle(seed: int) -> Shift:
    """Return the flight's shift."""
    from river import datasets

    pairs = [(list(values.values()), label) for values, label in datasets.Shuttle()]
    x = np.array([values for values, _ in pairs], dtype=np.float32)
    y = np.array([label for _, label in pairs], dtype=np.int64)
    order = np.argsort(x[:, 0], kind="stable")
    rows = Rows(x[order], y[order])
    task = _task("shuttle", Modality.TABLE, Datatype.FP32, (9,), 2, Augmentation(noise=0.02))
    early, late = (rows.take(np.arange(*span)) for span in ((0, 32000), (45000, len(rows))))
    return Shift("shuttle", task, (_split("early", early, seed), _split("late", late, seed)), 30.0)


def elec2(path: Path, seed: int) -> Shift:
    """Return the market's shift: two years, and the months after."""
    with np.load(path, allow_pickle=False) as file:
        rows = Rows(file["x"].astype(np.float32), file["y"].astype(np.int64))
    task = _task("elec2", Modality.TABLE, Datatype.FP32, (8,), 2, Augmentation(noise=0.02))
    early, late = (rows.take(np.arange(*span)) for span in ((0, 16000), (22000, 28000)))
    return Shift("elec2", task, (_split("early", early, seed), _split("late", late, seed)), 30.0)


def found(name: str) -> Path | None:
    """Return where a file lies that does not ship: in INSTAR_DATA, else in a folder ``data`` nearby."""
    places = [Path(os.environ["INSTAR_DATA"])] if "INSTAR_DATA" in os.environ else []
    places += sorted(ROOT.parent.glob("*/data/"))
    return next((place / name for place in places if (place / name).is_file()), None)


def _split(name: str, rows: Rows, seed: int) -> Part:
    """Return 60 % to learn from, 20 % to rank on, 20 % nobody learns from."""
    order = np.random.default_rng([seed, 22]).permutation(len(rows))
    first, second = int(0.6 * len(rows)), int(0.8 * len(rows))
    return Part(name, rows.take(order[:first]), rows.take(order[first:second]), rows.take(order[second:]))


def _task(
    name: str,
    modality: Modality,
    datatype: Datatype,
    shape: tuple[int, ...],
    classes: int,
    augmentation: Augmentation,
) -> Task:
    return Task(
        name=name,
        modality=modality,
        model=name,
        input=TensorSpec(name="x", datatype=datatype, shape=(-1, *shape)),
        classes=tuple(str(index) for index in range(classes)),
        group_parameter="group",
        sources=(),
        augmentation=augmentation,
    )


def _digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(ROOT / "examples" / "meter-reader" / "digits.npz") as file:
        return file["x"], file["y"].astype(np.int64)


def _camera() -> ModuleType:
    """Return the example's camera: an example is a folder of scripts, not a package."""
    path = ROOT / "examples" / "meter-reader" / "drift.py"
    spec = importlib.util.spec_from_file_location("meter_reader_drift", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"expected the meter reader's camera at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
