"""The admin door: control says over a UNIX socket what to serve, and asks what is served.

* ``POST /apply``: a whole wanted ``policies.terms.Deployment``; 200 with what is observed, or 409 with the
  reason, and then nothing has changed.
* ``GET /observed``: what is served.
* Who may knock, the socket's mode says (0600): there is no other authority here.

Called by uvicorn. The metrics' door is here too: it is as small.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from daemon.serving.keeper import Keeper
from daemon.serving.metrics import CONTENT_TYPE, ServeMetrics
from daemon.serving.refusals import DeploymentRefused, Malformed, TooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 1 << 16
BODY_TIMEOUT_S = 10.0


class _Gone(Exception):  # noqa: N818  the domain's word
    """Control closed the connection before its order was whole."""


async def _reply(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _reply_json(send: Send, status: int, value: Any) -> None:
    await _reply(send, status, orjson.dumps(value), b"application/json")


async def _collected(receive: Receive) -> bytes:
    """Return a request's body.

    Raises:
        TooLarge: It is longer than ``MAX_BODY_BYTES``.
        Malformed: It did not come in time.
        _Gone: The client left.
    """
    raw, more = b"", True
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                raw += message.get("body", b"")
                if len(raw) > MAX_BODY_BYTES:
                    raise TooLarge(f"expected a deployment of at most {MAX_BODY_BYTES} bytes, got more")
                more = message.get("more_body", False)
    except TimeoutError:
        raise Malformed(f"expected the deployment within {BODY_TIMEOUT_S:g} s, it did not come") from None
    return raw


class Admin:
    """The ASGI application of the admin socket."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = scope["method"], scope["path"]
        if route == ("GET", "/observed"):
            await _reply_json(send, 200, self._keeper.observed().model_dump(mode="json"))
        elif route == ("POST", "/apply"):
            await self._apply(receive, send)
        else:
            await _reply_json(send, 404, {"error": f"expected POST /apply or GET /observed, got {route}"})

    async def _apply(self, receive: Receive, send: Send) -> None:
        try:
            observed = await self._keeper.apply(await _collected(receive))
        except (DeploymentRefused, Malformed, TooLarge) as error:
            await _reply_json(send, 409, {"error": str(error)})
        except _Gone:
            return
        else:
            await _reply_json(send, 200, observed.model_dump(mode="json"))


class Exposition:
    """The ASGI application of the metrics port."""

    def __init__(self, metrics: ServeMetrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Message, _receive: Receive, send: Send) -> None:
        """Answer one scrape."""
        if (scope["method"], scope["path"]) == ("GET", "/metrics"):
            await _reply(send, 200, self._metrics.text(), CONTENT_TYPE)
        else:
            await _reply_json(send, 404, {"error": f"expected GET /metrics, got {scope['path'][:200]!r}"})
