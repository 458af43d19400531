"""The layout of telemetry: what the data plane appends and the monitors read, as plain data.

Two kinds of segment lie in the spool, each a header line and then fixed-size records:

* ``telemetry-<12 digits>.seg``: one record a row of every request, good or bad.
* ``samples-<12 digits>.seg``: the raw input of a sampled row.

The header is one line of JSON, ended by a newline: ``{"magic": "instar-spool", "format": 2, "kind": ...,
"model": ..., "fields": [[name, dtype, shape], ...]}``. Readers build the dtype from the header, and ignore
a torn last record. Segments are numbered upwards; the writer deletes the oldest when the spool is full, and
a reader that finds a gap counts what it lost.

Ids are hashed, so that no client text lies in a file: ``row_key`` joins a row with its label.
"""

from collections.abc import Sequence
from hashlib import blake2b

MAGIC = "instar-spool"
FORMAT = 2

Field = tuple[str, str, tuple[int, ...]]

OUTCOMES = ("ok", "client_error", "error", "timeout", "shed", "not_finite")


def row_key(request_id: str, row: int, rows: int) -> bytes:
    """Return the 16-byte key of one row of a request: the id alone when it has a single row.

    >>> row_key("a", 0, 1) == row_key("a", 1, 2)
    False
    """
    text = request_id if rows == 1 else f"{request_id}/{row}"
    return blake2b(text.encode(), digest_size=16).digest()


def row_keys(request_ids: Sequence[str], rows: Sequence[int]) -> list[bytes]:
    """Return the keys of all rows of some requests, in order; ``rows`` is how many each has.

    >>> row_keys(["a", "b"], [1, 2]) == [row_key("a", 0, 1), row_key("b", 0, 2), row_key("b", 1, 2)]
    True
    """
    if sum(rows) == len(rows):
        return [blake2b(name.encode(), digest_size=16).digest() for name in request_ids]
    named = zip(request_ids, rows, strict=True)
    return [row_key(name, row, count) for name, count in named for row in range(count)]


def group_key(group: str) -> bytes:
    """Return the 8-byte key of a near-duplicate group."""
    return blake2b(group.encode(), digest_size=8).digest()


def telemetry_fields(classes: int, embedding: int) -> list[Field]:
    """Return the record layout of a telemetry segment.

    ``outcome`` indexes ``OUTCOMES``. ``exit`` is 1 when the row left early: its ``logits`` are those of the
    exit, and there is no ``embedding``, only zeros that say nothing. ``summary`` is mean, standard deviation,
    minimum and maximum of the input row, and the mean absolute difference of neighbours along its last axis.
    A row that never reached the model has zeros in ``logits``, ``embedding`` and ``summary`` (``outcome``).
    """
    return [
        ("at", "<f8", ()),
        ("row_key", "V16", ()),
        ("group_key", "V8", ()),
        ("generation", "<u4", ()),
        ("outcome", "u1", ()),
        ("exit", "u1", ()),
        ("batch", "<u2", ()),
        ("latency_ms", "<f4", ()),
        ("logits", "<f4", (classes,)),
        ("embedding", "<f4", (embedding,)),
        ("summary", "<f4", (5,)),
    ]


def sample_fields(dtype: str, shape: tuple[int, ...]) -> list[Field]:
    """Return the record layout of a sample segment; ``shape`` is one row's, without the batch."""
    return [
        ("at", "<f8", ()),
        ("row_key", "V16", ()),
        ("group_key", "V8", ()),
        ("generation", "<u4", ()),
        ("input", dtype, shape),
    ]
