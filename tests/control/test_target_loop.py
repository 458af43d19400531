"""The whole loop over a server that cannot split its traffic, with bundles that really run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.control.targets.proofs import Proofs
from daemon.control.targets.repository import RepositoryTarget
from daemon.control.targets.v2 import V2Target
from daemon.outside.opening import bundle_of, current
from daemon.store.blobs import Blobs
from policies.lifecycle import Stage
from policies.terms import Slot
from tests.serving.conftest import MODEL, Forge
from tests.simulator.host import Hooks, Killed
from tests.simulator.instard import forge_bundles, without_exits
from tests.simulator.v2server import V2Server

TURNS = 60
EVERY = 41
"""Of the places where a kill can strike, how many lie between two that are tried."""


@pytest.fixture
def make_v2_host(
    make_host: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[], Any]]:
    servers: list[V2Server] = []
    targets: list[V2Target] = []
    forge_bundles(monkeypatch, Forge(tmp_path / "forge"))

    def make() -> Any:
        host = make_host()
        without_exits(host)
        repository = host.state / "models"
        repository.mkdir()
        server = V2Server(repository, MODEL)
        servers.append(server)
        boot = host.boot

        def boot_anew(*args: Any) -> None:
            blobs = Blobs(host.state / "blobs")
            proofs = Proofs(blobs.root, MODEL)
            folder = RepositoryTarget(repository, MODEL, blobs, proofs)
            host.plane = V2Target(folder, server.url, MODEL, proofs)
            targets.append(host.plane)
            boot(*args)

        host.boot = boot_anew
        host.server = server
        return host

    yield make
    for target in targets:
        target.close()
    for server in servers:
        server.stop()


def summary(host: Any) -> dict[str, Any]:
    ledger = host.book.ledger
    return {
        "live": None if ledger.live is None else ledger.live.generation,
        "loaded": host.server.loaded[0],
        "stages": sorted(host.stages().values()),
        "stable": host.plane.observed().stable == live_slot(ledger),
        "valid": host.book.journal.verify().valid,
    }


def live_slot(ledger: Any) -> Slot:
    return Slot(generation=ledger.live.generation, bundle=ledger.live.bundle)


def test_the_loop_closes_and_every_record_says_that_the_newcomer_took_all_traffic(
    make_v2_host: Callable[[], Any],
) -> None:
    host = make_v2_host()
    host.boot()
    host.turns(TURNS)
    assert host.book.ledger.live.generation == 2
    assert host.server.loaded[0] == "2"
    steps = [e.body for e in host.book.journal.entries() if e.kind == "probation.step"]
    assert [(step["step"], step["of"], step["share"]) for step in steps] == [(1, 1, 1.0)] * 2
    deployed = [e.body["deployment"] for e in host.book.journal.entries() if e.kind == "deploy.intent"]
    assert {d["newcomer_share"] for d in deployed} == {0.0, 1.0}
    assert not any(call.endswith("/unload") for call in host.server.calls)


def test_a_sick_newcomer_is_taken_off_and_the_server_has_the_incumbent_again(
    make_v2_host: Callable[[], Any],
) -> None:
    host = make_v2_host()
    host.newcomer = {"errors": 400}
    host.boot()
    host.turns(40)
    assert "ROLLED_BACK" in host.stages().values()
    assert host.book.ledger.live.generation == 1
    assert host.server.loaded[0] == "1"
    assert host.plane.observed().ready


def test_a_newcomer_that_the_server_refuses_is_rolled_back_and_a_later_one_goes_live(
    make_v2_host: Callable[[], Any],
) -> None:
    host = make_v2_host()
    host.server.refuse_load.add("2")
    host.boot()
    host.turns(TURNS)
    assert host.stage_of(2) == Stage.ROLLED_BACK
    refused = [e.body for e in host.book.journal.entries() if e.kind == "deploy.refused"]
    assert "does not load here" in refused[0]["reason"]
    assert host.book.ledger.live.generation == 3
    assert host.server.loaded[0] == "3"


def test_a_rollback_loads_the_old_bytes_under_a_new_number(make_v2_host: Callable[[], Any]) -> None:
    host = make_v2_host()
    host.boot()
    host.turns(TURNS)
    host.drift = False
    host.operators.rollback("ann", "the new one reads badly", None)
    host.turns(6)
    assert host.book.ledger.live.generation == 3
    assert host.server.loaded[0] == "3"
    first, second, third = (bundle_of(host.book.ledger, number) for number in (1, 2, 3))
    assert first == third != second, "telemetry of a renumbered generation still finds its bundle"
    assert bundle_of(host.book.ledger, 4) is None
    assert current(host.book.ledger) == 3


def test_a_server_that_is_away_stops_nothing_but_what_touches_it(make_v2_host: Callable[[], Any]) -> None:
    host = make_v2_host()
    host.boot()
    host.found()
    host.server.status = 503
    host.turns(3)
    assert host.turn.serving == "unreachable"
    host.server.status = None
    host.turns(TURNS)
    assert host.book.ledger.live.generation == 2


@pytest.mark.timeout(600)
def test_killed_here_and_there_and_started_again_it_comes_to_the_same_end(
    make_v2_host: Callable[[], Any],
) -> None:
    unbroken = make_v2_host()
    count = Hooks()
    unbroken.boot(count)
    unbroken.turns(TURNS)
    expected = summary(unbroken)
    assert expected["live"] == 2
    for strike in range(0, len(count.places), EVERY):
        host = make_v2_host()

        def die(host: Any = host, strike: int = strike) -> None:
            host.boot(Hooks(strike))
            host.turns(TURNS)

        with pytest.raises(Killed):
            die()
        host.boot()
        host.turns(TURNS)
        assert summary(host) == expected, f"killed {count.places[strike]} (place {strike})"
