"""What changed from one network to another, in layers and in genes, for people.

Layers are read from the graphs that ship, not from the genomes: the drawing shows what is there.

Pure.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Literal

from guards.weights import Layer
from policies.terms import Genome, Term


class LayerRow(Term):
    """One row of the side-by-side drawing; a side without a layer is a gap."""

    change: Literal["same", "changed", "added", "removed"]
    before: str | None
    after: str | None
    before_channels: int
    after_channels: int


def side_by_side(before: Sequence[Layer], after: Sequence[Layer]) -> tuple[LayerRow, ...]:
    """Return both networks, aligned so that equal layers stand beside each other.

    >>> conv, wide = Layer("Conv", (3, 3), 1, 8, 2), Layer("Conv", (3, 3), 8, 16, 1)
    >>> [row.change for row in side_by_side([conv], [conv, wide])]
    ['same', 'added']
    """
    one, two = [str(layer) for layer in before], [str(layer) for layer in after]
    rows = []
    for tag, a, b, c, d in SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        for left, right in zip_longest(before[a:b], after[c:d]):
            rows.append(_row(tag == "equal", left, right))
    return tuple(rows)


def _row(same: bool, left: Layer | None, right: Layer | None) -> LayerRow:
    change: Literal["same", "changed", "added", "removed"]
    if left is None or right is None:
        change = "added" if left is None else "removed"
    else:
        change = "same" if same else "changed"
    return LayerRow(
        change=change,
        before=None if left is None else str(left),
        after=None if right is None else str(right),
        before_channels=0 if left is None else left.outputs,
        after_channels=0 if right is None else right.outputs,
    )


def gene_changes(before: Genome, after: Genome) -> tuple[str, ...]:
    """Return the genes that differ, in words.

    >>> gene_changes(Genome(space="s", genes=(0, 1, 2)), Genome(space="s", genes=(0, 2, 2)))
    ('gene 1: 1 → 2',)
    """
    if before.space != after.space or len(before.genes) != len(after.genes):
        return (f"another space: {before.space} → {after.space}",)
    pairs = enumerate(zip(before.genes, after.genes, strict=True))
    return tuple(f"gene {place}: {old} → {new}" for place, (old, new) in pairs if old != new)
