"""The contract of every space that ships, and the codec of its genomes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PermanentError
from policies.limits import edit_distance
from policies.terms import Datatype, TensorSpec
from search.space import to_genes, to_genome
from search.spaces import BUILTIN
from search.spaces.image import ImageSpace

_IMAGE = ImageSpace(28, 28, 10)
_ROWS = st.tuples(*(st.integers(0, int(count) - 1) for count in _IMAGE.cardinalities)).map(
    lambda genes: np.array(genes, dtype=np.int64)
)


@pytest.fixture(params=sorted(BUILTIN))
def one(request, task):
    return BUILTIN[request.param](task)


def test_samples_are_legal_and_repeat_under_a_seed(one):
    genes = one.sample(np.random.default_rng(0), 50)
    assert one.legal(genes).all()
    np.testing.assert_array_equal(genes, one.sample(np.random.default_rng(0), 50))
    assert len(np.unique(genes, axis=0)) > 40


def test_illegal_rows_are_told_from_legal_ones(one):
    genes = one.sample(np.random.default_rng(0), 2)
    genes[1, 0] = one.cardinalities[0]
    assert one.legal(genes).tolist() == [True, False]
    assert not one.legal(genes[:, 1:]).any()


def test_mutation_changes_about_the_asked_share_and_not_its_argument(one):
    genes = one.sample(np.random.default_rng(0), 200)
    before = genes.copy()
    changed = one.mutate(np.random.default_rng(1), genes, 0.25)
    np.testing.assert_array_equal(genes, before)
    assert one.legal(changed).all()
    assert 0.2 < (changed != genes).mean() < 0.3
    np.testing.assert_array_equal(one.mutate(np.random.default_rng(1), genes, 0.0), genes)
    assert (one.mutate(np.random.default_rng(1), genes, 1.0) != genes).all()


def test_children_have_genes_of_their_parents_only(one):
    rng = np.random.default_rng(0)
    first, second = one.sample(rng, 40), one.sample(rng, 40)
    child = one.cross(rng, first, second)
    assert ((child == first) | (child == second)).all()
    assert (child != first).any()
    assert (child != second).any()


def test_inactive_genes_change_no_network_no_feature_and_no_distance(one):
    rng = np.random.default_rng(0)
    genes = one.sample(rng, 60)
    other = np.where(one.active(genes), genes, one.sample(rng, 60))
    assert (other != genes).any()
    np.testing.assert_array_equal(one.encode(genes), one.encode(other))
    np.testing.assert_array_equal(one.normal(genes, one.smallest), one.normal(other, one.smallest))
    for row, twin in zip(genes, other, strict=True):
        assert one.blueprint(row) == one.blueprint(twin)
        assert one.distance(row[None], twin).tolist() == [0]


def test_active_genes_change_the_features(one):
    genes = one.sample(np.random.default_rng(0), 30)
    for row in genes:
        changed = row.copy()
        changed[0] = (changed[0] + 1) % one.cardinalities[0]
        assert (one.encode(row[None]) != one.encode(changed[None])).any()


def test_the_largest_holds_every_network_and_the_smallest_is_the_cheapest(one):
    slots = {conv.slot: conv for conv in one.blueprint(one.largest).convs}
    least = one.blueprint(one.smallest)
    for row in one.sample(np.random.default_rng(0), 60):
        blueprint = one.blueprint(row)
        assert blueprint.params >= least.params
        assert blueprint.macs >= least.macs
        for conv in blueprint.convs:
            slot = slots[conv.slot]
            assert (conv.inputs, conv.outputs, conv.kernel) <= (slot.inputs, slot.outputs, slot.kernel)
            assert conv.outputs <= slot.outputs
            assert conv.kernel <= slot.kernel


def test_every_block_of_a_network_is_among_the_blocks_of_its_space(one):
    blocks = set(one.blocks())
    assert len(blocks) == len(one.blocks())
    for row in one.sample(np.random.default_rng(0), 200):
        assert set(one.blueprint(row).blocks) <= blocks


def test_layers_fit_together(one):
    for row in one.sample(np.random.default_rng(0), 60):
        inputs = 1
        for block in one.blueprint(row).blocks:
            assert block.convs[0].inputs == inputs
            inputs = block.convs[-1].outputs
            if block.residual:
                assert block.convs[0].inputs == inputs
                assert all(conv.stride == 1 for conv in block.convs)


@given(_ROWS)
def test_a_genome_survives_the_codec(genes):
    np.testing.assert_array_equal(to_genes(_IMAGE, to_genome(_IMAGE, genes)), genes)


@given(_ROWS, _ROWS)
@settings(max_examples=50)
def test_a_child_that_inherits_inactive_genes_is_as_far_as_the_law_counts(genes, parent):
    child = _IMAGE.normal(genes[None], parent)
    counted = edit_distance(to_genome(_IMAGE, child[0]), to_genome(_IMAGE, parent))
    assert counted == _IMAGE.distance(child, parent)[0]


def test_a_genome_of_another_space_or_length_is_refused():
    genome = to_genome(_IMAGE, _IMAGE.smallest)
    for bad in (
        genome.model_copy(update={"space": "other"}),
        genome.model_copy(update={"genes": genome.genes[1:]}),
        genome.model_copy(update={"genes": (9, *genome.genes[1:])}),
    ):
        with pytest.raises(ValueError, match="expected"):
            to_genes(_IMAGE, bad)


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [
        (Datatype.FP32, (-1, 28, 28)),
        (Datatype.UINT8, (-1, 28)),
        (Datatype.UINT8, (-1, 8, 28)),
        (Datatype.UINT8, (1, 28, 28)),
    ],
)
def test_an_input_that_is_no_small_grey_image_is_refused(task, datatype, shape):
    bad = task.model_copy(update={"input": TensorSpec(name="x", datatype=datatype, shape=shape)})
    with pytest.raises(PermanentError, match="UINT8"):
        BUILTIN["image"](bad)
