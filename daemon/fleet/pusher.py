"""A device's telemetry on its way to the hub: nothing twice, nothing left out while the spool holds it.

* The hub knows up to where it has each kind of segment; a start, or a word of disagreement, asks it. So this
  side keeps no place of its own that could be wrong.
* A place belongs to an epoch, one life of the spool folder. The epoch changes when the segment that was read
  last is no longer the same one: somebody emptied the spool, and its numbers began anew.
* A hub that is busy is given time; a hub that is away changes nothing: the spool fills, and when it is full
  its writer gives up its oldest segments, which are counted here as lost.

Called by the device's loop. Reads the spool and never writes into it.
"""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

import httpx
from pydantic import ValidationError

from daemon.fleet.caller import Behind, call
from daemon.fleet.terms import KINDS, Position, Received
from daemon.ops.files import persist
from monitors.spool import Block, Cursor, Kind, SpoolReader
from policies.errors import TemporaryError, first_fault

log = logging.getLogger(__name__)

PIECE_BYTES = 256 << 10
_HEADER_BYTES = 1 << 16


class Pusher:
    """Sends one spool.

    Args:
        spool: The data plane's.
        path: Where the epoch is kept.
        http: A client of the hub.
        announced: Called with the number of the newest release that a hub's answer names.
    """

    def __init__(self, spool: Path, path: Path, http: httpx.Client, announced: Callable[[int], None]) -> None:
        self._spool = spool
        self._path = path
        self._http = http
        self._announced = announced
        self._readers: dict[str, SpoolReader] = {}
        self._rows: dict[str, int] = {}
        self._epoch, self._marks = _kept(path)
        self._earlier_losses = 0
        self.sent_rows = 0

    @property
    def lost_segments(self) -> int:
        """Return how many segments were given up before they were sent, since the start."""
        found = sum(reader.lost_segments + reader.bad_segments for reader in self._readers.values())
        return found + self._earlier_losses

    def push(self, most: int) -> int:
        """Send at most so many pieces of each kind; return how many rows the hub has now that it had not.

        Raises:
            TemporaryError: The hub does not answer or is busy; what was not taken is sent again.
            PermanentError: It refuses what it is sent.
        """
        before = self.sent_rows
        self._same_spool()
        for kind in ("telemetry", "samples"):
            for _ in range(most):
                if not self._piece(kind):
                    break
        return self.sent_rows - before

    def _piece(self, kind: Kind) -> bool:
        reader = self._readers.get(kind) or self._open(kind)
        before = reader.cursor
        block, after = reader.read(self._rows.get(kind, 1))
        if block is None:
            return False
        self._rows[kind] = max(1, PIECE_BYTES // block.dtype.itemsize)
        path = self._segment(kind, after.segment)
        try:
            header = _header(path)
            self._remember(kind, after.segment, path)
            self._send(kind, reader, header, block, after)
        except FileNotFoundError:
            # The writer deleted it right now: the reader will find that out, and count it.
            reader.cursor = before
        except TemporaryError:
            reader.cursor = before
            raise
        return True

    def _send(self, kind: Kind, reader: SpoolReader, header: bytes, block: Block, after: Cursor) -> None:
        offset = after.offset - block.nbytes
        place: dict[str, str | int] = {"kind": kind, "epoch": self._epoch}
        place |= {"segment": after.segment, "offset": offset}
        try:
            raw = call(self._http, "POST", "/v1/telemetry", header + block.tobytes(), place)
        except Behind as behind:
            said = json.loads(behind.answer)["position"]
            log.info(
                "telemetry goes on where the hub stands: kind=%s segment=%s offset=%s", kind, *said.values()
            )
            reader.cursor = Cursor(said["segment"], said["offset"])
            return
        try:
            answer = Received.model_validate_json(raw)
        except ValidationError as error:
            reader.cursor = Cursor(after.segment, offset)
            raise TemporaryError(
                f"expected a position from the hub, got {first_fault(error)}", 5.0
            ) from error
        self.sent_rows += len(block)
        self._announced(answer.release)

    def _open(self, kind: Kind) -> SpoolReader:
        raw = call(self._http, "GET", "/v1/position", params={"kind": kind, "epoch": self._epoch})
        try:
            at = Position.model_validate_json(raw)
        except ValidationError as error:
            raise TemporaryError(
                f"expected a position from the hub, got {first_fault(error)}", 5.0
            ) from error
        self._readers[kind] = SpoolReader(self._spool, kind, Cursor(at.segment, at.offset))
        return self._readers[kind]

    # -- epochs -----------------------------------------------------------------------------------------

    def _same_spool(self) -> None:
        """Begin a new epoch when the spool is not the one that was read last."""
        for kind, (number, print_) in self._marks.items():
            path = self._segment(kind, number)
            newest = max((int(one.name[-16:-4]) for one in self._spool.glob(f"{kind}-*.seg")), default=number)
            same = _fingerprint(path) in (print_, None) if path.is_file() else newest >= number
            if not same:
                log.warning("the spool began anew (kind=%s): so does its account with the hub", kind)
                self._earlier_losses = self.lost_segments + 1
                self._epoch, self._marks = secrets.token_hex(8), {}
                self._readers.clear()
                self._keep()
                return

    def _remember(self, kind: str, number: int, path: Path) -> None:
        if self._marks.get(kind, (0, ""))[0] == number:
            return
        print_ = _fingerprint(path)
        if print_ is not None:
            self._marks[kind] = (number, print_)
            self._keep()

    def _keep(self) -> None:
        persist(self._path, json.dumps({"epoch": self._epoch, "marks": self._marks}).encode())

    def _segment(self, kind: str, number: int) -> Path:
        return self._spool / f"{kind}-{number:012d}.seg"


def _kept(path: Path) -> tuple[str, dict[str, tuple[int, str]]]:
    """Return the epoch and what its segments looked like; a new one where none is kept."""
    try:
        found = json.loads(path.read_bytes())
        marks = {kind: (int(number), str(print_)) for kind, (number, print_) in found["marks"].items()}
        if set(marks) <= set(KINDS):
            return str(found["epoch"]), marks
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        log.warning("the epoch at %s is unreadable, a new one begins: %r", path, error)
    return secrets.token_hex(8), {}


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(_HEADER_BYTES)


def _fingerprint(path: Path) -> str | None:
    """Return what tells a segment from another of the same number: its header and first record; or None.

    A record begins with the moment of its request.
    """
    try:
        with path.open("rb") as file:
            header = file.readline(_HEADER_BYTES)
            first = file.read(24)
    except FileNotFoundError:
        return None
    return hashlib.blake2b(header + first, digest_size=16).hexdigest() if len(first) == 24 else None
