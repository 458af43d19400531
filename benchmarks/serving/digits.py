"""A server for the example's camera: a small convolutional network with random weights, bytes in, digits out.

``benchmarks/search/neighbour.py`` measures it beside a search. What the other serving benchmarks serve lies
in ``models.py`` and ``stage.py``; they take numbers, the camera sends bytes.
"""

import base64
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from policies import bundle
from policies.terms import Deployment, Slot
from policies.wire import canonical, digest_bytes

MODEL, CLASSES, WIDTH = "bench", 10, 48


def graph(seed: int) -> onnx.ModelProto:
    """Return three convolutions, a pool and a linear layer."""
    rng = np.random.default_rng(seed)
    widths = (1, 16, 32, WIDTH)
    arrays = {"scale": np.float32(255), "dense": rng.normal(0, 0.2, (WIDTH, CLASSES)).astype(np.float32)}
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["f", "scale"], ["unit"]),
        helper.make_node("Unsqueeze", ["unit", "one"], ["x0"]),
    ]
    arrays["one"] = np.array([1], np.int64)
    for i in range(3):
        kernel = rng.normal(0, (2 / (9 * widths[i])) ** 0.5, (widths[i + 1], widths[i], 3, 3))
        arrays[f"w{i}"] = kernel.astype(np.float32)
        strides = [1 + (i > 0)] * 2
        nodes.append(
            helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1], strides=strides)
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["x3"], ["pool"]))
    nodes.append(helper.make_node("Flatten", ["pool"], ["embedding"]))
    nodes.append(helper.make_node("MatMul", ["embedding", "dense"], ["logits"]))
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "bench",
            [value("image", TensorProto.UINT8, ["n", 28, 28])],
            [
                value("logits", TensorProto.FLOAT, ["n", CLASSES]),
                value("embedding", TensorProto.FLOAT, ["n", WIDTH]),
            ],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", bundle.OPSET)],
        ir_version=9,
    )


def make_bundle(state: Path, seed: int) -> str:
    """Put a bundle into the state's blobs and return its digest."""
    proto = graph(seed)
    x = np.random.default_rng(seed).integers(0, 256, (4, 28, 28), np.uint8)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, embedding = session.run(["logits", "embedding"], {"image": x})
    blobs = (base64.b64encode(array.tobytes()).decode() for array in (x, logits, embedding))
    golden = dict(zip(("input_b64", "logits_b64", "embedding_b64"), blobs, strict=True), rows=4)
    meta = {
        "format": 1,
        "task": MODEL,
        "model": MODEL,
        "genome": {"space": "bench", "genes": [seed]},
        "input": {"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]},
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]},
            {"name": "embedding", "datatype": "FP32", "shape": [-1, WIDTH]},
        ],
        "classes": [str(i) for i in range(CLASSES)],
        "brief": "bench",
        "seed": seed,
        "params": 1,
        "macs": 1,
        "goldens": [{"kind": "clean", **golden}, {"kind": "probe", **golden}],
    }
    helper.set_model_props(proto, {bundle.KEY: canonical(meta).decode()})
    raw = proto.SerializeToString()
    digest = digest_bytes(raw)
    hexes = digest.removeprefix("sha256:")
    path = state / "blobs" / "sha256" / hexes[:2] / hexes[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return digest


def start(state: Path) -> tuple[subprocess.Popen[str], str, int]:
    """Start a server; return it with its host and port."""
    command = [sys.executable, "-m", "daemon.serving.main", "--state", str(state), "--model", MODEL]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--pin", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr or ():
        if found := re.search(r"open: inference=([^:]+):(\d+)", line):
            threading.Thread(target=lambda: list(server.stderr or ()), daemon=True).start()
            return server, found[1], int(found[2])
    raise SystemExit("expected instar-serve to start, see its log above")


def apply(state: Path, generation: int, digest: str) -> float:
    """Make a bundle the stable one; return how long that took, in seconds."""
    wanted = Deployment(
        revision=generation,
        model=MODEL,
        stable=Slot(generation=generation, bundle=digest),
        newcomer=None,
        newcomer_share=0.0,
        previous=None,
    )
    transport = httpx.HTTPTransport(uds=str(state / "run" / "serve.sock"))
    with httpx.Client(transport=transport, base_url="http://serve", timeout=60.0) as client:
        began = time.perf_counter()
        client.post("/apply", content=canonical(wanted)).raise_for_status()
        return time.perf_counter() - began
