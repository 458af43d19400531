"""What a way out in the middle is worth: a search's winner with and without, on rows that it never saw.

    instar search run examples/meter-reader/brief.toml
    python -m benchmarks.search.exits examples/meter-reader/brief-result \\
        --rows examples/meter-reader/digits.npz 6000 10000

The winner gets a way out as at the end of a search, in both precisions, and is run as the data plane runs it,
on one thread. A row's time is the best of several runs, for a busy machine only adds; the mean is over rows.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load

from daemon.serving.exits import Staged, split
from policies.bundle import KEY, BundleMeta
from search.admission import admit, read_artefact, read_brief
from search.crew import Crew
from search.desk import Desk, Tools
from search.errand import read_result
from search.final import Final
from search.opening import open_desk
from search.progress import Progress
from search.runtime import run_bundle, session
from search.space import Genes, to_genes
from search.spaces import BUILTIN as SPACES
from search.strategies import BUILTIN as STRATEGIES

CONFIDENCES = (0.9, 0.95, 0.98, 0.99)
_TIMED_ROWS, _RUNS, _BATCH = 400, 12, 64

Run = Callable[[NDArray[np.generic]], object]


def main(arguments: list[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.exits", description=__doc__)
    parser.add_argument("folder", type=Path, help="what a search left")
    parser.add_argument("--rows", nargs=3, metavar=("NPZ", "FIRST", "LAST"), required=True)
    options = parser.parse_args(arguments)
    with np.load(options.rows[0], allow_pickle=False) as held:
        unseen = slice(int(options.rows[1]), int(options.rows[2]))
        x, y = held["x"][unseen], held["y"][unseen].astype(np.int64)
    desk, genes = _desk(options.folder)
    for int8 in range(2):
        genes[-1] = int8
        _tell("int8" if int8 else "fp32", desk, genes, x, y)
    return 0


def _desk(folder: Path) -> tuple[Desk, Genes]:
    """Return a desk with the weights that a search left, and its winner."""
    brief, result = read_brief(folder / "brief.json"), read_result(folder)
    admission = admit(brief.model_copy(update={"exit_confidence": 0.98}), folder, SPACES)
    tools = Tools(STRATEGIES["nsga2"], time.process_time, time.perf_counter, lambda _line: None)
    progress = Progress(Path(tempfile.mkdtemp()), time.process_time, tools.say)
    desk = open_desk(admission, tools, Crew(1), progress, time.process_time, None)
    desk.net.load(load(read_artefact(result.state, folder)))
    return desk, to_genes(admission.space, result.winner)


def _tell(name: str, desk: Desk, genes: Genes, x: NDArray[np.generic], y: NDArray[np.int64]) -> None:
    final = Final(desk, None)
    plain = final.one(final._examiner.calibrated(genes), genes)
    began = time.process_time()
    found = final.with_exit(plain)
    took = time.process_time() - began
    if found.leaving is None:
        print(f"{name}: no way out pays")
        return
    meta = BundleMeta.model_validate_json(session(found.bundle).get_modelmeta().custom_metadata_map[KEY])
    staged, whole = split(found.bundle, meta, session), session(plain.bundle)
    right = run_bundle(plain.bundle, x)[0].argmax(axis=1) == y
    runs: list[Run] = [lambda row: whole.run(None, {meta.input.name: row})]
    runs += [lambda row, at=at: staged.run(row, at) for at in CONFIDENCES]
    alone, *left = _best_ms(runs, x)
    print(
        f"{name}: out after {found.leaving.way.after} of {len(found.subnet.blueprint.blocks)} blocks, found "
        f"in {took:.1f} CPU-s; whole {right.mean():.4f} of {len(y)} rows right, {_told(alone)}"
    )
    for confidence, best in zip(CONFIDENCES, left, strict=True):
        gone, served = _served(staged, x, y, confidence)
        lost, gained = int((right & ~served).sum()), int((served & ~right).sum())
        print(f"  {confidence:4}: {gone:.1%} leave, {served.mean():.4f} right (-{lost} +{gained})", end=", ")
        print(_told(best))


def _served(
    staged: Staged, x: NDArray[np.generic], y: NDArray[np.int64], confidence: float
) -> tuple[float, NDArray[np.bool_]]:
    """Return the share of rows that leave, and which are answered rightly."""
    parts = [staged.run(x[at : at + _BATCH], confidence) for at in range(0, len(x), _BATCH)]
    logits = np.concatenate([part[0] for part in parts])
    return float(np.concatenate([part[2] for part in parts]).mean()), logits.argmax(axis=1) == y


def _best_ms(runs: list[Run], x: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the best milliseconds of each row, (runs, rows); all take turns, so that load hits each."""
    best = np.full((len(runs), _TIMED_ROWS), np.inf)
    for _ in range(_RUNS):
        for place in range(_TIMED_ROWS):
            row = x[place : place + 1]
            for index, run in enumerate(runs):
                began = time.perf_counter()
                run(row)
                best[index, place] = min(best[index, place], (time.perf_counter() - began) * 1000)
    return best


def _told(best: NDArray[np.float64]) -> str:
    return f"mean {best.mean():.4f} ms, p99 {np.quantile(best, 0.99):.4f} ms"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
