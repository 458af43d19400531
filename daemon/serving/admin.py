"""The admin door: control says over a UNIX socket what to serve, and asks what is served.

* ``POST /apply``: a whole wanted ``policies.terms.Deployment``; 200 with what is observed, or 409 with the
  reason, and then nothing has changed.
* ``GET /observed``: what is served.
* Who may knock, the socket's mode says (0600): there is no other authority here.

Called by uvicorn. The metrics' door is here too: it is as small.
"""

from daemon.serving.body import Gone, Message, Receive, Send, read_body
from daemon.serving.front import reply, reply_json
from daemon.serving.keeper import Keeper
from daemon.serving.metrics import CONTENT_TYPE, ServeMetrics
from daemon.serving.refusals import DeploymentRefused, Malformed, TooLarge

MAX_BODY_BYTES = 1 << 16
BODY_TIMEOUT_S = 10.0


class Admin:
    """The ASGI application of the admin socket."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = scope["method"], scope["path"]
        if route == ("GET", "/observed"):
            await reply_json(send, 200, self._keeper.observed().model_dump(mode="json"))
        elif route == ("POST", "/apply"):
            await self._apply(scope, receive, send)
        else:
            await reply_json(send, 404, {"error": f"expected POST /apply or GET /observed, got {route}"})

    async def _apply(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            raw = await read_body(dict(scope["headers"]), receive, MAX_BODY_BYTES, BODY_TIMEOUT_S)
            observed = await self._keeper.apply(raw)
        except (DeploymentRefused, Malformed, TooLarge) as error:
            await reply_json(send, 409, {"error": str(error)})
        except Gone:
            return
        else:
            await reply_json(send, 200, observed.model_dump(mode="json"))


class Exposition:
    """The ASGI application of the metrics port."""

    def __init__(self, metrics: ServeMetrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Message, _receive: Receive, send: Send) -> None:
        """Answer one scrape."""
        if (scope["method"], scope["path"]) == ("GET", "/metrics"):
            await reply(send, 200, self._metrics.text(), [(b"content-type", CONTENT_TYPE)])
        else:
            await reply_json(send, 404, {"error": f"expected GET /metrics, got {scope['path'][:200]!r}"})
