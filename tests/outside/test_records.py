"""Records are read strictly: every refusal names the record and the field."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.outside.records import MOST_RECORDS, parse

GOOD = {
    "id": "r-1",
    "generation": 3,
    "outcome": "ok",
    "latency_ms": 1.5,
    "group": "meter-7",
    "batch": 4,
    "logits": [0.5, 1],
    "embedding": [0.25, -1.0, 2.0],
    "summary": [1.0, 2.0, 0.0, 3.0, 0.5],
}
FAILED = {"id": "r-2", "generation": 3, "outcome": "error", "latency_ms": 0.0}


def body(*records: Any) -> bytes:
    return json.dumps({"records": records}).encode()


def test_a_good_batch_is_read() -> None:
    read = parse(body(GOOD, FAILED))
    assert [record.id for record in read] == ["r-1", "r-2"]
    assert read[0].logits == [0.5, 1.0]
    assert read[1].embedding is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latency_ms": "fast"}, r"records\[1\]\.latency_ms"),
        ({"latency_ms": -1.0}, r"records\[1\]\.latency_ms"),
        ({"generation": -1}, r"records\[1\]\.generation"),
        ({"generation": 1.5}, r"records\[1\]\.generation"),
        ({"generation": 0}, r"records\[1\]\.generation > 0"),
        ({"id": ""}, r"records\[1\]\.id"),
        ({"id": "r-0"}, r"records\[1\]\.id 'r-0' again"),
        ({"id": "x" * 300}, r"records\[1\]\.id"),
        ({"batch": 70_000}, r"records\[1\]\.batch"),
        ({"logits": [1.0, None]}, r"records\[1\]\.logits"),
        ({"logits": None}, r"expected records\[1\]\.logits with outcome ok"),
        ({"embedding": None}, r"expected records\[1\]\.embedding with outcome ok"),
        ({"summary": None}, r"records\[1\]\.input_b64 or records\[1\]\.summary .* got neither"),
        ({"input_b64": "AA=="}, r"got both"),
        ({"summary": [1.0]}, r"records\[1\]\.summary"),
        ({"outcome": "fine"}, r"records\[1\]\.outcome among ok, "),
        ({"outcome": "timeout"}, r"expected no records\[1\]\.logits with outcome timeout"),
        ({"extra": 1}, r"extra"),
    ],
)
def test_a_wrong_field_is_refused_by_record_and_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(body(GOOD | {"id": "r-0"}, GOOD | change))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"records":[]}',
        b'{"records":{}}',
        b'{"records":[{}]}',
        b'{"records":[],"more":1}',
        b"\xff\xfe",
        b'{"records":[{"id":"a","generation":1,"outcome":"ok","latency_ms":NaN}]}',
        b"[" * 100_000,
    ],
)
def test_another_body_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse(raw)


def test_too_many_records_are_refused() -> None:
    with pytest.raises(ValueError, match="records"):
        parse(body(*(FAILED | {"id": str(i)} for i in range(MOST_RECORDS + 1))))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=6))
def test_any_json_in_any_field_is_read_or_refused(value: Any) -> None:
    for name in GOOD:
        raw = json.dumps({"records": [GOOD | {name: value}]}).encode()
        with contextlib.suppress(ValueError):  # whatever else it raises is a fault
            assert len(parse(raw)) == 1
