"""What goes over the wire, without anything that sends it: both clients build and read with this.

* Every request is safe to repeat: the key of a batch of telemetry is its content's digest, so that the same
  records, sent again by whomever, are the same batch; a second label of a row changes nothing; the rest only
  reads.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from instar_client.errors import Refused, Unexpected
from instar_client.events import Event, Status
from instar_client.records import Record, batches

MOST_LABELS = 5_000
MOST_EVENTS = 1000
POLL_S = 25


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to be sent and sent again."""

    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 0.0  # Beyond the client's own time limit, since the server may wait.


def status() -> Ask:
    """Return the question how the task stands."""
    return Ask("GET", "/api/v1/status")


def events(after: int, wait_s: int) -> Ask:
    """Return the question what came after an event, waiting up to ``wait_s`` (0 to 60) for one."""
    path = f"/v1/events?after={after}&wait_s={wait_s}&limit={MOST_EVENTS}"
    return Ask("GET", path, patience_s=float(wait_s))


def labels(task: str, given: Mapping[str, int | str]) -> Iterator[Ask]:
    """Yield what posts labels (class name or index) by request id."""
    items = [{"id": name, "label": label} for name, label in given.items()]
    for first in range(0, len(items), MOST_LABELS):
        content = json.dumps({"labels": items[first : first + MOST_LABELS]}).encode()
        path = f"/api/v1/tasks/{quote(task, safe='')}/labels"
        yield Ask("POST", path, content, {"content-type": "application/json"})


def telemetry(task: str, records: Iterable[Record]) -> Iterator[Ask]:
    """Yield what posts records, one request a batch, each under the key of its content.

    Raises:
        ValueError: A number is not finite.
    """
    for content in batches(records):
        headers = {"content-type": "application/json", "idempotency-key": hashlib.sha256(content).hexdigest()}
        yield Ask("POST", f"/v1/telemetry/{quote(task, safe='')}", content, headers)


def read(code: int, content: bytes) -> Any:
    """Return what an answer says.

    Raises:
        Refused: The answer is a refusal.
        Unexpected: It is no JSON.
    """
    try:
        plain = json.loads(content)
    except ValueError as error:
        raise Unexpected(f"expected JSON, got {code} {content[:200]!r}") from error
    if code != 200:
        sentence = plain.get("error") if isinstance(plain, dict) else None
        raise Refused(code, sentence if isinstance(sentence, str) else str(plain)[:200])
    return plain


def accepted(plain: Any) -> int:
    """Return how many were taken.

    Raises:
        Unexpected: The answer does not say.
    """
    count = plain.get("accepted") if isinstance(plain, dict) else None
    if not isinstance(count, int):
        raise Unexpected(f"expected how many were accepted, got {str(plain)[:200]}")
    return count


def read_events(plain: Any) -> list[Event]:
    """Return the events of an answer.

    Raises:
        Unexpected: Something else.
    """
    if not isinstance(plain, list):
        raise Unexpected(f"expected a list of events, got {str(plain)[:200]}")
    return [Event.read(item) for item in plain]


def read_status(plain: Any) -> Status:
    """Return the status of an answer.

    Raises:
        Unexpected: Something else.
    """
    return Status.read(plain)
