"""Two tiny bundles over four readings, a spool that is written by hand, and a case."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from monitors.spool import record_dtype
from policies import bundle
from policies.clauses import Shadow
from policies.shadow import ShadowCase
from policies.telemetry import FORMAT, MAGIC, OUTCOMES, Field, sample_fields, telemetry_fields
from policies.terms import Slot
from policies.wire import canonical, digest_bytes

CLASSES, WIDTH = 4, 4
CLAUSE = Shadow(
    clause="MP-7.1",
    rows=40,
    max_disagreement=0.6,
    max_error_share=0.01,
    # Two networks of one size: far from any limit, however busy the machine is.
    max_p50_ratio=50.0,
    max_s=60.0,
    alpha=0.05,
    attempts=2,
)


def answers(x: np.ndarray, turned: int) -> np.ndarray:
    """Return the logits of a bundle: its input, turned by so many classes."""
    return np.roll(x, turned, axis=1)


def make_bundle(blobs: Path, turned: int = 0) -> str:
    """Write a bundle into a blob store; return its digest."""
    weights = np.roll(np.eye(WIDTH, dtype=np.float32), turned, axis=1)
    golden = np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)

    def b64(array: np.ndarray) -> str:
        return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()

    spec = {"name": "x", "datatype": "FP32", "shape": [-1, WIDTH]}
    item = {
        "rows": 2,
        "input_b64": b64(golden),
        "logits_b64": b64(answers(golden, turned)),
        "embedding_b64": b64(golden),
    }
    meta: dict[str, Any] = {
        "format": 1,
        "task": "readings",
        "model": "readings",
        "genome": {"space": "table", "genes": [turned]},
        "input": spec,
        "outputs": [spec | {"name": "logits", "shape": [-1, CLASSES]}, spec | {"name": "embedding"}],
        "classes": [str(i) for i in range(CLASSES)],
        "brief": "b1",
        "seed": 1,
        "params": 16,
        "macs": 16,
        "goldens": [item | {"kind": "clean"}, item | {"kind": "probe"}],
    }
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["embedding"]),
            helper.make_node("MatMul", ["embedding", "w"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])
            for name in ("logits", "embedding")
        ],
        [numpy_helper.from_array(weights, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", bundle.OPSET)], ir_version=9)
    onnx.helper.set_model_props(proto, {bundle.KEY: canonical(meta).decode()})
    raw = proto.SerializeToString()
    digest = digest_bytes(raw)
    path = blobs / "sha256" / digest[7:9] / digest[9:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return digest


@dataclass
class Hand:
    """Writes segments as the data plane does."""

    folder: Path
    segments: int = 0

    def inputs(self, keys: list[int], x: np.ndarray, **facts: Any) -> None:
        self._write("samples", sample_fields("<f4", (WIDTH,)), keys, {"input": x} | facts)

    def told(self, keys: list[int], logits: np.ndarray, outcome: str = "ok", **facts: Any) -> None:
        fields = telemetry_fields(CLASSES, WIDTH)
        self._write("telemetry", fields, keys, {"logits": logits, "outcome": OUTCOMES.index(outcome)} | facts)

    def rows(self, rows: int, turned: int = 0, **facts: Any) -> np.ndarray:
        """Write rows with both halves; return their inputs. The client was told by a bundle ``turned``."""
        x = np.random.default_rng(self.segments).normal(size=(rows, WIDTH)).astype(np.float32)
        keys = [self.segments * 100_000 + i for i in range(rows)]
        self.inputs(keys, x, **facts)
        self.told(keys, answers(x, turned), **facts)
        return x

    def _write(self, kind: str, fields: list[Field], keys: list[int], facts: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.segments += 1
        records = np.zeros(len(keys), record_dtype(fields))
        records["row_key"] = np.frombuffer(b"".join(key.to_bytes(16, "big") for key in keys), "V16")
        for name, value in ({"at": 1000.0, "generation": 1} | facts).items():
            records[name] = value
        head = {"magic": MAGIC, "format": FORMAT, "kind": kind, "model": "readings", "fields": fields}
        path = self.folder / f"{kind}-{self.segments:012d}.seg"
        path.write_bytes(json.dumps(head).encode() + b"\n" + records.tobytes())


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    return Hand(tmp_path / "spool")


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., ShadowCase]:
    def make(turned: int = 0, **changes: Any) -> ShadowCase:
        blobs = tmp_path / "blobs"
        case = ShadowCase(
            candidate="c2",
            model="readings",
            blobs=str(blobs),
            spool=str(tmp_path / "spool"),
            newcomer=Slot(generation=2, bundle=make_bundle(blobs, turned)),
            incumbent=Slot(generation=1, bundle=make_bundle(blobs, 0)),
            since=500.0,
            clause=CLAUSE,
            exit_confidence=None,
        )
        return case.model_copy(update=changes)

    return make
