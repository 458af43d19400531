"""A policy, and terms to try it on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from policies.clauses import Policy
from policies.document import load
from policies.terms import Level, Signal

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def policy() -> Policy:
    return load(ROOT / "examples" / "meter-reader" / "policy.toml")[0]


@pytest.fixture
def signal() -> Callable[..., Signal]:
    def make(monitor: str, level: Level, since: float | None = 0.0, **facts: float) -> Signal:
        return Signal(monitor=monitor, level=level, since=since, at=100.0, n=500, reason="seen", facts=facts)

    return make
