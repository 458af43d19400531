"""A storm: load in every form over hundreds of deployments, and every request accounted for.

* The data plane is a real ``instar-serve``; what orders is the test, as control would.
* A full disk is the kernel's: it refuses the server every write beyond a few bytes of a file, and then no
  more (RLIMIT_FSIZE of another process).
* The account is held against the server's own counters and against the records in its spool.
* Negative controls: ``test_storm_account`` has mutants of an account and of the data plane.
"""

import contextlib
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from policies.telemetry import OUTCOMES, row_key
from tests.serving.conftest import Forge, Process, read_spool
from tests.serving.wire import until
from tests.simulator.account import Account, Course, Model, misrecorded
from tests.simulator.helm import Helm, altered, fleet
from tests.simulator.storm import Storm, counters, pictures

REQUESTS, GUSTS, CLIENTS, STORM_S = 20_000, 13, 3, 150.0
FULL_BYTES = 2048
SPOOL_FULL = (2, 6, 10)
DEEP = (1, 5, 9)


@dataclass
class Sea:
    """Where a storm takes place: the server, its bundles, and who is at the helm."""

    server: Process
    storm: Storm
    helm: Helm
    models: dict[str, Model]
    altered: str
    spool: Path
    deadline: float

    @property
    def sound(self) -> list[Model]:
        """The bundles that answer everything."""
        return [self.models[f"sound-{number}"] for number in range(3)]

    def scrape(self) -> str:
        """Return the server's metrics."""
        return httpx.get(self.server.metrics_base + "/metrics", timeout=60).text

    def dropped(self) -> int:
        """Return how many rows telemetry has lost, as the server counts them."""
        return counters(self.scrape(), "telemetry_dropped", "kind")["telemetry"]

    @contextlib.contextmanager
    def disk_full(self) -> Iterator[None]:
        """Let the server's disk be full, at least until a record was lost by it."""
        pid, before = self.server.popen.pid, self.dropped()
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_BYTES, limits[1]))
        try:
            yield
            until(lambda: self.dropped() > before, 30.0)
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


# -- one gust -----------------------------------------------------------------------------------------------


def rollout(sea: Sea, gust: int) -> Iterator[None]:
    """A newcomer that grows into the stable one, and a way back; on a full disk in some gusts."""
    helm = sea.helm
    helm.stage(sea.sound[(gust + 1) % 3])
    yield
    with sea.disk_full() if gust in SPOOL_FULL else contextlib.nullcontext():
        for share in (0.05, 0.25, 0.5):
            helm.give(share)
            yield
        helm.promote()
        yield
        helm.back()
        yield


def failing_canary(sea: Sea, _gust: int) -> Iterator[None]:
    """A newcomer that has no answer to some, and loses its share."""
    sea.helm.stage(sea.models["blind"])
    yield
    for share in (0.05, 0.3):
        sea.helm.give(share)
        yield
    sea.helm.dismiss()
    yield


def swaps(sea: Sea, gust: int) -> Iterator[None]:
    """Generations that follow at once: another one, the same bytes under a new number, and back twice."""
    helm = sea.helm
    helm.swap(sea.sound[gust % 3])
    yield
    helm.swap(sea.sound[gust % 3])
    yield
    helm.swap(sea.sound[(gust + 2) % 3])
    yield
    for _ in range(2):
        helm.back()
        yield


def corrupt(sea: Sea, _gust: int) -> Iterator[None]:
    """Bytes that are not what their digest says, for all and for some."""
    for stable in (True, False):
        sea.helm.refuse(sea.altered, stable=stable)
        yield


def slow_build(sea: Sea, gust: int) -> Iterator[None]:
    """A large network, built beside the traffic, tried and let go."""
    if gust in DEEP:
        sea.helm.stage(sea.models["deep"])
        yield
        sea.helm.give(0.5)
        yield
        sea.helm.dismiss()
        yield


def blow(sea: Sea) -> None:
    """Order everything, with requests between any two orders."""
    for gust in range(GUSTS):
        for part in (rollout, failing_canary, swaps, corrupt, slow_build):
            for _ in part(sea, gust):
                sea.storm.wind.pass_by(REQUESTS // (GUSTS * 18), sea.deadline)
    sea.storm.wind.reach(REQUESTS, sea.deadline)


# -- the account against the server -------------------------------------------------------------------------


def rows_of(storm: Storm, account: Account) -> dict[bytes, tuple[int, str]]:
    """Return what the spool must say of every row that reached a model: generation and outcome by its key."""
    seen = pictures()
    asked = {each.id: len(seen[each.picture]) for client in storm.clients for each in client.asked}
    return {
        row_key(name, row, asked[name]): settled
        for name, settled in account.settled.items()
        for row in range(asked[name])
        if settled[0]
    }


def records(spool: Path) -> list[tuple[bytes, tuple[int, str]]]:
    """Return key, generation and outcome of every record in the spool."""
    return [
        (bytes(key), (int(generation), OUTCOMES[outcome]))
        for block in read_spool(spool, "telemetry")
        for key, generation, outcome in zip(
            block["row_key"], block["generation"], block["outcome"], strict=True
        )
    ]


def check_counters(sea: Sea, account: Account) -> None:
    """The server has counted what the clients have seen."""
    told = counters(sea.scrape(), "requests", "outcome")
    assert told == dict.fromkeys(OUTCOMES, 0) | {"ok": account.right} | account.refused
    assert counters(sea.scrape(), "swaps", "outcome") == {
        "ok": len(sea.storm.course),
        "refused": len(sea.helm.refused),
    }


def check_records(sea: Sea, account: Account) -> None:
    """Every row is recorded once and as it was, or counted as lost."""
    wanted = rows_of(sea.storm, account)
    refused = account.refused["client_error"]
    until(lambda: len(records(sea.spool)) + sea.dropped() >= len(wanted) + refused)
    dropped = sea.dropped()
    assert sea.server.end() == 0
    assert misrecorded(records(sea.spool), dropped, wanted, refused)[:5] == []


@pytest.mark.scenario
@pytest.mark.timeout(240)
def test_every_request_of_a_storm_is_answered_once_and_rightly_or_refused_with_a_reason(
    tmp_path: Path,
) -> None:
    forge, seen, course = Forge(tmp_path / "s"), pictures(), Course()
    models = fleet(forge, seen)
    server = Process(tmp_path / "s", "--grpc", "127.0.0.1:0")
    try:
        storm = Storm(server.base.removeprefix("http://"), server.grpc, seen, CLIENTS, course)
        helm = Helm(server.admin, course, storm.wind.pinned)
        helm.swap(models["sound-0"])
        deadline = time.monotonic() + STORM_S
        sea = Sea(server, storm, helm, models, altered(forge, 9), tmp_path / "s" / "spool", deadline)
        with storm:
            blow(sea)
        account = storm.account()
        assert [client.broken for client in storm.clients if client.broken] == []
        assert account.faults[:5] == []
        assert account.asked == account.right + account.refused.total()
        assert account.asked >= REQUESTS
        assert len(course) >= 200
        assert account.refused["not_finite"] > 0, "expected the failing canary to have failed"
        assert len(helm.refused) == 2 * GUSTS
        assert all("altered" in each for each in helm.refused)
        assert sea.dropped() > 0, "expected the full disk to have cost records"
        check_counters(sea, account)
        check_records(sea, account)
    finally:
        if server.popen.poll() is None:
            server.end()
