"""The contract of a space: which architectures there are, and how one turns into another.

The search calls it; a third party may add one under the entry-point group ``instar.spaces``. A population is
an int64 array (n, genes), so that strategies and prices stay vectorised.

* Gene ``i`` is an integer in ``[0, cardinalities[i])``.
* A gene may be inactive (a decision about a layer that the genome does not have). Two genomes that differ in
  inactive genes alone are the same network, and ``normal`` gives both one spelling.
* Nothing here is random but through ``rng``, and no argument is changed.

``search.codec.Codec`` keeps this contract for any space that can be declared as genes and places.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from policies.terms import Genome, Precision, Task
from search.blueprint import Block, Blueprint, Entry

Genes = NDArray[np.int64]
Shapes = dict[str, tuple[int, ...]]


class Space(Protocol):
    """A set of genomes that one supernet holds."""

    @property
    def name(self) -> str:
        """Return the name that genomes carry."""
        ...

    @property
    def cardinalities(self) -> Genes:
        """Return how many values each gene has; (genes,)."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return what each gene decides: ``depth``, ``width``, ``kernel``, ``expansion`` and others."""
        ...

    def sample(self, rng: np.random.Generator, n: int) -> Genes:
        """Return ``n`` legal genomes, drawn evenly; (n, genes)."""
        ...

    def mutate(self, rng: np.random.Generator, genes: Genes, rate: float) -> Genes:
        """Return a changed copy: each gene gets another value with probability ``rate``."""
        ...

    def cross(self, rng: np.random.Generator, one: Genes, other: Genes) -> Genes:
        """Return children that have each gene of one parent or the other; all (n, genes)."""
        ...

    def active(self, genes: Genes) -> NDArray[np.bool_]:
        """Return which genes say something; (n, genes)."""
        ...

    def normal(self, genes: Genes, reference: Genes) -> Genes:
        """Return a copy whose inactive genes are those of ``reference`` (genes,)."""
        ...

    def encode(self, genes: Genes) -> NDArray[np.float64]:
        """Return features for a predictor; equal for equal networks; (n, features)."""
        ...

    def distance(self, genes: Genes, reference: Genes) -> Genes:
        """Return in how many active genes each row differs from ``reference``; (n,)."""
        ...

    def legal(self, genes: Genes) -> NDArray[np.bool_]:
        """Return which rows are genomes of this space; (n,)."""
        ...

    def names(self, genes: Genes) -> Genes:
        """Return one number a row, equal for equal rows and no others; (n,)."""
        ...

    def blueprint(self, genes: Genes) -> Blueprint:
        """Return the layers of one genome (genes,)."""
        ...

    def blocks(self) -> tuple[Block, ...]:
        """Return every block that some genome has, without repetition: what a cost model must know."""
        ...

    def entries(self) -> tuple[Entry, ...]:
        """Return every way in that some genome has, without repetition."""
        ...

    def parts(self, genes: Genes) -> Genes:
        """Return which blocks each genome is made of.

        Returns:
            (n, places) indices into ``blocks()``; ``len(blocks())`` where a place is empty.
        """
        ...

    def ways_in(self, genes: Genes) -> Genes:
        """Return each genome's index into ``entries()``; (n,)."""
        ...

    def quantised(self, genes: Genes) -> NDArray[np.bool_]:
        """Return which genomes compute in int8; (n,)."""
        ...

    def shapes(self) -> Shapes:
        """Return the shape of every tensor of the supernet, by name."""
        ...

    @property
    def smallest(self) -> Genes:
        """Return the genome of the cheapest network."""
        ...

    @property
    def largest(self) -> Genes:
        """Return the genome that teaches the others: the widest and deepest, in full precision."""
        ...


class SpaceFactory(Protocol):
    """Makes the space of a task."""

    def __call__(self, task: Task, precisions: tuple[Precision, ...]) -> Space:
        """Return the space.

        Args:
            task: For its input and classes.
            precisions: What networks may compute in.

        Raises:
            PermanentError: The task's input does not fit this kind of space.
        """
        ...


def to_genome(space: Space, genes: Genes) -> Genome:
    """Return the term of one row."""
    return Genome(space=space.name, genes=tuple(int(gene) for gene in genes))


def to_genes(space: Space, genome: Genome) -> Genes:
    """Return the row of a term.

    Raises:
        ValueError: The genome is not of this space.
    """
    genes = np.asarray(genome.genes, dtype=np.int64)
    if genome.space != space.name or len(genes) != len(space.cardinalities):
        raise ValueError(
            f"expected a genome of {space.name} with {len(space.cardinalities)} genes, "
            f"got one of {genome.space} with {len(genes)}"
        )
    if not space.legal(genes[None])[0]:
        raise ValueError(f"expected genes below {space.cardinalities.tolist()}, got {list(genome.genes)}")
    return genes
