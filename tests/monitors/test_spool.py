import json

import numpy as np
import pytest

from monitors.spool import Cursor, SpoolReader, record_dtype
from policies.telemetry import FORMAT, MAGIC, sample_fields, telemetry_fields


def header(fields, kind="telemetry", magic=MAGIC) -> bytes:
    head = {"magic": magic, "format": FORMAT, "kind": kind, "model": "toy", "fields": fields}
    return json.dumps(head).encode() + b"\n"


def records(first, n, embedding=4):
    block = np.zeros(n, record_dtype(telemetry_fields(3, embedding)))
    block["generation"] = np.arange(first, first + n)
    return block


def append(folder, segment, data, kind="telemetry"):
    folder.mkdir(exist_ok=True)
    with (folder / f"{kind}-{segment:012d}.seg").open("ab") as file:
        file.write(data)


def segment(folder, number, first, n, embedding=4):
    append(folder, number, header(telemetry_fields(3, embedding)) + records(first, n, embedding).tobytes())


def drain(reader, max_rows=1000):
    seen = []
    while (block := reader.read(max_rows)[0]) is not None:
        seen += block["generation"].tolist()
    return seen


@pytest.fixture
def spool(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def reader(spool):
    return SpoolReader(spool, "telemetry", Cursor(0, 0))


def test_no_spool_and_an_empty_spool_are_nothing_to_read(spool, reader):
    assert reader.read(10) == (None, Cursor(0, 0))
    spool.mkdir()
    assert reader.read(10) == (None, Cursor(0, 0))


def test_records_come_in_order_in_blocks_of_at_most_max_rows(spool, reader):
    segment(spool, 0, 0, 5)
    segment(spool, 1, 5, 3)
    sizes = []
    while (block := reader.read(2)[0]) is not None:
        sizes.append(len(block))
    assert sizes == [2, 2, 1, 2, 1]


@pytest.mark.parametrize("torn", [1, 20, -1])
def test_a_torn_last_record_is_left_until_it_is_whole(spool, reader, torn):
    segment(spool, 0, 0, 2)
    data = records(2, 1).tobytes()
    append(spool, 0, data[:torn])
    assert drain(reader) == [0, 1]
    append(spool, 0, data[torn:])
    assert drain(reader) == [2]


def test_a_record_torn_by_a_crash_is_passed_over_when_a_later_segment_begins(spool, reader):
    segment(spool, 0, 0, 2)
    append(spool, 0, records(2, 1).tobytes()[:30])
    segment(spool, 1, 9, 1)
    assert drain(reader) == [0, 1, 9]
    assert reader.lost_segments == 0


def test_a_header_is_awaited_until_its_line_ends(spool, reader):
    whole = header(telemetry_fields(3, 4))
    append(spool, 0, whole[:40])
    assert drain(reader) == []
    append(spool, 0, whole[40:] + records(0, 1).tobytes())
    assert drain(reader) == [0]
    assert reader.bad_segments == 0


def test_reading_goes_on_from_a_saved_cursor(spool, reader):
    segment(spool, 3, 0, 5)
    _, cursor = reader.read(2)
    assert drain(SpoolReader(spool, "telemetry", cursor)) == [2, 3, 4]


def test_a_new_reader_begins_with_the_oldest_and_calls_nothing_lost(spool, reader):
    segment(spool, 7, 0, 1)
    assert drain(reader) == [0]
    assert reader.lost_segments == 0


def test_rotation_is_counted(spool, reader):
    segment(spool, 1, 0, 2)
    assert drain(reader) == [0, 1]
    (spool / "telemetry-000000000001.seg").unlink()
    assert drain(reader) == []
    segment(spool, 4, 2, 1)
    segment(spool, 6, 3, 1)
    assert drain(reader) == [2, 3]
    # 1 (perhaps read to its end), 2, 3, and 5
    assert reader.lost_segments == 4


def test_a_segment_deleted_between_listing_and_opening_is_counted(spool, reader, monkeypatch):
    segment(spool, 1, 0, 2)
    reader.read(1)
    segment(spool, 2, 5, 1)
    listed = reader._segments()
    (spool / "telemetry-000000000001.seg").unlink()
    answers = iter([listed])
    real = reader._segments
    monkeypatch.setattr(reader, "_segments", lambda: next(answers, None) or real())
    assert drain(reader) == [5]
    assert reader.lost_segments == 1


def test_what_is_appended_after_the_listing_is_not_lost(spool, reader, monkeypatch):
    segment(spool, 0, 0, 1)
    real = reader._read_here
    late = iter([True])

    def read_here(max_rows, last):
        block = real(max_rows, last)
        if block is None and next(late, False):
            # The writer appends one more record and rotates just after we saw the end.
            append(spool, 0, records(1, 1).tobytes())
            segment(spool, 1, 2, 1)
        return block

    monkeypatch.setattr(reader, "_read_here", read_here)
    assert drain(reader) + drain(reader) == [0, 1, 2]


def test_a_spool_that_was_emptied_is_read_from_its_new_start(spool, reader):
    segment(spool, 8, 0, 2)
    assert drain(reader) == [0, 1]
    (spool / "telemetry-000000000008.seg").unlink()
    segment(spool, 0, 2, 1)
    segment(spool, 1, 3, 1)
    assert drain(reader) == [2, 3]
    assert reader.lost_segments == 1


def test_a_segment_with_another_layout_has_its_own_dtype(spool, reader):
    segment(spool, 0, 0, 2, embedding=4)
    segment(spool, 1, 2, 2, embedding=9)
    shapes = [reader.read(100)[0]["embedding"].shape for _ in range(2)]
    assert shapes == [(2, 4), (2, 9)]


@pytest.mark.parametrize(
    "head",
    [
        b"not json\n",
        b"[]\n",
        header(telemetry_fields(3, 4), magic="other"),
        header(telemetry_fields(3, 4), kind="samples"),
        header([["at", "no such type", []]]),
        json.dumps({"magic": MAGIC, "format": FORMAT, "kind": "telemetry"}).encode() + b"\n",
        b"torn header",
    ],
)
def test_a_segment_that_is_not_ours_is_counted_once_and_passed_over(spool, reader, head):
    append(spool, 0, head)
    drain(reader)
    drain(reader)
    segment(spool, 1, 5, 1)
    assert drain(reader) == [5]
    assert reader.bad_segments == 1


def test_kinds_do_not_mix_and_other_files_are_ignored(spool, reader):
    fields = sample_fields("|u1", (2, 2))
    sample = np.zeros(1, record_dtype(fields))
    sample["input"] = 7
    append(spool, 0, header(fields, kind="samples") + sample.tobytes(), kind="samples")
    (spool / "telemetry-1.seg").write_text("x")
    assert drain(reader) == []
    block, _ = SpoolReader(spool, "samples", Cursor(0, 0)).read(5)
    assert block["input"].tolist() == [[[7, 7], [7, 7]]]


def test_senseless_arguments_are_refused(reader):
    with pytest.raises(ValueError, match="max_rows > 0"):
        reader.read(0)
    with pytest.raises(ValueError, match="segment and offset"):
        Cursor(-1, 0)
