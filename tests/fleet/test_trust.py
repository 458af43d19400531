"""Releases under attack: what a device believes, and what it does not, whoever sends it.

The hub here is a table of answers that each test may falsify. Every attack has its negative control: the same
exchange without the one thing that was changed is believed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from daemon.fleet import enrol
from daemon.fleet.releases import Releases
from daemon.fleet.trust import Frozen, Trust
from daemon.store.blobs import Blobs
from policies.clock import StandingClock, SystemClock
from policies.errors import PolicyError, TamperError, TemporaryError
from tests.fleet.world import LANE, deployment

Answer = bytes | Iterator[bytes]


class Wire:
    """A hub as a device meets it; ``tamper`` may answer in its place."""

    def __init__(self, releases: Releases, blobs: Blobs) -> None:
        self._releases, self._blobs = releases, blobs
        self.tamper: Callable[[str], Answer | None] = lambda _path: None
        self.asked: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append((path, request.headers.get("range", "")))
        found = self.tamper(path)
        if found is None:
            found = self._honest(path)
        if found is None:
            return httpx.Response(404)
        first = request.headers.get("range", "")
        if first and isinstance(found, bytes):
            return httpx.Response(206, content=iter([found[int(first[6:-1]) :]]))
        return httpx.Response(200, content=iter([found]) if isinstance(found, bytes) else found)

    def _honest(self, path: str) -> bytes | None:
        _, _, folder, name = path.split("/")
        if folder == "release":
            return self._releases.read(name)
        return self._blobs.read(f"sha256:{name}")


class Road:
    """A hub's releases, a device's trust, and the wire between them."""

    def __init__(self, folder: Path, papers: Path, clock: StandingClock, lane: str = LANE) -> None:
        self.folder, self.papers, self.clock = folder, papers, clock
        self.blobs = Blobs(folder / "hub-blobs")
        self.releases = self.signed_by(papers / lane)
        self.wire = Wire(self.releases, self.blobs)
        self.http = httpx.Client(transport=httpx.MockTransport(self.wire), base_url="https://hub")
        self.trust = self.device()

    def signed_by(self, keys: Path, name: str = "releases", fresh_s: float = 600.0) -> Releases:
        return Releases(self.folder / name, keys, keys / "release.key", self.blobs, fresh_s, self.clock)

    def device(self, root: str = LANE) -> Trust:
        """Return the device's trust, as after a restart."""
        first = (self.papers / root / "1.root.json").read_bytes()
        return Trust(self.folder / "device", self.http, Blobs(self.folder / "blobs"), first)


@pytest.fixture
def road(tmp_path: Path, papers: Path, clock: StandingClock) -> Iterator[Road]:
    made = Road(tmp_path, papers, clock)
    yield made
    made.http.close()


def test_a_device_gets_what_was_released_and_nothing_before(road: Road) -> None:
    assert road.trust.pull() is None
    wanted = deployment(road.blobs, 7)
    road.releases.publish(wanted)
    assert road.trust.pull() == wanted
    assert wanted.stable is not None
    assert Blobs(road.folder / "blobs").read(wanted.stable.bundle) == b"bundle"


def test_a_release_is_signed_again_before_it_runs_out_and_only_then(road: Road) -> None:
    road.releases.publish(deployment(road.blobs, 7))
    assert not road.releases.keep_fresh()
    road.clock.advance(301.0)
    assert road.releases.keep_fresh()
    assert road.releases.number == 2
    again = road.signed_by(road.papers / LANE)
    assert (again.number, again.deployment) == (2, road.releases.deployment)


def replayed(road: Road) -> Callable[[str], bytes | None]:
    """Return a wire that answers as the hub did at this moment, for ever."""
    kept = {path.name: path.read_bytes() for path in (road.folder / "releases").iterdir()}
    return lambda path: kept.get(path.rpartition("/")[2])


@pytest.mark.parametrize("restarted", [False, True], ids=["same-process", "after-a-restart"])
def test_an_old_release_is_not_believed_after_a_newer_one(road: Road, restarted: bool) -> None:
    road.releases.publish(deployment(road.blobs, 7, b"old"))
    old = replayed(road)
    newer = deployment(road.blobs, 8, b"new", 2)
    road.releases.publish(newer)
    assert road.trust.pull() == newer
    trust = road.device() if restarted else road.trust
    road.wire.tamper = old
    with pytest.raises(TamperError, match="version"):
        trust.pull()
    road.wire.tamper = lambda _path: None
    assert trust.pull() == newer


def test_the_control_of_the_rollback_a_device_that_forgot_would_believe_it(road: Road) -> None:
    road.releases.publish(deployment(road.blobs, 7, b"old"))
    road.wire.tamper = replayed(road)
    road.releases.publish(deployment(road.blobs, 8, b"new", 2))
    found = road.trust.pull()
    assert found is not None
    assert found.revision == 7


def test_a_statement_that_ran_out_is_a_freeze(tmp_path: Path, papers: Path) -> None:
    past = StandingClock(SystemClock().now() - 3600)
    road = Road(tmp_path, papers, past)
    with road.http:
        wanted = deployment(road.blobs, 7)
        road.releases.publish(wanted)
        with pytest.raises(Frozen, match="expired"):
            road.trust.pull()
        past.advance(3600)
        assert road.releases.keep_fresh()
        assert road.trust.pull() == wanted


def test_a_release_by_another_lanes_key_is_not_believed(road: Road) -> None:
    wanted = deployment(road.blobs, 7)
    foreign = road.signed_by(road.papers / "nano", "foreign")
    foreign.publish(wanted)
    kept = {path.name: path.read_bytes() for path in (road.folder / "foreign").iterdir()}
    road.wire.tamper = lambda path: kept.get(path.rpartition("/")[2]) if "root" not in path else None
    with pytest.raises(TamperError, match="believed"):
        road.trust.pull()
    # The control: the device of that lane believes the same bytes.
    other = Trust(
        road.folder / "other",
        road.http,
        Blobs(road.folder / "other-blobs"),
        (road.papers / "nano" / "1.root.json").read_bytes(),
    )
    assert other.pull() == wanted


def test_a_bundle_of_other_bytes_is_thrown_away_and_fetched_again(road: Road) -> None:
    wanted = deployment(road.blobs, 7)
    road.releases.publish(wanted)
    assert wanted.stable is not None
    name = wanted.stable.bundle.removeprefix("sha256:")
    road.wire.tamper = lambda path: b"bundlE" if path.endswith(name) else None
    with pytest.raises(TamperError, match="thrown away"):
        road.trust.pull()
    assert not Blobs(road.folder / "blobs").has(wanted.stable.bundle)
    road.wire.tamper = lambda _path: None
    assert road.trust.pull() == wanted


def test_a_snapshot_with_the_targets_of_another_release_is_not_believed(road: Road) -> None:
    road.releases.publish(deployment(road.blobs, 7, b"old"))
    old = (road.folder / "releases" / "1.targets.json").read_bytes()
    road.releases.publish(deployment(road.blobs, 8, b"new", 2))
    road.wire.tamper = lambda path: old if path.endswith("/2.targets.json") else None
    with pytest.raises(TamperError):
        road.trust.pull()
    road.wire.tamper = lambda _path: None
    found = road.trust.pull()
    assert found is not None
    assert found.revision == 8


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json", "blob"])
def test_endless_data_is_read_no_further_than_what_was_signed(road: Road, name: str) -> None:
    wanted = deployment(road.blobs, 7)
    road.releases.publish(wanted)
    sent = [0]

    def endless() -> Iterator[bytes]:
        while True:
            sent[0] += 1 << 16
            yield b"x" * (1 << 16)

    road.wire.tamper = lambda path: endless() if f"/{name}" in path else None
    with pytest.raises((TamperError, TemporaryError)):
        road.trust.pull()
    assert sent[0] < 6 << 20
    road.wire.tamper = lambda _path: None
    assert road.trust.pull() == wanted


def test_a_blob_that_was_broken_off_goes_on_where_it_stopped(road: Road) -> None:
    wanted = deployment(road.blobs, 7, b"0123456789" * 1000)
    road.releases.publish(wanted)
    assert wanted.stable is not None
    name = wanted.stable.bundle.removeprefix("sha256:")
    whole = road.blobs.read(wanted.stable.bundle)

    def torn() -> Iterator[bytes]:
        yield whole[:4000]
        raise httpx.ReadError("the line is cut")

    road.wire.tamper = lambda path: torn() if path.endswith(name) else None
    with pytest.raises(TemporaryError):
        road.trust.pull()
    road.wire.tamper = lambda _path: None
    assert road.trust.pull() == wanted
    assert (f"/v1/blob/{name}", "bytes=4000-") in road.wire.asked


def test_a_new_root_with_a_new_key_is_followed_and_the_old_key_is_not(
    tmp_path: Path, clock: StandingClock
) -> None:
    papers = tmp_path / "papers"
    enrol.init(papers, ["127.0.0.1"], [LANE], SystemClock().now())
    road = Road(tmp_path, papers, clock)
    with road.http:
        wanted = deployment(road.blobs, 7)
        road.releases.publish(wanted)
        assert road.trust.pull() == wanted
        stolen = (papers / LANE / "release.key").read_bytes()
        assert enrol.renew(papers / LANE, clock.now()) == 2
        again = road.signed_by(papers / LANE)
        assert again.keep_fresh(), "what the former key signed is signed again"
        road.wire = Wire(again, road.blobs)
        road.http = httpx.Client(transport=httpx.MockTransport(road.wire), base_url="https://hub")
        assert road.device().pull() == wanted
        (papers / LANE / "release.key").write_bytes(stolen)
        with pytest.raises(PolicyError, match="among those of role"):
            road.signed_by(papers / LANE)
        road.http.close()


def test_a_key_that_the_root_does_not_name_signs_nothing(road: Road) -> None:
    keys = road.folder / "mixed"
    keys.mkdir()
    (keys / "1.root.json").write_bytes((road.papers / LANE / "1.root.json").read_bytes())
    (keys / "release.key").write_bytes((road.papers / "nano" / "release.key").read_bytes())
    with pytest.raises(PolicyError, match="expected the release key among those"):
        road.signed_by(keys, "mixed-releases")


def test_what_is_released_is_whole_before_it_is_visible(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any file, a device finds the old release or the new one."""
    from daemon.fleet import releases as module

    road.releases.publish(deployment(road.blobs, 7, b"old"))
    persist = module.persist
    for allowed in range(4):
        left = [allowed]

        def dying(path: Path, data: bytes, mode: int = 0o644, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            persist(path, data, mode)

        monkeypatch.setattr(module, "persist", dying)
        fresh = road.releases
        try:
            fresh.publish(deployment(road.blobs, 8, b"new", 2))
            finished = True
        except KeyboardInterrupt:
            finished = False
        monkeypatch.setattr(module, "persist", persist)
        road.releases = road.signed_by(road.papers / LANE)
        road.wire._releases = road.releases
        found = road.trust.pull()
        assert found is not None
        assert found.revision == (8 if finished else 7)
    assert finished


def test_timestamps_and_snapshots_name_one_another_by_hash(road: Road) -> None:
    road.releases.publish(deployment(road.blobs, 7))
    folder = road.folder / "releases"
    timestamp, snapshot = (
        Metadata.from_file(str(folder / name)).signed for name in ("timestamp.json", "1.snapshot.json")
    )
    assert isinstance(timestamp, Timestamp)
    assert isinstance(snapshot, Snapshot)
    timestamp.snapshot_meta.verify_length_and_hashes((folder / "1.snapshot.json").read_bytes())
    snapshot.meta["targets.json"].verify_length_and_hashes((folder / "1.targets.json").read_bytes())
