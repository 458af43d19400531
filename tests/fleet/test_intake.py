"""Telemetry taken in exactly once: over repeats, gaps, layouts, kills at every write, and full disks."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from daemon.fleet import intake as intake_module
from daemon.fleet import segments as segments_module
from daemon.fleet.intake import Gap, Intake, Push
from daemon.fleet.marks import Marks
from daemon.fleet.segments import Segments
from daemon.fleet.terms import Position
from monitors.spool import Cursor, SpoolReader
from policies.errors import PermanentError, TamperError
from policies.terms import Task
from tests.fleet.world import SpoolWriter

EPOCH = "0123456789abcdef"


class Sender:
    """A device that sends its segments in pieces of a few records, and can repeat itself."""

    def __init__(self, folder: Path, task: Task, name: str, embedding: int = 4) -> None:
        self.writer = SpoolWriter(folder / name, task, embedding=embedding)
        self.name = name
        self.offset = len(self.writer.header)
        self.said: list[Push] = []

    def piece(self, records: int) -> Push:
        """Return the next records as a push."""
        data = self.writer.records(records)
        push = Push(
            self.name, "telemetry", EPOCH, self.writer.segment, self.offset, self.writer.header + data
        )
        self.offset += len(data)
        self.said.append(push)
        return push

    def new_segment(self) -> None:
        self.writer.begin()
        self.offset = len(self.writer.header)


def made(folder: Path, task: Task) -> Intake:
    return Intake(task, folder / "spool", folder / "positions.log")


def taken(folder: Path) -> list[int]:
    """Return the numbers of all records in the lane's spool, as the monitors would read them."""
    reader = SpoolReader(folder / "spool", "telemetry", Cursor(0, 0))
    found: list[int] = []
    while True:
        block, _ = reader.read(1000)
        if block is None:
            assert (reader.lost_segments, reader.bad_segments) == (0, 0)
            return found
        found += [int(one) for one in block["at"]]


@pytest.fixture
def sender(tmp_path: Path, task: Task) -> Sender:
    return Sender(tmp_path, task, "pi5-1")


def test_pieces_of_several_devices_become_one_spool(tmp_path: Path, task: Task, sender: Sender) -> None:
    intake, other = made(tmp_path, task), Sender(tmp_path, task, "pi5-2")
    other.writer.count = 100
    answers = intake.commit([sender.piece(3), other.piece(2), sender.piece(1)])
    assert answers == [
        Position(segment=1, offset=sender.said[1].offset),
        Position(segment=1, offset=other.offset),
        Position(segment=1, offset=sender.offset),
    ]
    assert sorted(taken(tmp_path)) == [0, 1, 2, 3, 100, 101]
    intake.close()


def test_what_is_here_already_is_ignored_wholly_or_in_part(
    tmp_path: Path, task: Task, sender: Sender
) -> None:
    intake = made(tmp_path, task)
    first = sender.piece(3)
    intake.commit([first, sender.piece(2)])
    assert intake.commit([first]) == [Position(segment=1, offset=sender.offset)]
    records = first.body[len(sender.writer.header) :]
    more = sender.writer.records(2)
    overlapping = Push(
        "pi5-1",
        "telemetry",
        EPOCH,
        1,
        first.offset,
        first.body + taken_bytes(tmp_path)[len(records) :] + more,
    )
    answer = intake.commit([overlapping])[0]
    assert isinstance(answer, Position)
    assert taken(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    intake.close()


def taken_bytes(folder: Path) -> bytes:
    raw = (folder / "spool" / "telemetry-000000000001.seg").read_bytes()
    return raw[raw.index(b"\n") + 1 :]


def test_a_gap_in_a_segment_is_refused_with_the_position_to_go_on(
    tmp_path: Path, task: Task, sender: Sender
) -> None:
    intake = made(tmp_path, task)
    intake.commit([sender.piece(2)])
    here = Position(segment=1, offset=sender.offset)
    missing = sender.piece(1)
    refusal = intake.commit([sender.piece(1)])[0]
    assert isinstance(refusal, Gap)
    assert refusal.position == here
    assert all(isinstance(one, Position) for one in intake.commit([missing, sender.said[-1]]))
    assert taken(tmp_path) == [0, 1, 2, 3]
    intake.close()


def test_a_device_may_go_on_with_a_later_segment_for_it_may_have_lost_some(
    tmp_path: Path, task: Task, sender: Sender
) -> None:
    intake = made(tmp_path, task)
    intake.commit([sender.piece(1)])
    sender.writer.segment = 6
    sender.new_segment()
    assert intake.commit([sender.piece(1)]) == [Position(segment=7, offset=sender.offset)]
    assert intake.commit([sender.said[0]]) == [Position(segment=7, offset=sender.offset)]
    assert taken(tmp_path) == [0, 1]
    intake.close()


def test_a_new_epoch_begins_at_nothing(tmp_path: Path, task: Task, sender: Sender) -> None:
    intake = made(tmp_path, task)
    push = sender.piece(2)
    intake.commit([push])
    again = Push(push.device, push.kind, "f" * 16, push.segment, push.offset, push.body)
    assert intake.position("pi5-1", "telemetry", "f" * 16) == Position(segment=0, offset=0)
    intake.commit([again])
    assert taken(tmp_path) == [0, 1, 0, 1]
    intake.close()


def test_every_layout_has_segments_of_its_own(tmp_path: Path, task: Task, sender: Sender) -> None:
    intake, wide = made(tmp_path, task), Sender(tmp_path, task, "pi5-2", embedding=9)
    wide.writer.count = 100
    intake.commit([sender.piece(1), wide.piece(1), sender.piece(1), wide.piece(1)])
    intake.commit([wide.piece(1), sender.piece(1)])
    assert sorted(taken(tmp_path)) == [0, 1, 2, 100, 101, 102]
    assert len(list((tmp_path / "spool").iterdir())) == 3
    intake.close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda body: body[:-1], "whole records"),
        (lambda body: body[: body.index(b"\n") + 1], "whole records"),
        (lambda body: body.replace(b"\n", b" "), "expected a segment's header"),
        (lambda body: body.replace(b"meter-reader", b"other-model!"), "expected records of model"),
        (lambda body: body.replace(b'"latency_ms", "<f4"', b'"latency_ms", "<f8"'), "expected a header"),
        (lambda body: b"{}\n" + body, "expected a header"),
        (lambda body: b"[" * 5000 + b"\n" + body, "expected a header"),
    ],
    ids=[
        "torn-record",
        "no-records",
        "no-header",
        "other-model",
        "other-fields",
        "empty-header",
        "deep-header",
    ],
)
def test_what_is_no_piece_of_the_lanes_segments_is_refused(
    tmp_path: Path, task: Task, sender: Sender, change: Callable[[bytes], bytes], complaint: str
) -> None:
    intake, push = made(tmp_path, task), sender.piece(2)
    wrong = Push(push.device, push.kind, push.epoch, push.segment, push.offset, change(push.body))
    refusal = intake.commit([wrong])[0]
    assert isinstance(refusal, PermanentError)
    assert complaint in str(refusal)
    assert isinstance(intake.commit([push])[0], Position)
    assert taken(tmp_path) == [0, 1]
    intake.close()


class Dies(BaseException):
    """The process is killed here."""


def live_until(folder: Path, task: Task, writes: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Send a day of pieces, killed within the given write; return whether the day was lived through."""
    left = [writes]
    write = os.write

    def dying(fd: int, data: bytes) -> int:
        if left[0] == 0:
            write(fd, bytes(data)[: len(data) // 2])
            raise Dies
        left[0] -= 1
        return write(fd, data)

    sender = Sender(folder, task, "pi5-1")
    other = Sender(folder, task, "pi5-2")
    other.writer.count = 1000
    days = [[sender.piece(3), other.piece(2)], [sender.piece(1)], [other.piece(4), sender.piece(2)]]
    try:
        intake = made(folder, task)
        with monkeypatch.context() as patch:
            patch.setattr(segments_module.os, "write", dying)
            for day in days:
                intake.commit(day)
    except Dies:
        survived = False
    else:
        survived = True
    # The devices ask where to go on, and send again all that was never acknowledged.
    again = made(folder, task)
    for day in days:
        for push in day:
            again.commit([push])
    again.close()
    found = taken(folder)
    assert sorted(found) == [*range(6), *range(1000, 1006)], f"killed in write {writes}"
    return survived


def test_killed_in_any_write_nothing_is_lost_and_nothing_doubled(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    for writes in range(100):
        folder = tmp_path / str(writes)
        folder.mkdir()
        if live_until(folder, task, writes, monkeypatch):
            assert writes > 4, "the kills struck marks and records"
            return
    raise AssertionError("the day never ended")


@pytest.mark.parametrize("mutant", ["positions-believed-unseen", "positions-forgotten"])
def test_the_control_of_the_kills_a_careless_log_is_caught(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    from daemon.fleet import marks as marks_module

    if mutant == "positions-believed-unseen":
        monkeypatch.setattr(marks_module, "_found", lambda mark, _segments: mark)
    else:
        monkeypatch.setattr(Marks, "done", lambda *_: None)
    with pytest.raises(AssertionError, match="killed in write"):
        test_killed_in_any_write_nothing_is_lost_and_nothing_doubled(tmp_path, task, monkeypatch)


def test_a_disk_that_refuses_costs_nothing_that_was_acknowledged(
    tmp_path: Path, task: Task, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = made(tmp_path, task)
    intake.commit([sender.piece(2)])
    here = Position(segment=1, offset=sender.offset)
    push = sender.piece(2)

    def full(_self: Segments, _layout: object, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(intake_module.Segments, "append", full)
        with pytest.raises(OSError, match="No space"):
            intake.commit([push])
    assert intake.position("pi5-1", "telemetry", EPOCH) == here
    assert isinstance(intake.commit([push])[0], Position)
    intake.close()
    again = made(tmp_path, task)
    assert again.commit([push]) == [Position(segment=1, offset=sender.offset)]
    assert taken(tmp_path) == [0, 1, 2, 3]
    again.close()


def test_segments_are_deleted_when_read_and_the_positions_stay(
    tmp_path: Path, task: Task, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "SEGMENT_BYTES", 2000)
    intake = made(tmp_path, task)
    for _ in range(8):
        intake.commit([sender.piece(8)])
    held = intake.held_bytes("telemetry")
    intake.forget("telemetry", 5, 500)
    left = sorted(int(path.name[10:22]) for path in (tmp_path / "spool").iterdir())
    assert left[0] == 5
    assert intake.held_bytes("telemetry") < held
    intake.close()
    again = made(tmp_path, task)
    assert again.position("pi5-1", "telemetry", EPOCH) == Position(segment=1, offset=sender.offset)
    assert again.commit([sender.said[0]]) == [Position(segment=1, offset=sender.offset)]
    again.close()


def test_a_log_that_grew_is_replaced_by_what_it_amounts_to(
    tmp_path: Path, task: Task, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daemon.fleet import marks as marks_module

    monkeypatch.setattr(marks_module, "_FULL_BYTES", 300)
    intake = made(tmp_path, task)
    for _ in range(20):
        intake.commit([sender.piece(1)])
    assert (tmp_path / "positions.log").stat().st_size < 600
    intake.close()
    again = made(tmp_path, task)
    assert again.position("pi5-1", "telemetry", EPOCH) == Position(segment=1, offset=sender.offset)
    assert taken(tmp_path) == list(range(20))
    again.close()


def test_a_log_that_is_no_log_stops_the_start(tmp_path: Path, task: Task) -> None:
    (tmp_path / "positions.log").write_bytes(b"not a log\nat all\n")
    with pytest.raises(TamperError, match="log of positions"):
        made(tmp_path, task)


def test_records_are_kept_bit_for_bit(tmp_path: Path, task: Task, sender: Sender) -> None:
    rng = np.random.default_rng(3)
    raw = rng.bytes(sender.writer.dtype.itemsize * 5)
    push = Push("pi5-1", "telemetry", EPOCH, 1, len(sender.writer.header), sender.writer.header + raw)
    intake = made(tmp_path, task)
    intake.commit([push])
    assert taken_bytes(tmp_path) == raw
    intake.close()
