"""What a client tells of the requests that another server answered: one record a row.

* Strict: no unknown field, no wrong type, nothing out of bounds; a refusal names the record and the field.
* A row that was answered (outcome ``ok``) has ``logits``, ``embedding`` and either its ``input_b64`` or the
  ``summary`` of it. Monitors that got zeros in their place would see a drift that is none, so nothing of it
  is optional. Any other row has none of them: there the model did not speak.
* Numbers are finite; whether they have the right width, the intake knows.

Called by the console's route and by the intake. Does not know where records go.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from policies.errors import TemporaryError
from policies.telemetry import OUTCOMES

MOST_RECORDS = 1000
MOST_NUMBERS = 65_536
"""Numbers in one record's logits or embedding."""

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Numbers = Annotated[list[float], Meta(min_length=1, max_length=MOST_NUMBERS)]


class Busy(TemporaryError):  # noqa: N818  a state of the world, not a mistake
    """The monitors have not read what came before."""


class Record(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One row. ``group`` names near-duplicates, ``batch`` how many rows ran together."""

    id: Text
    generation: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    outcome: str
    latency_ms: Annotated[float, Meta(ge=0.0, le=1e9)]
    group: Text | None = None
    batch: Annotated[int, Meta(ge=1, le=65_535)] = 1
    logits: Numbers | None = None
    embedding: Numbers | None = None
    summary: Annotated[list[float], Meta(min_length=5, max_length=5)] | None = None
    input_b64: str | None = None


class _Batch(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    records: Annotated[list[Record], Meta(min_length=1, max_length=MOST_RECORDS)]


_DECODER = msgspec.json.Decoder(_Batch)


def parse(raw: bytes) -> list[Record]:
    """Return the records of a body.

    Raises:
        ValueError: With a sentence that names the record and the field.

    >>> body = b'{"records":[{"id":"r-1","generation":3,"outcome":"timeout","latency_ms":80.5}]}'
    >>> parse(body)[0].latency_ms
    80.5
    """
    try:
        records = _DECODER.decode(raw).records
    except (msgspec.DecodeError, RecursionError) as error:
        # msgspec says "... - at `$.records[3].latency_ms`"; the dollar is the body.
        raise ValueError(f"expected {{'records': [...]}}: {str(error).replace('$.', '')}") from error
    seen: set[str] = set()
    for place, record in enumerate(records):
        check(record, f"records[{place}]")
        if record.id in seen:
            raise ValueError(f"expected every id once, got records[{place}].id {record.id!r} again")
        seen.add(record.id)
    return records


def check(record: Record, where: str) -> None:
    """Refuse a record whose fields do not fit its outcome.

    Raises:
        ValueError: With a sentence that names the field.
    """
    if record.outcome not in OUTCOMES:
        raise ValueError(f"expected {where}.outcome among {', '.join(OUTCOMES)}, got {record.outcome[:80]!r}")
    answered = record.outcome == "ok"
    for name in ("logits", "embedding"):
        if (getattr(record, name) is not None) is not answered:
            raise ValueError(_fits(where, name, record.outcome, answered))
    given = [name for name in ("input_b64", "summary") if getattr(record, name) is not None]
    if not answered and given:
        raise ValueError(_fits(where, given[0], record.outcome, answered))
    if answered and len(given) != 1:
        came = "both" if given else "neither"
        raise ValueError(f"expected {where}.input_b64 or {where}.summary with outcome ok, got {came}")
    if answered and record.generation == 0:
        raise ValueError(f"expected {where}.generation > 0 with outcome ok, got 0")


def _fits(where: str, name: str, outcome: str, answered: bool) -> str:
    wanted = f"expected {where}.{name}" if answered else f"expected no {where}.{name}"
    return f"{wanted} with outcome {outcome}: {'the model spoke' if answered else 'the model did not speak'}"
