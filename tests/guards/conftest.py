"""A workshop for cases: tiny real ONNX nets whose mistakes are chosen, row by row.

A row is 4x4 UINT8: pixels 0-3 say its class, pixels 4-7 another class, pixels 8-15 are flags. A net with flag
f names the class, and where pixel f is bright it names the other class instead. So whoever sets flags decides
which net is wrong where, exactly.
"""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from guards.material import Material
from policies.bundle import KEY, BundleMeta, Golden
from policies.case import Case
from policies.clauses import Policy
from policies.document import parse
from policies.terms import (
    Artefact,
    Augmentation,
    Datatype,
    Genome,
    Level,
    Modality,
    Point,
    SearchResult,
    Signal,
    Task,
    TensorSpec,
    Trigger,
    TriggerKind,
    Verdict,
)
from policies.wire import canonical, digest_bytes

NOW = 1_800_000_000.0
CLASSES = ("a", "b", "c", "d")
ROOT = Path(__file__).parents[2]

Edit = Callable[[onnx.ModelProto], None]


def nothing(_model: onnx.ModelProto) -> None:
    """Edit nothing."""


def weights(flag: int) -> tuple[NDArray[np.float32], ...]:
    """Return hidden weight (8, 16), hidden bias (8,), and output weight (4, 8)."""
    hidden, bias = np.zeros((8, 16), np.float32), np.zeros(8, np.float32)
    for k in range(4):
        hidden[k, k] = 1.0
        hidden[4 + k, 4 + k] = hidden[4 + k, flag] = 1.0
        bias[4 + k] = -1.0
    out = np.concatenate([np.eye(4), 2 * np.eye(4)], axis=1).astype(np.float32)
    return hidden, bias, out


def predict(flag: int, x: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits and embedding as a trained network would have given them."""
    hidden, bias, out = weights(flag)
    embedding = np.maximum(x.reshape(len(x), 16).astype(np.float32) / 255 @ hidden.T + bias, 0.0)
    return embedding @ out.T, embedding


def b64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def golden(kind: Any, flag: int, seed: int) -> Golden:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    logits, embedding = predict(flag, x)
    return Golden(kind=kind, rows=5, input_b64=b64(x), logits_b64=b64(logits), embedding_b64=b64(embedding))


def meta(flag: int, genome: Genome, **changes: Any) -> BundleMeta:
    facts: dict[str, Any] = {
        "format": 1,
        "task": "quads",
        "model": "quads",
        "genome": genome,
        "input": TensorSpec(name="image", datatype=Datatype.UINT8, shape=(-1, 4, 4)),
        "outputs": (
            TensorSpec(name="logits", datatype=Datatype.FP32, shape=(-1, 4)),
            TensorSpec(name="embedding", datatype=Datatype.FP32, shape=(-1, 8)),
        ),
        "classes": CLASSES,
        "brief": "search-1",
        "seed": 1,
        "params": 8 * 16 + 8 + 4 * 8,
        "macs": 160,
        "goldens": (golden("clean", flag, 1), golden("probe", flag, 2)),
    }
    return BundleMeta(**(facts | changes))


def net(flag: int, about: BundleMeta) -> onnx.ModelProto:
    """Return a whole, honest model."""
    hidden, bias, out = weights(flag)
    constants = {"unit": np.array(1 / 255, np.float32), "w1": hidden, "b1": bias, "w2": out}
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "unit"], ["scaled"], name="scale"),
        helper.make_node("Flatten", ["scaled"], ["flat"], name="flat", axis=1),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["raw"], name="hidden", transB=1),
        helper.make_node("Relu", ["raw"], ["embedding"], name="relu"),
        helper.make_node("Gemm", ["embedding", "w2"], ["logits"], name="out", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "quads",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 8]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    helper.set_model_props(model, {KEY: canonical(about).decode()})
    return model


def labelled(n: int, flags: dict[int, NDArray[np.bool_]], seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ``n`` rows, classes in turn, with each flag bright where its mask says so."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 4
    other = (y + rng.integers(1, 4, n)) % 4
    x = np.zeros((n, 16), np.uint8)
    x[np.arange(n), y] = x[np.arange(n), 4 + other] = 255
    for flag, mask in flags.items():
        x[mask, flag] = 255
    return x.reshape(n, 4, 4), y.astype(np.int64)


def first(n: int, of: int, start: int = 0) -> NDArray[np.bool_]:
    """Return a mask of the ``n`` rows from ``start``."""
    mask = np.zeros(of, np.bool_)
    mask[start : start + n] = True
    return mask


CANDIDATE, INCUMBENT, BASELINE = 8, 9, 10
"""The flags of the three nets."""


@dataclass
class Workshop:
    """Files for one case, and the case."""

    folder: Path
    genome: Genome = field(default_factory=lambda: Genome(space="image", genes=(0, 1, 2, 1)))
    old_genome: Genome = field(default_factory=lambda: Genome(space="image", genes=(0, 1, 1, 0)))
    policy_text: str = field(
        default_factory=lambda: (ROOT / "policies" / "profiles" / "default.toml").read_text()
    )

    @property
    def policy(self) -> Policy:
        return parse(self.policy_text)

    def rule(self, old: str, new: str) -> None:
        """Change a line of the policy."""
        assert old in self.policy_text
        self.policy_text = self.policy_text.replace(old, new)

    def file(self, name: str, raw: bytes) -> Artefact:
        path = self.folder / name
        path.write_bytes(raw)
        return Artefact(path=str(path), digest=digest_bytes(raw))

    def bundle(
        self,
        flag: int = CANDIDATE,
        edit: Edit = nothing,
        name: str = "",
        **about: Any,
    ) -> Artefact:
        """Write a bundle; ``edit`` changes the model after it was made."""
        genome = self.genome if flag == CANDIDATE else self.old_genome
        model = net(flag, meta(flag, genome, **about))
        edit(model)
        return self.file(name or f"net-{flag}.onnx", model.SerializeToString())

    def arrays(self, name: str, **arrays: NDArray[Any]) -> Artefact:
        path = self.folder / name
        np.savez(path, allow_pickle=False, **arrays)
        return Artefact(path=str(path), digest=digest_bytes(path.read_bytes()))

    def gate(
        self,
        new: int = 800,
        old: int = 800,
        wrong: dict[int, NDArray[np.bool_]] | None = None,
        wrong_before: dict[int, NDArray[np.bool_]] | None = None,
        **changes: NDArray[Any],
    ) -> Artefact:
        """Write gate rows; ``wrong`` says which net is wrong where, since the change."""
        x1, y1 = labelled(new, wrong or {}, 1)
        x0, y0 = labelled(old, wrong_before or {}, 2)
        arrays: dict[str, NDArray[Any]] = {
            "x": np.concatenate([x0, x1]),
            "y": np.concatenate([y0, y1]),
            "group": np.arange(old + new, dtype=np.int64).view("V8"),
            "regime": np.array([0] * old + [1] * new, np.uint8),
        }
        return self.arrays("gate.npz", **(arrays | changes))

    def traffic(self, rows: int = 220) -> Artefact:
        return self.arrays("traffic.npz", x=labelled(rows, {}, 3)[0])

    def case(self, *, founding: bool = False, **changes: Any) -> Case:
        bundle = changes.get("bundle") or self.bundle()
        kind = TriggerKind.FOUNDING if founding else TriggerKind.DATA
        facts: dict[str, Any] = {
            "candidate": "c2-abc123",
            "task": task(),
            "trigger": trigger(kind),
            "genome": self.genome,
            "incumbent_genome": None if founding else self.old_genome,
            "bundle": bundle,
            "incumbent": None if founding else self.bundle(INCUMBENT),
            "baseline": None if founding else self.bundle(BASELINE),
            "gate": changes.get("gate") or self.gate(),
            "traffic": changes.get("traffic") or self.traffic(),
            "policy": self.policy,
            "policy_digest": digest_bytes(self.policy_text.encode()),
            "search": search(self.genome, bundle),
            "baseline_distance": 2,
            "incumbent_distance": 2,
            "demo_key": False,
        }
        return Case(**(facts | changes))


def task(**changes: Any) -> Task:
    facts: dict[str, Any] = {
        "name": "quads",
        "modality": Modality.IMAGE,
        "model": "quads",
        "input": TensorSpec(name="image", datatype=Datatype.UINT8, shape=(-1, 4, 4)),
        "classes": CLASSES,
        "group_parameter": "group",
        "sources": (),
        "augmentation": Augmentation(rotate_deg=0.0, shift_px=0.0, scale=0.0, gain=0.0, noise=0.0),
    }
    return Task(**(facts | changes))


def trigger(kind: TriggerKind) -> Trigger:
    signals = (
        Signal(monitor="drift", level=Level.ALARM, score=2.4, since=NOW, at=NOW, n=900, reason="it moved"),
        Signal(monitor="errors", level=Level.ALARM, score=1.7, since=NOW, at=NOW, n=500, reason="it errs"),
    )
    return Trigger(
        id="t1",
        kind=kind,
        at=NOW,
        clause="MP-3.1",
        reason="drift that costs accuracy",
        signals=() if kind is TriggerKind.FOUNDING else signals,
        policy=digest_bytes(b"policy"),
        generation=1,
    )


def search(genome: Genome, bundle: Artefact) -> SearchResult:
    points = tuple(
        Point(
            genome=Genome(space="image", genes=(0, 1, 2, place)),
            accuracy=0.8 + place / 100,
            latency_ms=0.1 + place / 50,
            params=1000 + place,
            measured=place % 2 == 1,
        )
        for place in range(12)
    )
    return SearchResult(
        brief="search-1",
        seed=0,
        winner=genome,
        bundle=bundle,
        state=bundle,
        archive=bundle,
        evidence=(),
        points=points,
        cpu_s=31.5,
        wall_s=34.0,
        architectures=12,
        versions={"torch": "2", "python": "3"},
        phases_s={"train": 20.0},
    )


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    """Files for one case, and the case."""
    return Workshop(tmp_path)


@pytest.fixture
def ticks() -> Callable[[], float]:
    """Return a clock that moves a millisecond a reading."""
    return ticking()


def ticking(step_s: float = 0.001) -> Callable[[], float]:
    def readings() -> Iterator[float]:
        now = 0.0
        while True:
            now += step_s
            yield now

    source = readings()
    return lambda: next(source)


@pytest.fixture
def judge(ticks: Callable[[], float]) -> Callable[[str, Case], Verdict]:
    """Return what a built-in guard says of a case."""
    from guards.roster import BUILTIN

    return lambda name, case: BUILTIN[name]().judge(case, Material(case, ticks))


@pytest.fixture
def bench() -> Any:
    """Return this file's functions, which other test files cannot import."""
    import types

    return types.SimpleNamespace(
        first=first,
        labelled=labelled,
        golden=golden,
        meta=meta,
        net=net,
        task=task,
        ticking=ticking,
        CANDIDATE=CANDIDATE,
        INCUMBENT=INCUMBENT,
        BASELINE=BASELINE,
        NOW=NOW,
    )
