"""A fleet put together: lanes beside the main control plane, in one process, over folders of their own."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.compose import Control, assemble
from daemon.control.briefs import Briefs
from daemon.fleet import enrol
from daemon.fleet.jobs import LaneJobs, TurnstileJobs
from daemon.fleet.link import FleetLink
from daemon.fleet.roll import load_fleet
from daemon.fleet.yard import Yard, open_yard
from daemon.settings import ControlSettings
from guards.signing import sign
from monitors.spool import Cursor
from policies.clock import StandingClock
from policies.errors import PermanentError, PolicyError
from tests.simulator.site import Site, small_policy


class Place:
    """A site's folders, its fleet file, and a main control plane."""

    def __init__(self, folder: Path, clock: StandingClock) -> None:
        self.clock = clock
        site = Site(folder)
        law, self.papers = site.law, folder / "papers"
        enrol.init(self.papers, ["127.0.0.1"], ["pi5", "nano"], time.time())
        tables = (
            'format = 1\n[hub]\nlisten = "127.0.0.1:8443"\ncert = "hub.pem"\nkey = "hub.key"\nca = "ca.pem"\n'
        )
        for lane in ("pi5", "nano"):
            text = small_policy(max_p99_ms="9.5" if lane == "pi5" else "1.5")
            (self.papers / f"{lane}.toml").write_text(text)
            signed = sign(site.key, text.encode(), "instar-policy@v1")
            (self.papers / f"{lane}.toml.sig").write_text(signed)
            tables += (
                f'[lanes.{lane}]\npolicy = "{lane}.toml"\nroots = "{lane}"\n'
                f'release_key = "{lane}/release.key"\ndevices = ["{lane}-1"]\ninherit = true\nfresh_s = 600\n'
                "converged = 1.0\noffline_s = 60\ntimed_by = 1\ntelemetry_bytes = 1048576\n"
                "device_bytes_per_s = 65536\n"
            )
        (self.papers / "fleet.toml").write_text(tables)
        self.settings = ControlSettings(
            state=site.state,
            task=law / "task.toml",
            policy=law / "policy.toml",
            signers=law / "allowed_signers",
            fleet=self.papers / "fleet.toml",
        )
        self.main = assemble(self.settings, clock, jobs_of=TurnstileJobs)
        self.held = contextlib.ExitStack()

    def open(self) -> Yard:
        assert self.settings.fleet is not None
        return open_yard(load_fleet(self.settings.fleet), self.main, self.clock, assemble, self.held)

    def close(self, *planes: Control) -> None:
        for plane in (self.main, *planes):
            plane.samples.close()
            plane.link.close()
            plane.book.journal.close()
        self.held.close()


@pytest.fixture
def place(tmp_path: Path, clock: StandingClock) -> Iterator[Place]:
    made = Place(tmp_path, clock)
    yield made
    made.held.close()


def test_every_lane_is_a_control_plane_with_its_own_law_and_folder(place: Place) -> None:
    yard = place.open()
    limits = {}
    for name, control in yard.lanes.items():
        assert control.settings.state == place.settings.state / "lanes" / name
        assert (control.settings.state / "journal.db").is_file()
        assert isinstance(control.link, FleetLink)
        assert isinstance(control.jobs, LaneJobs)
        limits[name] = control.law.policy.modification_protocol.evaluation.latency.max_p99_ms
    assert limits == {"pi5": 9.5, "nano": 1.5}
    yard.close()
    place.close(*yard.lanes.values())


def test_a_lanes_turn_says_what_it_waits_for_and_begins_no_search(place: Place) -> None:
    yard = place.open()
    control = yard.lanes["pi5"]
    control.turn.verify()
    for _ in range(3):
        control.turn.run()
        place.clock.advance(1.0)
    told = json.dumps([one.model_dump() for one in control.turn.blocked])
    assert "live generation of the main lane for pi5 to inherit" in told
    assert control.book.ledger.search is None
    kinds = [entry.kind for entry in control.book.journal.entries()]
    assert kinds.count("trigger") == 1
    yard.close()
    place.close(*yard.lanes.values())


def test_a_lane_belongs_to_one_process(place: Place) -> None:
    yard = place.open()
    with pytest.raises(PermanentError, match=r"expected to be the only instard on .*lanes/pi5"):
        place.open()
    yard.close()
    place.close(*yard.lanes.values())


def test_a_lane_whose_key_its_root_does_not_name_stops_the_start(place: Place) -> None:
    (place.papers / "pi5" / "release.key").write_bytes((place.papers / "nano" / "release.key").read_bytes())
    with pytest.raises(PolicyError, match="expected the release key among those"):
        place.open()
    place.close()


def test_telemetry_goes_when_the_monitors_memory_of_it_is_durable(place: Place) -> None:
    yard = place.open()
    control, lane = yard.lanes["pi5"], yard.hub_lanes["pi5"]
    seen: list[tuple[str, int, int]] = []
    lane.intake.forget = lambda *at: seen.append(at)  # type: ignore[method-assign]
    yard.forget()
    assert seen == []
    control.sensors._telemetry.cursor = Cursor(3, 500)
    yard.forget()
    assert seen == []
    control.sensors.save()
    yard.forget()
    assert seen == [("telemetry", 3, 500), ("samples", 0, 0)]
    yard.close()
    place.close(*yard.lanes.values())


def test_the_control_of_the_lanes_a_plain_plane_has_plain_briefs(place: Place) -> None:
    yard = place.open()
    assert type(place.main.jobs._briefs) is Briefs
    assert type(yard.lanes["pi5"].jobs._briefs) is not Briefs
    yard.close()
    place.close(*yard.lanes.values())
