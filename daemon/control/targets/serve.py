"""The target ``serve``: instar-serve on this host, by its admin socket.

It can do everything: splits the traffic, keeps the previous generation warm, writes the spool.
"""

from pathlib import Path

import httpx
from pydantic import ValidationError

from daemon.control.targets.target import Abilities, Observed, Unreachable
from policies.errors import PermanentError
from policies.terms import Deployment
from policies.wire import canonical

_LOOK_S = 3.0


class ServeTarget:
    """A client of the data plane's admin socket."""

    abilities = Abilities(splits=True, previous=True, spool=True)

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

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

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
