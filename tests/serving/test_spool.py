"""The spool: bounded, whole records, every loss counted, and never in the way."""

import os
import threading
from collections import Counter

import numpy as np
import pytest

from daemon.serving.sampler import Sampler
from daemon.serving.spool import HOLD_FLUSHES, LEAST_BYTES, QUEUE_BYTES, Layout, Spool, Stream

NARROW = Layout("telemetry", "m", (("n", "<u4", ()), ("pad", "V12", ())), 16)
WIDE = Layout("telemetry", "m", (("n", "<u4", ()), ("pad", "V28", ())), 32)
SAMPLE = Layout("samples", "m", (("n", "<u4", ()), ("pad", "V12", ())), 16)


def records(first: int, count: int, size: int = 16) -> bytes:
    return b"".join(n.to_bytes(4, "little") + bytes(size - 4) for n in range(first, first + count))


def numbers(kit, folder, kind="telemetry") -> list[int]:
    return [int(n) for block in kit.read_spool(folder, kind) for n in block["n"]]


@pytest.fixture
def lost():
    return Counter()


@pytest.fixture
def spool(tmp_path, lost):
    return Spool(tmp_path, 2 * LEAST_BYTES, lambda kind, rows: lost.update({kind: rows}))


def test_what_is_appended_is_read_in_order(spool, tmp_path, kit):
    for start in range(0, 100, 10):
        spool.append(NARROW, records(start, 10))
        spool.append(SAMPLE, records(start, 1))
        spool.flush()
    spool.close()
    assert numbers(kit, tmp_path) == list(range(100))
    assert numbers(kit, tmp_path, "samples") == list(range(0, 100, 10))


def test_a_record_that_no_segment_holds_is_dropped_and_counted(spool, lost, tmp_path, kit):
    most = LEAST_BYTES // 8
    for size in (most, most + 1):
        spool.append(
            Layout("telemetry", "m", (("n", "<u4", ()), ("pad", f"V{size - 4}", ())), size), bytes(size)
        )
        spool.flush(last=True)
    assert lost == {"telemetry": 1}
    assert numbers(kit, tmp_path) == [0], "one of as many bytes as a segment is kept"


def test_old_segments_that_cannot_be_deleted_cost_new_records_and_not_the_bound(
    spool, lost, tmp_path, kit, monkeypatch
):
    def size() -> int:
        return sum(path.stat().st_size for path in tmp_path.glob("telemetry-*.seg"))

    def write(first: int, flushes: int) -> None:
        for start in range(first, first + flushes * 100, 100):
            spool.append(NARROW, records(start, 100))
            spool.flush()

    write(0, 100)
    assert LEAST_BYTES * 3 / 4 < size() <= LEAST_BYTES
    with monkeypatch.context() as patch:
        patch.setattr("daemon.serving.spool.Path.unlink", refuse)
        write(10_000, 100)
    assert size() <= LEAST_BYTES
    kept = numbers(kit, tmp_path)
    assert lost["telemetry"] == sum(n not in kept for n in range(10_000, 20_000)) > 9_000
    # And it goes on as if nothing had been.
    write(20_000, 100)
    assert LEAST_BYTES * 3 / 4 < size() <= LEAST_BYTES
    assert numbers(kit, tmp_path)[-1] == 29_999


def refuse(_path, missing_ok=False):
    raise PermissionError(1, "planted")


def test_the_thread_writes_without_being_asked(tmp_path, kit):
    written = threading.Event()

    def write(stream, layout, data):
        Stream.write(stream, layout, data)
        written.set()

    spool = Spool(tmp_path, 2 * LEAST_BYTES, lambda *_: None, write=write)
    spool.start()
    spool.append(NARROW, records(0, 3))
    assert written.wait(30)
    assert numbers(kit, tmp_path) == [0, 1, 2]
    spool.append(NARROW, records(3, 1))
    spool.close()
    assert numbers(kit, tmp_path) == [0, 1, 2, 3]


def test_the_oldest_segments_go_and_the_budget_holds(spool, tmp_path, kit, lost):
    for start in range(0, 20_000, 100):
        spool.append(NARROW, records(start, 100))
        spool.flush()
        size = sum(path.stat().st_size for path in tmp_path.glob("telemetry-*.seg"))
        assert size <= LEAST_BYTES
    spool.close()
    kept = numbers(kit, tmp_path)
    assert kept == list(range(kept[0], 20_000))
    assert 0 < kept[0] < 20_000
    # Deleting old segments is rotation, not loss: a reader sees the gap in the numbers.
    assert not lost
    segments = sorted(int(path.name[10:22]) for path in tmp_path.glob("telemetry-*.seg"))
    assert segments == list(range(segments[0], segments[0] + len(segments)))
    assert segments[0] > 1


def test_one_kind_never_pushes_out_the_other(spool, tmp_path, kit):
    spool.append(NARROW, records(0, 10))
    for start in range(0, 20_000, 100):
        spool.append(SAMPLE, records(start, 100))
        spool.flush()
    spool.close()
    assert numbers(kit, tmp_path) == list(range(10))


def test_a_new_layout_begins_a_new_segment(spool, tmp_path, kit):
    spool.append(NARROW, records(0, 2))
    spool.flush()
    spool.append(WIDE, records(2, 2, 32))
    spool.flush(last=True)
    spool.close()
    assert [block.dtype.itemsize for block in kit.read_spool(tmp_path, "telemetry")] == [16, 32]
    assert numbers(kit, tmp_path) == [0, 1, 2, 3]


def test_alternating_layouts_make_few_segments_and_lose_nothing(spool, tmp_path, kit, lost):
    rounds = 20 * HOLD_FLUSHES
    for n in range(rounds):
        spool.append(NARROW, records(2 * n, 1))
        spool.append(WIDE, records(2 * n + 1, 1, 32))
        spool.flush()
    spool.close()
    assert sorted(numbers(kit, tmp_path)) == list(range(2 * rounds))
    # Without holding back, every flush would begin two segments.
    assert len(list(tmp_path.glob("telemetry-*.seg"))) <= rounds // HOLD_FLUSHES + 2
    assert not lost


def test_a_new_start_leaves_a_torn_tail_alone_and_goes_on_after_it(spool, tmp_path, kit):
    spool.append(NARROW, records(0, 3))
    spool.close()
    torn = tmp_path / "telemetry-000000000001.seg"
    torn.write_bytes(torn.read_bytes()[:-5])
    (tmp_path / "telemetry-7.seg.tmp").write_bytes(b"x")
    again = Spool(tmp_path, 2 * LEAST_BYTES, lambda *_: None)
    again.append(NARROW, records(10, 2))
    again.close()
    assert numbers(kit, tmp_path) == [0, 1, 10, 11]
    assert (tmp_path / "telemetry-000000000002.seg").exists()


def test_a_full_queue_drops_and_counts(spool, lost, tmp_path, kit):
    data = records(0, 1 << 16)
    for _ in range(QUEUE_BYTES // len(data)):
        spool.append(NARROW, data)
    assert not lost
    spool.append(NARROW, records(0, 5))
    assert lost == {"telemetry": 5}
    spool.close()


def test_a_disk_that_refuses_costs_counted_records_and_nothing_else(tmp_path, kit, lost):
    refuse = {"now": True}

    def write(stream, layout, data):
        if refuse["now"]:
            raise OSError(28, "No space left on device")
        Stream.write(stream, layout, data)

    spool = Spool(tmp_path, 2 * LEAST_BYTES, lambda kind, rows: lost.update({kind: rows}), write=write)
    spool.append(NARROW, records(0, 4))
    spool.flush()
    assert lost == {"telemetry": 4}
    refuse["now"] = False
    spool.append(NARROW, records(4, 2))
    spool.close()
    assert numbers(kit, tmp_path) == [4, 5]
    assert lost == {"telemetry": 4}


@pytest.mark.parametrize("first", [True, False])
def test_half_a_write_is_cut_off(tmp_path, kit, monkeypatch, first):
    stream = Stream(tmp_path, "telemetry", LEAST_BYTES)
    if not first:
        stream.write(NARROW, records(0, 2))
    real, calls = os.write, []

    def write(fd, data):
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(fd, bytes(data[: len(data) - 7]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space"):
            stream.write(NARROW, records(2, 2))
    assert len(calls) == 2
    stream.write(NARROW, records(4, 2))
    stream.close()
    assert numbers(kit, tmp_path) == ([4, 5] if first else [0, 1, 4, 5])
    # A disk that stays full must not collect empty files.
    assert len(list(tmp_path.iterdir())) == (1 if first else 2)


def test_each_kind_that_is_refused_is_told_once(tmp_path, caplog):
    def write(stream, layout, data):
        if layout.kind == "samples":
            raise OSError(28, "No space left on device")
        Stream.write(stream, layout, data)

    spool = Spool(tmp_path, 2 * LEAST_BYTES, lambda *_: None, write=write)
    for start in range(5):
        spool.append(NARROW, records(start, 1))
        spool.append(SAMPLE, records(start, 1))
        spool.flush()
    spool.close()
    assert [record.getMessage() for record in caplog.records] == [
        "spool: the disk refuses, samples is dropped and counted: [Errno 28] No space left on device"
    ]


@pytest.mark.parametrize("whole", [True, False], ids=["the folder", "the segment"])
def test_what_somebody_deletes_is_begun_anew(spool, tmp_path, kit, lost, caplog, whole):
    spool.append(NARROW, records(0, 2))
    spool.flush()
    for path in tmp_path.iterdir():
        path.unlink()
    if whole:
        tmp_path.rmdir()
    for start in range(2, 6, 2):
        spool.append(NARROW, records(start, 2))
        spool.flush()
    spool.close()
    assert numbers(kit, tmp_path) == [2, 3, 4, 5]
    assert not lost
    assert [record.getMessage() for record in caplog.records] == [
        "spool: the open segment of telemetry was deleted by somebody; a new one begins"
    ]


def test_a_mutant_that_never_looks_writes_where_nobody_reads(tmp_path, kit, lost, caplog, spool, monkeypatch):
    monkeypatch.setattr(Stream, "look", lambda _self: True)
    with pytest.raises(AssertionError):
        test_what_somebody_deletes_is_begun_anew(spool, tmp_path, kit, lost, caplog, whole=False)


def test_a_file_that_cannot_be_closed_is_not_closed_again(tmp_path, monkeypatch):
    stream = Stream(tmp_path, "telemetry", LEAST_BYTES)
    stream.write(NARROW, records(0, 2))
    closed = []

    def close(fd):
        closed.append(fd)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        with pytest.raises(OSError, match="Input/output"):
            stream.close()
        stream.close()
    (fd,) = closed
    os.close(fd)


def test_records_that_cannot_be_made_do_not_end_the_thread(tmp_path, kit, caplog):
    written, tried, broken = threading.Event(), threading.Event(), [True]

    def gather():
        tried.set()
        if broken:
            raise LookupError("nobody foresaw it")

    def write(stream, layout, data):
        Stream.write(stream, layout, data)
        written.set()

    spool = Spool(tmp_path, 2 * LEAST_BYTES, lambda *_: None, write=write)
    spool.gather = gather
    spool.start()
    for _ in range(3):
        tried.clear()
        assert tried.wait(30)
    broken.clear()
    spool.append(NARROW, records(0, 3))
    assert written.wait(30), "the thread has ended"
    spool.close()
    assert numbers(kit, tmp_path) == [0, 1, 2]
    assert len([record for record in caplog.records if "could not be made" in record.getMessage()]) == 1


def test_a_budget_too_small_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 131072"):
        Spool(tmp_path, 1000, lambda *_: None)


def keys(seed: int, count: int) -> list[bytes]:
    return [bytes(row) for row in np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)]


def test_the_sampler_keeps_all_while_the_budget_holds():
    sampler, rows = Sampler(1000), keys(0, 10)
    for second in range(5):
        assert sampler.keep(float(second), rows, 100) == list(range(10))


def test_the_sampler_keeps_its_budget_and_decides_by_key_under_a_flood():
    rows = keys(1, 400)
    sampler = Sampler(10_000)
    first = sampler.keep(0.0, rows, 100)
    assert first == list(range(100))
    second, third = sampler.keep(1.0, rows, 100), sampler.keep(2.0, rows, 100)
    assert second == third
    # By key, not by arrival: the end of the second has its chance too.
    assert max(second) > 300
    assert 60 <= len(second) <= 100
    backwards = Sampler(10_000)
    backwards.keep(0.0, rows, 100)
    mirrored = {399 - i for i in backwards.keep(1.0, rows[::-1], 100)}
    assert len(mirrored & set(second)) >= 0.9 * len(second)


def test_a_sampler_without_budget_keeps_nothing():
    assert Sampler(0).keep(0.0, keys(2, 3), 100) == []
