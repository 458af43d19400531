"""Latency at 1,000 requests a second: steady, during swaps of equal size, while a large model is built.

    python -m benchmarks.serving.swap [--runs 5] [--quick]

* An open loop (``openloop``) sends the MLP's request with binary tensors; server and client have a core each.
* ``steady``: nothing else. ``swaps``: every 0.25 s the other of two MLPs is loaded, proven and served.
  ``building``: every 0.5 s a network of 540 nodes and 7.9 M parameters is loaded and proven as the way back,
  and let go; what is served stays the MLP, so that only the building is measured.
* The three are measured in turn, run by run. Where others had the processors (``quiet``), a phase is measured
  again.
* A request that is not answered with 200 is lost; one is enough to miss the target.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.search.table import say
from benchmarks.serving import asks, models, stage, tree
from benchmarks.serving.openloop import Loop
from benchmarks.serving.quiet import Watch, calmest
from benchmarks.serving.row import Figure, Row
from benchmarks.serving.stage import Served
from policies import bundle
from policies.errors import PermanentError
from policies.terms import Deployment, Slot
from policies.wire import canonical

MODEL, RATE = "mlp", 1000.0
SECONDS, QUICK_SECONDS = 10.0, 3.0
SWAP_EVERY_S, BUILD_EVERY_S = 0.25, 0.5
# As many blocks of three nodes as make 540, as wide as makes 7.9 M parameters.
_BLOCKS, _WIDTH, _PIXELS = 180, 209, 784


@dataclass(frozen=True)
class Phase:
    """What a phase gave; ``orders_ms`` is how long each deployment took."""

    p99_ms: float
    client_ms: float
    lost: int
    orders_ms: tuple[float, ...]
    others: float


def large(seed: int) -> bytes:
    """Return a bundle with the MLP's contract that takes long to build: 32 MB, residual blocks, 540 nodes."""
    rng = np.random.default_rng(seed)
    weights = {"in.w": rng.normal(0, _PIXELS**-0.5, (_PIXELS, _WIDTH))}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "in.w"], ["x0"]),
    ]
    for place in range(_BLOCKS):
        name, before, after = f"b{place}", f"x{place}", f"x{place + 1}"
        weights[f"{name}.w"] = rng.normal(0, 0.3 * _WIDTH**-0.5, (_WIDTH, _WIDTH))
        nodes += [
            helper.make_node("MatMul", [before, f"{name}.w"], [f"{name}.m"]),
            helper.make_node("Relu", [f"{name}.m"], [f"{name}.r"]),
            helper.make_node("Add", [before, f"{name}.r"], [after]),
        ]
    weights["out.w"] = rng.normal(0, 0.01, (_WIDTH, models.CLASSES))
    nodes += [
        helper.make_node("Identity", [f"x{_BLOCKS}"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "out.w"], ["logits"]),
    ]
    value, real = helper.make_tensor_value_info, TensorProto.FLOAT
    outputs = [
        value("logits", real, ["n", models.CLASSES]),
        value("embedding", real, ["n", _WIDTH]),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [value("image", real, ["n", *models.SHAPE])],
        outputs,
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", bundle.OPSET)]
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return models.with_meta(proto, MODEL, seed)


class Desk:
    """Orders deployments as control does: each has a higher revision, each slot a generation of its own."""

    def __init__(self, state: Path, bundles: tuple[str, ...]) -> None:
        self._bundles = bundles
        self._revision = self.generation = 0
        transport = httpx.HTTPTransport(uds=str(state / "run" / "serve.sock"))
        self._door = httpx.Client(transport=transport, base_url="http://serve", timeout=60.0)

    def close(self) -> None:
        """Hang up."""
        self._door.close()

    def digest(self, generation: int) -> str:
        """Return the bundle of a generation: they take turns, so that anybody can tell."""
        return self._bundles[generation % len(self._bundles)]

    def swap(self) -> float:
        """Make the next generation the stable one, the present one the way back; return the seconds."""
        self.generation += 1
        return self._order(self.generation, self.generation - 1, self.digest)

    def build(self, digest: str) -> float:
        """Have a bundle built beside the stable one, as the way back; return the seconds."""
        # Far from the generations that serve: its number may name no other bytes.
        return self._order(self.generation, 10**6 + self._revision, lambda _: digest)

    def let_go(self) -> float:
        """Let the way back go; return the seconds."""
        return self._order(self.generation, 0, self.digest)

    def refused(self, digest: str) -> str:
        """Order a bundle that must be refused, as the next generation; return the reason.

        Raises:
            PermanentError: It was served.
        """
        slot = Slot(generation=self.generation + 1, bundle=digest)
        answer = self._post(Slot(generation=self.generation + 1, bundle=digest), None)
        if answer.status_code == 200:
            raise PermanentError(f"expected instar-serve to refuse {slot}, it serves it")
        return answer.text

    def _order(self, stable: int, previous: int, digest: Callable[[int], str]) -> float:
        back = Slot(generation=previous, bundle=digest(previous)) if previous else None
        began = time.perf_counter()
        answer = self._post(Slot(generation=stable, bundle=self.digest(stable)), back)
        took_s = time.perf_counter() - began
        if answer.status_code != 200 or answer.json()["problem"] is not None:
            raise PermanentError(f"expected generation {stable} to be served, got: {answer.text[:300]}")
        return took_s

    def _post(self, stable: Slot, previous: Slot | None) -> httpx.Response:
        self._revision += 1
        wanted = Deployment(
            revision=self._revision,
            model=MODEL,
            stable=stable,
            newcomer=None,
            newcomer_share=0.0,
            previous=previous,
        )
        return self._door.post("/apply", content=canonical(wanted))


@contextlib.contextmanager
def on(core: int) -> Iterator[None]:
    """Stay on a processor for a while, so that ordering takes no time from the server."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def phase(served: Served, order: Callable[[], float] | None, every_s: float, seconds: float) -> Phase:
    """Measure one phase.

    Args:
        served: The server.
        order: What is ordered meanwhile, and how long that took; None: nothing.
        every_s: How often.
        seconds: How long.
    """
    ask = asks.ask(asks.Form.BINARY, MODEL, models.digit(0))
    watch, before, took = Watch.start(), tree.cpu_s(served.process.pid), []
    loop = Loop(served, ask, RATE, seconds, served.state)
    due = time.monotonic() + every_s
    with on(stage.CLIENT_CORE):
        while loop.running:
            time.sleep(min(0.01, every_s))
            if order is not None and time.monotonic() >= due:
                due += every_s
                took.append(order() * 1e3)
    trace = loop.trace()
    others = watch.others(tree.cpu_s(served.process.pid) - before)
    say(f"  {trace.say()}; {len(took)} orders; others {others:.2f} cores")
    return Phase(trace.ms(0.99), trace.client_ms, trace.lost, tuple(took), others)


def measure(runs: int, quick: bool) -> list[Row]:
    """Return the rows of this part."""
    seconds = QUICK_SECONDS if quick else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        mlps = tuple(stage.put(state, models.make_bundle(MODEL, seed)) for seed in range(2))
        heavy = stage.put(state, large(0))
        served = stage.start(state, MODEL)
        desk = Desk(state, mlps)
        building = False

        def build() -> float:
            nonlocal building
            building = not building
            return desk.build(heavy) if building else desk.let_go()

        phases: dict[str, tuple[Callable[[], float] | None, float]] = {
            "steady": (None, SWAP_EVERY_S),
            "swaps": (desk.swap, SWAP_EVERY_S),
            # Every second order builds.
            "building": (build, BUILD_EVERY_S / 2),
        }
        try:
            desk.swap()
            found: dict[str, list[Phase]] = {name: [] for name in phases}
            for number in range(runs):
                for name, (order, every_s) in phases.items():
                    say(f"swap: run {number + 1}, {name}")
                    one = calmest(lambda order=order, every_s=every_s: phase(served, order, every_s, seconds))
                    found[name].append(one)
        finally:
            desk.close()
            served.stop()
    return [
        _row("steady", found["steady"], 1.0),
        _row("while a model of equal size is swapped in each 0.25 s", found["swaps"], 1.0),
        _row("while a model of 540 nodes is built each 0.5 s", found["building"], 5.0),
    ]


def _row(what: str, found: list[Phase], ceiling_ms: float) -> Row:
    lost = sum(one.lost for one in found)
    p99 = Figure.of([one.p99_ms for one in found])
    orders = [ms for one in found for ms in one.orders_ms]
    note = f"{lost} lost; client late by at most {max(one.client_ms for one in found):g} ms (p99)"
    note += f", others had at most {max(one.others for one in found):.2f} cores"
    if orders:
        note += f"; {len(orders)} deployments, median {np.median(orders):.0f} ms each"
    return Row(
        f"p99 at 1,000/s, MLP binary, {what}",
        f"< {ceiling_ms:g} ms, none lost",
        p99,
        "ms",
        met=p99.median < ceiling_ms and lost == 0,
        note=note,
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description="Latency of instar-serve, steady and during swaps.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="shorter phases")
    flags = parser.parse_args()
    for row in measure(flags.runs, flags.quick):
        print(f"{row.what}: {row.ours} {row.unit}, wanted {row.target}: {row.verdict} ({row.note})")


if __name__ == "__main__":
    main()
