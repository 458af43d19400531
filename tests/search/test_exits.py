"""A way out in the middle of the winner: where it pays, it is written; where it does not, nothing changes."""

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load

from policies.bundle import KEY, BundleMeta, Exit
from policies.cut import cut
from policies.terms import Precision, TriggerKind
from search import exits
from search.choice import Finalist
from search.costs import Costs
from search.desk import Desk
from search.errand import prepare
from search.exits import ASKING_MS, STAYING_MS
from search.export import Subnet, model_of
from search.final import Final
from search.graph import EXIT, Way, trunk_of
from search.order import read_order
from search.profile import key
from search.runtime import run_outputs, session
from search.space import to_genome
from tests.search import orders, worlds
from tests.search.test_graph import Bench
from tests.search.worlds import BARS, BOTH, CLOUDS, Searched

CONFIDENCE = 0.8


def slow(space):
    """Return costs of a device so slow that what serving adds is nothing beside the layers."""
    blocks = {key(block): 100 + block.macs / 100 for block in space.blocks()}
    return worlds.stated_profile(space, blocks_us=blocks, int8_line=(1.0, 0.0, 0.0, 0.0, 0.005))


@pytest.fixture
def lay(founded: Searched, tmp_path: Path):
    """Return a maker of desks with the weights that a search left, on a slow device."""

    def make(**changed: object) -> Desk:
        brief = worlds.founding_brief(BARS, tmp_path, **({"exit_confidence": CONFIDENCE} | changed))
        desk = worlds.desk(brief, tmp_path)
        desk.net.load(load((founded.out / "state.safetensors").read_bytes()))
        return replace(desk, costs=Costs(desk.space, slow(desk.space)))

    return make


def finalist(desk: Desk, genes) -> tuple[Final, Finalist]:
    final = Final(desk, None)
    return final, final.one(final._examiner.calibrated(genes), genes)


def large(desk: Desk, *, int8: bool = False):
    genes = desk.space.largest
    genes[-1] = int8
    return genes


def meta_of(raw: bytes) -> BundleMeta:
    return BundleMeta.model_validate_json(session(raw).get_modelmeta().custom_metadata_map[KEY])


# -- it pays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("int8", [False, True])
def test_a_way_out_that_pays_is_in_the_file_and_the_evidence_is_of_the_file(lay, int8):
    desk = lay(precisions=BOTH)
    final, plain = finalist(desk, large(desk, int8=int8))
    found = final.with_exit(plain)
    assert found.leaving is not None
    meta, sheet = meta_of(found.bundle), final._examiner.sheet
    assert meta.exit is not None
    assert meta.exit.trunk == trunk_of(found.subnet.blueprint, found.leaving.way.after)
    assert meta.params == meta_of(plain.bundle).params + found.more_params
    logits, out = run_outputs(found.bundle, sheet.new.x, ["logits", EXIT])
    gone = exits.certainty(out) >= CONFIDENCE
    right = np.where(gone, out.argmax(axis=1), logits.argmax(axis=1)) == sheet.new.y
    told = {one.name: one.value for one in found.leaving.evidence()}
    # A row that is as sure as asked, to the last digit, may fall to either side.
    assert told["exit_share"] == pytest.approx(gone.mean(), abs=0.01)
    assert told["exit_accuracy"] == pytest.approx(right.mean(), abs=0.01)
    assert told["exit_share"] > 0.3
    whole = float(desk.costs.latency_ms(found.look.genes[None])[0])
    assert told["exit_mean_ms"] < (1 - exits.GAIN) * whole
    assert right.mean() > (logits.argmax(axis=1) == sheet.new.y).mean() - 0.02


def test_the_mean_that_is_told_is_that_of_rows_that_leave_and_rows_that_stay(lay):
    desk = lay()
    final, plain = finalist(desk, large(desk))
    found = final.with_exit(plain).leaving
    head, tail = (half[found.way.after - 1] for half in desk.costs.cut_ms(large(desk)))
    mean = head + ASKING_MS + (1 - found.share) * (tail + STAYING_MS)
    assert found.mean_ms == pytest.approx(mean)


def test_the_same_search_leaves_the_same_bytes(lay):
    twice = []
    for _ in range(2):
        desk = lay()
        final, plain = finalist(desk, large(desk))
        twice.append(final.with_exit(plain).bundle)
    assert twice[0] == twice[1]


@pytest.mark.parametrize("int8", [False, True])
def test_the_halves_of_the_file_give_its_goldens_and_one_bias_moved_is_seen(lay, int8):
    desk = lay(precisions=BOTH)
    final, plain = finalist(desk, large(desk, int8=int8))
    raw = final.with_exit(plain).bundle
    assert gap(raw) < 1e-3
    meta = meta_of(raw)
    found = final.with_exit(plain).leaving
    weight, bias = found.way.pair
    moved = replace(found, way=Way(found.way.after, (weight, bias + np.float32(0.05))))
    other = model_of(plain.subnet, meta.input.name, final._examiner.sheet.raw, [moved.way])
    assert gap(other.SerializeToString(), meta) > 1e-3


def gap(raw: bytes, meta: BundleMeta | None = None) -> float:
    """Return by how much the halves of a file leave the goldens."""
    meta = meta_of(raw) if meta is None else meta
    halves = cut(raw, meta.exit)
    head, tail = session(halves.head), session(halves.tail)
    most = 0.0
    for golden in meta.goldens:
        x = np.frombuffer(base64.b64decode(golden.input_b64), np.uint8)
        x = x.reshape(golden.rows, *meta.input.shape[1:])
        out, trunk = head.run([EXIT, meta.exit.trunk.name], {meta.input.name: x})
        logits, embedding = tail.run(["logits", "embedding"], {meta.exit.trunk.name: trunk})
        texts = (golden.logits_b64, golden.embedding_b64, golden.exit_logits_b64)
        for came, text in zip((logits, embedding, out), texts, strict=True):
            wanted = np.frombuffer(base64.b64decode(text), "<f4").reshape(came.shape)
            scale = np.abs(wanted).max(axis=1, keepdims=True).clip(1)
            most = max(most, float((np.abs(came - wanted) / scale).max()))
    return most


# -- it does not -------------------------------------------------------------------------------------------


def refused(desk: Desk) -> bool:
    """Tell whether a winner stays as it is, to the byte."""
    final, plain = finalist(desk, large(desk))
    found = final.with_exit(plain)
    return found.leaving is None and found.bundle == plain.bundle


def test_without_a_confidence_nothing_is_sought(lay):
    assert refused(lay(exit_confidence=None))
    assert not refused(lay())


def test_a_confidence_that_nobody_reaches_pays_nothing(lay, monkeypatch):
    def unsure(features, y, classes):
        return np.zeros((classes, features.shape[1]), np.float32), np.zeros(classes, np.float32)

    monkeypatch.setattr(exits, "_fit", unsure)
    assert refused(lay())


def test_on_a_device_so_quick_that_asking_costs_more_there_is_none(lay):
    desk = lay()
    quick = worlds.stated_profile(desk.space, blocks_us={key(block): 0.5 for block in desk.space.blocks()})
    assert refused(replace(desk, costs=Costs(desk.space, quick)))


def test_an_exit_that_is_sure_and_wrong_is_thrown_away(lay, monkeypatch):
    fit = exits._fit

    def astray(features, y, classes):
        weight, bias = fit(features, y, classes)
        return np.roll(weight, 1, axis=0) * 50, np.roll(bias, 1) * 50

    monkeypatch.setattr(exits, "_fit", astray)
    assert refused(lay(exit_confidence=0.4))


@pytest.mark.parametrize("limit", ["max_params", "max_size_bytes", "max_p99_ms"])
def test_an_exit_that_oversteps_a_limit_is_left_out(lay, limit):
    desk = lay()
    final, plain = finalist(desk, large(desk))
    found = final.with_exit(plain)
    genes = large(desk)
    tight = {
        "max_params": int(desk.costs.params(genes[None])[0]) + found.more_params - 1,
        "max_size_bytes": len(found.bundle) - 1,
        # The whole net is within it, and a row that stays is not.
        "max_p99_ms": 2 * (float(desk.costs.latency_ms(genes[None])[0]) + 1e-4),
    }[limit]
    assert refused(lay(limits=worlds.ROOMY.model_copy(update={limit: tight})))


def test_a_network_for_tables_and_rows_without_labels_get_none(tmp_path):
    brief = worlds.founding_brief(CLOUDS, tmp_path, exit_confidence=0.5)
    desk = worlds.desk(brief, tmp_path)
    assert refused(desk)


# -- a whole search ----------------------------------------------------------------------------------------


def test_a_search_with_a_confidence_wins_the_same_network_and_a_way_out_of_it(founded, tmp_path):
    slowly = tmp_path / "slow.json"
    slowly.write_bytes(worlds.canonical(slow(BARS.space())))
    found = {}
    for confidence in (None, CONFIDENCE):
        brief = worlds.child_brief(
            founded,
            BARS,
            tmp_path,
            TriggerKind.LATENCY,
            exit_confidence=confidence,
            profile=worlds.artefact(slowly),
            parent_genome=to_genome(BARS.space(), BARS.space().largest),
        )
        found[confidence] = worlds.run(brief, tmp_path, tmp_path / f"out-{confidence}")
    with_, without = found[CONFIDENCE], found[None]
    assert with_.result.winner == without.result.winner
    assert with_.result.state.digest == without.result.state.digest
    assert with_.evidence["exit_share"] > 0.3
    assert not [name for name in without.evidence if name.startswith("exit_")]
    told = [meta_of((one.out / "bundle.onnx").read_bytes()).exit is not None for one in (with_, without)]
    assert told == [True, False]
    assert with_.evidence["params"] > without.evidence["params"]
    assert with_.evidence["accuracy_search"] == without.evidence["accuracy_search"]


def test_an_order_may_name_a_confidence(tmp_path):
    orders.lay(tmp_path)
    path = tmp_path / "order.toml"
    path.write_text(orders.GOOD.replace("seed = 3", "seed = 3\nexit_confidence = 0.97"))
    (tmp_path / "out").mkdir()
    assert prepare(read_order(path), tmp_path, tmp_path / "out").exit_confidence == 0.97


# -- the parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image grey", "image hwc", "window"])
@pytest.mark.parametrize("int8", [False, True])
def test_a_network_can_be_cut_after_every_block_and_answers_as_before(name, int8):
    bench = Bench(name)
    for row in bench.genes(int8=int8)[:3]:
        subnet = bench.subnet(row)
        for after in range(1, len(subnet.blueprint.blocks)):
            raw = model_of(subnet, "rows", bench.x, [_way(subnet, after)]).SerializeToString()
            leave = meta_like(subnet, after)
            halves = cut(raw, leave)
            whole = run_outputs(raw, bench.x, ["logits", "embedding", EXIT])
            out, trunk = session(halves.head).run([EXIT, leave.trunk.name], {"rows": bench.x})
            ends = session(halves.tail).run(["logits", "embedding"], {leave.trunk.name: trunk})
            for one, other in zip(whole, [*ends, out], strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3 * float(np.abs(one).max()))


def _way(subnet: Subnet, after: int) -> Way:
    rng, width = np.random.default_rng(after), subnet.blueprint.blocks[after - 1].convs[-1].outputs
    weight = rng.normal(size=(subnet.blueprint.classes, width)).astype(np.float32)
    return Way(after, (weight, np.zeros(subnet.blueprint.classes, np.float32)))


def meta_like(subnet: Subnet, after: int):
    return Exit(output="exit_logits", trunk=trunk_of(subnet.blueprint, after))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_a_cut_network_costs_what_the_whole_does_and_what_a_network_pays_once(precision):
    space = BARS.space(BOTH)
    costs = Costs(space, worlds.stated_profile(space))
    for genes in space.sample(np.random.default_rng(4), 20):
        genes[-1] = precision is Precision.INT8
        once = costs.profile.line[0] if precision is Precision.FP32 else costs.profile.int8_line[4]
        head, tail = costs.cut_ms(genes)
        assert len(head) == len(space.blueprint(genes).blocks)
        assert head + tail == pytest.approx(float(costs.latency_ms(genes[None])[0]) + once)
        assert (np.diff(head) > 0).all()


def test_a_temperature_makes_the_softmax_as_sure_as_it_is_right():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 5))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = (shares.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    assert exits._tempered((3 * logits).astype(np.float32), y) == pytest.approx(3.0, rel=0.1)
    assert exits._tempered(logits.astype(np.float32), y) == pytest.approx(1.0, rel=0.1)
