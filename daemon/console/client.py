"""The way from the console to control: JSON over control's UNIX socket.

* The console holds no authority: who may open the socket decides, and control refuses what it must.
* Every answer is validated against the terms before anyone reads it.
* Three ways to fail, told apart: nobody answers, control refuses, control fails.

It never imports control; they meet on the wire.
"""

import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from policies.errors import PermanentError, TemporaryError
from policies.status import CandidateView, Status
from policies.terms import Subject, Term

_TIMEOUT_S = 30.0
_T = TypeVar("_T")


class Unreachable(TemporaryError):  # noqa: N818  a state, not a fault of ours
    """Nobody answers on control's socket."""


class Refused(PermanentError):  # noqa: N818  the domain's word
    """Control understood the order and says no."""


class Found(Term):
    """A candidate, and what an approval of it must speak of."""

    candidate: CandidateView
    subject: Subject | None


class Receipt(Term):
    """An order that was journalled."""

    seq: int


class ApprovalReceipt(Receipt):
    """A signature that was journalled, and where the candidate stands with its approvers."""

    state: str


class PolicyReceipt(Term):
    """The policy in force after a reload."""

    digest: str
    version: int


class EntryView(Term):
    """A journal entry, as control hands it out."""

    seq: int
    at: float
    kind: str
    body: dict[str, Any]
    prev: str
    digest: str


_CANDIDATES = TypeAdapter(tuple[CandidateView, ...])
_ENTRIES = TypeAdapter(tuple[EntryView, ...])


class Control:
    """One connection to control; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://instard", timeout=_TIMEOUT_S
        )

    def __enter__(self) -> Self:
        """Knock, and open the connection.

        Raises:
            Unreachable: Nobody listens.
        """
        # Knock without the HTTP library: it leaves its own socket open when nobody is there.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
                knock.connect(str(self._path))
        except OSError as error:
            self._http.close()
            raise self._nobody(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._http.close()

    def status(self) -> Status:
        """Return the state of the task."""
        return self._read(TypeAdapter(Status), self._get("/v1/status"), "/v1/status")

    def candidates(self) -> tuple[CandidateView, ...]:
        """Return every candidate, the latest first."""
        return self._read(_CANDIDATES, self._get("/v1/candidates"), "/v1/candidates")

    def candidate(self, prefix: str) -> Found:
        """Return the candidate that an id, or a unique beginning of one, names."""
        path = f"/v1/candidates/{_segment(prefix)}"
        return self._read(TypeAdapter(Found), self._get(path), path)

    def approval(self, candidate: str, approval: str, signature: str) -> ApprovalReceipt:
        """Hand a signed approval or decline in."""
        path = f"/v1/candidates/{_segment(candidate)}/approval"
        raw = self._post(path, {"approval": approval, "signature": signature})
        return self._read(TypeAdapter(ApprovalReceipt), raw, path)

    def order(self, verb: str, body: Mapping[str, Any]) -> Receipt:
        """Give one of the orders freeze, thaw, rollback."""
        return self._read(TypeAdapter(Receipt), self._post(f"/v1/{verb}", body), f"/v1/{verb}")

    def reload_policy(self) -> PolicyReceipt:
        """Ask control to put the policy file on disk in force."""
        return self._read(
            TypeAdapter(PolicyReceipt), self._post("/v1/policy/reload", {}), "/v1/policy/reload"
        )

    def history(self, after: int, limit: int, kind: str | None = None) -> tuple[EntryView, ...]:
        """Return up to ``limit`` journal entries after a sequence number, in order."""
        query: dict[str, str | int] = {"after": after, "limit": limit}
        if kind is not None:
            query["kind"] = kind
        return self._read(_ENTRIES, self._get("/v1/history", query), "/v1/history")

    def _get(self, path: str, query: Mapping[str, str | int] | None = None) -> bytes:
        answer = self._send("GET", path, params=dict(query or {}))
        if answer.is_error:
            raise PermanentError(_sentence(answer))
        return answer.content

    def _post(self, path: str, body: Mapping[str, Any]) -> bytes:
        answer = self._send("POST", path, json=dict(body))
        if answer.is_server_error:
            raise TemporaryError(_sentence(answer))
        if answer.is_error:
            raise Refused(_sentence(answer))
        return answer.content

    def _send(self, method: str, path: str, **parts: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **parts)
        except httpx.ConnectError as error:
            raise self._nobody(error) from error
        except httpx.TransportError as error:
            # The order may lie in the journal although its receipt was lost: never say that it does not.
            got = str(error) or type(error).__name__
            taken = "" if method == "GET" else "; the order may have been taken, see instar history"
            raise Unreachable(
                f"expected an answer from instard on {self._path}, got: {got}{taken}"
            ) from error

    def _nobody(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"expected instard to answer on {self._path}, got: {error}; "
            "is it running, may you open its socket, and is --state right?"
        )

    def _read(self, shape: TypeAdapter[_T], raw: bytes, path: str) -> _T:
        try:
            return shape.validate_json(raw)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            raise PermanentError(
                f"expected another answer to {path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; "
                "do instar and instard have the same version?"
            ) from error


def _segment(text: str) -> str:
    """Return an id as one path segment; a slash in it must not become another address."""
    if not text or any(not (c.isalnum() or c in "._-") for c in text) or set(text) == {"."}:
        raise PermanentError(
            f"expected a candidate's id or its beginning, got {text!r}; see instar candidates"
        )
    return text


def _sentence(answer: httpx.Response) -> str:
    """Return control's own sentence, or what came instead of one."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), str):
        return str(body["error"])
    return f"expected a sentence from instard, got HTTP {answer.status_code} without one; see instard's log"
