"""What this device costs: blocks timed by the runtime that serves, lines through them, the pace of training.

* A block is timed as a fused session of its own (one row, one thread), because the runtime fuses across
  operators: a profile of single operators adds up wrongly. The best of its runs is taken, load only adds; and
  what an empty session takes is taken off, for a network pays that once.
* The sum of a network's blocks is mapped to milliseconds by a line, fitted on few whole networks. In int8 the
  blocks are not timed; a line through sums, layers, products and squeezes is fitted on whole quantised ones.
* A profile is measured once a device and travels with the archive. A search that is given one plans, trains
  and ranks by no clock; only the limits are asked of files that it times.
* Joules are read from the processor where it counts them (RAPL); elsewhere a stated model stands in.
"""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from pydantic import Field, ValidationError
from scipy.optimize import nnls

from policies.bundle import OPSET
from policies.errors import TamperError, first_fault
from policies.terms import Term
from search import graph
from search.blueprint import Block, Blueprint, Entry
from search.quantise import quantised
from search.runtime import Clock, Feed, round_robin_ms, session, times_ms
from search.space import Genes, Space

_BLOCK_RUNS = 12
_EMPTY_RUNS = 100
_NETWORKS = 10
_ROUNDS, _ROUND_RUNS = 5, 16
_CALIBRATION_ROWS = 32
_MODEL_WATTS = 10.0
"""The stated model: one busy core of a small server draws about this much."""

_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


class Profile(Term):
    """The text of ``profile.json``."""

    format: Literal[1]
    space: str
    machine: str
    runtime: str
    blocks_us: dict[str, float]
    entries_us: dict[str, float]
    line: tuple[float, float] = Field(description="Offset in ms, and slope.")
    int8_line: tuple[float, ...] | None = Field(description="ms for each of the features, the offset last.")
    seconds_per_mac: float = Field(gt=0.0, description="CPU-seconds of training, for each row and product.")
    seconds_per_net: float = Field(gt=0.0, description="CPU-seconds of training, for each subnet of a step.")
    seconds_per_step: float = Field(gt=0.0, description="CPU-seconds of training, for each step besides.")
    watts: float = Field(gt=0.0)
    energy: Literal["rapl", "model"]


def read_profile(raw: bytes, space: Space) -> Profile:
    """Return a profile.

    Raises:
        TamperError: The bytes are no profile of this format, or not of this space.
    """
    try:
        profile = Profile.model_validate_json(raw)
    except ValidationError as error:
        raise TamperError(
            f"expected a device profile of format 1, got {first_fault(error)}; take it away to measure anew"
        ) from error
    missing = {key(block) for block in space.blocks()} - profile.blocks_us.keys()
    missing |= {entry_key(entry) for entry in space.entries()} - profile.entries_us.keys()
    if profile.space != space.name or missing:
        raise TamperError(
            f"expected a device profile of space {space.name} with all its blocks, got one of "
            f"{profile.space} that lacks {len(missing)}; take the profile away to measure anew"
        )
    return profile


def key(block: Block) -> str:
    """Return the name of a block's cost: equal for blocks that differ in their slots alone.

    >>> from search.blueprint import Conv
    >>> key(Block((Conv("a", (3, 3), (2, 2), 4, 8, True, 7, 7),), residual=False))
    '7x7 k3x3 s2x2 4-8 relu'
    """
    parts = [
        f"{conv.height}x{conv.width} k{conv.kernel[0]}x{conv.kernel[1]} s{conv.stride[0]}x{conv.stride[1]} "
        f"{conv.inputs}-{conv.outputs}" + (" relu" if conv.relu else "")
        for conv in block.convs
    ]
    if block.squeeze is not None:
        parts.append(f"squeeze {block.squeeze.channels}-{block.squeeze.hidden}")
    return " | ".join(parts) + (" +" if block.residual else "")


def entry_key(entry: Entry) -> str:
    """Return the name of a way in's cost.

    >>> from search.blueprint import Layout
    >>> entry_key(Entry(Layout.HW, 1, 28, 28, 21, 21))
    'hw 1x28x28 to 21x21'
    """
    size = f"{entry.channels}x{entry.height}x{entry.width}"
    return f"{entry.layout.value} {size} to {entry.to_height}x{entry.to_width}"


def measure(
    space: Space,
    clock: Clock,
    pace: tuple[float, float, float],
    seed: int,
    report: Callable[[int, int], None],
) -> Profile:
    """Measure this device.

    Args:
        space: Whose blocks.
        clock: For timing.
        pace: CPU-seconds of training, for each row and product, for each subnet, for each step
            (``search.pace``).
        seed: Of weights, inputs and networks.
        report: Told how many blocks are done, of how many.
    """
    rng = np.random.default_rng([seed, 11])
    empty = _empty_us(rng, clock)
    blocks = {key(block): block for block in space.blocks()}
    blocks_us: dict[str, float] = {}
    for done, (name, block) in enumerate(blocks.items()):
        blocks_us[name] = _best_us(graph.block_model(block, rng), rng, clock, empty)
        if done % 50 == 0:
            report(done, len(blocks))
    entries_us = {
        entry_key(entry): _best_us(graph.entry_model(entry), rng, clock, empty) for entry in space.entries()
    }
    chosen = _spread(space, rng)
    watts, energy = _watts(clock, space, rng)
    sums = np.array([sum_us(space.blueprint(row), blocks_us, entries_us) for row in chosen]) / 1000
    return Profile(
        format=1,
        space=space.name,
        machine=f"{platform.machine()} {platform.system()} {platform.release()}",
        runtime=f"onnxruntime {ort.__version__}",
        blocks_us=blocks_us,
        entries_us=entries_us,
        line=fitted_line(sums, whole_ms(space, chosen, clock, rng)),
        int8_line=_int8_line(space, chosen, sums, clock, rng) if space.cardinalities[-1] > 1 else None,
        seconds_per_mac=pace[0],
        seconds_per_net=pace[1],
        seconds_per_step=pace[2],
        watts=watts,
        energy=energy,
    )


def refitted(profile: Profile, space: Space, clock: Clock, seed: int) -> Profile:
    """Return a profile with its lines fitted anew on whole networks: the same blocks, today's device.

    Args:
        profile: Of another day.
        space: Of the networks.
        clock: For timing.
        seed: As for ``measure``.
    """
    rng = np.random.default_rng([seed, 14])
    chosen = _spread(space, rng)
    parts = (profile.blocks_us, profile.entries_us)
    sums = np.array([sum_us(space.blueprint(row), *parts) for row in chosen]) / 1000
    line = fitted_line(sums, whole_ms(space, chosen, clock, rng))
    known = profile.int8_line is not None
    int8_line = _int8_line(space, chosen, sums, clock, rng) if known else None
    return profile.model_copy(update={"line": line, "int8_line": int8_line})


def sum_us(blueprint: Blueprint, blocks_us: dict[str, float], entries_us: dict[str, float]) -> float:
    """Return the sum of a network's parts in microseconds."""
    return entries_us[entry_key(blueprint.entry)] + sum(blocks_us[key(block)] for block in blueprint.blocks)


def whole_ms(space: Space, genes: Genes, clock: Clock, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the milliseconds of whole networks with random weights, each in its precision; (n,)."""
    sessions, feeds = [], []
    for row in genes:
        blueprint = space.blueprint(row)
        x = random_rows(blueprint.entry, _CALIBRATION_ROWS, rng)
        model = graph.network_model(blueprint, graph.random_weights(blueprint, rng), "x")
        if space.quantised(row[None])[0]:
            model = quantised(model, x)
        sessions.append(session(model))
        feeds.append({"x": x[:1]})
    return round_robin_ms(sessions, feeds, _ROUNDS, _ROUND_RUNS, clock)


def random_rows(entry: Entry, n: int, rng: np.random.Generator) -> NDArray[np.generic]:
    """Return raw rows without meaning; (n, ...)."""
    shape = (n, *graph.row_shape(entry))
    if entry.layout.pixels:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape).astype(np.float32)


def fitted_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Return offset (>= 0) and slope (> 0) with the least relative error; a mere ratio when noise outweighs.

    >>> [round(one, 6) for one in fitted_line(np.array([1.0, 2.0, 3.0]), np.array([3.0, 5.0, 7.0]))]
    [1.0, 2.0]
    >>> fitted_line(np.array([1.0, 3.0]), np.array([5.0, 3.0]))
    (0.0, 2.0)
    """
    (slope, offset), _ = nnls(np.column_stack([x, np.ones_like(x)]) / y[:, None], np.ones_like(y))
    if slope <= 0:
        # Larger must not become cheaper.
        return 0.0, float(y.mean() / x.mean())
    return float(offset), float(slope)


def int8_features(sums_ms: NDArray[np.float64], blueprints: list[Blueprint]) -> NDArray[np.float64]:
    """Return what a quantised network's latency is a line of: (n, 5)."""
    layers = [len(one.convs) for one in blueprints]
    squeezes = [sum(block.squeeze is not None for block in one.blocks) for one in blueprints]
    macs = [one.macs / 1e6 for one in blueprints]
    return np.column_stack([sums_ms, layers, macs, squeezes, np.ones(len(blueprints))]).astype(np.float64)


def _int8_line(
    space: Space, chosen: Genes, sums_ms: NDArray[np.float64], clock: Clock, rng: np.random.Generator
) -> tuple[float, ...]:
    int8 = chosen.copy()
    int8[:, -1] = 1
    times = whole_ms(space, int8, clock, rng)
    features = int8_features(sums_ms, [space.blueprint(row) for row in int8])
    scale = np.maximum(features.mean(axis=0), 1e-9)
    weights, _ = nnls(features / scale / times[:, None], np.ones(len(times)))
    return tuple(float(one) for one in weights / scale)


def _spread(space: Space, rng: np.random.Generator) -> Genes:
    """Return few networks in full precision, from the cheapest to the dearest in even steps of work."""
    some = space.sample(rng, 200)
    some[:, -1] = 0
    macs = np.array([space.blueprint(row).macs for row in some])
    order = np.argsort(macs, kind="stable")[np.linspace(0, len(some) - 1, _NETWORKS - 2).astype(int)]
    return np.concatenate([space.smallest[None], some[order], space.largest[None]])


def _empty_us(rng: np.random.Generator, clock: Clock) -> float:
    """Return what a session takes that computes next to nothing."""
    shape = [1, 4, 4, 4]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "empty", [x], [y])
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=graph.IR_VERSION
    )
    feed: Feed = {"x": rng.random(shape, dtype=np.float32)}
    return float(times_ms(session(model), feed, _EMPTY_RUNS, clock).min()) * 1000


def _best_us(model: onnx.ModelProto, rng: np.random.Generator, clock: Clock, empty_us: float) -> float:
    one = session(model)
    spec = one.get_inputs()[0]
    x = rng.random(spec.shape, dtype=np.float32)
    feed: Feed = {"x": (x * 255).astype(np.uint8) if spec.type == "tensor(uint8)" else x}
    best = float(times_ms(one, feed, _BLOCK_RUNS, clock).min()) * 1000
    return round(max(best - empty_us, 0.01), 2)


def _watts(clock: Clock, space: Space, rng: np.random.Generator) -> tuple[float, Literal["rapl", "model"]]:
    """Return what the processor draws while the largest network runs."""
    try:
        before_uj = int(_RAPL.read_text())
    except (OSError, ValueError):
        return _MODEL_WATTS, "model"
    blueprint = space.blueprint(space.largest)
    one = session(graph.network_model(blueprint, graph.random_weights(blueprint, rng), "x"))
    began = clock()
    times_ms(one, {"x": random_rows(blueprint.entry, 1, rng)}, 2000, clock)
    seconds, after_uj = clock() - began, int(_RAPL.read_text())
    # The counter wraps; a wrapped reading is no reading.
    return (
        ((after_uj - before_uj) / 1e6 / seconds, "rapl") if after_uj > before_uj else (_MODEL_WATTS, "model")
    )
