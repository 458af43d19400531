"""The hub's application: what devices may ask and tell, version 1.

==============================================  =========================================================
``GET /v1/release/NAME``                        signed metadata of the device's lane
``GET /v1/blob/HEX``                            a released bundle, or rows to time on; ``Range`` goes on
``GET /v1/position?kind=&epoch=``               up to where the device's segments are here
``POST /v1/telemetry?kind=&epoch=&segment=&offset=``  a piece of a segment, header and whole records
``POST /v1/report``                             how the device stands; the answer says what is new
``GET /v1/job``, ``POST /v1/timings``           a timing to do (204: none), and its answer
==============================================  =========================================================

``GET /v1/devices`` is answered on the UNIX socket alone, for operators (``instar-fleet devices``).

* Who calls is said by ``scope["device"]``, set by the door from the certificate. A device meets its own lane
  and nothing else; one that is in no lane gets 403.
* 429 with ``Retry-After``: the device keeps what it has. 409 on telemetry carries the position to go on from.
* Bodies are bounded by size and time; nothing of a body is logged.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ValidationError

from daemon.fleet.intake import Gap, Push
from daemon.fleet.lane import Busy, HubLane
from daemon.fleet.roster import Seen
from daemon.fleet.terms import EPOCH_PATTERN, KINDS, Answer, Position, Report
from policies.case import Timings
from policies.errors import InstarError, PermanentError, TamperError, first_fault
from policies.terms import MOST

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BODY_BYTES = 4 << 20
BODY_S = 30.0
_JSON = (b"content-type", b"application/json")
_RANGE = re.compile(rb"bytes=([0-9]{1,15})-")
_HEX = re.compile(r"[0-9a-f]{64}")
_WHOLE = re.compile(r"[0-9]{1,16}")

T = TypeVar("T", bound=BaseModel)


class Refused(Exception):  # noqa: N818  an answer, not a mistake
    """An answer other than 200."""

    def __init__(self, status: int, body: object, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


class Hub:
    """The ASGI application that all doors share.

    Args:
        lanes: By name.
        lane_of: Each device's lane.
    """

    def __init__(self, lanes: dict[str, HubLane], lane_of: dict[str, str]) -> None:
        self._all = lanes
        self._strangers: set[str] = set()
        self._lanes = {device: lanes[lane] for device, lane in lane_of.items()}

    def devices(self) -> list[dict[str, object]]:
        """Return all devices, for operators: lane, silence, what is served, what is wanted, problem."""
        return [_told(lane, seen) for lane in self._all.values() for seen in lane.roster.seen()]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            status, body, headers = await self._answer(scope, receive)
        except Refused as refused:
            status, body, headers = refused.status, refused.body, refused.headers
        except Busy as busy:
            wait = str(max(1, round(busy.retry_after_s))).encode()
            status, body, headers = 429, {"error": str(busy)}, ((b"retry-after", wait),)
        except Gap as gap:
            status, headers = 409, ()
            body = {"error": str(gap), "position": gap.position.model_dump()}
        except TamperError as error:
            log.error("device=%s: %s", scope["device"], error)
            status, body, headers = 500, {"error": "the hub's copy is damaged"}, ()
        except InstarError as error:
            status, body, headers = 422, {"error": str(error)[:1000]}, ()
        await answer(send, status, body, headers)

    async def _answer(
        self, scope: Message, receive: Receive
    ) -> tuple[int, object, tuple[tuple[bytes, bytes], ...]]:
        device, method, path = scope["device"], scope["method"], scope["path"]
        lane = self._lanes.get(device)
        if lane is None:
            # Said once a name: the CA signed it, so there are not many.
            if device not in self._strangers:
                self._strangers.add(device)
                log.warning("device=%s is in no lane of the fleet file: refused", device)
            raise Refused(403, {"error": "this certificate's name is in no lane of the fleet file"})
        if (method, path) == ("POST", "/v1/telemetry"):
            push = _push(device, scope["query_string"], await _body(scope, receive))
            position = await lane.push(push)
            return 200, {"position": position.model_dump(), "release": lane.releases.number}, ()
        lane.roster.heard(device)
        if (method, path) == ("GET", "/v1/position"):
            kind, epoch = _wanted(scope["query_string"], "kind", "epoch")
            return 200, lane.intake.position(device, kind, epoch).model_dump(), ()
        if (method, path) == ("POST", "/v1/report"):
            lane.roster.report(device, _term(Report, await _body(scope, receive)))
            new = Answer(release=lane.releases.number, job=lane.desk.waits(device))
            return 200, new.model_dump(), ()
        if (method, path) == ("GET", "/v1/job"):
            job = lane.desk.take(device)
            return (204, b"", ()) if job is None else (200, job.model_dump(mode="json"), ())
        if (method, path) == ("POST", "/v1/timings"):
            lane.desk.accept(device, _term(Timings, await _body(scope, receive)))
            return 200, {}, ()
        if method == "GET":
            return await _file(lane, scope)
        raise Refused(404, {"error": f"expected a path of /v1/, got {method} {path[:100]!r}"})


async def answer(
    send: Send, status: int, body: object, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Send bytes as they are, and anything else as JSON."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    kind = () if isinstance(body, bytes) else (_JSON,)
    length = (b"content-length", str(len(raw)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *kind, *headers]})
    await send({"type": "http.response.body", "body": raw})


def _told(lane: HubLane, seen: Seen) -> dict[str, object]:
    report, wanted = seen.report, lane.releases.deployment
    observed = None if report is None else report.observed
    stable = None if observed is None else observed.stable
    return {
        "name": seen.name,
        "lane": lane.name,
        "silent_s": round(seen.silent_s, 1),
        "generation": None if stable is None else stable.generation,
        "wanted": None if wanted is None or wanted.stable is None else wanted.stable.generation,
        "revision": None if report is None else report.revision,
        "received_bytes": seen.received_bytes,
        "lost_segments": 0 if report is None else report.lost_segments,
        "hardware": None if report is None else str(report.hardware),
        "problem": None if report is None else report.problem,
    }


async def _file(lane: HubLane, scope: Message) -> tuple[int, object, tuple[tuple[bytes, bytes], ...]]:
    _, _, place = scope["path"].partition("/v1/")
    folder, _, name = place.partition("/")
    if folder == "release":
        raw = lane.releases.read(name)
    elif folder == "blob" and _HEX.fullmatch(name):
        raw = await asyncio.to_thread(lane.blob, f"sha256:{name}")
    else:
        raw = None
    if raw is None:
        raise Refused(404, {"error": "expected released metadata or a released blob, there is none"})
    wanted = _RANGE.fullmatch(dict(scope["headers"]).get(b"range", b""))
    if wanted is None or folder == "release":
        return 200, raw, ()
    first = int(wanted[1])
    if first >= len(raw):
        raise Refused(416, {"error": f"expected a range within {len(raw)} bytes"})
    about = f"bytes {first}-{len(raw) - 1}/{len(raw)}".encode()
    return 206, raw[first:], ((b"content-range", about),)


def _push(device: str, query: bytes, body: bytes) -> Push:
    kind, epoch, segment, offset = _wanted(query, "kind", "epoch", "segment", "offset")
    place = Position(segment=_number(segment), offset=_number(offset))
    return Push(device, kind, epoch, place.segment, place.offset, body)


def _wanted(query: bytes, *names: str) -> list[str]:
    """Return exactly these parameters of a query.

    Raises:
        Refused: There are others, or some are wrong.
    """
    found = dict(parse_qsl(query.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=8))
    right = set(found) == set(names) and found["kind"] in KINDS
    if not right or not re.fullmatch(EPOCH_PATTERN, found["epoch"]):
        raise Refused(400, {"error": f"expected parameters {', '.join(names)}, got {', '.join(found)[:200]}"})
    return [found[name] for name in names]


def _number(text: str) -> int:
    if not _WHOLE.fullmatch(text) or int(text) > MOST:
        raise Refused(400, {"error": "expected a whole number"})
    return int(text)


def _term(kind: type[T], raw: bytes) -> T:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise PermanentError(f"expected a {kind.__name__}, got {first_fault(error)}") from error


async def _body(scope: Message, receive: Receive) -> bytes:
    """Return the body, whole.

    Raises:
        Refused: It is too large, too slow, or the device hung up.
    """
    said = dict(scope["headers"]).get(b"content-length", b"0")
    if said.isdigit() and int(said) > MOST_BODY_BYTES:
        raise Refused(413, {"error": f"expected at most {MOST_BODY_BYTES} bytes"})
    parts, size, more = [], 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BODY_S):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, {"error": "expected a whole body"})
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MOST_BODY_BYTES:
                    raise Refused(413, {"error": f"expected at most {MOST_BODY_BYTES} bytes"})
                more = message.get("more_body", False)
    if more:
        raise Refused(408, {"error": f"expected a body within {BODY_S:g} s"}, ((b"connection", b"close"),))
    return parts[0] if len(parts) == 1 else b"".join(parts)
