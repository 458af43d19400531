"""Synthetic telemetry: a stream of records whose drift, faults and correlation are set by the test."""

from collections.abc import Callable

import numpy as np
import pytest

from monitors.contract import Post
from monitors.spool import Block, record_dtype
from policies.clauses import DriftMonitoring, ErrorMonitoring, LatencyMonitoring, Monitoring
from policies.telemetry import OUTCOMES, telemetry_fields
from policies.terms import Augmentation, Datatype, Modality, Task, TensorSpec

CLASSES, EMBEDDING = 4, 12
GENERATION = 3


class Stream:
    """A camera: every call gives the next records, one every 10 ms, read-only as from a spool.

    Attributes:
        shift: Added to the first embedding coordinate (which has standard deviation 2).
        wrong: Share of wrong answers that ``labels`` reports.
        phi: Correlation of neighbouring rows, AR(1).
    """

    def __init__(self, seed: int, phi: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shift = 0.0
        self.wrong = 0.05
        self.phi = phi
        self.now = 1_800_000_000.0
        self._served = 0
        self._last = np.zeros(EMBEDDING)

    def rows(self, n: int, generation: int = GENERATION, outcome: str = "ok") -> Block:
        block = np.zeros(n, dtype=record_dtype(telemetry_fields(CLASSES, EMBEDDING)))
        block["at"] = self.now + 0.01 * np.arange(1, n + 1)
        self.now += 0.01 * n
        block["row_key"] = [np.void(i.to_bytes(16, "big")) for i in range(self._served, self._served + n)]
        self._served += n
        block["generation"] = generation
        block["outcome"] = OUTCOMES.index(outcome)
        block["batch"] = 1
        block["latency_ms"] = self.rng.gamma(4.0, 0.5, n)
        block["embedding"] = self._embedding(n) * np.linspace(2.0, 0.5, EMBEDDING)
        block["embedding"][:, 0] += self.shift
        block["logits"] = self.rng.normal(0.0, 3.0, (n, CLASSES))
        block["summary"] = self.rng.normal(50.0, 5.0, (n, 5))
        block.setflags(write=False)
        return block

    def _embedding(self, n: int) -> np.ndarray:
        noise = self.rng.normal(size=(n, EMBEDDING))
        if self.phi == 0.0:
            return noise
        values = np.empty_like(noise)
        for i in range(n):
            self._last = self.phi * self._last + np.sqrt(1 - self.phi**2) * noise[i]
            values[i] = self._last
        return values

    def labels(self, block: Block) -> np.ndarray:
        """Return labels of which a share ``wrong`` differs from what was predicted."""
        predicted = block["logits"].argmax(axis=1).astype(np.int64)
        return np.where(self.rng.random(len(block)) < self.wrong, (predicted + 1) % CLASSES, predicted)


def make_post(drift: dict[str, float] | None = None, errors: dict[str, float] | None = None) -> Post:
    task = Task(
        name="toy",
        modality=Modality.IMAGE,
        model="toy",
        input=TensorSpec(name="image", datatype=Datatype.UINT8, shape=(-1, 4, 4)),
        classes=tuple("abcd"),
        group_parameter="meter",
        sources=(),
        augmentation=Augmentation(rotate_deg=0.0, shift_px=0.0, scale=0.0, gain=0.0, noise=0.0),
    )
    watched = {"false_alarm_every": 5000, "min_reference_rows": 1000, "block_rows": 20}
    watched |= {"allowance": 0.25, "warning_ratio": 0.6}
    judged = {"delta": 0.002, "window_rows": 300, "confidence": 0.99, "min_label_share": 0.5}
    monitoring = Monitoring(
        drift=DriftMonitoring(clause="MP-2.1", **(watched | (drift or {}))),
        errors=ErrorMonitoring(clause="MP-2.2", **(judged | (errors or {}))),
        latency=LatencyMonitoring(
            clause="MP-2.3", objective_ms=25.0, budget=0.01, burn_rate=10.0, window_rows=1000
        ),
    )
    return Post(task, monitoring, GENERATION, seed=7)


@pytest.fixture
def post() -> Post:
    return make_post()


@pytest.fixture
def posts() -> Callable[..., Post]:
    return make_post


@pytest.fixture
def streams() -> type[Stream]:
    return Stream


@pytest.fixture
def stream() -> Stream:
    return Stream(seed=1)
