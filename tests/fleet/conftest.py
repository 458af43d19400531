"""What all tests of a fleet start from."""

from pathlib import Path

import pytest

from daemon.fleet import enrol
from policies.clock import StandingClock, SystemClock
from policies.document import load_task
from policies.terms import Task
from tests.fleet.world import DEVICES, EXAMPLE, LANE


@pytest.fixture(scope="session")
def task() -> Task:
    return load_task(EXAMPLE / "task.toml")


@pytest.fixture(scope="session")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates, roots and keys of two lanes, two devices of one, and one that is in no lane."""
    folder = tmp_path_factory.mktemp("papers")
    now = SystemClock().now()
    enrol.init(folder, ["127.0.0.1"], [LANE, "nano"], now)
    for name in (*DEVICES, "stranger"):
        enrol.enrol(folder, LANE, name, now)
    return folder


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock(SystemClock().now())
