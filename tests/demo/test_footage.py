"""The camera's record as numbers, and what a bundle reads right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from daemon.console.demo.footage import Footage
from daemon.console.demo.oracle import accuracies
from policies.errors import PermanentError


def _record(n: int, **other: Any) -> dict[str, Any]:
    plain = {"n": n, "at": 100.0 + n, "ms": float(n), "wire_ms": 1.0, "status": 200}
    return plain | {"generation": 1, "right": True, "level": 0.0} | other


def _write(path: Path, records: list[dict[str, Any]], torn: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + torn)
    return path


def test_records_are_counted_in_the_order_in_which_they_were_due(tmp_path: Path) -> None:
    records = [
        _record(2, right=False),
        _record(0),
        _record(1, level=0.5),
        _record(3, status=0, generation=None),
    ]
    footage = Footage.load(_write(tmp_path / "r", records, torn='{"n": 4, "at"'))
    assert footage.n.tolist() == [0, 1, 2, 3]
    assert (footage.sent, footage.failed, footage.unrecorded) == (4, 1, 0)
    assert footage.drifted_at == 101.0
    everything = footage.within((0.0, 1e9))
    assert footage.accuracy(everything).value == pytest.approx(2 / 3)
    assert footage.count(100.0, 102.0) == 2


def test_a_server_error_is_a_failure_even_with_a_generation(tmp_path: Path) -> None:
    footage = Footage.load(_write(tmp_path / "r", [_record(0, status=500)]))
    assert footage.failed == 1


def test_a_record_that_is_missing_is_noticed(tmp_path: Path) -> None:
    footage = Footage.load(_write(tmp_path / "r", [_record(0), _record(2)]))
    assert footage.unrecorded == 1


def test_percentiles_of_few_requests_are_not_told(tmp_path: Path) -> None:
    footage = Footage.load(_write(tmp_path / "r", [_record(n) for n in range(101)]))
    assert footage.latency_ms(footage.within((0.0, 1e9))) == (50.0, 99.0)
    assert footage.latency_ms(footage.within((0.0, 199.0))) is None


def test_no_record_is_no_knowledge_and_another_file_is_refused(tmp_path: Path) -> None:
    nothing = Footage.load(tmp_path / "none")
    assert (nothing.sent, nothing.drifted_at) == (0, None)
    assert nothing.accuracy(nothing.within()).value is None
    with pytest.raises(PermanentError, match="camera's requests"):
        Footage.load(_write(tmp_path / "r", [{"n": 1}]))


def test_the_last_records_are_the_last_whole_ones(tmp_path: Path) -> None:
    path = _write(tmp_path / "r", [_record(n) for n in range(1000)], torn='{"n"')
    footage = Footage.load_last(path, 50)
    assert footage.n.tolist() == list(range(950, 1000))
    assert Footage.load_last(tmp_path / "none", 50).sent == 0


def test_accuracy_of_bundles_is_that_of_the_real_runtime(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["f"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [None, 2, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 0.0, 0.0, 1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    x = np.zeros((600, 2, 1), np.uint8)
    x[np.arange(600), np.arange(600) % 2] = 9
    y = np.arange(600) % 2
    y[:60] = 1 - y[:60]
    np.savez(tmp_path / "t.npz", x=x, y=y)
    (share,) = accuracies([model.SerializeToString()], tmp_path / "t.npz")
    assert (share.right, share.n) == (540, 600)
