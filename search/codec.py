"""Spaces by declaration: genes, and the places that they fill with blocks.

A modality says which genes there are and which block stands where; all else follows from that: sampling,
mutation, distance, features, and the tables by which a whole population is priced with a few look-ups.

* A ``Gene`` is active when the genes that it hangs on have at least given values.
* A ``Place`` may hold a block; it names the genes that decide which. All its blocks are enumerated once.
* The last gene is the precision: 0 full, 1 int8. Where int8 is not allowed it is never drawn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from policies.terms import Precision
from search.blueprint import Block, Blueprint, Conv, Entry
from search.space import Genes, Shapes

Values = tuple[int, ...]

_PRECISIONS = (Precision.FP32, Precision.INT8)
_INT8 = _PRECISIONS.index(Precision.INT8)


@dataclass(frozen=True)
class Gene:
    """One decision.

    Args:
        kind: What it decides: ``depth``, ``width``, ``kernel``, ``expansion``, ``size``, ``exit``,
            ``squeeze``.
        values: How many answers there are; 0 is the cheapest.
        when: Pairs of a gene's index and the least value at which this gene says something.
    """

    kind: str
    values: int
    when: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a block may stand.

    Args:
        genes: Indices of the genes that decide.
        block: Returns the block for their values, or None when the place is empty.
    """

    genes: tuple[int, ...]
    block: Callable[[Values], Block | None]


@dataclass(frozen=True)
class Plan:
    """A modality's declaration.

    Args:
        name: That genomes carry.
        genes: All but the precision.
        places: In the order in which blocks run.
        entry_gene: Index of the gene that decides the way in, or None.
        entries: The way in for each of its values.
        exit_gene: Index of the gene that decides the last layer, or None.
        classifiers: Slot of the last layer for each of its values.
        classes: How many logits.
        embedding: Width of the penultimate features.
    """

    name: str
    genes: tuple[Gene, ...]
    places: tuple[Place, ...]
    entry_gene: int | None
    entries: tuple[Entry, ...]
    exit_gene: int | None
    classifiers: tuple[str, ...]
    classes: int
    embedding: int


@dataclass(frozen=True)
class _Table:
    """All blocks of one place, flat: the index of ``values`` is their sum with ``weights``."""

    genes: NDArray[np.int64]
    weights: NDArray[np.int64]
    parts: Genes


class Codec:
    """Keeps the contract of ``search.space.Space`` for a declared modality."""

    def __init__(self, plan: Plan, precisions: tuple[Precision, ...]) -> None:
        self._plan = plan
        genes = (*plan.genes, Gene("precision", len(set(precisions))))
        self._genes = genes
        self._cardinalities = np.array([gene.values for gene in genes], dtype=np.int64)
        self._blocks, self._tables = _enumerate(plan, self._cardinalities)
        self._params = np.array([*(block.params for block in self._blocks), 0], dtype=np.float64)
        self._macs = np.array([*(block.macs for block in self._blocks), 0], dtype=np.float64)
        # A genome of another time may compute in what is not allowed today; it is a genome all the same.
        self._legal = np.array([*self._cardinalities[:-1], len(Precision)], dtype=np.int64)
        if math.prod(int(count) for count in self._legal) >= 2**62:
            raise ValueError(f"expected a space of fewer than 2**62 genomes, got {plan.name}")
        self._radix = np.concatenate([[1], np.cumprod(self._legal[:-1])]).astype(np.int64)
        first = np.concatenate([[0], np.cumsum(self._legal[:-1])])
        self._first = first.astype(np.int64)

    @property
    def name(self) -> str:
        """Return the name that genomes carry."""
        return self._plan.name

    @property
    def cardinalities(self) -> Genes:
        """Return how many values each gene has; (genes,)."""
        return self._cardinalities.copy()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return what each gene decides."""
        return tuple(gene.kind for gene in self._genes)

    @property
    def smallest(self) -> Genes:
        """Return the genome of the cheapest network, in full precision."""
        return np.zeros_like(self._cardinalities)

    @property
    def largest(self) -> Genes:
        """Return the genome that teaches the others, in full precision."""
        largest: Genes = self._cardinalities - 1
        largest[-1] = 0
        return largest

    def sample(self, rng: np.random.Generator, n: int) -> Genes:
        """Return ``n`` genomes, each gene drawn evenly."""
        return rng.integers(0, self._cardinalities, (n, len(self._cardinalities)))

    def mutate(self, rng: np.random.Generator, genes: Genes, rate: float) -> Genes:
        """Return a copy in which each gene gets another value with probability ``rate``."""
        others = np.maximum(self._cardinalities - 1, 1)
        changed = (genes + 1 + rng.integers(0, others, genes.shape)) % self._cardinalities
        return np.where(rng.random(genes.shape) < rate, changed, genes)

    def cross(self, rng: np.random.Generator, one: Genes, other: Genes) -> Genes:
        """Return children by uniform crossover."""
        return np.where(rng.random(one.shape) < 0.5, one, other)

    def active(self, genes: Genes) -> NDArray[np.bool_]:
        """Return which genes say something; (n, genes)."""
        active = np.ones(genes.shape, dtype=np.bool_)
        for index, gene in enumerate(self._genes):
            for other, least in gene.when:
                active[:, index] &= genes[:, other] >= least
        return active

    def normal(self, genes: Genes, reference: Genes) -> Genes:
        """Return a copy whose inactive genes are those of ``reference``."""
        normal: Genes = np.where(self.active(genes), genes, reference)
        return normal

    def encode(self, genes: Genes) -> NDArray[np.float64]:
        """Return one-hot genes, zero where inactive, and the logarithms of parameters and of MACs.

        Returns:
            (n, values of all genes + 2) float64.
        """
        width = int(self._legal.sum())
        features = np.zeros((len(genes), width + 2))
        rows, columns = np.nonzero(self.active(genes))
        features[rows, self._first[columns] + genes[rows, columns]] = 1.0
        parts = self.parts(genes)
        features[:, width] = np.log10(self._params[parts].sum(axis=1) / 1000)
        features[:, width + 1] = np.log10(self._macs[parts].sum(axis=1) / 1e6)
        return features

    def distance(self, genes: Genes, reference: Genes) -> Genes:
        """Return in how many active genes each row differs from ``reference``; (n,)."""
        return np.asarray(((genes != reference) & self.active(genes)).sum(axis=1), dtype=np.int64)

    def legal(self, genes: Genes) -> NDArray[np.bool_]:
        """Return which rows are genomes of this space; (n,)."""
        if genes.ndim != 2 or genes.shape[1] != len(self._cardinalities):
            return np.zeros(len(genes), dtype=np.bool_)
        return np.asarray(((genes >= 0) & (genes < self._legal)).all(axis=1))

    def names(self, genes: Genes) -> Genes:
        """Return one number a row, equal for equal rows and no others; (n,)."""
        return np.asarray(genes @ self._radix, dtype=np.int64)

    def parts(self, genes: Genes) -> Genes:
        """Return which blocks each genome is made of; (n, places)."""
        columns = [table.parts[genes[:, table.genes] @ table.weights] for table in self._tables]
        return np.stack(columns, axis=1)

    def ways_in(self, genes: Genes) -> Genes:
        """Return each genome's index into ``entries()``; (n,)."""
        gene = self._plan.entry_gene
        return np.zeros(len(genes), dtype=np.int64) if gene is None else genes[:, gene]

    def quantised(self, genes: Genes) -> NDArray[np.bool_]:
        """Return which genomes compute in int8; (n,)."""
        return np.asarray(genes[:, -1] == _INT8)

    def blueprint(self, genes: Genes) -> Blueprint:
        """Return the layers of one genome (genes,)."""
        plan = self._plan
        chosen = self.parts(genes[None])[0]
        return Blueprint(
            entry=plan.entries[0 if plan.entry_gene is None else int(genes[plan.entry_gene])],
            blocks=tuple(self._blocks[index] for index in chosen if index < len(self._blocks)),
            classifier=plan.classifiers[0 if plan.exit_gene is None else int(genes[plan.exit_gene])],
            classes=plan.classes,
            precision=_PRECISIONS[int(genes[-1])],
        )

    def blocks(self) -> tuple[Block, ...]:
        """Return every block that some genome has, without repetition."""
        return self._blocks

    def entries(self) -> tuple[Entry, ...]:
        """Return every way in that some genome has."""
        return self._plan.entries

    def shapes(self) -> Shapes:
        """Return the shape of every tensor of the supernet, by name."""
        shapes: Shapes = {}
        for block in self._blocks:
            for conv in block.convs:
                _widen(shapes, _of(conv))
            if block.squeeze is not None:
                slot, channels, hidden = block.squeeze.slot, block.squeeze.channels, block.squeeze.hidden
                _widen(
                    shapes,
                    {
                        f"{slot}.reduce.weight": (hidden, channels),
                        f"{slot}.reduce.bias": (hidden,),
                        f"{slot}.expand.weight": (channels, hidden),
                        f"{slot}.expand.bias": (channels,),
                    },
                )
        for name in self._plan.classifiers:
            shapes[f"{name}.weight"] = (self._plan.classes, self._plan.embedding)
            shapes[f"{name}.bias"] = (self._plan.classes,)
        return shapes


def _enumerate(plan: Plan, cardinalities: Genes) -> tuple[tuple[Block, ...], list[_Table]]:
    """Return all blocks without repetition, and for each place the table of which stands there."""
    found: dict[Block, int] = {}
    rows: list[tuple[Place, list[int]]] = []
    for place in plan.places:
        row = []
        for values in product(*(range(int(cardinalities[gene])) for gene in place.genes)):
            block = place.block(values)
            row.append(-1 if block is None else found.setdefault(block, len(found)))
        rows.append((place, row))
    tables = []
    for place, row in rows:
        genes = np.array(place.genes, dtype=np.int64)
        sizes = cardinalities[genes]
        weights = np.concatenate([np.cumprod(sizes[::-1])[::-1][1:], [1]]).astype(np.int64)
        parts = np.array([len(found) if part < 0 else part for part in row], dtype=np.int64)
        tables.append(_Table(genes, weights, parts))
    return tuple(found), tables


def _of(conv: Conv) -> Shapes:
    return {
        f"{conv.slot}.weight": (conv.outputs, conv.inputs, *conv.kernel),
        f"{conv.slot}.scale": (conv.outputs,),
        f"{conv.slot}.shift": (conv.outputs,),
    }


def _widen(shapes: Shapes, new: Shapes) -> None:
    for name, shape in new.items():
        shapes[name] = tuple(map(max, shapes.get(name, shape), shape))


def same(side: int, stride: int) -> int:
    """Return the output side of a convolution that is padded to "same".

    >>> same(28, 2), same(7, 2), same(7, 1)
    (14, 4, 7)
    """
    return -(-side // stride)
