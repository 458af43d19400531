"""Tiny bundles, a data plane in a thread, and a data plane in a process of its own."""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import uvloop
from onnx import TensorProto, helper, numpy_helper

from daemon.ops.doors import bind, bind_unix, door
from daemon.serving.main import Plane
from daemon.serving.settings import ServeSettings
from policies import bundle
from policies.clock import SystemClock
from policies.terms import Deployment, Slot
from policies.wire import canonical

MODEL = "meter-reader"
CLASSES = 10
FLOAT_TYPES = {"UINT8": (TensorProto.UINT8, np.uint8), "FP32": (TensorProto.FLOAT, np.float32)}


@dataclass
class Tiny:
    """A two-layer model: ``embedding = x @ a``, ``logits = embedding @ b + bias``."""

    raw: bytes
    digest: str
    a: np.ndarray
    b: np.ndarray
    bias: np.ndarray
    width: int
    datatype: str = "UINT8"

    def expected(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = x.reshape(len(x), -1).astype(np.float32) / np.float32(255)
        embedding = flat @ self.a
        return embedding @ self.b + self.bias, embedding


@dataclass
class Forge:
    """Makes bundles and puts them into a state's blob store."""

    state: Path
    made: dict = field(default_factory=dict)

    def tiny(self, seed=1, width=16, side=28, datatype="UINT8", model=MODEL, spoil=None, meta=None) -> Tiny:
        rng = np.random.default_rng(seed)
        a = rng.normal(0, 0.1, (side * side, width)).astype(np.float32)
        b = rng.normal(0, 0.3, (width, CLASSES)).astype(np.float32)
        bias = rng.normal(0, 1, CLASSES).astype(np.float32)
        tiny = Tiny(b"", "", a, b, bias, width, datatype)
        golden = rng.integers(0, 256, (2, side, side)).astype(FLOAT_TYPES[datatype][1])
        logits, embedding = tiny.expected(golden)
        if spoil == "golden":
            logits = logits + np.float32(0.01)
        text = self._meta(model, datatype, side, width, seed, golden, logits, embedding)
        text.update(meta or {})
        proto = self._graph(tiny, side, spoil)
        onnx.helper.set_model_props(proto, {bundle.KEY: canonical(text).decode()})
        tiny.raw = proto.SerializeToString()
        tiny.digest = "sha256:" + hashlib.sha256(tiny.raw).hexdigest()
        self.put(tiny.digest, tiny.raw)
        return tiny

    def put(self, digest: str, raw: bytes) -> Path:
        hexes = digest.removeprefix("sha256:")
        path = self.state / "blobs" / "sha256" / hexes[:2] / hexes[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        return path

    @staticmethod
    def _meta(model, datatype, side, width, seed, golden, logits, embedding):
        def b64(array):
            return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()

        item = {
            "rows": len(golden),
            "input_b64": b64(golden),
            "logits_b64": b64(logits.astype("<f4")),
            "embedding_b64": b64(embedding.astype("<f4")),
        }
        return {
            "format": 1,
            "task": model,
            "model": model,
            "genome": {"space": "tiny", "genes": [seed]},
            "input": {"name": "image", "datatype": datatype, "shape": [-1, side, side]},
            "outputs": [
                {"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]},
                {"name": "embedding", "datatype": "FP32", "shape": [-1, width]},
            ],
            "classes": [str(i) for i in range(CLASSES)],
            "brief": "b1",
            "seed": seed,
            "params": 10,
            "macs": 10,
            "goldens": [{"kind": "clean", **item}, {"kind": "probe", **item}],
        }

    @staticmethod
    def _graph(tiny, side, spoil):
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "scale"], ["unit"]),
            helper.make_node("Flatten", ["unit"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "a"], ["embedding"]),
            helper.make_node("MatMul", ["embedding", "b"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["logits"]),
        ]
        arrays = {"scale": np.float32(255), "a": tiny.a, "b": tiny.b, "bias": tiny.bias}
        if spoil == "nan":
            # sqrt(-x) is NaN for every input but zero: a graph that only its goldens make look sane.
            nodes[3] = helper.make_node("MatMul", ["flat", "a"], ["sane"])
            nodes.insert(4, helper.make_node("ReduceMax", ["unit"], ["peak"], axes=[1, 2], keepdims=0))
            nodes.insert(5, helper.make_node("Sub", ["cap", "peak"], ["room"]))
            nodes.insert(6, helper.make_node("Sqrt", ["room"], ["root"]))
            nodes.insert(7, helper.make_node("Mul", ["root", "zero"], ["nothing"]))
            nodes.insert(8, helper.make_node("Unsqueeze", ["nothing", "axis"], ["column"]))
            nodes.insert(9, helper.make_node("Add", ["sane", "column"], ["embedding"]))
            arrays |= {"cap": np.float32(1.0), "zero": np.float32(0), "axis": np.array([1], np.int64)}
        return helper.make_model(
            helper.make_graph(
                nodes,
                "tiny",
                [helper.make_tensor_value_info("image", FLOAT_TYPES[tiny.datatype][0], ["n", side, side])],
                [
                    helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES]),
                    helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", tiny.width]),
                ],
                [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
            ),
            opset_imports=[helper.make_opsetid("", bundle.OPSET)],
            ir_version=9,
        )


def deployment(revision, stable=None, newcomer=None, share=0.0, previous=None, model=MODEL) -> Deployment:
    """Slots are given as (generation, Tiny)."""

    def slot(pair):
        return None if pair is None else Slot(generation=pair[0], bundle=pair[1].digest)

    return Deployment(
        revision=revision,
        model=model,
        stable=slot(stable),
        newcomer=slot(newcomer),
        newcomer_share=share,
        previous=slot(previous),
    )


class Admin:
    """Control's side of the admin socket."""

    def __init__(self, path: Path) -> None:
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://serve", timeout=30.0
        )

    def apply(self, wanted) -> httpx.Response:
        return self.client.post("/apply", content=wanted if isinstance(wanted, bytes) else canonical(wanted))

    def observed(self) -> dict:
        return self.client.get("/observed").json()


class Thread:
    """The data plane's own objects and doors, in a thread of the test process."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._main)

    def start(self) -> "Thread":
        self._thread.start()
        assert self._up.wait(30)
        self.base = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.base, timeout=30.0)
        self.admin = Admin(self.settings.admin_socket)
        return self

    def infer(self, x, name=None, version=None, **message) -> httpx.Response:
        body = {
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": list(x.shape), "data": x.tolist()}],
            **message,
        }
        if name is not None:
            body["id"] = name
        pin = "" if version is None else f"/versions/{version}"
        return self.http.post(f"/v2/models/{MODEL}{pin}/infer", json=body)

    def metrics(self) -> dict[str, float]:
        lines = self.plane.metrics.text().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self.http.close()
        self.admin.client.close()
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.plane = Plane(self.settings, SystemClock())
        self.plane.spool.start()
        await self.plane.keeper.restore()
        self.settings.admin_socket.parent.mkdir(parents=True, exist_ok=True)
        public, admin = bind("127.0.0.1:0"), bind_unix(self.settings.admin_socket)
        self.port = public.getsockname()[1]
        doors = [door(self.plane.admin, 5.0)]
        await self.plane.reception.open(public)
        if self.settings.grpc is not None:
            self.grpc = self.plane.open_grpc(self.settings.grpc, self.loop)
        tasks = [asyncio.create_task(doors[0].serve([admin]))]
        while not all(d.started for d in doors):
            await asyncio.sleep(0.001)
        self._up.set()
        await self._stop.wait()
        await self.plane.drain(5.0)
        for d in doors:
            d.should_exit = True
        await asyncio.gather(*tasks)


class Process:
    """A real ``instar-serve``."""

    def __init__(self, state: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "daemon.serving.main", "--state", str(state), "--model", MODEL]
        command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *flags]
        self.log: list[str] = []
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.base = self.metrics_base = ""
        for line in self.popen.stderr:
            self.log.append(line)
            found = re.search(r"open: inference=(\S+) metrics=(\S+) ", line)
            if found:
                self.base, self.metrics_base = f"http://{found[1]}", f"http://{found[2]}"
                self.grpc = line.partition(" grpc=")[2].strip()
                break
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.admin = Admin(state / "run" / "serve.sock")

    def _read(self) -> None:
        self.log.extend(self.popen.stderr)

    def end(self, number=signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        code = self.popen.wait(30)
        self._reader.join(30)
        self.popen.stderr.close()
        self.admin.client.close()
        return code


def read_spool(folder: Path, kind: str) -> list[np.ndarray]:
    """Read all segments, each as one array; an own reader, so that the layout is checked from outside."""
    blocks = []
    for path in sorted(folder.glob(f"{kind}-*.seg")):
        head, _, data = path.read_bytes().partition(b"\n")
        header = json.loads(head)
        assert (header["magic"], header["format"], header["kind"]) == ("instar-spool", 2, kind)
        dtype = np.dtype([(name, code, tuple(shape)) for name, code, shape in header["fields"]])
        blocks.append(np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype))
    return blocks


@dataclass
class Kit:
    """What a test file needs of this one."""

    deployment = staticmethod(deployment)
    read_spool = staticmethod(read_spool)
    model = MODEL

    @staticmethod
    def digits(rows: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (rows, 28, 28), dtype=np.uint8)


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture
def forge(tmp_path) -> Forge:
    return Forge(tmp_path / "s")


@pytest.fixture
def thread(tmp_path):
    """Start a data plane in a thread: ``thread(**settings)``."""
    with contextlib.ExitStack() as stack:

        def start(**settings) -> Thread:
            started = Thread(ServeSettings(state=tmp_path / "s", model=MODEL, **settings)).start()
            stack.callback(started.stop)
            return started

        yield start


@pytest.fixture
def process(tmp_path):
    """Start a real process: ``process(*flags)``; whatever is left at the end is killed."""
    started: list[Process] = []

    def start(*flags: str) -> Process:
        started.append(Process(tmp_path / "s", *flags))
        return started[-1]

    yield start
    for each in started:
        if each.popen.poll() is None:
            each.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A data plane that serves generation 1 to all tests of a file: (thread, tiny)."""
    state = tmp_path_factory.mktemp("shared") / "s"
    tiny = Forge(state).tiny(seed=1)
    plane = Thread(ServeSettings(state=state, model=MODEL)).start()
    plane.admin.apply(deployment(1, stable=(1, tiny))).raise_for_status()
    yield plane, tiny
    plane.stop()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A data plane that serves generation 1 over REST and gRPC to all tests of a file: (thread, tiny)."""
    state = tmp_path_factory.mktemp("both") / "s"
    tiny = Forge(state).tiny(seed=1)
    plane = Thread(ServeSettings(state=state, model=MODEL, grpc="127.0.0.1:0")).start()
    plane.admin.apply(deployment(1, stable=(1, tiny))).raise_for_status()
    yield plane, tiny
    plane.stop()


@pytest.fixture
def served(forge, thread, kit):
    """A data plane that serves generation 1: (thread, tiny)."""
    tiny = forge.tiny(seed=1)
    plane = thread()
    answer = plane.admin.apply(kit.deployment(1, stable=(1, tiny)))
    assert answer.status_code == 200, answer.text
    return plane, tiny
