"""What a network costs to serve: a table of blocks timed by the runtime that serves, and a line through it.

* A block is timed as a fused session of its own (batch 1, one thread), because the runtime fuses across
  operators: a profile of single operators adds up wrongly. The best of its runs is taken; load only adds.
* The sum of a network's blocks is mapped to milliseconds by a line, fitted on whole networks. The table
  travels in the archive; a later search fits the line anew on today's machine, which costs little.
* It predicts medians. The tail is the guards' to judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from search.blueprint import Block, Blueprint
from search.export import block_model, network_model, random_weights

# The runtime would report its use to its maker.
ort.disable_telemetry_events()

Clock = Callable[[], float]
"""Returns seconds that never go back."""

_BLOCK_RUNS = 25
_NETWORK_RUNS = 60
_WARM_RUNS = 3


@dataclass(frozen=True)
class Latency:
    """A table and a line: ``ms = offset_ms + slope * sum of blocks``."""

    table_us: dict[str, float]
    offset_ms: float
    slope: float

    def blocks_us(self, blueprint: Blueprint) -> float:
        """Return the sum of a network's blocks in microseconds.

        Raises:
            KeyError: The table does not know a block.
        """
        return sum(self.table_us[key(block)] for block in blueprint.blocks)

    def predict_ms(self, blueprint: Blueprint) -> float:
        """Return the median milliseconds of one row."""
        return self.offset_ms + self.slope * self.blocks_us(blueprint) / 1000


def key(block: Block) -> str:
    """Return the name of a block's cost.

    >>> from search.blueprint import Conv
    >>> key(Block((Conv("a", 3, 2, 4, 8, True, 7, 7),), residual=False))
    '7x7 k3s2 4-8 relu'
    """
    parts = [
        f"{conv.height}x{conv.width} k{conv.kernel}s{conv.stride} {conv.inputs}-{conv.outputs}"
        + (" relu" if conv.relu else "")
        for conv in block.convs
    ]
    return " | ".join(parts) + (" +" if block.residual else "")


def measure_table(blocks: Sequence[Block], clock: Clock, seed: int) -> dict[str, float]:
    """Return the best microseconds of each block, to a hundredth; about 10 ms of work a block."""
    rng = np.random.default_rng(seed)
    table: dict[str, float] = {}
    for block in blocks:
        session = _session(block_model(block, rng))
        spec = session.get_inputs()[0]
        x = rng.random(spec.shape, dtype=np.float32)
        times = _times_ms(session, {"x": x}, _BLOCK_RUNS, clock)
        table[key(block)] = round(float(times.min()) * 1000, 2)
    return table


def fit(table_us: dict[str, float], blueprints: Sequence[Blueprint], clock: Clock, seed: int) -> Latency:
    """Fit the line on whole networks with random weights.

    Args:
        table_us: From ``measure_table``.
        blueprints: At least two, of different cost.
        clock: For timing.
        seed: Of weights and inputs.
    """
    rng = np.random.default_rng(seed)
    raw = Latency(table_us, 0.0, 1.0)
    sums, medians = [], []
    for blueprint in blueprints:
        model = network_model(blueprint, random_weights(blueprint, rng), "x")
        x = rng.integers(0, 256, (1, blueprint.height, blueprint.width), dtype=np.uint8)
        medians.append(time_bundle(model.SerializeToString(), x, clock))
        sums.append(raw.blocks_us(blueprint) / 1000)
    slope, offset = line(np.array(sums), np.array(medians))
    return Latency(table_us, offset, slope)


def line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope (> 0) and offset of a least-squares line; a mere ratio when the slope is not positive.

    >>> line(np.array([1.0, 2.0, 3.0]), np.array([3.0, 5.0, 7.0]))
    (2.0, 1.0)
    >>> line(np.array([1.0, 3.0]), np.array([5.0, 3.0]))
    (2.0, 0.0)
    """
    spread = x - x.mean()
    slope = float(spread @ (y - y.mean()) / (spread @ spread))
    if slope <= 0:
        # Noise outweighed the differences; larger must not become cheaper.
        return float(y.mean() / x.mean()), 0.0
    return slope, float(y.mean() - slope * x.mean())


def time_bundle(bundle: bytes, x: NDArray[np.uint8], clock: Clock) -> float:
    """Return the median milliseconds of one row through a bundle; ``x`` is (1, h, w)."""
    session = _session(bundle)
    times = _times_ms(session, {session.get_inputs()[0].name: x}, _NETWORK_RUNS, clock)
    return float(np.median(times))


def _session(model: onnx.ModelProto | bytes) -> ort.InferenceSession:
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def _times_ms(
    session: ort.InferenceSession, feed: dict[str, NDArray[np.generic]], runs: int, clock: Clock
) -> NDArray[np.float64]:
    for _ in range(_WARM_RUNS):
        session.run(None, feed)
    times = np.empty(runs)
    for run in range(runs):
        began = clock()
        session.run(None, feed)
        times[run] = (clock() - began) * 1000
    return times
