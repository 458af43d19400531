"""A way out in the middle of the winner, where it pays: an easy row leaves there and is spared the rest.

* It is one linear layer on the average pool of what a block ends in, fitted on rows of role train while the
  network stays as it is. Its temperature is fitted on rows of role search, so that its softmax can be held
  against the confidence that the brief names; the temperature ships inside the layer.
* The end of every block in the middle is tried, which costs one pass over the rows and a fit for each.
* One is kept when the mean latency that the profile predicts at the brief's confidence is clearly lower, and
  the answers as they would be served are not clearly worse, on new rows and on old ones.
* In int8 the layer stays in full precision, and what it is weighed on is what the quantised file answers.
* A network for tables gets none, for its layers together take less than a second run; nor does a search whose
  rows have no labels.

Whether it is good enough to be served is the guards' to say, on rows that no search has seen.

Source: Teerapittayanon et al., BranchyNet (2016); Guo et al., On calibration of modern networks (2017).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from policies.terms import Evidence
from search.bounds import MEDIAN_OF_P99
from search.dataset import UNLABELLED, Rows
from search.desk import Desk
from search.exam import Marks, Sheet, clearly_better, pooled_outputs
from search.export import Subnet, model_of
from search.graph import Pair, Way, exit_names
from search.jitter import jitter
from search.runtime import run_outputs
from search.space import Genes

GAIN = 0.1
"""The mean must be lower by this share: less is not worth two runs for a row that stays."""
ASKING_MS, STAYING_MS = 0.01, 0.008
"""What serving adds beside the layers: to every row, to see whether it leaves; to one that stays, to hand the
trunk over. Measured at 12 and 6 µs in int8, 10 and 13 in full precision."""

_FIT_ROWS = 3000
_STEPS, _DECAY = 100, 1e-4
_TEMPERATURES = np.exp(np.linspace(-1.0, 1.5, 51))

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Leaving:
    """A way out, and what it would do at the brief's confidence.

    Args:
        way: Where, and with which layer.
        share: Of new rows that leave there.
        marks: As the whole is served, exits included.
        mean_ms: Predicted mean of one row, of which ``share`` leave.
        whole_ms: Predicted for the network without a way out.
        temperature: That went into the layer.
    """

    way: Way
    share: float
    marks: Marks
    mean_ms: float
    whole_ms: float
    temperature: float

    def evidence(self) -> list[Evidence]:
        """Return the numbers for the result."""
        n = len(self.marks.new)
        return [
            Evidence(name="exit_after", value=float(self.way.after), unit="blocks", n=1),
            Evidence(name="exit_share", value=self.share, unit="share", n=n),
            Evidence(name="exit_accuracy", value=self.marks.accuracy, unit="share", n=n),
            Evidence(name="exit_mean_ms", value=self.mean_ms, unit="ms", n=1, limit=self.whole_ms),
            Evidence(name="exit_temperature", value=self.temperature, unit="times", n=n),
        ]


@dataclass(frozen=True)
class _Answers:
    """What a file says of some rows: at its end, and at a way out."""

    y: NDArray[np.int64]
    logits: Logits
    exits: Logits

    def served(self, hot: float, confidence: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which rows leave at a temperature, and which are answered rightly then; both (n,)."""
        gone = certainty(self.exits / np.float32(hot)) >= confidence
        chosen = np.where(gone, self.exits.argmax(axis=1), self.logits.argmax(axis=1))
        return gone, np.asarray(chosen == self.y)

    def clearly_worse(self, right: NDArray[np.bool_]) -> bool:
        """Tell whether fewer are right than at the end, by more than chance explains."""
        nothing = np.zeros(0, dtype=np.bool_)
        whole = Marks(self.logits.argmax(axis=1) == self.y, nothing)
        return clearly_better(whole, Marks(right, nothing))


def sought(desk: Desk, subnet: Subnet, genes: Genes, sheet: Sheet) -> Leaving | None:
    """Return the best way out of a winner, or None where none pays.

    Args:
        desk: Of the search; its brief names the confidence.
        subnet: The winner.
        genes: (genes,) of the winner.
        sheet: What the final asked.
    """
    blueprint, confidence = subnet.blueprint, desk.brief.exit_confidence
    places = range(2, len(blueprint.blocks) - 1)
    flat = blueprint.blocks[0].convs[0].dense
    if confidence is None or flat or not places or not len(sheet.new) or not desk.data.labelled:
        return None
    desk.reporter("exit")(0, len(places), "exit: fitting ways out of the winner")
    pooled, y = _learned_from(desk, subnet)
    ways = [Way(after, _fit(pooled[after - 1], y, blueprint.classes)) for after in places]
    raw = model_of(subnet, desk.brief.task.input.name, sheet.raw, ways).SerializeToString()
    asked = zip(_asked(raw, ways, sheet.new), _asked(raw, ways, sheet.old), strict=True)
    found = [
        _weighed(desk, genes, way, new, old, confidence) for way, (new, old) in zip(ways, asked, strict=True)
    ]
    return min((one for one in found if one is not None), key=lambda one: one.mean_ms, default=None)


def _asked(raw: bytes, ways: list[Way], rows: Rows) -> list[_Answers]:
    """Return what a file with several ways out says of rows, one for each way."""
    if not len(rows):
        nothing = np.zeros((0, 1), np.float32)
        return [_Answers(rows.y, nothing, nothing) for _ in ways]
    logits, *exits = run_outputs(raw, rows.x, ["logits", *exit_names(ways)])
    return [_Answers(rows.y, logits, one) for one in exits]


def _weighed(
    desk: Desk, genes: Genes, way: Way, new: _Answers, old: _Answers, confidence: float
) -> Leaving | None:
    """Return what one way out does, or None where it does not pay."""
    hot = _tempered(new.exits, new.y)
    (gone, served), (_, kept) = new.served(hot, confidence), old.served(hot, confidence)
    head, tail = (float(half[way.after - 1]) for half in desk.costs.cut_ms(genes))
    leaves, stays = head + ASKING_MS, head + ASKING_MS + tail + STAYING_MS
    whole, share = float(desk.costs.latency_ms(genes[None])[0]), float(gone.mean())
    mean = share * leaves + (1 - share) * stays
    limits, more = desk.brief.limits, sum(part.size for part in way.pair)
    fits = stays + desk.costs.overhead_ms <= limits.max_p99_ms * MEDIAN_OF_P99
    fits = fits and desk.costs.params(genes[None])[0] + more <= limits.max_params
    if mean > (1 - GAIN) * whole or not fits or new.clearly_worse(served) or old.clearly_worse(kept):
        return None
    weight, bias = (part / np.float32(hot) for part in way.pair)
    return Leaving(Way(way.after, (weight, bias)), share, Marks(served, kept), mean, whole, hot)


def certainty(logits: Logits) -> NDArray[np.float64]:
    """Return the largest share of each row's softmax, (n,).

    >>> certainty(np.array([[0.0, 0.0], [3.0, 0.0]], np.float32)).round(4).tolist()
    [0.5, 0.9526]
    """
    exact = logits.astype(np.float64)
    return np.asarray(1.0 / np.exp(exact - exact.max(axis=1, keepdims=True)).sum(axis=1))


def _learned_from(desk: Desk, subnet: Subnet) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Return what each block ends in on rows of role train, and their labels."""
    rng = np.random.default_rng([desk.brief.seed, 17])
    rows = [rows for rows in _halves(desk) if len(rows)]
    some = [one.some(_FIT_ROWS // len(rows), rng) for one in rows]
    x = subnet.net.prepare(np.concatenate([one.x for one in some]))
    # As in training: what is served jitters, and an exit must not be sure of clean rows alone.
    noise = torch.Generator().manual_seed(desk.brief.seed + 17)
    x = jitter(x, desk.entry.layout, desk.brief.task.augmentation, noise)
    pooled = pooled_outputs(subnet.net, subnet.blueprint, subnet.statistics, x)
    return pooled, np.concatenate([one.y for one in some])


def _halves(desk: Desk) -> Iterator[Rows]:
    for rows in (desk.data.train_new, desk.data.train_old):
        yield rows.take(rows.y != UNLABELLED)


def _fit(features: NDArray[np.float32], y: NDArray[np.int64], classes: int) -> Pair:
    """Return the layer (weight (classes, d), bias (classes,)) that names rows best by their features."""
    x = torch.from_numpy(features).double()
    mean, spread = x.mean(0), x.std(0).clamp_min(1e-6)
    x, labels = (x - mean) / spread, torch.from_numpy(y)
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + _DECAY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        flat = weight / spread
        return flat.float().numpy(), (bias - flat @ mean).float().numpy()


def _tempered(logits: Logits, y: NDArray[np.int64]) -> float:
    """Return the temperature at which the softmax of rows fits their labels best."""
    exact, labels = torch.from_numpy(logits).double(), torch.from_numpy(y)
    return float(min(_TEMPERATURES, key=lambda hot: F.cross_entropy(exact / float(hot), labels).item()))
