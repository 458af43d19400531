"""``python -m search.oracle CASE OUT``: what one genome reaches when it is trained alone, and long.

The yardstick for adaptations: benchmarks and scenarios ask how much of it a short re-search regains. It
takes no part in the loop. CASE is the JSON of an ``OracleCase``, paths relative to its folder; OUT is a file.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field
from safetensors.torch import load

from policies.errors import PermanentError
from policies.terms import Genome, Precision, Task, Term
from policies.wire import canonical
from search import plan
from search.batches import Batches
from search.blueprint import Blueprint
from search.budget import Budget, steps
from search.crew import Crew
from search.dataset import Rows
from search.exam import mark
from search.pace import BATCH, pace
from search.progress import write_whole
from search.space import Space, to_genes
from search.spaces import BUILTIN
from search.supernet import Supernet
from search.training import Course, Pupil

_RATE = 0.1
_OVERHEAD_S = 4.0
_MARGIN = 1.25


class OracleCase(Term):
    """What to train, on what."""

    task: Task
    genome: Genome
    train: str = Field(description="npz with x (n, ...) and y (n,)")
    test: str
    budget_cpu_s: float = Field(gt=0.0)
    seed: int = Field(ge=0)
    threads: int = Field(ge=1)
    state: str | None = Field(default=None, description="safetensors of a supernet to start from.")


class OracleResult(Term):
    """What it reached."""

    accuracy: float
    n: int
    cpu_s: float
    epochs: float


def consult(case: OracleCase, folder: Path, budget: Budget) -> OracleResult:
    """Train the genome and examine it on the test rows.

    Raises:
        PermanentError: The task or a file does not fit, or the budget leaves no step.
        ValueError: The genome is not of the task's space.
    """
    space = BUILTIN[case.task.modality](case.task, (Precision.FP32,))
    blueprint = space.blueprint(to_genes(space, case.genome))
    full = replace(blueprint, precision=Precision.FP32)
    net = Supernet(space.shapes(), space.entries()[0], case.seed)
    train, test = _rows(folder / case.train), _rows(folder / case.test)
    net.standardise(train.x)
    if case.state is not None:
        net.load(load((folder / case.state).read_bytes()))
    nothing = train.take(np.zeros(0, dtype=np.int64))
    count = steps(budget.total_s - _OVERHEAD_S, _step_s(space, full, case))
    course = Course("oracle", count, 0, _RATE, 1.0)
    layout = space.entries()[0].layout
    batches = Batches(net, train, nothing, None, layout, case.task.augmentation, BATCH, case.seed)
    crew = Crew(1)  # One subnet a step leaves nothing to share out.
    pupil = Pupil(net, batches, lambda _: (full,), course, crew)
    taken = pupil.train(budget, lambda *_: None, lambda _: None)
    crew.close()
    if taken == 0:
        raise PermanentError(
            f"expected time to train within {budget.total_s:g} CPU-s, got none after "
            f"{budget.used_s:.1f} CPU-s of preparation; raise budget_cpu_s"
        )
    calibration = train.some(plan.FINAL_CALIBRATION_ROWS, np.random.default_rng(case.seed))
    statistics = net.calibrate(full, net.prepare(calibration.x))
    marks = mark(net, full, statistics, test, nothing)
    return OracleResult(
        accuracy=marks.accuracy,
        n=len(test),
        cpu_s=round(budget.used_s, 3),
        epochs=round(taken * BATCH / len(train), 3),
    )


def _step_s(space: Space, blueprint: Blueprint, case: OracleCase) -> float:
    found = pace(space, case.task.augmentation, time.process_time, case.seed)
    return _MARGIN * (found.per_step + found.per_net + BATCH * blueprint.macs * found.per_mac)


def _rows(path: Path) -> Rows:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Rows(file["x"], file["y"].astype(np.int64))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise PermanentError(f"expected an .npz with rows x and labels y in {path}, got {error}") from error


def main(arguments: list[str]) -> int:
    """Run one consultation and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m search.oracle", description="Train one genome, long.")
    parser.add_argument("case", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    case = OracleCase.model_validate_json(options.case.read_bytes())
    try:
        result = consult(case, options.case.parent, Budget(case.budget_cpu_s, time.process_time))
    except PermanentError as error:
        print(f"refused: {error}", flush=True)
        return 3
    write_whole(options.out, canonical(result))
    print(f"accuracy {result.accuracy:.4f} on {result.n} rows after {result.epochs} epochs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
