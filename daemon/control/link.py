"""The wire to the data plane: one wanted state goes down, one observed state comes back.

Applying the same deployment twice is applying it once, so that a turn that was killed between asking and
recording asks again.
"""

import logging
from pathlib import Path

import httpx
from pydantic import ValidationError

from policies.errors import PermanentError, TemporaryError
from policies.terms import Deployment, Share, Slot, Term
from policies.wire import canonical

log = logging.getLogger(__name__)

_LOOK_S = 3.0


class Unreachable(TemporaryError):  # noqa: N818  a state of the world, not a mistake
    """The data plane does not answer."""


class Observed(Term):
    """What the data plane says it serves."""

    revision: int
    stable: Slot | None
    newcomer: Slot | None
    previous: Slot | None
    newcomer_share: Share
    ready: bool
    problem: str | None = None

    def matches(self, wanted: Deployment) -> bool:
        """Tell whether the wanted slots are served; the previous one is a comfort, not a promise."""
        return (
            self.stable == wanted.stable
            and self.newcomer == wanted.newcomer
            and self.newcomer_share == wanted.newcomer_share
        )


class Link:
    """A client of the data plane's admin socket."""

    def __init__(self, socket: Path, apply_s: float = 30.0) -> None:
        self._client = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://serve")
        self._apply_s = apply_s
        self._socket = socket

    def observed(self) -> Observed:
        """Return what is served now.

        Raises:
            Unreachable: The data plane does not answer.
        """
        return self._call("GET", "/observed", None)

    def apply(self, deployment: Deployment) -> Observed:
        """Have a wanted state served, self-tested and warm before it is visible.

        Raises:
            Unreachable: The data plane does not answer.
            PermanentError: It refuses; what it served before it serves on.
        """
        return self._call("POST", "/apply", canonical(deployment))

    def _call(self, method: str, path: str, content: bytes | None) -> Observed:
        try:
            # Building and warming a model takes seconds; saying what is served does not.
            timeout_s = self._apply_s if content is not None else _LOOK_S
            answer = self._client.request(method, path, content=content, timeout=timeout_s)
        except httpx.TransportError as error:
            raise Unreachable(
                f"expected instar-serve to answer on {self._socket}, got {error!r}; is it running?"
            ) from error
        if answer.status_code != 200:
            raise PermanentError(f"instar-serve refused {path}: {answer.text[:500]}")
        try:
            return Observed.model_validate_json(answer.content)
        except ValidationError as error:
            raise PermanentError(f"expected an observed state from {self._socket}, got {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
