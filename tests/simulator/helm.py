"""The helm of a storm: orders deployments as control does, and notes in a `Course` what was applied and when.

* Bundles that a storm needs beside sound ones: ``blind`` answers NaN to dark pictures though its goldens are
  sound, ``deep`` takes long to build, ``altered`` is not what its digest says.
* Each order has a higher revision; each slot that is made, a generation of its own.
"""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.serving import models as bench
from policies import bundle
from policies.terms import Deployment, Slot
from policies.wire import canonical, digest_bytes
from tests.serving.conftest import Admin, Forge
from tests.simulator.account import Course, Model
from tests.simulator.storm import MODEL

BLOCKS, WIDTH, DIM = 120, 96, 0.5


def blind(forge: Forge, seed: int) -> bytes:
    """Return a bundle that answers NaN to a row whose brightest point is below ``DIM`` of the scale."""
    proto = onnx.load_from_string(forge.tiny(seed=seed, width=12, spoil="nan").raw)
    (room,) = [node for node in proto.graph.node if node.op_type == "Sub"]
    room.input[:] = ["peak", "cap"]
    (cap,) = [each for each in proto.graph.initializer if each.name == "cap"]
    cap.CopyFrom(numpy_helper.from_array(np.asarray(np.float32(DIM)), "cap"))
    return bytes(proto.SerializeToString())


def deep(forge: Forge, seed: int) -> bytes:
    """Return a bundle with many residual blocks before its embedding: slow to build, quick enough to run."""
    proto = onnx.load_from_string(forge.tiny(seed=seed, width=WIDTH).raw)
    rng = np.random.default_rng(seed)
    nodes = list(proto.graph.node)
    (first,) = [node for node in nodes if node.output[0] == "embedding"]
    first.output[0] = "x0"
    place = nodes.index(first) + 1
    for number in range(BLOCKS):
        weight = rng.normal(0, 0.3 * WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{number}"))
        last = "embedding" if number == BLOCKS - 1 else f"x{number + 1}"
        nodes[place:place] = [
            helper.make_node("MatMul", [f"x{number}", f"w{number}"], [f"m{number}"]),
            helper.make_node("Relu", [f"m{number}"], [f"r{number}"]),
            helper.make_node("Add", [f"x{number}", f"r{number}"], [last]),
        ]
        place += 3
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return _retold(proto)


def _retold(proto: onnx.ModelProto) -> bytes:
    """Return a graph with goldens of its own."""
    session = bench.session(proto.SerializeToString())
    (text,) = [each for each in proto.metadata_props if each.key == bundle.KEY]
    meta = json.loads(text.value)
    for golden in meta["goldens"]:
        x = np.frombuffer(base64.b64decode(golden["input_b64"]), np.uint8).reshape(golden["rows"], 28, 28)
        for name, array in zip(("logits", "embedding"), session.run(None, {"image": x}), strict=True):
            golden[f"{name}_b64"] = base64.b64encode(array.tobytes()).decode()
    text.value = canonical(meta).decode()
    return bytes(proto.SerializeToString())


def altered(forge: Forge, seed: int) -> str:
    """Put a sound bundle with one bit turned where its digest says; return that digest."""
    tiny = forge.tiny(seed=seed)
    raw = bytearray(tiny.raw)
    raw[len(raw) // 2] ^= 1
    forge.put(tiny.digest, bytes(raw))
    return tiny.digest


def fleet(forge: Forge, seen: list[NDArray[np.uint8]]) -> dict[str, Model]:
    """Return the bundles of a storm by name: three sound ones, no two alike, ``blind`` and ``deep``."""
    raws = {f"sound-{seed}": forge.tiny(seed=seed, width=8 + 4 * seed).raw for seed in range(3)}
    raws |= {"blind": blind(forge, 7), "deep": deep(forge, 8)}
    for raw in raws.values():
        forge.put(digest_bytes(raw), raw)
    return {name: Model.of(digest_bytes(raw), raw, seen) for name, raw in raws.items()}


class Helm:
    """Control's hand at the admin socket; slots are (generation, digest)."""

    def __init__(self, admin: Admin, course: Course, pin: Callable[[int], None]) -> None:
        self._admin, self._course, self._pin = admin, course, pin
        self._revision = self._generation = 0
        self.refused: list[str] = []
        self.stable: Slot | None = None
        self.newcomer: Slot | None = None
        self.previous: Slot | None = None
        self.share = 0.0

    def slot(self, model: Model) -> Slot:
        """Return a slot of a generation that was never there before."""
        self._generation += 1
        self._course.models[self._generation] = model
        return Slot(generation=self._generation, bundle=model.digest)

    def swap(self, model: Model) -> None:
        """Make a new generation stable at once, and what is stable the way back."""
        self._apply(stable=self.slot(model), newcomer=None, share=0.0, previous=self.stable)

    def stage(self, model: Model) -> None:
        """Load a newcomer, without traffic."""
        self._apply(newcomer=self.slot(model), share=0.0)

    def give(self, share: float) -> None:
        """Give the newcomer a share."""
        self._apply(share=share)

    def promote(self) -> None:
        """Make the newcomer stable."""
        self._apply(stable=self.newcomer, newcomer=None, share=0.0, previous=self.stable)

    def dismiss(self) -> None:
        """Take the newcomer away."""
        self._apply(newcomer=None, share=0.0)

    def back(self) -> None:
        """Serve the bytes from before again, under a new number."""
        assert self.previous is not None
        self._apply(
            stable=self.slot(self._course.models[self.previous.generation]),
            newcomer=None,
            share=0.0,
            previous=self.stable,
        )

    def refuse(self, digest: str, *, stable: bool) -> None:
        """Order a bundle that must be refused, and see that nothing has come of it."""
        before = self._admin.observed()
        # Numbers that were refused are given again: nobody has seen them.
        bad = Slot(generation=self._generation + 1, bundle=digest)
        wanted = self._wanted({"stable": bad} if stable else {"newcomer": bad, "share": 0.5})
        answer = self._admin.apply(wanted)
        assert answer.status_code == 409, f"expected {digest} to be refused, got {answer.text}"
        assert self._admin.observed() == before
        self.refused.append(answer.json()["error"])

    def _wanted(self, changes: dict[str, Any]) -> Deployment:
        self._revision += 1
        held = {"stable": self.stable, "newcomer": self.newcomer, "previous": self.previous}
        share = changes.pop("share", self.share)
        return Deployment(
            revision=self._revision,
            model=MODEL,
            newcomer_share=share,
            **(held | changes),
            exit_confidence=None,
        )

    def _apply(self, **changes: Any) -> None:
        wanted, ordered = self._wanted(changes), time.monotonic()
        answer: httpx.Response = self._admin.apply(wanted)
        assert answer.status_code == 200, f"expected {wanted} to be applied, got {answer.text}"
        assert answer.json()["problem"] is None, answer.text
        self._course.add(wanted, ordered, time.monotonic())
        self.stable, self.newcomer, self.previous = wanted.stable, wanted.newcomer, wanted.previous
        self.share = wanted.newcomer_share
        newest = self.newcomer if self.share > 0.0 else self.stable
        assert newest is not None
        self._pin(newest.generation)
