"""The hub's doors: TLS 1.3 with a certificate on both sides, and a UNIX socket for devices on this host.

* The device's name is the common name of its certificate, as the CA signed it. It is read once a connection.
* Over the UNIX socket there is no certificate: who may open it (mode 0600) is this user, and says its name in
  the header ``instar-device``.
* A connection that shows no certificate of our CA ends in the handshake.

Source: RFC 8446; uvicorn's HttpToolsProtocol, which hands its transport on.
"""

import asyncio
import ssl
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from daemon.fleet.hub import Hub, Message, Receive, Send, answer
from daemon.ops.doors import BACKLOG, Door

_IDLE_S = 75


def tls_door(hub: Hub, context: ssl.SSLContext, drain_s: float) -> Door:
    """Return the door that devices on other hosts knock at."""

    class Named(HttpToolsProtocol):
        """Says whose connection it is."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.app = named(hub, _common_name(transport.get_extra_info("peercert")))

    config = _config(hub, Named, drain_s)
    config.load()
    config.ssl = context
    return Door(config)


def unix_door(hub: Hub, drain_s: float) -> Door:
    """Return the door of this host's own devices."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        said = dict(scope["headers"]).get(b"instar-device", b"")
        if not said and (scope["method"], scope["path"]) == ("GET", "/v1/devices"):
            await answer(send, 200, hub.devices())
            return
        await named(hub, said.decode("ascii", "replace"))(scope, receive, send)

    return Door(_config(app, HttpToolsProtocol, drain_s))


def named(hub: Hub, device: str) -> Any:
    """Return the application as one device sees it."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scope["device"] = device
        await hub(scope, receive, send)

    return app


def _config(app: Any, protocol: type[HttpToolsProtocol], drain_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
        backlog=BACKLOG,
    )


def _common_name(certificate: dict[str, Any] | None) -> str:
    """Return the common name of a verified certificate, empty when there is not exactly one.

    >>> _common_name({"subject": ((("commonName", "pi5-1"),),)})
    'pi5-1'
    """
    names = [
        value
        for part in (certificate or {}).get("subject", ())
        for kind, value in part
        if kind == "commonName"
    ]
    return names[0] if len(names) == 1 else ""
