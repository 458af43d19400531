"""Where methods of search meet: one trained supernet, one examiner, one price list.

* The supernet is founded once a seed, by ``python -m search``, and kept under ``.instar/bench``.
* A question is a genome; the answer is (error on 1,000 digits of role search, predicted milliseconds). Batch
  norms are calibrated on 256 digits, and a genome in int8 goes through the quantiser.
* The budget is virtual CPU time. A question costs what answering it cost the first time that anybody asked,
  in this run or in an earlier one of the same supernet: answers and prices are kept on disk. So all methods
  pay the same price for the same genome, and a run can be repeated in a fraction of its time.
* A method pays for a genome once: to remember its own answers is left to nobody's skill. Beside its questions
  it pays for its own CPU time.
* The verdict is on 1,000 other digits, which cost nothing and which no method sees.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load

from benchmarks.search import digits, table
from policies.terms import Precision
from policies.wire import digest_bytes
from search import plan
from search.bounds import Bounds
from search.costs import Costs
from search.crew import Crew
from search.dataset import Rows
from search.exam import Sheet
from search.examiner import Examiner
from search.profile import read_profile
from search.space import Genes
from search.spaces import BUILTIN as SPACES
from search.supernet import Supernet

BUDGET_S = 128.0
"""Of the founding search; about 100 CPU-s of it train."""

REFERENCE_ERROR = 0.5
EXAM_ROWS = 1000


@dataclass(frozen=True)
class Answer:
    """What one genome is worth: errors in [0, 1], and the CPU-seconds that asking cost the first time."""

    error: float
    cost_s: float


class Arena:
    """The supernet with its examiners, prices and limits.

    Args:
        seed: Of the supernet.
        kept: Folder for what is remembered.
    """

    def __init__(self, seed: int, kept: Path = digits.KEPT) -> None:
        table.say(f"arena: the supernet of seed {seed}, founded if it is not kept")
        founded = digits.found(kept / f"supernet-{seed}", seed, BUDGET_S)
        task, state = digits.task(), founded.state.read_bytes()
        self.space = SPACES[task.modality](task, (Precision.FP32, Precision.INT8))
        profile = read_profile((founded.folder / "profile.json").read_bytes(), self.space)
        self.costs = Costs(self.space, profile)
        self.bounds = Bounds(self.space, digits.LOOSE, self.costs, digits.LOOSE.max_p99_ms, None, True)
        self.reference = (REFERENCE_ERROR, float(self.costs.latency_ms(self.space.largest[None])[0]))
        self.folder = kept / f"arena-{digest_bytes(state).removeprefix('sha256:')[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        net = Supernet(self.space.shapes(), self.space.entries()[0], seed)
        net.load(load(state))
        train = digits.rows(digits.TRAIN).some(plan.CALIBRATION_ROWS, np.random.default_rng([seed, 3]))
        held = digits.rows(digits.HELD_OUT).take(np.arange(EXAM_ROWS))
        self.crew = Crew(1)  # it sets the library to one thread

        def examiner(rows: Rows) -> Examiner:
            sheet = Sheet(net.prepare(train.x), train.x, rows, rows.take(np.zeros(0, dtype=np.int64)))
            return Examiner(self.space, net, sheet, task.input.name)

        self._examiners = {"search": examiner(digits.rows(digits.SEARCH)), "held": examiner(held)}
        self._answers = {which: self._read(which) for which in self._examiners}
        for row in (
            self.space.smallest,
            self.space.smallest + np.eye(len(self.space.smallest), dtype=int)[-1],
        ):
            self._examiners["search"].examine(row)  # what is loaded at first use is nobody's cost

    def normal(self, genes: Genes) -> Genes:
        """Return genomes in the one spelling that each network has here."""
        return self.space.normal(genes, self.space.smallest)

    def ask(self, row: Genes, which: str = "search") -> Answer:
        """Return the answer to a genome (genes,) in its normal spelling.

        Args:
            row: The genome.
            which: On which digits: ``search``, or ``held`` for the verdict.
        """
        name = int(self.space.names(row[None])[0])
        known = self._answers[which]
        if name not in known:
            began = time.process_time()
            right = self._examiners[which].examine(row).new
            known[name] = Answer(1 - float(right.mean()), time.process_time() - began)
            with self._path(which).open("a") as file:
                file.write(json.dumps([name, known[name].error, round(known[name].cost_s, 6)]) + "\n")
        return known[name]

    def _path(self, which: str) -> Path:
        return self.folder / f"answers-{which}.jsonl"

    def _read(self, which: str) -> dict[int, Answer]:
        path = self._path(which)
        if not path.is_file():
            return {}
        lines = path.read_text().splitlines(keepends=True)
        # The last line may be half of one, when a run was killed.
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        # Where two runs asked at once, the first line holds: its price is the one that was paid.
        return {name: Answer(error, cost_s) for name, error, cost_s in reversed(whole)}


@dataclass(frozen=True)
class Event:
    """A genome that a method knows from a moment on (virtual CPU-seconds)."""

    at_s: float
    genes: tuple[int, ...]
    error: float
    ms: float


class Account:
    """What one method has asked and spent.

    Args:
        arena: Where it asks.
        inside: Whether the method runs in this process: then its CPU time is what this process uses beside
            answering. A peer in a process of its own says what it used.
    """

    def __init__(self, arena: Arena, *, inside: bool) -> None:
        self.arena = arena
        self.events: list[Event] = []
        self._inside = inside
        self._began = time.process_time()
        self._aside_s = 0.0
        self._charged_s = 0.0
        self._known: dict[bytes, tuple[float, float]] = {}

    def now_s(self) -> float:
        """Return the virtual CPU-seconds that are gone."""
        own = time.process_time() - self._began - self._aside_s if self._inside else 0.0
        return own + self._charged_s

    def charge(self, seconds: float) -> None:
        """Count CPU time that a peer says it used."""
        self._charged_s += seconds

    def ask(self, row: Genes) -> tuple[float, float]:
        """Return error and milliseconds of a genome (genes,), and pay for it if it is new to the method."""
        began = time.process_time()
        normal = self.arena.normal(row[None])[0]
        key = normal.tobytes()
        if key not in self._known:
            answer = self.arena.ask(normal)
            ms = float(self.arena.costs.latency_ms(normal[None])[0])
            self._known[key] = answer.error, ms
            self._charged_s += answer.cost_s
            self._aside_s += time.process_time() - began
            genes = tuple(int(gene) for gene in normal)
            self.events.append(Event(self.now_s(), genes, answer.error, ms))
        else:
            self._aside_s += time.process_time() - began
        return self._known[key]
