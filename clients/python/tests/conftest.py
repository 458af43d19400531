"""The real application, and records of rows that its live generation answered."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from instar_client import Record, summarise
from tests.simulator.instard import Instard, running

Make = Callable[..., list[Record]]


@pytest.fixture
def instard(tmp_path: Path) -> Iterator[Instard]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def records(instard: Instard) -> Make:
    """Make records of answered rows; of every second one with its input."""
    rng = np.random.default_rng(1)

    def make(count: int, first: int = 0) -> list[Record]:
        made = []
        for number in range(first, first + count):
            x = rng.integers(0, 256, (28, 28)).astype(np.uint8)
            logits, embedding = instard.tiny.expected(x[None])
            told = {"summary": summarise(x.ravel().tolist(), x.shape)}
            if number % 2:
                told = {"input": x.tobytes()}
            made.append(Record.answered(f"r{number}", 1, 1.5, logits[0], embedding[0], **told))
        return made

    return make
