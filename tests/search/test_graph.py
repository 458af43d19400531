"""The shipped bytes: they compute what the trained network did, in every space and both precisions."""

import numpy as np
import onnx
import pytest
import torch

from policies.bundle import KEY, OPSET
from policies.terms import Brief
from search import graph
from search.costs import Costs
from search.exam import outputs
from search.export import Subnet, bundle_of, model_of, probes
from search.graph import row_shape
from search.profile import random_rows
from search.runtime import run_bundle, session
from search.space import Genes, Space, to_genome
from search.supernet import Supernet
from tests.search import worlds
from tests.search.test_spaces import INPUTS, _space

_ROWS = 64
_QUANTISED_TOO = ["image grey", "image hwc", "window", "table"]
_PLAIN = {"Conv", "Relu", "Add", "Gemm", "GlobalAveragePool", "Flatten", "HardSigmoid", "Mul"}
_ENTRY = {"Cast", "Unsqueeze", "Transpose", "MatMul", "Slice", "Sub", "Clip", "Softsign"}
_INT8 = {"QuantizeLinear", "DequantizeLinear"}


class Bench:
    """A space with a supernet whose every number is out of the ordinary, and rows for it."""

    def __init__(self, name: str) -> None:
        self.space: Space = _space(name, "both")
        self.entry = self.space.entries()[-1]
        self.net = Supernet(self.space.shapes(), self.entry, 0)
        noise = torch.Generator().manual_seed(3)
        # Fresh scales are one and fresh shifts zero, and folding would not be seen at work.
        self.net.load(
            {
                part: one + 0.2 * torch.randn(one.shape, generator=noise)
                if one.dim() == 1 and not part.startswith("entry.")
                else one
                for part, one in self.net.state().items()
            }
        )
        rows = random_rows(self.entry, _ROWS, np.random.default_rng(1))
        self.x = rows if rows.dtype == np.uint8 else (rows * 3 + 10).astype(np.float32)
        self.net.standardise(self.x)

    def genes(self, *, int8: bool) -> Genes:
        space = self.space
        some = np.stack([space.largest, space.smallest, *space.sample(np.random.default_rng(2), 5)])
        some[:, -1] = int8
        return some

    def subnet(self, row: Genes) -> Subnet:
        blueprint = self.space.blueprint(row)
        return Subnet(self.net, blueprint, self.net.calibrate(blueprint, self.net.prepare(self.x)))

    def raw(self, row: Genes) -> bytes:
        return model_of(self.subnet(row), "rows", self.x).SerializeToString(deterministic=True)


@pytest.fixture(params=list(INPUTS), scope="module")
def bench(request) -> Bench:
    return Bench(request.param)


@pytest.fixture(scope="module")
def brief(tmp_path_factory) -> Brief:
    return worlds.founding_brief(worlds.BARS, tmp_path_factory.mktemp("brief"))


def _gap(bench: Bench, subnet: Subnet, raw: bytes, x: np.ndarray) -> float:
    """Return the worst difference of the bytes' answers from the trained network's.

    Relative to a row's largest number where that is above 1: a float has seven digits.
    """
    said = outputs(bench.net, subnet.blueprint, subnet.statistics, x)
    found = run_bundle(raw, x)
    return max(
        float((np.abs(one - other) / np.abs(one).max(axis=1, keepdims=True).clip(1)).max())
        for one, other in zip(said, found, strict=True)
    )


def test_the_bytes_compute_what_the_trained_network_did_on_rows_and_on_probes(bench):
    odd = probes(bench.entry, np.random.default_rng(0))
    for row in bench.genes(int8=False):
        subnet, raw = bench.subnet(row), bench.raw(row)
        assert _gap(bench, subnet, raw, bench.x) < 1e-4
        assert _gap(bench, subnet, raw, odd) < 1e-4


def test_one_bias_moved_is_seen(bench):
    for row in bench.genes(int8=False)[:3]:
        model = onnx.load_from_string(bench.raw(row))
        bias = next(one for one in model.graph.initializer if one.name.endswith("classifier.bias"))
        moved = onnx.numpy_helper.to_array(bias) + np.float32(0.05)
        bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
        assert _gap(bench, bench.subnet(row), model.SerializeToString(), bench.x) > 1e-3


def test_readings_at_the_end_of_what_a_float_holds_stay_finite_and_agree(bench):
    x = bench.x.copy()
    if x.dtype == np.uint8:
        x[:2], x[2:4] = 0, 255
    else:
        x[:2], x[2:4] = -3e38, 3e38
        x[4].flat[0] = 3e38
    for row in bench.genes(int8=False)[:4]:
        subnet, raw = bench.subnet(row), bench.raw(row)
        assert all(np.isfinite(one).all() for one in run_bundle(raw, x))
        assert _gap(bench, subnet, raw, x) < 1e-4


def test_every_network_is_a_plain_graph_that_the_checker_takes(bench):
    for row, int8 in [*((row, 0) for row in bench.genes(int8=False)), (bench.space.largest, 1)]:
        row[-1] = int8
        model = onnx.load_from_string(bench.raw(row))
        onnx.checker.check_model(model, full_check=True)
        assert {node.op_type for node in model.graph.node} <= _PLAIN | _ENTRY | (_INT8 if int8 else set())
        assert [(one.domain, one.version) for one in model.opset_import if one.domain == ""] == [("", OPSET)]
        assert model.ir_version == graph.IR_VERSION
        assert len(model.metadata_props) == 0
        assert model.producer_version == ""


@pytest.mark.parametrize("name", _QUANTISED_TOO)
def test_int8_has_the_contracts_outputs_and_mostly_the_answers_of_full_precision(name):
    bench = Bench(name)
    for row in bench.genes(int8=True)[:5]:
        subnet = bench.subnet(row)
        logits, embedding = run_bundle(bench.raw(row), bench.x)
        classes, width = subnet.blueprint.classes, subnet.blueprint.embedding
        assert (logits.shape, embedding.shape) == ((_ROWS, classes), (_ROWS, width))
        said, _ = outputs(bench.net, subnet.blueprint, subnet.statistics, bench.x)
        assert np.corrcoef(said.ravel(), logits.ravel())[0, 1] > 0.98
        assert (said.argmax(axis=1) == logits.argmax(axis=1)).mean() > 0.8
        assert not np.array_equal(said, logits)


@pytest.mark.parametrize("name", _QUANTISED_TOO)
def test_int8_scales_that_were_measured_on_other_rows_are_seen(name):
    """The control of the agreement above: what calibration rows are for."""
    bench = Bench(name)
    subnet = bench.subnet(bench.genes(int8=True)[1])
    said, _ = outputs(bench.net, subnet.blueprint, subnet.statistics, bench.x)
    raw = model_of(subnet, "rows", np.zeros_like(bench.x)).SerializeToString()
    assert np.corrcoef(said.ravel(), run_bundle(raw, bench.x)[0].ravel())[0, 1] < 0.98


@pytest.mark.parametrize("name", _QUANTISED_TOO)
def test_int8_weights_take_less_than_half_of_the_bytes(name):
    bench = Bench(name)
    sizes = []
    for int8 in (0, 1):
        row = bench.space.largest
        row[-1] = int8
        sizes.append(len(bench.raw(row)))
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize("name", _QUANTISED_TOO)
def test_equal_weights_give_equal_bytes_and_others_do_not(name, brief):
    bench = Bench(name)
    for int8 in (0, 1):
        row = bench.space.largest
        row[-1] = int8
        genome = to_genome(bench.space, row)

        def made(row: Genes = row, genome=genome) -> bytes:
            return bundle_of(bench.subnet(row), brief, genome, bench.x[:8], bench.x)

        first = made()
        assert first == made()
        guess = Costs(bench.space, worlds.stated_profile(bench.space)).size_bytes(row[None])[0]
        assert 0.85 < len(first) / guess < 1.2
        assert [one.key for one in onnx.load_from_string(first).metadata_props] == [KEY]
        kept = bench.net.state()
        changed = {name: one * 1.01 if name == "stem.scale" else one for name, one in kept.items()}
        bench.net.load(changed)
        assert first != made()
        bench.net.load(kept)
        assert first == made()


def test_probes_lie_outside_the_data_and_fit_the_row(bench):
    found = probes(bench.entry, np.random.default_rng(0))
    assert found.shape == (8, *row_shape(bench.entry))
    assert found.dtype == bench.x.dtype
    ends = {0, 255} if found.dtype == np.uint8 else {-8.0, 8.0}
    assert ends <= set(np.unique(found).tolist())
    np.testing.assert_array_equal(found, probes(bench.entry, np.random.default_rng(0)))


def test_every_block_and_way_in_can_be_timed_alone(bench):
    space, rng = bench.space, np.random.default_rng(0)
    parts = [graph.block_model(block, rng) for block in space.blocks()[:: max(1, len(space.blocks()) // 40)]]
    for model in (*parts, *(graph.entry_model(entry) for entry in space.entries())):
        alone = session(model)
        spec = alone.get_inputs()[0]
        x = np.ones(spec.shape, dtype=np.uint8 if spec.type == "tensor(uint8)" else np.float32)
        assert np.isfinite(alone.run(None, {spec.name: x})[0]).all()
