"""Latency of instar-serve, steady and while its model is swapped; open loop, from a process of its own.

    python benchmarks/serving/swap.py [--rate 300] [--seconds 10] [--swap-every-s 0.25]

Prints one line a phase: requests, lost, p50, p99 and maximum in milliseconds, once from the moment when a
request was due, so that a server that stalls cannot hide it (the client's timer adds up to 1 ms), and once
from the moment when it was sent. Each swap loads and proves a bundle that is not
loaded. Also raw onnxruntime for the same model, batch 1. The model is a small convolutional one with random
weights; the requests are JSON of one 28x28 digit.
"""

import argparse
import asyncio
import base64
import json
import re
import subprocess
import sys
import tempfile
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

MODEL, CLASSES, WIDTH, CONNECTIONS = "bench", 10, 48, 16


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


class Load:
    """An open loop over kept connections: request i is due at i / rate, whatever the server does."""

    def __init__(self, host: str, port: int, rate: float, seconds: float) -> None:
        self.host, self.port, self.rate, self.total = host, port, rate, int(rate * seconds)
        x = np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8)
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]})
        head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: b\r\ncontent-length: {len(body)}\r\n\r\n"
        self.request = (head + body).encode()
        self.seconds: list[float] = []
        self.service: list[float] = []
        self.next = 0

    async def run(self) -> None:
        """Send everything and wait for the answers."""
        self.began = time.perf_counter() + 0.05
        await asyncio.gather(*(self._connection() for _ in range(CONNECTIONS)))

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        while self.next < self.total:
            due = self.began + self.next / self.rate
            self.next += 1
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent = time.perf_counter()
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            if head.startswith(b"HTTP/1.1 200"):
                now = time.perf_counter()
                self.seconds.append(now - due)
                self.service.append(now - sent)
        writer.close()


def report(name: str, load: Load) -> None:
    """Print one phase."""
    lost = load.total - len(load.seconds)
    print(f"{name:14s} {load.total:6d} sent, {lost} lost, ms", end="")
    for what, values in (("since due", load.seconds), ("since sent", load.service)):
        p50, p99, worst = np.percentile(np.array(values) * 1e3, [50, 99, 100])
        print(f"  {what}: p50 {p50:.2f} p99 {p99:.2f} max {worst:.2f}", end="")
    print()


def raw_rate(state: Path, digest: str) -> float:
    """Return how many single digits a second onnxruntime alone answers, one thread."""
    hexes = digest.removeprefix("sha256:")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    raw = (state / "blobs" / "sha256" / hexes[:2] / hexes[2:]).read_bytes()
    session = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    x, n = np.zeros((1, 28, 28), np.uint8), 500
    began = time.perf_counter()
    for _ in range(n):
        session.run(["logits", "embedding"], {"image": x})
    return n / (time.perf_counter() - began)


def main() -> None:
    """Run the phases."""
    parser = argparse.ArgumentParser(description="Latency of instar-serve, steady and during swaps.")
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a phase")
    parser.add_argument("--swap-every-s", type=float, default=0.25, help="pause between two swaps")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        digests = [make_bundle(state, seed) for seed in range(2)]
        print(f"raw onnxruntime, batch 1: {raw_rate(state, digests[0]):.0f}/s")
        server, host, port = start(state)
        try:
            apply(state, 1, digests[1])
            for name, swapping in (("steady", False), ("during swaps", True), ("steady again", False)):
                load, swaps, stop = Load(host, port, flags.rate, flags.seconds), [], threading.Event()

                def swap(base=int(swapping), stop=stop, swaps=swaps) -> None:
                    while base and not stop.wait(flags.swap_every_s):
                        generation = 2 + len(swaps)
                        swaps.append(apply(state, generation, digests[generation % 2]))

                swapper = threading.Thread(target=swap)
                swapper.start()
                asyncio.run(load.run())
                stop.set()
                swapper.join()
                report(name, load)
                if swaps:
                    print(
                        f"  {len(swaps)} swaps, median {np.median(swaps) * 1e3:.0f} ms from order to served"
                    )
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
