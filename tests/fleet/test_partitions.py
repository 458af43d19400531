"""Devices in network namespaces, with links that are cut and healed: real processes and real TLS."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.control.targets.target import Unreachable
from daemon.fleet import enrol
from daemon.fleet.lane import HubLane
from daemon.fleet.link import FleetLink
from monitors.spool import Cursor, SpoolReader
from policies.clock import SystemClock
from policies.telemetry import row_key
from policies.terms import Deployment, Slot, Task
from tests.fleet.site import MODEL, Field, Namespaces, Traffic
from tests.fleet.world import LANE, hub_at_work, hub_lane, terms_of
from tests.serving.conftest import Forge

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(400)]

NAMES = ("pi5-1", "pi5-2", "pi5-3")
DEADLINE_S = 120.0


def wait(until: Callable[[], bool], what: str, words: Callable[[], str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if until():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within {DEADLINE_S:.0f} s: {what}\n{words()}")


class Hall:
    """A hub in this process, three devices behind links, and traffic on each."""

    def __init__(self, folder: Path, papers: Path, lane: HubLane, spaces: Namespaces, port: int) -> None:
        self.lane, self.spaces = lane, spaces
        terms = terms_of(papers, devices=NAMES, converged=0.6, offline_s=3.0)
        self.link = FleetLink(LANE, terms, lane.releases, lane.roster)
        self.devices = {
            name: Field(
                folder, papers, name, f"https://{spaces.addresses(name)[0]}:{port}", spaces.prefix(name)
            )
            for name in NAMES
        }
        self.traffic = {name: Traffic(name, device.ask, 0.02) for name, device in self.devices.items()}
        self.revisions: dict[str, list[int]] = {name: [] for name in NAMES}

    def converged(self, wanted: Deployment) -> bool:
        """Ask for a deployment, as a turn does; tell whether enough devices serve it."""
        for seen in self.lane.roster.seen():
            if seen.report is not None:
                self.revisions[seen.name].append(seen.report.revision)
        try:
            return self.link.apply(wanted).ready
        except Unreachable:
            return False

    def serves(self, name: str) -> int:
        """Return the generation that a device says it serves."""
        report = next(seen.report for seen in self.lane.roster.seen() if seen.name == name)
        slot = None if report is None or report.observed is None else report.observed.stable
        return 0 if slot is None else slot.generation

    def words(self) -> str:
        told = [json.dumps([s.name, s.silent_s, str(s.report)]) for s in self.lane.roster.seen()]
        return "\n".join([*told, *(device.words() for device in self.devices.values())])

    def stop(self) -> None:
        for traffic in self.traffic.values():
            if traffic.is_alive():
                traffic.stop()
        for device in self.devices.values():
            device.stop()


@pytest.fixture
def hall(tmp_path: Path, task: Task) -> Iterator[Hall]:
    missing = Namespaces.missing()
    if missing is not None:
        pytest.skip(missing)
    papers, now = tmp_path / "papers", SystemClock().now()
    with Namespaces(list(NAMES)) as spaces:
        enrol.init(papers, [spaces.addresses(name)[0] for name in NAMES], [LANE], now)
        for name in NAMES:
            enrol.enrol(papers, LANE, name, now)
        clock: object = SystemClock()
        lane = hub_lane(tmp_path / "hub", papers, task, clock, devices=NAMES)  # type: ignore[arg-type]
        with hub_at_work(lane, papers, NAMES, "0.0.0.0") as port:
            made = Hall(tmp_path, papers, lane, spaces, port)
            try:
                yield made
            finally:
                made.stop()
        lane.intake.close()


def of(forge: Forge, revision: int, generation: int) -> Deployment:
    tiny = forge.tiny(seed=generation, model=MODEL)
    plain = {"revision": revision, "model": MODEL, "newcomer": None, "newcomer_share": 0.0, "previous": None}
    return Deployment.model_validate(plain | {"stable": Slot(generation=generation, bundle=tiny.digest)})


def keys_at_hub(folder: Path) -> list[bytes]:
    reader = SpoolReader(folder / "hub" / "spool", "telemetry", Cursor(0, 0))
    found: list[bytes] = []
    while (block := reader.read(10_000)[0]) is not None:
        found += [block["row_key"][place].tobytes() for place in range(len(block))]
    assert reader.lost_segments == reader.bad_segments == 0
    return found


def test_devices_converge_after_a_partition_and_no_telemetry_is_lost_or_doubled(
    hall: Hall, tmp_path: Path
) -> None:
    forge = Forge(tmp_path / "hub")
    first, second, third = of(forge, 5, 1), of(forge, 9, 2), of(forge, 12, 3)
    wait(lambda: hall.converged(first), "the first release is served", hall.words)
    wait(lambda: all(hall.serves(name) == 1 for name in NAMES), "by all", hall.words)
    for traffic in hall.traffic.values():
        traffic.start()
    wait(lambda: all(t.answered > 50 for t in hall.traffic.values()), "digits are read", hall.words)

    hall.spaces.cut("pi5-2")
    before = hall.traffic["pi5-2"].answered
    wait(lambda: hall.converged(second), "the second release is served by enough", hall.words)
    observed = hall.link.observed()
    assert observed.stable == second.stable
    wait(lambda: hall.traffic["pi5-2"].answered > before + 100, "the lost device serves on", hall.words)
    assert hall.serves("pi5-2") == 1

    # Another device loses its agent in the middle, and the hub names who is behind.
    hall.devices["pi5-3"].kill("instar-device")
    hall.devices["pi5-3"].start("instar-device")
    assert hall.converged(second)
    hall.spaces.heal("pi5-2")
    wait(lambda: hall.serves("pi5-2") == 2, "the lost device catches up", hall.words)

    # Cut again, longer than two releases; what it missed it never serves.
    hall.spaces.cut("pi5-2")
    wait(lambda: hall.converged(third), "the third release is served by enough", hall.words)
    hall.devices["pi5-2"].kill("instar-device")
    hall.devices["pi5-2"].start("instar-device")
    hall.spaces.heal("pi5-2")
    wait(lambda: hall.serves("pi5-2") == 3, "it catches up again", hall.words)

    for traffic in hall.traffic.values():
        traffic.stop()
    wanted = {row_key(f"{t._name}/{n}", 0, 1) for t in hall.traffic.values() for n in range(t.sent)}
    wait(lambda: len(keys_at_hub(tmp_path)) >= len(wanted), "all telemetry has come", hall.words)
    found = keys_at_hub(tmp_path)
    assert len(found) == len(set(found)), "nothing came twice"
    assert set(found) == wanted, "all that was asked came"
    for name, revisions in hall.revisions.items():
        rising = [one for place, one in enumerate(revisions) if place == 0 or one != revisions[place - 1]]
        # A device that was started anew knows of no release until it has pulled one.
        assert [one for one in rising if one] == sorted(one for one in rising if one), name
    assert all(traffic.failed == [] for traffic in hall.traffic.values())


def test_a_straggler_is_named_while_it_is_waited_for(hall: Hall, tmp_path: Path) -> None:
    forge = Forge(tmp_path / "hub")
    first, second = of(forge, 5, 1), of(forge, 9, 2)
    wait(lambda: hall.converged(first), "the first release is served", hall.words)
    wait(lambda: all(hall.serves(name) == 1 for name in NAMES), "by all", hall.words)
    hall.spaces.cut("pi5-1")
    hall.spaces.cut("pi5-2")
    with pytest.raises(Unreachable, match=r"pi5-1 has revision 5, heard of \d+ s ago"):
        hall.link.apply(second)
    hall.spaces.heal("pi5-1")
    hall.spaces.heal("pi5-2")
    wait(lambda: hall.converged(second), "it is served after the heal", hall.words)
