"""A device's beat against a real hub: what it serves, says and waits for, when others fail."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daemon.control.targets.target import Abilities, Observed, Unreachable
from daemon.fleet import lane as lane_module
from daemon.fleet.caller import client
from daemon.fleet.device import REFRESH_S, Device, Place
from daemon.fleet.intake import Push
from daemon.fleet.lane import HubLane
from daemon.fleet.link import FleetLink
from daemon.fleet.terms import Piece, Report, TimingJob
from daemon.store.blobs import Blobs
from policies.case import Timings
from policies.clock import StandingClock
from policies.errors import PermanentError
from policies.terms import Deployment, Task
from tests.fleet.world import LANE, SpoolWriter, caller, deployment, hub_at_work, hub_lane, terms_of
from tests.serving.conftest import Forge


class Plane:
    """An instar-serve that keeps what it was told, and refuses what it cannot load."""

    abilities = Abilities(splits=True, previous=True, spool=True)

    def __init__(self) -> None:
        self.kept: Deployment | None = None
        self.refuses: set[str] = set()
        self.up = True
        self.applied = 0

    def observed(self) -> Observed:
        if not self.up:
            raise Unreachable("expected instar-serve to answer, got nothing")
        kept = self.kept
        return Observed(
            revision=0 if kept is None else kept.revision,
            stable=None if kept is None else kept.stable,
            newcomer=None if kept is None else kept.newcomer,
            previous=None,
            newcomer_share=0.0 if kept is None else kept.newcomer_share,
            exit_confidence=None if kept is None else kept.exit_confidence,
            ready=kept is not None,
        )

    def apply(self, deployment: Deployment) -> Observed:
        if deployment.stable is not None and deployment.stable.bundle in self.refuses:
            raise PermanentError("instar-serve refused /apply: its goldens differ")
        self.kept, self.applied = deployment, self.applied + 1
        return self.observed()

    def close(self) -> None:
        """Hold nothing open."""


class Post:
    """A device at its hub, with clocks that stand."""

    def __init__(self, folder: Path, papers: Path, lane: HubLane, port: int, clock: StandingClock) -> None:
        self.folder, self.papers, self.lane, self.port, self.clock = folder, papers, lane, port, clock
        self.plane = Plane()
        self.link = FleetLink(
            LANE, terms_of(papers, devices=("pi5-1",), offline_s=60.0), lane.releases, lane.roster
        )
        self.device = self.started()

    def started(self, port: int | None = None) -> Device:
        http = caller(self.papers, port or self.port)
        root = (self.papers / LANE / "1.root.json").read_bytes()
        return Device("pi5-1", Place(self.folder), http, self.plane, root, self.clock, 1000.0, 10.0)

    def beats(self, number: int) -> None:
        for _ in range(number):
            self.device.beat()
            self.clock.advance(1.0)

    def said(self) -> Report:
        report = next(seen.report for seen in self.lane.roster.seen() if seen.name == "pi5-1")
        assert report is not None
        return report

    def publish(self, wanted: Deployment) -> None:
        with pytest.raises(Unreachable):
            self.link.apply(wanted)


@pytest.fixture
def post(tmp_path: Path, papers: Path, task: Task, clock: StandingClock) -> Iterator[Post]:
    lane = hub_lane(tmp_path / "hub", papers, task, clock)
    with hub_at_work(lane, papers) as port:
        made = Post(tmp_path / "device", papers, lane, port, clock)
        yield made
        made.device.close()
    lane.intake.close()


def test_what_is_released_is_served_and_reported(post: Post) -> None:
    wanted = deployment(post.lane._blobs, 7)
    post.beats(1)
    post.publish(wanted)
    post.beats(12)
    assert post.plane.kept == wanted
    assert post.plane.applied == 1
    assert (post.said().revision, post.said().problem) == (7, None)


def test_a_bundle_that_it_cannot_load_is_refused_in_words_and_tried_again(post: Post) -> None:
    good, bad = deployment(post.lane._blobs, 7), deployment(post.lane._blobs, 9, b"bad", 2)
    assert bad.stable is not None
    post.beats(1)
    post.publish(good)
    post.beats(12)
    post.plane.refuses.add(bad.stable.bundle)
    post.publish(bad)
    post.beats(12)
    assert post.plane.kept == good
    assert "its goldens differ" in (post.said().problem or "")
    with pytest.raises(PermanentError, match="refuse revision 9; pi5-1: instar-serve refused"):
        post.link.apply(bad)
    post.plane.refuses.clear()
    post.beats(12)
    assert post.plane.kept == bad
    assert post.said().problem is None


def test_a_plane_that_was_away_is_given_the_release_when_it_is_back(post: Post) -> None:
    wanted = deployment(post.lane._blobs, 7)
    post.plane.up = False
    post.publish(wanted)
    post.beats(12)
    assert post.said().observed is None
    post.plane.up = True
    post.beats(2)
    assert post.plane.kept == wanted


def test_a_hub_that_is_away_is_left_alone_longer_each_time_and_serving_goes_on(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = deployment(post.lane._blobs, 7)
    post.publish(wanted)
    post.beats(12)
    post.device.close()
    post.plane.kept = None
    post.device = post.started(port=1)
    caplog.set_level(logging.WARNING)
    calls = []
    for _ in range(120):
        before = post.device._failures
        post.beats(1)
        calls.append(post.device._failures > before)
    assert 4 <= sum(calls) <= 14
    assert len(caplog.records) <= 3, "the same trouble is told once"


def test_a_release_that_was_not_announced_is_found_by_itself(post: Post) -> None:
    post.beats(2)
    wanted = deployment(post.lane._blobs, 7)
    post.lane.releases.publish(wanted)
    post.device._announced = lambda _release: None  # type: ignore[method-assign]
    post.beats(int(REFRESH_S) + 2)
    assert post.plane.kept == wanted


def test_what_is_no_longer_served_is_deleted_from_the_device(post: Post) -> None:
    first, second = deployment(post.lane._blobs, 7), deployment(post.lane._blobs, 9, b"other", 2)
    post.publish(first)
    post.beats(12)
    post.publish(second)
    post.beats(12)
    assert post.plane.kept == second
    left = {path.read_bytes() for path in (post.folder / "blobs").glob("sha256/*/*")}
    assert left == {b"other"}


def test_an_idle_device_times_what_it_is_asked(post: Post) -> None:
    forge = Forge(post.folder.parent / "hub")
    tiny = forge.tiny(seed=4)
    rows = post.folder.parent / "rows.npz"
    with rows.open("wb") as file:
        np.savez(file, x=np.zeros((5, 28, 28), np.uint8))
    pieces = [
        Piece(digest=post.lane._blobs.put(raw), size_bytes=len(raw)) for raw in (tiny.raw, rows.read_bytes())
    ]
    job = TimingJob(id="c1-alone", bundles=(pieces[0],), rows=pieces[1], count=5)
    assert post.lane.desk.ask(job) is None
    post.beats(1)
    for _ in range(2000):
        post.beats(1)
        process = post.device.stopwatch._process
        if process is not None:
            process.wait(60)
        if (found := post.lane.desk.ask(job)) is not None:
            break
    assert found is not None
    timings = Timings.model_validate_json(post.lane._blobs.read(found["pi5-1"]))
    assert len(timings.times_ms[0]) == 5
    assert min(timings.times_ms[0]) > 0


def test_a_busy_device_times_nothing(post: Post) -> None:
    post.device._idle = -1.0
    job = TimingJob(
        id="c1-alone",
        bundles=(Piece(digest="sha256:" + "0" * 64, size_bytes=1),),
        rows=Piece(digest="sha256:" + "1" * 64, size_bytes=1),
        count=1,
    )
    post.lane.desk.ask(job)
    post.beats(30)
    assert not post.said().idle
    assert post.lane.desk.take("pi5-1") == job, "nobody has taken it"


def test_a_hub_that_wants_no_more_telemetry_still_gets_reports(post: Post, task: Task) -> None:
    writer = SpoolWriter(post.folder / "spool", task)
    writer.write(50)

    def busy(_push: Push, _size: int) -> None:
        raise lane_module.Busy("expected fewer bytes", 30.0)

    post.lane._admit = busy  # type: ignore[method-assign]
    wanted = deployment(post.lane._blobs, 7)
    post.publish(wanted)
    post.beats(15)
    assert post.said().revision == 7
    assert post.device._failures == 0
    assert post.device.pusher.sent_rows == 0
    del post.lane._admit  # type: ignore[attr-defined]
    post.beats(31)
    assert post.device.pusher.sent_rows == 50


def test_a_disk_that_refuses_on_the_device_ends_nothing(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = deployment(post.lane._blobs, 7)
    post.publish(wanted)

    def full(_self: Blobs, _data: bytes) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Blobs, "put", full)
        post.beats(3)
    assert post.plane.kept is None
    assert post.said().revision == 0
    post.beats(int(REFRESH_S))
    assert post.plane.kept == wanted


def test_a_hub_address_that_is_neither_tls_nor_a_socket_is_refused() -> None:
    with pytest.raises(PermanentError, match="expected https"):
        client("http://hub:8443", "pi5-1", None)
