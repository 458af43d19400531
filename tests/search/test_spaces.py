"""The contract of every space that ships, in every precision, and the codec of its genomes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PermanentError
from policies.limits import edit_distance
from policies.terms import Datatype, Modality, Precision, TensorSpec
from search.blueprint import Blueprint
from search.graph import row_shape
from search.space import Genes, Space, to_genes, to_genome
from search.spaces import BUILTIN
from tests.search import worlds
from tests.search.worlds import BOTH

INPUTS = {
    "image grey": (Modality.IMAGE, (20, 20)),
    "image grey large": (Modality.IMAGE, (64, 48)),
    "image hwc": (Modality.IMAGE, (28, 21, 3)),
    "image chw": (Modality.IMAGE, (3, 21, 28)),
    "window": (Modality.WINDOW, (1, 32)),
    "window shortest": (Modality.WINDOW, (1, 8)),
    "window long": (Modality.WINDOW, (2, 512)),
    "window many channels": (Modality.WINDOW, (9, 50)),
    "table": (Modality.TABLE, (12,)),
    "table of one feature": (Modality.TABLE, (1,)),
}
PRECISIONS = {"fp32": (Precision.FP32,), "both": BOTH}


def _space(name: str, precisions: str) -> Space:
    modality, shape = INPUTS[name]
    return BUILTIN[modality](worlds.task(modality, shape), PRECISIONS[precisions])


_IMAGE = _space("image grey", "both")
_ROWS = st.tuples(*(st.integers(0, int(count) - 1) for count in _IMAGE.cardinalities)).map(
    lambda genes: np.array(genes, dtype=np.int64)
)


@pytest.fixture(params=[(name, kind) for name in INPUTS for kind in PRECISIONS], ids="-".join, scope="module")
def one(request: pytest.FixtureRequest) -> Space:
    return _space(*request.param)


def _some(one: Space, n: int, seed: int = 0) -> Genes:
    return one.sample(np.random.default_rng(seed), n)


def test_every_modality_has_a_space_and_the_battery_runs_over_all():
    assert set(BUILTIN) == set(Modality) == {modality for modality, _ in INPUTS.values()}


def test_samples_are_legal_and_repeat_under_a_seed(one):
    genes = _some(one, 50)
    assert one.legal(genes).all()
    np.testing.assert_array_equal(genes, _some(one, 50))
    assert (genes != _some(one, 50, seed=1)).any()
    assert len(np.unique(genes, axis=0)) > 40


def test_illegal_rows_are_told_from_legal_ones(one):
    genes = np.stack([*_some(one, 3)])
    genes[1, 0], genes[2, 1] = one.cardinalities[0], -1
    assert one.legal(genes).tolist() == [True, False, False]
    assert not one.legal(genes[:, 1:]).any()


def test_mutation_changes_about_the_asked_share_and_not_its_argument(one):
    genes = _some(one, 400)
    before = genes.copy()
    changed = one.mutate(np.random.default_rng(1), genes, 0.25)
    np.testing.assert_array_equal(genes, before)
    assert one.legal(changed).all()
    free = one.cardinalities > 1
    assert 0.2 < (changed != genes)[:, free].mean() < 0.3
    np.testing.assert_array_equal(one.mutate(np.random.default_rng(1), genes, 0.0), genes)
    every = one.mutate(np.random.default_rng(1), genes, 1.0)
    assert (every != genes)[:, free].all()
    assert (every == genes)[:, ~free].all()


def test_children_have_genes_of_their_parents_only(one):
    first, second = _some(one, 40), _some(one, 40, seed=1)
    before = first.copy(), second.copy()
    child = one.cross(np.random.default_rng(2), first, second)
    assert ((child == first) | (child == second)).all()
    assert (child != first).any()
    assert (child != second).any()
    np.testing.assert_array_equal(first, before[0])
    np.testing.assert_array_equal(second, before[1])


def test_inactive_genes_change_no_network_no_feature_and_no_distance(one):
    genes = _some(one, 60)
    other = np.where(one.active(genes), genes, _some(one, 60, seed=1))
    assert (other != genes).any()
    np.testing.assert_array_equal(one.encode(genes), one.encode(other))
    np.testing.assert_array_equal(one.normal(genes, one.smallest), one.normal(other, one.smallest))
    np.testing.assert_array_equal(one.parts(genes), one.parts(other))
    for row, twin in zip(genes, other, strict=True):
        assert one.blueprint(row) == one.blueprint(twin)
        assert one.distance(row[None], twin).tolist() == [0]


def test_each_active_gene_changes_the_network_and_its_features(one):
    for row in _some(one, 8):
        for index in np.flatnonzero(one.active(row[None])[0] & (one.cardinalities > 1)):
            changed = row.copy()
            changed[index] = (changed[index] + 1) % one.cardinalities[index]
            assert one.blueprint(changed) != one.blueprint(row), one.kinds[index]
            assert (one.encode(row[None]) != one.encode(changed[None])).any()


def test_names_are_equal_for_equal_rows_and_no_others(one):
    genes = _some(one, 300)
    near = one.mutate(np.random.default_rng(1), genes, 0.1)
    every = np.concatenate([genes, near, genes])
    _, by_row = np.unique(every, axis=0, return_inverse=True)
    _, by_name = np.unique(one.names(every), return_inverse=True)
    assert len(set(zip(by_row.ravel().tolist(), by_name.tolist(), strict=True))) == by_name.max() + 1
    assert by_row.max() == by_name.max()


def test_the_shapes_hold_every_network_and_the_smallest_is_the_cheapest(one):
    shapes = one.shapes()
    least, most = one.blueprint(one.smallest), one.blueprint(one.largest)
    for row in (one.largest, one.smallest, *_some(one, 60)):
        blueprint = one.blueprint(row)
        assert least.params <= blueprint.params
        assert least.macs <= blueprint.macs
        assert blueprint.macs <= most.macs
        for conv in blueprint.convs:
            asked = (conv.outputs, conv.inputs, *conv.kernel)
            assert all(ask <= room for ask, room in zip(asked, shapes[f"{conv.slot}.weight"], strict=True))
        assert shapes[f"{blueprint.classifier}.weight"] == (blueprint.classes, blueprint.embedding)
        for squeeze in (block.squeeze for block in blueprint.blocks if block.squeeze is not None):
            hidden, channels = shapes[f"{squeeze.slot}.reduce.weight"]
            assert (hidden, channels >= squeeze.channels) == (squeeze.hidden, True)


def test_every_block_and_way_in_is_among_those_of_its_space_and_parts_say_which(one):
    blocks, entries = one.blocks(), one.entries()
    assert len(set(blocks)) == len(blocks)
    assert len(set(entries)) == len(entries)
    genes = _some(one, 100)
    for row, parts, entry in zip(genes, one.parts(genes), one.ways_in(genes), strict=True):
        blueprint = one.blueprint(row)
        assert tuple(blocks[part] for part in parts if part < len(blocks)) == blueprint.blocks
        assert entries[entry] == blueprint.entry


def _side(blueprint: Blueprint) -> tuple[int, int, int]:
    entry = blueprint.entry
    return entry.channels, entry.to_height, entry.to_width


def test_layers_fit_together(one):
    for row in (one.largest, one.smallest, *_some(one, 60)):
        blueprint = one.blueprint(row)
        channels, height, width = _side(blueprint)
        for block in blueprint.blocks:
            came = channels, height, width
            for conv in block.convs:
                assert conv.inputs == channels
                assert conv.kernel[0] % 2 == conv.kernel[1] % 2 == 1
                assert (conv.height, conv.width) == tuple(
                    math.ceil(side / step) for side, step in zip((height, width), conv.stride, strict=True)
                )
                channels, height, width = conv.outputs, conv.height, conv.width
            assert not block.residual or came == (channels, height, width)
            assert block.squeeze is None or block.squeeze.channels == channels
        assert channels == blueprint.embedding


def test_every_network_leads_from_the_row_of_its_task_to_features_of_one_width(request, one):
    found = [one.blueprint(row) for row in _some(one, 60)]
    assert len({blueprint.embedding for blueprint in found}) == 1
    shape = INPUTS[request.node.callspec.params["one"][0]][1]
    assert {row_shape(blueprint.entry) for blueprint in found} == {shape}


def test_int8_is_drawn_where_it_is_allowed_and_a_genome_in_any_case(one):
    allowed = int(one.cardinalities[-1]) == len(BOTH)
    genes = _some(one, 200)
    young = one.mutate(np.random.default_rng(1), one.smallest[None].repeat(200, axis=0), 0.5)
    assert one.quantised(genes).any() == one.quantised(young).any() == allowed
    earlier = one.smallest
    earlier[-1] = 1
    assert one.legal(earlier[None]).all()
    assert one.blueprint(earlier).precision is Precision.INT8
    np.testing.assert_array_equal(to_genes(one, to_genome(one, earlier)), earlier)
    assert (one.encode(earlier[None]) != one.encode(one.smallest[None])).any()
    earlier[-1] = 2
    assert not one.legal(earlier[None]).any()


@given(_ROWS)
def test_a_genome_survives_the_codec(genes):
    np.testing.assert_array_equal(to_genes(_IMAGE, to_genome(_IMAGE, genes)), genes)


@given(_ROWS, _ROWS)
@settings(max_examples=50)
def test_a_child_that_inherits_inactive_genes_is_as_far_as_the_law_counts(genes, parent):
    child = _IMAGE.normal(genes[None], parent)
    counted = edit_distance(to_genome(_IMAGE, child[0]), to_genome(_IMAGE, parent))
    assert counted == _IMAGE.distance(child, parent)[0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"space": "other"}, "expected a genome of image"),
        ({"genes": (0,) * 21}, "with 21"),
        ({"genes": (9, *(0,) * 21)}, "expected genes below"),
    ],
)
def test_a_genome_of_another_space_or_length_is_refused(changed, words):
    genome = to_genome(_IMAGE, _IMAGE.smallest)
    with pytest.raises(ValueError, match=words):
        to_genes(_IMAGE, genome.model_copy(update=changed))


@pytest.mark.parametrize(
    ("modality", "datatype", "shape"),
    [
        (Modality.IMAGE, Datatype.FP32, (-1, 28, 28)),
        (Modality.IMAGE, Datatype.UINT8, (-1, 28)),
        (Modality.IMAGE, Datatype.UINT8, (-1, 19, 28)),
        (Modality.IMAGE, Datatype.UINT8, (-1, 28, 65)),
        (Modality.IMAGE, Datatype.UINT8, (1, 28, 28)),
        (Modality.IMAGE, Datatype.UINT8, (-1, 28, 28, 4)),
        (Modality.WINDOW, Datatype.UINT8, (-1, 1, 32)),
        (Modality.WINDOW, Datatype.FP32, (-1, 32)),
        (Modality.WINDOW, Datatype.FP32, (-1, 1, 7)),
        (Modality.WINDOW, Datatype.FP32, (-1, 129, 32)),
        (Modality.WINDOW, Datatype.FP32, (1, 1, 32)),
        (Modality.TABLE, Datatype.UINT8, (-1, 12)),
        (Modality.TABLE, Datatype.FP32, (-1, 4097)),
        (Modality.TABLE, Datatype.FP32, (-1, 3, 4)),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_what_would_fit(modality, datatype, shape):
    bad = worlds.CLOUDS.task.model_copy(
        update={"input": TensorSpec(name="x", datatype=datatype, shape=shape)}
    )
    wanted = "UINT8" if modality is Modality.IMAGE else "FP32"
    with pytest.raises(PermanentError, match=f"expected an input of {wanted}.*or another modality"):
        BUILTIN[modality](bad, BOTH)
