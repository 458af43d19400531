"""The real application, over a model repository that somebody else serves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulator.instard import Instard, running


@pytest.fixture
def instard(tmp_path: Path) -> Iterator[Instard]:
    with running(tmp_path) as made:
        yield made
