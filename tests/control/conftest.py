"""A simulated host, whose workers replace the real processes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.control import workers
from tests.simulator.host import Host


@pytest.fixture
def make_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Host]:
    made: list[Host] = []

    def make() -> Host:
        host = Host(tmp_path / f"host-{len(made)}")
        made.append(host)
        monkeypatch.setattr(workers, "start", host.run_worker)
        monkeypatch.setattr(workers, "find", host.find_worker)
        return host

    return make


@pytest.fixture
def host(make_host: Callable[[], Host]) -> Host:
    return make_host()
