"""The rest of the road for every kind of input: served, recorded, sampled, stored, watched, founded."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import orjson
import pytest
from onnx import helper, numpy_helper

from daemon.compose import _found
from daemon.ops.doors import bind
from daemon.serving.main import Plane
from daemon.serving.recorder import summary
from daemon.serving.settings import ServeSettings
from daemon.serving.slot import build
from daemon.store.blobs import Blobs
from daemon.store.samples import Samples
from guards.material import Material
from monitors.channels import Channels, usable
from monitors.spool import Block, Cursor, SpoolReader
from policies.clock import SystemClock
from policies.document import load
from policies.errors import PermanentError, PolicyError
from policies.telemetry import row_key
from policies.terms import Datatype, Deployment, Slot, Source
from policies.wire import canonical
from tests.modalities import foundry
from tests.modalities.conftest import CANDIDATE, PROFILES, Bench
from tests.modalities.foundry import CLASSES, KINDS, WIDTH, Kind

SHARES = load(PROFILES / "default.toml")[0].modification_protocol.data
LARGEST = float(np.finfo(np.float32).max)

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
floats_alone = pytest.mark.parametrize("name", ["window", "table"])


class Line:
    """A data plane with one door, spoken to in its own loop."""

    def __init__(self, kind: Kind, state: Path, raw: bytes) -> None:
        self.kind = kind
        self.settings = ServeSettings(state=state, model=kind.name, sample_bytes_per_s=1 << 24)
        self.digest = Blobs(self.settings.blobs).put(raw)
        self.plane = Plane(self.settings, SystemClock())

    def ask(self, *bodies: tuple[bytes, dict[str, str]]) -> list[httpx.Response]:
        """Serve the bundle, send all requests one after the other, and close the spool."""
        return asyncio.run(self._ask(bodies))

    async def _ask(self, bodies: tuple[tuple[bytes, dict[str, str]], ...]) -> list[httpx.Response]:
        wanted = Deployment(
            revision=1,
            model=self.kind.name,
            stable=Slot(generation=1, bundle=self.digest),
            newcomer=None,
            newcomer_share=0.0,
            previous=None,
        )
        await self.plane.keeper.apply(canonical(wanted))
        listener = bind("127.0.0.1:0")
        await self.plane.reception.open(listener)
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        path = f"/v2/models/{self.kind.name}/infer"
        async with httpx.AsyncClient(base_url=base) as client:
            answers = [await client.post(path, content=body, headers=head) for body, head in bodies]
        await self.plane.drain(5.0)
        return answers

    def spooled(self, which: Any) -> Block:
        block, _ = SpoolReader(self.settings.spool, which, Cursor(0, 0)).read(100_000)
        assert block is not None
        return block


def as_json(kind: Kind, x: np.ndarray, name: str) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "x", "datatype": kind.datatype.value, "shape": list(x.shape), "data": x.tolist()}
    return orjson.dumps({"id": name, "inputs": [tensor]}), {}


def as_binary(kind: Kind, x: np.ndarray, name: str) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "x", "datatype": kind.datatype.value, "shape": list(x.shape)}
    size = {"parameters": {"binary_data_size": x.nbytes}}
    head = orjson.dumps({"id": name, "inputs": [tensor | size], "parameters": {"binary_data_output": True}})
    return head + x.tobytes(), {"inference-header-content-length": str(len(head))}


@pytest.fixture
def line(bench: Bench, tmp_path: Path) -> Callable[[Kind, bool], Line]:
    def make(kind: Kind, int8: bool) -> Line:
        raw = Path(bench.bundle(kind, CANDIDATE, int8).path).read_bytes()
        return Line(kind, tmp_path / "s", raw)

    return make


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = Samples(tmp_path / "samples", b"k" * 32, SHARES)
    yield made
    made.close()


# -- the data plane -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])
@every_kind
def test_json_and_binary_give_the_bundles_own_numbers(
    kind: Kind, int8: bool, bench: Bench, line: Callable[..., Line]
) -> None:
    x = kind.rows(4, seed=21)[0]
    json, binary = line(kind, int8).ask(as_json(kind, x, "a"), as_binary(kind, x, "b"))
    net = foundry.session(bench.net(kind, CANDIDATE, int8)[0])
    logits, embedding = net.run(["logits", "embedding"], {"x": x})
    assert (json.status_code, binary.status_code) == (200, 200), json.text
    told = {o["name"]: np.array(o["data"], np.float32).reshape(o["shape"]) for o in json.json()["outputs"]}
    assert np.array_equal(told["logits"], logits)
    assert np.array_equal(told["embedding"], embedding)
    length = int(binary.headers["inference-header-content-length"])
    assert binary.content[length:] == logits.tobytes() + embedding.tobytes()


@floats_alone
@pytest.mark.parametrize("fault", ["NaN", "an infinity", "whole numbers in binary", "a row too short"])
def test_a_request_is_refused_that_brings(fault: str, name: str, line: Callable[..., Line]) -> None:
    kind = KINDS[name]
    x = kind.rows(1, seed=21)[0]
    bad = x.copy()
    bad.flat[0] = np.nan if fault == "NaN" else np.inf
    asks = {
        "NaN": as_binary(kind, bad, "a"),
        "an infinity": as_binary(kind, bad, "a"),
        "whole numbers in binary": as_binary(kind, x.astype(np.uint8), "a"),
        "a row too short": as_json(kind, x[..., :-1], "a"),
    }
    refused, answered = line(kind, True).ask(asks[fault], as_binary(kind, x, "b"))
    assert refused.status_code == 400
    assert "expected" in refused.json()["error"]
    assert answered.status_code == 200


@every_kind
def test_what_is_served_is_recorded_sampled_and_stored(
    kind: Kind, line: Callable[..., Line], store: Samples, bench: Bench, tmp_path: Path
) -> None:
    x, y = kind.rows(60, seed=22)
    served = line(kind, True)
    served.ask(*(as_binary(kind, x[i : i + 1], f"r{i}") for i in range(len(x))))
    samples = served.spooled("samples")
    assert samples["input"].dtype == x.dtype
    assert np.array_equal(samples["input"], x)
    assert store.ingest(samples) == len(x)
    store.label(np.array([np.void(row_key(f"r{i}", 0, 1)) for i in range(len(x))]), y, at=samples["at"][-1])
    gate = store.export_gate(tmp_path / "gate.npz", since=0.0, max_rows=100, seed=1)
    traffic = store.export_traffic(tmp_path / "traffic.npz", max_rows=100)
    material = Material(bench.case(kind, True, gate=gate, traffic=traffic), lambda: 0.0)
    rows = material.rows(1)
    assert (rows.x.dtype, rows.x.shape[1:]) == (x.dtype, kind.row)
    assert {row.tobytes() for row in rows.x} <= {row.tobytes() for row in x}
    assert material.traffic.shape[1:] == kind.row


@every_kind
def test_the_monitors_read_the_records(kind: Kind, line: Callable[..., Line]) -> None:
    x = kind.rows(60, seed=23)[0]
    served = line(kind, False)
    served.ask(*(as_binary(kind, x[i : i + 1], f"r{i}") for i in range(len(x))))
    block = served.spooled("telemetry")
    assert usable(block).all()
    channels = Channels.fit(block)
    # Entropy and doubt, embedding, residual, who left early, summary, shares of the classes.
    assert len(channels.names) == 2 + min(8, WIDTH) + 1 + 1 + 5 + len(CLASSES)
    assert np.isfinite(channels.standardise(block)).all()


@floats_alone
def test_a_sensor_at_the_end_of_its_scale_leaves_a_record_that_counts(
    name: str, line: Callable[..., Line]
) -> None:
    kind = KINDS[name]
    x = np.full((1, *kind.row), LARGEST, np.float32)
    x.flat[0] = -LARGEST
    served = line(kind, False)
    served.ask(as_binary(kind, x, "end"), as_binary(kind, kind.rows(1, seed=1)[0], "well"))
    block = served.spooled("telemetry")
    assert len(block) == 2
    assert usable(block).all()


def test_a_picture_has_the_same_edges_however_its_colours_lie() -> None:
    rng = np.random.default_rng(4)
    last = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(summary(last), summary(first), rtol=1e-5)
    # Stripes have edges along the width; every pixel is grey, so that its colours do not differ.
    stripes = np.zeros((1, 16, 16, 3), np.uint8)
    stripes[:, :, ::2] = 200
    assert summary(stripes)[0, 4] == 200
    assert summary(np.full((1, 16, 16, 3), 9, np.uint8))[0, 4] == 0


def scaled(by: float) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        last = next(node for node in model.graph.node if "logits" in node.output)
        last.output[:] = ["plain"]
        model.graph.initializer.append(numpy_helper.from_array(np.float32(by), "by"))
        model.graph.node.append(helper.make_node("Mul", ["plain", "by"], ["logits"], name="by"))

    return edit


@pytest.mark.parametrize(("slip", "proven"), [(1e-4, True), (1e-2, False)])
def test_large_answers_are_proven_as_exactly_as_the_guard_proves_them(
    slip: float, proven: bool, bench: Bench, tmp_path: Path
) -> None:
    kind = KINDS["table"]
    model, params = bench.net(kind, CANDIDATE, False)
    large = onnx.load_from_string(model.SerializeToString())
    scaled(1e4)(large)
    told = foundry.told(kind, large, params, bench.genome(kind, CANDIDATE, False))
    # What is served differs from its goldens by a share, as a folded net does from the one that was trained.
    factor = next(t for t in told.graph.initializer if t.name == "by")
    factor.CopyFrom(numpy_helper.from_array(np.float32(1e4 * (1 + slip)), "by"))
    blobs = Blobs(tmp_path / "blobs")
    digest = blobs.put(told.SerializeToString())
    if proven:
        assert build(tmp_path / "blobs", kind.name, 1, digest, max_batch=8).generation == 1
    else:
        with pytest.raises(PermanentError, match="expected logits of golden 0"):
            build(tmp_path / "blobs", kind.name, 1, digest, max_batch=8)


# -- founding -----------------------------------------------------------------------------------------------


def found(kind: Kind, folder: Path, store: Samples, x: np.ndarray, y: np.ndarray) -> None:
    np.savez(folder / "rows.npz", x=x, y=y)
    source = Source(path="rows.npz", first=0, last=len(x))
    _found(kind.task.model_copy(update={"sources": (source,)}), folder, store)


@every_kind
def test_founding_rows_are_taken_in_as_they_are(kind: Kind, store: Samples, tmp_path: Path) -> None:
    x, y = kind.rows(80, seed=31)
    found(kind, tmp_path, store, x, y)
    data = store.export_search(tmp_path / "data.npz", since=0.0, max_new=100, max_replay=0, seed=1)
    with np.load(data.path) as file:
        assert file["x"].dtype == x.dtype
        assert file["x"].shape[1:] == kind.row
        assert {row.tobytes() for row in file["x"]} <= {row.tobytes() for row in x}


FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "of double precision": (lambda x: x.astype(np.float64), "float32.*got float64"),
    "of half precision": (lambda x: x.astype(np.float16), "float32.*got float16"),
    "not finite": (lambda x: np.where(x >= x.max(), np.inf, x).astype(np.float32), "finite"),
    "of another shape": (lambda x: x[..., :-1], "rows of shape"),
}


@floats_alone
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_founding_rows_are_refused_that_are(fault: str, name: str, store: Samples, tmp_path: Path) -> None:
    kind = KINDS[name]
    spoil, reason = FAULTS[fault]
    x, y = kind.rows(80, seed=31)
    with pytest.raises(PolicyError, match=reason):
        found(kind, tmp_path, store, spoil(x), y)
    assert store.counts(0.0).train == 0


def test_founding_pictures_are_refused_that_are_whole_numbers_of_another_size(
    store: Samples, tmp_path: Path
) -> None:
    kind = KINDS["colour"]
    assert kind.datatype is Datatype.UINT8
    x, y = kind.rows(8, seed=31)
    with pytest.raises(PolicyError, match=r"uint8.*got int64"):
        found(kind, tmp_path, store, x.astype(np.int64), y)
