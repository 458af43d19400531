"""A device's calls to its hub: over mutual TLS, or over a UNIX socket on the hub's own host.

* What a hub answers is turned into the house's errors here: ``TemporaryError`` where a later call may help,
  ``PermanentError`` where it will not.
* ``429`` says how long to wait, and that is passed on.
"""

import ssl
from collections.abc import Mapping

import httpx

from policies.errors import PermanentError, TemporaryError

_CALL_S = 15.0
_MOST_WAIT_S = 300.0


class Behind(PermanentError):  # noqa: N818  a state of the exchange, not a mistake
    """The hub has another position; ``answer`` says which."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("the hub has another position")
        self.answer = answer


class Busy(TemporaryError):  # noqa: N818  a state of the exchange, not a mistake
    """The hub is there, and wants no more of this for a while."""


def client(hub: str, name: str, context: ssl.SSLContext | None) -> httpx.Client:
    """Return a client of the hub.

    Args:
        hub: ``https://HOST:PORT``, or ``unix:/path/of/hub.sock``.
        name: The device's; over TLS the certificate says it.
        context: The device's TLS context; None for a UNIX socket.

    Raises:
        PermanentError: The address is neither, or TLS has no context.
    """
    if hub.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=hub.removeprefix("unix:"))
        return httpx.Client(
            transport=transport, base_url="http://hub", headers={"instar-device": name}, timeout=_CALL_S
        )
    if not hub.startswith("https://") or context is None:
        raise PermanentError(f"expected https://HOST:PORT with a certificate, or unix:PATH, got {hub}")
    return httpx.Client(base_url=hub, verify=context, timeout=_CALL_S, trust_env=False)


def call(
    http: httpx.Client,
    method: str,
    path: str,
    content: bytes | None = None,
    params: Mapping[str, str | int] | None = None,
) -> bytes:
    """Return what the hub answers; empty where it has nothing.

    Raises:
        Busy: It wants no more of this for a while.
        TemporaryError: It does not answer, or fails.
        Behind: It has another position (409).
        PermanentError: It refuses.
    """
    try:
        answer = http.request(method, path, content=content, params=params)
    except httpx.TransportError as error:
        raise TemporaryError(f"expected the hub to answer {path}, got {error!r}") from error
    if answer.status_code in (httpx.codes.OK, httpx.codes.NO_CONTENT):
        return answer.content
    told = f"{answer.status_code} for {path}: {answer.text[:300]}"
    if answer.status_code == httpx.codes.CONFLICT:
        raise Behind(answer.content)
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise Busy(told, _wait_s(answer.headers.get("retry-after", "")))
    if answer.status_code >= 500:
        raise TemporaryError(told, _wait_s(answer.headers.get("retry-after", "")))
    raise PermanentError(f"the hub refused: {told}")


def _wait_s(text: str) -> float:
    """Return seconds to wait, as the hub said it and within reason.

    >>> _wait_s("7"), _wait_s("soon"), _wait_s("999999")
    (7.0, 1.0, 300.0)
    """
    return min(_MOST_WAIT_S, float(text)) if text.isascii() and text.isdigit() else 1.0
