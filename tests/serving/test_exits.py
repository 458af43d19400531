"""A bundle with an exit, run in two."""

import base64
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from daemon.serving.exits import Staged, left, split
from guards.material import left as guards_left
from policies.bundle import BundleMeta
from policies.errors import TamperError

SIDE, CHANNELS, CLASSES, WIDTH = 8, 4, 3, 5


def network(seed=1) -> bytes:
    """Return a convolution, an exit on its average, and a second convolution up to logits and embedding."""
    rng = np.random.default_rng(seed)

    def some(*shape):
        return rng.normal(0, 1, shape).astype(np.float32)

    arrays = {
        "first": some(CHANNELS, 1, 3, 3),
        "leave": some(CHANNELS, CLASSES),
        "second": some(WIDTH, CHANNELS, 3, 3),
        "out": some(WIDTH, CLASSES),
        "unit": np.array(1 / 64, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["rows"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "unit"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "first"], ["raw"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["raw"], ["trunk"]),
        helper.make_node("GlobalAveragePool", ["trunk"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "leave"], ["exit_logits"]),
        helper.make_node("Conv", ["trunk", "second"], ["deep"], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["deep"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["embedding"], axis=1),
        helper.make_node("MatMul", ["embedding", "out"], ["logits"]),
    ]
    widths = {"logits": CLASSES, "embedding": WIDTH, "exit_logits": CLASSES}
    graph = helper.make_graph(
        nodes,
        "staged",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", w]) for n, w in widths.items()],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model.SerializeToString()


def about(**changes) -> BundleMeta:
    def told(name, *shape):
        return {"name": name, "datatype": "FP32", "shape": [-1, *shape]}

    item = {"rows": 1, "input_b64": "", "logits_b64": "", "embedding_b64": "", "exit_logits_b64": ""}
    facts = {
        "format": 1,
        "task": "toy",
        "model": "toy",
        "genome": {"space": "tiny", "genes": [1]},
        "input": {"name": "rows", "datatype": "UINT8", "shape": [-1, 1, SIDE, SIDE]},
        "outputs": [told("logits", CLASSES), told("embedding", WIDTH), told("exit_logits", CLASSES)],
        "classes": ["a", "b", "c"],
        "brief": "b1",
        "seed": 1,
        "params": 1,
        "macs": 1,
        "goldens": [{"kind": "clean", **item}, {"kind": "probe", **item}],
        "exit": {"output": "exit_logits", "trunk": told("trunk", CHANNELS, SIDE, SIDE)},
    }
    return BundleMeta.model_validate(facts | changes, strict=False)


def load(raw: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def rows(n, seed=2):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, SIDE, SIDE), dtype=np.uint8)


class Counted:
    """A session that remembers how many rows each run had."""

    def __init__(self, session) -> None:
        self.session, self.seen = session, []

    def run(self, names, feed):
        self.seen.append(len(next(iter(feed.values()))))
        return self.session.run(names, feed)


@pytest.fixture(scope="module")
def staged() -> Staged:
    return split(network(), about(), lambda raw: Counted(load(raw)))


@pytest.fixture(autouse=True)
def _forget(staged):
    staged.head.seen.clear()
    staged.tail.seen.clear()


def certainty(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return 1 / shares.sum(axis=1)


def middling(staged, x) -> float:
    """Return a confidence that about half of the rows reach, and none exactly."""
    sure = np.sort(certainty(staged.exit_logits(x).astype(np.float64)))
    return float((sure[len(x) // 2 - 1] + sure[len(x) // 2]) / 2)


def test_who_is_sure_gets_the_exits_answer_and_who_is_not_the_ends(staged):
    x = rows(32)
    whole, deep, exits = load(network()).run(["logits", "embedding", "exit_logits"], {"rows": x})
    logits, embedding, gone = staged.run(x, middling(staged, x))
    assert gone.sum() == 16
    np.testing.assert_allclose(logits[gone], exits[gone], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[~gone], whole[~gone], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedding[~gone], deep[~gone], rtol=1e-4, atol=1e-5)
    assert (embedding[gone] == 0).all()
    assert (logits.dtype, embedding.dtype, gone.dtype) == (np.float32, np.float32, np.bool_)


def test_a_row_that_leaves_is_spared_the_rest(staged):
    x = rows(32)
    staged.run(x, middling(staged, x))
    assert staged.tail.seen == [16]
    staged.tail.seen.clear()
    assert staged.run(x, 1e-9)[2].all()
    assert staged.tail.seen == []


@pytest.mark.parametrize("confidence", [None, 1.0])
def test_nobody_leaves_where_no_confidence_is_enough(staged, confidence):
    x = rows(16)
    whole, deep = load(network()).run(["logits", "embedding"], {"rows": x})
    logits, embedding, gone = staged.run(x, confidence)
    assert not gone.any()
    assert staged.tail.seen == [16]
    np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedding, deep, rtol=1e-4, atol=1e-5)


def test_a_row_is_answered_alike_whoever_stands_beside_it(staged):
    x, rng = rows(24), np.random.default_rng(5)
    confidence = middling(staged, x)
    alone = [staged.run(x[place : place + 1], confidence) for place in range(len(x))]
    for size in rng.integers(1, 41, 60):
        chosen = rng.integers(0, len(x), size)
        for place, answer in zip(chosen, zip(*staged.run(x[chosen], confidence), strict=True), strict=True):
            assert [one.tobytes() for one in answer] == [one[0].tobytes() for one in alone[place]]


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 1.0))
@settings(max_examples=200, deadline=None)
def test_guards_and_data_plane_let_the_same_rows_leave(seed, confidence):
    logits = np.random.default_rng(seed).normal(0, 6, (64, 10)).astype(np.float32)
    assert (left(logits, confidence) == guards_left(logits, confidence)).all()
    sure = certainty(logits.astype(np.float64))
    near = np.abs(sure - confidence) < 1e-12
    assert ((left(logits, confidence) == (sure >= confidence)) | near).all()


class Broken:
    """A half whose first answer is not finite."""

    def __init__(self, bad, *shape) -> None:
        self.bad, self.shape = bad, shape

    def run(self, names, feed):
        n = len(next(iter(feed.values())))
        return [np.full((n, CLASSES), self.bad, np.float32), np.zeros((n, *self.shape), np.float32)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_stays_so(bad):
    head, tail = Broken(bad, CHANNELS, SIDE, SIDE), Broken(bad, WIDTH)
    logits, _, _ = Staged(head, tail, "rows", "exit_logits", "trunk", WIDTH).run(rows(2), 0.9)
    assert not np.isfinite(logits).any()


def test_a_bundle_without_an_exit_is_not_split():
    plain = about(exit=None, goldens=[{**one, "exit_logits_b64": None} for one in _goldens()])
    with pytest.raises(ValueError, match="expected a bundle with an exit"):
        split(network(), plain, load)


def _goldens():
    return [golden.model_dump(mode="json") for golden in about().goldens]


def test_a_text_that_does_not_fit_its_graph_is_refused():
    told = about().model_dump(mode="json")
    told["exit"]["trunk"]["name"] = "elsewhere"
    with pytest.raises(TamperError, match="'elsewhere'"):
        split(network(), BundleMeta.model_validate(told, strict=False), load)


def test_nothing_of_the_library_that_writes_onnx_is_loaded(tmp_path):
    path = tmp_path / "bundle.onnx"
    path.write_bytes(network())
    text = base64.b64encode(about().model_dump_json().encode()).decode()
    code = (
        "import sys, base64, pathlib; from daemon.serving.exits import split;"
        "from policies.bundle import BundleMeta;"
        f"meta = BundleMeta.model_validate_json(base64.b64decode('{text}'));"
        "split(pathlib.Path(sys.argv[1]).read_bytes(), meta, bytes); sys.exit('onnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0
