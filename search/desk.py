"""What every part of one search works with: the brief, its rows, the net, the prices, the limits, the
record."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from policies.terms import Brief, Evidence, TriggerKind
from search.admission import Admission, Parent
from search.blueprint import Entry
from search.bounds import Bounds
from search.budget import Budget
from search.costs import Costs
from search.crew import Crew
from search.dataset import Dataset
from search.exam import Sheet
from search.examiner import Examiner
from search.jitter import jitter
from search.progress import Progress
from search.runtime import Clock
from search.space import Genes, Space
from search.strategy import StrategyFactory
from search.supernet import Supernet

EXAM_ROWS = (600, 200)
"""New and old rows that a search asks of every genome; a forward pass is most of what a look costs."""

FINAL_ROWS = (1000, 1000)
"""New and old rows that a final asks."""

_RAW_ROWS = 256
"""Rows whose ranges decide the scales of int8."""


@dataclass(frozen=True)
class Tools:
    """What a search is given from outside."""

    strategy: StrategyFactory
    cpu: Callable[[], float]
    clock: Clock
    say: Callable[[str], None]


@dataclass
class Record:
    """What a search finds out on its way; grows.

    Args:
        evidence: Numbers for the result.
        old_before: Accuracy on old rows that the parent had.
        mix: Share of new rows among those that calibrate batch norms, where there are old ones.
        centres: Genomes around which an adaptation trains.
    """

    evidence: list[Evidence] = field(default_factory=list)
    old_before: float | None = None
    mix: float = 0.5
    centres: tuple[tuple[int, ...], ...] = ()

    def note(self, name: str, value: float, unit: str, n: int = 1, limit: float | None = None) -> None:
        """Write one number down."""
        self.evidence.append(Evidence(name=name, value=value, unit=unit, n=n, limit=limit))


@dataclass(frozen=True)
class Desk:
    """Everything that the parts of a search share."""

    admission: Admission
    tools: Tools
    net: Supernet
    costs: Costs
    bounds: Bounds
    budget: Budget
    progress: Progress
    crew: Crew
    record: Record

    @property
    def brief(self) -> Brief:
        """Return what the search may spend and must meet."""
        return self.admission.brief

    @property
    def space(self) -> Space:
        """Return where it looks."""
        return self.admission.space

    @property
    def data(self) -> Dataset:
        """Return its rows."""
        return self.admission.data

    @property
    def parent(self) -> Parent:
        """Return what it starts from.

        Raises:
            ValueError: It is a founding search.
        """
        if self.admission.parent is None:
            raise ValueError("expected a parent, but this is a founding search")
        return self.admission.parent

    @property
    def entry(self) -> Entry:
        """Return a way in, for the layout of rows."""
        return self.space.entries()[-1]

    def with_net(self, net: Supernet) -> "Desk":
        """Return the same desk over other weights."""
        return replace(self, net=net)

    def examiner(self, calibration_rows: int, asked: tuple[int, int] = EXAM_ROWS) -> Examiner:
        """Return an examiner whose calibration rows are mixed as the record says.

        Args:
            calibration_rows: How many rows calibrate.
            asked: How many new and old rows it asks at most.
        """
        data, seed = self.data, self.brief.seed
        rng = np.random.default_rng([seed, 3])
        if len(data.train_old):
            fresh = int(self.record.mix * calibration_rows)
            counts = (fresh, calibration_rows - fresh)
            both = (data.train_new, data.train_old)
            parts = [rows.some(n, rng) for rows, n in zip(both, counts, strict=True) if n]
        else:
            parts = [data.train_new.some(calibration_rows, rng)]
        raw = np.concatenate([part.x for part in parts])
        x = self.net.prepare(raw)
        if self.brief.kind is TriggerKind.FOUNDING:
            # Founding rows are clean files; the device's are jittered.
            noise = torch.Generator().manual_seed(seed)
            x = jitter(x, self.entry.layout, self.brief.task.augmentation, noise)
        rng = np.random.default_rng([seed, 4])
        new, old = data.search_new.some(asked[0], rng), data.search_old.some(asked[1], rng)
        sheet = Sheet(x, thinned(raw, _RAW_ROWS), new, old)
        return Examiner(self.space, self.net, sheet, self.brief.task.input.name)

    def archived(self) -> Genes:
        """Return the parent's genome, then those of its archive."""
        return np.concatenate([self.parent.genes[None], self.parent.points(self.space)])

    def reporter(self, phase: str) -> Callable[[int, int, str], None]:
        """Return a report for one phase."""

        def report(done: int, total: int, message: str) -> None:
            self.progress.report(phase, done, total, message)

        return report


def thinned(x: NDArray[np.generic], n: int) -> NDArray[np.generic]:
    """Return up to ``n`` rows, evenly from all."""
    return x if len(x) <= n else x[np.linspace(0, len(x) - 1, n).astype(int)]
