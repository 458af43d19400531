"""The runtime that serves, as the search uses it: one session, one thread, timed or asked for answers."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

# The runtime would report its use to its maker.
ort.disable_telemetry_events()

Clock = Callable[[], float]
"""Returns seconds that never go back."""

Feed = dict[str, NDArray[np.generic]]

_WARM_RUNS = 3
_BATCH = 256


def session(model: onnx.ModelProto | bytes) -> ort.InferenceSession:
    """Return a session on one thread, as a device serves one row."""
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Warnings of the optimiser are of no use to who reads a search's log.
    options.log_severity_level = 3
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def times_ms(one: ort.InferenceSession, feed: Feed, runs: int, clock: Clock) -> NDArray[np.float64]:
    """Return the milliseconds of each run, after a few that do not count; (runs,)."""
    for _ in range(_WARM_RUNS):
        one.run(None, feed)
    times = np.empty(runs)
    for run in range(runs):
        began = clock()
        one.run(None, feed)
        times[run] = (clock() - began) * 1000
    return times


def round_robin_ms(
    sessions: Sequence[ort.InferenceSession], feeds: Sequence[Feed], rounds: int, runs: int, clock: Clock
) -> NDArray[np.float64]:
    """Time several sessions in turn, so that a busy moment hits all of them.

    Returns:
        (sessions,) the median over rounds of each round's lower quartile: load only ever adds.
    """
    found = np.empty((rounds, len(sessions)))
    for turn in range(rounds):
        for index, (one, feed) in enumerate(zip(sessions, feeds, strict=True)):
            found[turn, index] = np.quantile(times_ms(one, feed, runs, clock), 0.25)
    return np.asarray(np.median(found, axis=0))


def run_bundle(raw: bytes, x: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits (n, classes) and embedding (n, d) of rows."""
    logits, embedding = run_outputs(raw, x, ["logits", "embedding"])
    return logits, embedding


def run_outputs(raw: bytes, x: NDArray[np.generic], names: Sequence[str]) -> list[NDArray[np.float32]]:
    """Return some outputs of rows, each (n, ...)."""
    one = session(raw)
    name = one.get_inputs()[0].name
    parts = [one.run(names, {name: x[first : first + _BATCH]}) for first in range(0, len(x), _BATCH)]
    return [np.concatenate(output) for output in zip(*parts, strict=True)]
