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

    def __init__(self, socket: Path, timeout_s: float = 30.0) -> None:
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://serve", timeout=timeout_s
        )
        self._socket = socket

    def observed(self) -> Observed:
        """Return what is served now.

        Raises:
            TemporaryError: The data plane does not answer.
        """
        return self._call("GET", "/observed", None)

    def apply(self, deployment: Deployment) -> Observed:
        """Have a wanted state served, self-tested and warm before it is visible.

        Raises:
            TemporaryError: The data plane does not answer.
            PermanentError: It refuses; what it served before it serves on.
        """
        return self._call("POST", "/apply", canonical(deployment))

    def _call(self, method: str, path: str, content: bytes | None) -> Observed:
        try:
            answer = self._client.request(method, path, content=content)
        except httpx.TransportError as error:
            raise TemporaryError(
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
