"""A bench with one case a kind of input and precision, the files of which are made once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from guards.material import Material
from guards.roster import BUILTIN
from policies.case import Case
from policies.document import parse
from policies.terms import Artefact, Genome, Level, SearchResult, Signal, Trigger, TriggerKind, Verdict
from policies.wire import digest_bytes
from tests.modalities import foundry

NOW = 1_800_000_000.0
PROFILES = Path(__file__).parents[2] / "policies" / "profiles"
CANDIDATE, INCUMBENT = 1, 3
"""Seeds of the two nets."""

Edit = Callable[[onnx.ModelProto], None]


@dataclass
class Bench:
    """Makes nets, bundles and cases in one folder."""

    folder: Path
    made: dict[tuple[str, int, bool], tuple[onnx.ModelProto, int]] = field(default_factory=dict)

    def net(self, kind: foundry.Kind, seed: int, int8: bool) -> tuple[onnx.ModelProto, int]:
        key = (kind.name, seed, int8)
        if key not in self.made:
            model, params = foundry.net(kind, seed) if not int8 else self.net(kind, seed, False)
            self.made[key] = (foundry.quantised(kind, model, self.folder) if int8 else model, params)
        return self.made[key]

    def genome(self, kind: foundry.Kind, seed: int, int8: bool) -> Genome:
        return Genome(space=kind.modality.value, genes=(seed, 1, int(int8)))

    def bundle(self, kind: foundry.Kind, seed: int, int8: bool, edit: Edit | None = None) -> Artefact:
        """Write a bundle; ``edit`` changes it after its goldens were made."""
        model, params = self.net(kind, seed, int8)
        whole = foundry.told(kind, model, params, self.genome(kind, seed, int8))
        if edit is not None:
            edit(whole)
        return self.file(f"{kind.name}.onnx", whole.SerializeToString())

    def file(self, name: str, raw: bytes) -> Artefact:
        digest = digest_bytes(raw)
        path = self.folder / f"{digest[-12:]}.{name}"
        path.write_bytes(raw)
        return Artefact(path=str(path), digest=digest)

    def arrays(self, name: str, **arrays: Any) -> Artefact:
        path = self.folder / name
        np.savez(path, allow_pickle=False, **arrays)
        return self.file(name, path.read_bytes())

    def gate(self, kind: foundry.Kind, **changes: Any) -> Artefact:
        x, y = kind.rows(1600, seed=11)
        rows = {"x": x, "y": y, "group": np.arange(1600, dtype=np.int64).view("V8")}
        return self.arrays(
            "gate.npz", **(rows | {"regime": np.repeat([0, 1], 800).astype(np.uint8)} | changes)
        )

    def case(
        self,
        kind: foundry.Kind,
        int8: bool,
        edit: Edit | None = None,
        profile: str = "default",
        **changes: Any,
    ) -> Case:
        """Return a candidate beside an fp32 incumbent; ``edit`` spoils the candidate."""
        text = (PROFILES / f"{profile}.toml").read_text()
        bundle = self.bundle(kind, CANDIDATE, int8, edit)
        incumbent = self.bundle(kind, INCUMBENT, False)
        facts: dict[str, Any] = {
            "candidate": "c2-abc123",
            "task": kind.task,
            "trigger": trigger(),
            "genome": self.genome(kind, CANDIDATE, int8),
            "incumbent_genome": self.genome(kind, INCUMBENT, False),
            "bundle": bundle,
            "incumbent": incumbent,
            "baseline": incumbent,
            "gate": self.gate(kind),
            "traffic": self.arrays("traffic.npz", x=kind.rows(220, seed=12)[0]),
            "policy": parse(text),
            "policy_digest": digest_bytes(text.encode()),
            "search": search(self.genome(kind, CANDIDATE, int8), bundle),
            "baseline_distance": 2,
            "incumbent_distance": 2,
            "demo_key": False,
        }
        return Case(**(facts | changes))


def trigger() -> Trigger:
    signal = Signal(
        monitor="drift", level=Level.ALARM, score=2.4, since=NOW, at=NOW, n=900, reason="it moved"
    )
    return Trigger(
        id="t1",
        kind=TriggerKind.DATA,
        at=NOW,
        clause="MP-3.1",
        reason="drift that costs accuracy",
        signals=(signal,),
        policy=digest_bytes(b"policy"),
        generation=1,
    )


def search(genome: Genome, bundle: Artefact) -> SearchResult:
    return SearchResult(
        brief="search-1",
        seed=0,
        winner=genome,
        bundle=bundle,
        state=bundle,
        archive=bundle,
        evidence=(),
        points=(),
        cpu_s=31.5,
        wall_s=34.0,
        architectures=12,
        versions={},
        phases_s={},
    )


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def judge() -> Callable[[str, Case], Verdict]:
    """Return what a guard says of a case, by a clock that moves a millisecond a reading."""

    def ticking() -> Iterator[float]:
        now = 0.0
        while True:
            now += 0.001
            yield now

    ticks = ticking()
    return lambda name, case: BUILTIN[name]().judge(case, Material(case, lambda: next(ticks)))
