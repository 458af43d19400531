"""The oracle: how well the adapted genome could read drifted digits, had it been trained on them for long.

* It learns from founding digits under the whole drift; nothing of the camera's own.
* It is compared on digits that the camera never sends: neither it nor the adapted model has ever seen them.
* It is a chain of processes that yield to all others, so that the service pays nothing for the comparison.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from daemon.console.demo.footage import Share
from daemon.console.demo.processes import Processes
from daemon.console.demo.scene import Scene
from daemon.console.demo.wishes import Wishes
from policies.document import load_task
from policies.errors import PermanentError
from policies.terms import Genome
from policies.wire import canonical

# The runtime would report its use to its maker.
ort.disable_telemetry_events()

FOUNDING_ROWS = (0, 6000)
CAMERA_ROWS = (6000, 9200)
UNSEEN_ROWS = (9200, 10_000)
BUDGET_CPU_S = 45.0
_TRAIN_COPIES = 2
_TEST_COPIES = 2


@dataclass(frozen=True)
class Verdict:
    """What the oracle reached, and what it used."""

    accuracy: float
    n: int
    cpu_s: float


class Oracle:
    """Two data sets and one long training, one after the other."""

    def __init__(self, scene: Scene, wishes: Wishes, processes: Processes) -> None:
        self._scene = scene
        self._wishes = wishes
        self._processes = processes
        self._left: list[tuple[str, list[str]]] = []
        self._now: str | None = None
        self.test = scene.oracle / "test.npz"
        self._train = scene.oracle / "train.npz"
        self._out = scene.oracle / "out.json"
        self.genome: Genome | None = None

    def begin(self, genome: Genome) -> None:
        """Start, in the background; what was begun for another genome is given up."""
        if self._now is not None:
            self._processes.stop(self._now)
            self._now = None
        self.genome = genome
        case = self._scene.oracle / "case.json"
        task = load_task(self._scene.folder / "task.toml")
        seed = self._wishes.seed
        case.write_bytes(
            canonical(
                {
                    "task": task.model_dump(mode="json"),
                    "genome": genome.model_dump(mode="json"),
                    "train": str(self._train),
                    "test": str(self.test),
                    "budget_cpu_s": BUDGET_CPU_S,
                    "seed": seed,
                    "threads": 1,
                }
            )
        )
        self._left = [
            ("oracle-train", self._drift(FOUNDING_ROWS, _TRAIN_COPIES, seed + 101, self._train)),
            ("oracle-test", self._drift(UNSEEN_ROWS, _TEST_COPIES, seed + 202, self.test)),
            ("oracle", [sys.executable, "-m", "search.oracle", str(case), str(self._out)]),
        ]

    def step(self) -> bool:
        """Start what is next when nothing is under way; return whether all is done.

        Raises:
            PermanentError: A step failed.
        """
        if self.genome is None:
            return False
        if self._now is not None and not self._processes.ended(self._now):
            return False
        if not self._left:
            return True
        self._now, argv = self._left.pop(0)
        self._processes.start(self._now, argv, passing=True)
        return False

    def verdict(self) -> Verdict:
        """Read what the oracle reached.

        Raises:
            PermanentError: It wrote something else.
        """
        try:
            said = json.loads(self._out.read_bytes())
            return Verdict(float(said["accuracy"]), int(said["n"]), float(said["cpu_s"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PermanentError(f"expected accuracy, n and cpu_s in {self._out}, got {error!r}") from error

    def _drift(self, rows: tuple[int, int], copies: int, seed: int, out: Path) -> list[str]:
        return [
            *(sys.executable, str(self._scene.example / "drift.py")),
            *("--data", str(self._scene.folder / "digits.npz")),
            *("--first", str(rows[0]), "--last", str(rows[1])),
            *("--kind", self._wishes.drift, "--strength", str(self._wishes.strength)),
            *("--copies", str(copies), "--seed", str(seed), "--out", str(out)),
        ]


def accuracies(bundles: Sequence[bytes], test: Path) -> list[Share]:
    """Return how many rows of a data set each bundle reads right, through the real runtime.

    Args:
        bundles: ONNX bytes, as they were served.
        test: npz with ``x`` (n, ...) in the bundles' input type and ``y`` (n,) class indices.
    """
    with np.load(test, allow_pickle=False) as file:
        x, y = file["x"], file["y"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    shares = []
    for raw in bundles:
        session = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        blocks = [x[place : place + 256] for place in range(0, len(x), 256)]
        best = np.concatenate([session.run(["logits"], {name: block})[0].argmax(axis=1) for block in blocks])
        shares.append(Share(int((best == y).sum()), len(y)))
    return shares
