"""A device and its hub over real TLS on loopback: who is let in, and telemetry that resumes exactly."""

import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from daemon.fleet.caller import Behind, call, client
from daemon.fleet.certificates import client_tls
from daemon.fleet.hardware import hardware
from daemon.fleet.lane import HubLane
from daemon.fleet.pusher import Pusher
from daemon.fleet.terms import Answer, Position, Report
from daemon.fleet.trust import Trust
from daemon.store.blobs import Blobs
from monitors.spool import Cursor, SpoolReader
from policies.clock import StandingClock
from policies.errors import PermanentError, TemporaryError
from policies.terms import Task
from policies.wire import canonical
from tests.fleet.world import (
    LANE,
    SpoolWriter,
    caller,
    deployment,
    hub_at_work,
    hub_lane,
    unix_hub_at_work,
)


@pytest.fixture
def lane(tmp_path: Path, papers: Path, task: Task, clock: StandingClock) -> Iterator[HubLane]:
    made = hub_lane(tmp_path / "hub", papers, task, clock)
    yield made
    made.intake.close()


def report(**changes: object) -> bytes:
    plain = {"observed": None, "revision": 0, "problem": None, "idle": True, "lost_segments": 0}
    return canonical(Report.model_validate(plain | {"hardware": hardware()} | changes))


def taken(hub: Path, kind: str = "telemetry") -> list[int]:
    reader = SpoolReader(hub / "spool", "telemetry" if kind == "telemetry" else "samples", Cursor(0, 0))
    found: list[int] = []
    while (block := reader.read(10_000)[0]) is not None:
        found += [int(one) for one in block["at"]]
    return found


def test_a_device_with_a_certificate_is_answered_and_heard(lane: HubLane, papers: Path) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        answer = Answer.model_validate_json(call(http, "POST", "/v1/report", report()))
        assert answer == Answer(release=0, job=False)
        one = next(seen for seen in lane.roster.seen() if seen.name == "pi5-1")
        assert one.report is not None
        assert one.report.hardware == hardware()


def test_a_name_that_is_in_no_lane_is_refused_whatever_its_certificate(lane: HubLane, papers: Path) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port, "stranger") as http:
        with pytest.raises(PermanentError, match="403"):
            call(http, "POST", "/v1/report", report())
        with pytest.raises(PermanentError, match="403"):
            call(http, "GET", "/v1/release/timestamp.json")


def test_a_name_in_a_header_is_not_believed_over_tls(lane: HubLane, papers: Path) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port, "stranger") as http:
        answer = http.post("/v1/report", content=report(), headers={"instar-device": "pi5-1"})
        assert answer.status_code == 403


def test_without_a_certificate_or_with_a_foreign_one_there_is_no_connection(
    lane: HubLane, papers: Path, tmp_path: Path
) -> None:
    from daemon.fleet import enrol

    enrol.init(tmp_path / "foreign", ["127.0.0.1"], [LANE], lane.releases._clock.now())
    own = enrol.enrol(tmp_path / "foreign", LANE, "pi5-1", lane.releases._clock.now())
    bare = ssl.create_default_context(cafile=str(papers / "ca.pem"))
    foreign = client_tls(own / "device.pem", own / "device.key", papers / "ca.pem")
    with hub_at_work(lane, papers) as port:
        for context in (bare, foreign):
            with client(f"https://127.0.0.1:{port}", "pi5-1", context) as http, pytest.raises(TemporaryError):
                call(http, "POST", "/v1/report", report())
        # The control: the same call with the fleet's certificate.
        with caller(papers, port) as http:
            call(http, "POST", "/v1/report", report())


def test_a_device_does_not_believe_a_hub_of_another_ca(lane: HubLane, papers: Path, tmp_path: Path) -> None:
    from daemon.fleet import enrol

    enrol.init(tmp_path / "foreign", ["127.0.0.1"], [LANE], lane.releases._clock.now())
    own = papers / "devices" / "pi5-1"
    context = client_tls(own / "device.pem", own / "device.key", tmp_path / "foreign" / "ca.pem")
    with (
        hub_at_work(lane, papers) as port,
        client(f"https://127.0.0.1:{port}", "pi5-1", context) as http,
        pytest.raises(TemporaryError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        call(http, "POST", "/v1/report", report())


def test_older_tls_is_refused(lane: HubLane, papers: Path) -> None:
    own = papers / "devices" / "pi5-1"
    context = client_tls(own / "device.pem", own / "device.key", own / "ca.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        hub_at_work(lane, papers) as port,
        client(f"https://127.0.0.1:{port}", "pi5-1", context) as http,
        pytest.raises(TemporaryError),
    ):
        call(http, "POST", "/v1/report", report())


def test_what_is_released_comes_over_the_wire_and_nothing_else_does(
    lane: HubLane, papers: Path, tmp_path: Path
) -> None:
    wanted = deployment(lane._blobs, 3, b"x" * 300_000)
    secret = lane._blobs.put(b"a supernet's state")
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        root = (papers / LANE / "1.root.json").read_bytes()
        trust = Trust(tmp_path / "device", http, Blobs(tmp_path / "blobs"), root)
        assert trust.pull() is None
        lane.releases.publish(wanted)
        assert trust.pull() == wanted
        for path in (f"/v1/blob/{secret[7:]}", "/v1/release/../positions.log", "/v1/blob/..%2f..%2fx"):
            assert http.get(path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/report", b"{}", 422),
        ("POST", "/v1/report", b"\xff" * 50, 422),
        ("POST", "/v1/telemetry", b"x", 400),
        ("POST", "/v1/telemetry?kind=telemetry&epoch=zz&segment=1&offset=1", b"x", 400),
        ("POST", "/v1/telemetry?kind=telemetry&epoch=0123456789abcdef&segment=-1&offset=1", b"x", 400),
        ("POST", "/v1/telemetry?kind=other&epoch=0123456789abcdef&segment=1&offset=1", b"x", 400),
        ("POST", "/v1/telemetry?kind=telemetry&epoch=0123456789abcdef&segment=1&offset=1", b"x", 422),
        (
            "POST",
            "/v1/telemetry?kind=telemetry&epoch=0123456789abcdef&segment=1&offset=1",
            b"x" * 5_000_000,
            413,
        ),
        ("POST", "/v1/timings", b"{}", 422),
        ("GET", "/v1/position?kind=telemetry", None, 400),
        ("DELETE", "/v1/report", None, 404),
        ("GET", "/", None, 404),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    lane: HubLane, papers: Path, method: str, path: str, content: bytes | None, status: int
) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        answer = http.request(method, path, content=content)
        assert answer.status_code == status
        assert "expected" in answer.json()["error"]
        assert http.get("/v1/job").status_code == 204


# -- telemetry ----------------------------------------------------------------------------------------------


class Sender:
    """A device's spool and its pusher, which can be restarted."""

    def __init__(self, folder: Path, task: Task, http: httpx.Client) -> None:
        self.folder, self.http = folder, http
        self.writer = SpoolWriter(folder / "spool", task)
        self.heard: list[int] = []
        self.restart()

    def restart(self) -> None:
        self.pusher = Pusher(self.folder / "spool", self.folder / "epoch.json", self.http, self.heard.append)


def test_telemetry_and_samples_arrive_whole_and_in_order(
    lane: HubLane, papers: Path, task: Task, tmp_path: Path
) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        sender = Sender(tmp_path, task, http)
        samples = SpoolWriter(tmp_path / "spool", task, "samples")
        sender.writer.write(1500)
        samples.write(40)
        sender.writer.begin()
        sender.writer.write(20)
        lane.releases.publish(deployment(lane._blobs, 1))
        assert sender.pusher.push(100) == 1560
        assert taken(tmp_path / "hub") == list(range(1520))
        assert taken(tmp_path / "hub", "samples") == list(range(40))
        assert sender.heard[-1] == 1


def live_through(lives: int, papers: Path, task: Task, tmp_path: Path, clock: StandingClock) -> None:
    """The hub dies and comes back, the device dies and comes back, in turns, with answers that are lost."""
    hub = tmp_path / "hub"
    writer: SpoolWriter | None = None
    for life in range(lives):
        lane = hub_lane(hub, papers, task, clock)
        with hub_at_work(lane, papers) as port, caller(papers, port) as http:
            sender = Sender(tmp_path, task, http) if writer is None else Heir(tmp_path, http, writer)
            writer = sender.writer
            for _ in range(4):
                writer.write(37)
                if life % 2:
                    writer.begin()
                lost = Lossy(http, every=3)
                pusher = Pusher(tmp_path / "spool", tmp_path / "epoch.json", lost, lambda _: None)
                while True:
                    try:
                        if pusher.push(100) == 0:
                            break
                    except TemporaryError:
                        continue
        lane.intake.close()
    assert writer is not None
    assert taken(hub) == list(range(writer.count))
    assert writer.count == lives * 4 * 37


def test_over_partitions_and_restarts_nothing_is_lost_and_nothing_doubled(
    papers: Path, task: Task, tmp_path: Path, clock: StandingClock
) -> None:
    live_through(4, papers, task, tmp_path, clock)


class Heir(Sender):
    """The same spool after a restart of the device."""

    def __init__(self, folder: Path, http: httpx.Client, writer: SpoolWriter) -> None:
        self.folder, self.http, self.writer, self.heard = folder, http, writer, []
        self.restart()


class Lossy:
    """A line that loses every n-th answer after the hub has acted on it."""

    def __init__(self, http: httpx.Client, every: int) -> None:
        self._http, self._every, self._count = http, every, 0

    def request(self, *args: object, **more: object) -> httpx.Response:
        answer = self._http.request(*args, **more)  # type: ignore[arg-type]
        self._count += 1
        if self._count % self._every == 0:
            raise httpx.ReadError("the answer is lost")
        return answer


def test_the_control_a_hub_that_forgets_positions_is_caught(
    papers: Path, task: Task, tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daemon.fleet.marks import NOTHING, Marks

    monkeypatch.setattr(Marks, "position", lambda *_: NOTHING)
    with pytest.raises(AssertionError):
        live_through(2, papers, task, tmp_path, clock)


def test_segments_that_the_spool_gave_up_are_counted(
    lane: HubLane, papers: Path, task: Task, tmp_path: Path
) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        sender = Sender(tmp_path, task, http)
        sender.writer.write(5)
        sender.pusher.push(10)
        for _ in range(3):
            sender.writer.begin()
            sender.writer.write(5)
        for number in (1, 2, 3):
            (tmp_path / "spool" / f"telemetry-{number:012d}.seg").unlink()
        sender.restart()
        sender.pusher.push(10)
        assert sender.pusher.lost_segments == 3
        assert taken(tmp_path / "hub") == [*range(5), *range(15, 20)]


def test_a_spool_that_was_emptied_begins_a_new_account(
    lane: HubLane, papers: Path, task: Task, tmp_path: Path
) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        sender = Sender(tmp_path, task, http)
        sender.writer.write(5)
        sender.writer.begin()
        sender.writer.write(5)
        sender.pusher.push(10)
        for path in (tmp_path / "spool").iterdir():
            path.unlink()
        count = sender.writer.count
        sender.writer = SpoolWriter(tmp_path / "spool", task)
        sender.writer.count = count
        for _ in range(2):
            sender.writer.write(5)
            sender.writer.begin()
        sender.restart()
        sender.pusher.push(10)
        assert taken(tmp_path / "hub") == list(range(20))
        assert sender.pusher.lost_segments == 1


def test_a_device_that_sends_too_fast_is_told_to_wait_and_keeps_its_records(
    tmp_path: Path, papers: Path, task: Task, clock: StandingClock
) -> None:
    lane = hub_lane(tmp_path / "hub", papers, task, clock, device_bytes_per_s=2000)
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        sender = Sender(tmp_path, task, http)
        sender.writer.write(200)
        with pytest.raises(TemporaryError, match="429") as busy:
            sender.pusher.push(100)
        assert busy.value.retry_after_s >= 1
        assert len(taken(tmp_path / "hub")) < 200
        for _ in range(20):
            clock.advance(10.0)
            try:
                sender.pusher.push(100)
            except TemporaryError:
                continue
        assert taken(tmp_path / "hub") == list(range(200))
    lane.intake.close()


def test_what_the_monitors_have_not_read_is_bounded(
    tmp_path: Path, papers: Path, task: Task, clock: StandingClock
) -> None:
    lane = hub_lane(tmp_path / "hub", papers, task, clock, telemetry_bytes=1 << 20)
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        sender = Sender(tmp_path, task, http)
        sender.writer.write(12_000)
        with pytest.raises(TemporaryError, match="429"):
            sender.pusher.push(100)
        assert lane.intake.held_bytes("telemetry") <= 1 << 20
        reader = SpoolReader(tmp_path / "hub" / "spool", "telemetry", Cursor(0, 0))
        rows = 0
        for _ in range(20):
            while (block := reader.read(5000)[0]) is not None:
                rows += len(block)
            lane.intake.forget("telemetry", reader.cursor.segment, reader.cursor.offset)
            try:
                sender.pusher.push(100)
            except TemporaryError:
                continue
        assert rows == 12_000
    lane.intake.close()


def test_a_piece_after_a_gap_is_answered_with_the_position(
    lane: HubLane, papers: Path, task: Task, tmp_path: Path
) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        writer = SpoolWriter(tmp_path / "spool", task)
        body = writer.header + writer.records(1)
        place = {"kind": "telemetry", "epoch": "0" * 16, "segment": 1}
        offset = len(writer.header) + writer.dtype.itemsize
        with pytest.raises(Behind) as refusal:
            call(http, "POST", "/v1/telemetry", body, place | {"offset": offset})
        assert b'"segment":0,"offset":0' in refusal.value.answer
        raw = call(http, "GET", "/v1/position", params={"kind": "telemetry", "epoch": "0" * 16})
        assert Position.model_validate_json(raw) == Position(segment=0, offset=0)


def test_records_of_a_network_with_another_embedding_come_too(
    lane: HubLane, papers: Path, task: Task, tmp_path: Path
) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        sender = Sender(tmp_path, task, http)
        sender.writer.write(3)
        wide = SpoolWriter(tmp_path / "other", task, embedding=64)
        wide.segment, wide.count = 1, 3
        (tmp_path / "other" / "telemetry-000000000001.seg").unlink()
        wide.begin()
        wide.write(2)
        wide.path.rename(tmp_path / "spool" / wide.path.name)
        sender.pusher.push(10)
        assert taken(tmp_path / "hub") == [0, 1, 2, 3, 4]
        assert np.dtype(wide.dtype).itemsize > sender.writer.dtype.itemsize


def test_a_device_on_the_hubs_own_host_comes_by_a_socket_that_its_user_alone_may_open(
    lane: HubLane, tmp_path: Path
) -> None:
    path = tmp_path / "hub.sock"
    with unix_hub_at_work(lane, path), client(f"unix:{path}", "pi5-1", None) as http:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        call(http, "POST", "/v1/report", report())
        told = http.get("/v1/devices", headers={"instar-device": ""}).json()
        assert [(one["name"], one["lane"], one["problem"]) for one in told] == [
            ("pi5-1", LANE, None),
            ("pi5-2", LANE, None),
        ]
        assert told[0]["hardware"] == str(hardware())


def test_what_operators_see_is_not_shown_to_devices(lane: HubLane, papers: Path) -> None:
    with hub_at_work(lane, papers) as port, caller(papers, port) as http:
        assert http.get("/v1/devices").status_code == 404
