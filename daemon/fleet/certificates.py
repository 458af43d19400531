"""TLS contexts of both sides: TLS 1.3, a certificate each, and the fleet's CA alone is believed.

Source: RFC 8446.
"""

import ssl
from pathlib import Path

from daemon.fleet.roll import HubTable
from policies.errors import PolicyError


def tls(hub: HubTable) -> ssl.SSLContext:
    """Return the context of the hub's listener.

    Raises:
        PolicyError: A file is missing, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # A ticket would let a device back in without its certificate being looked at.
    context.num_tickets = 0
    _load(context, hub.cert, hub.key, hub.ca)
    return context


def client_tls(cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """Return a device's context: it trusts the fleet's CA and nobody else.

    Raises:
        PolicyError: A file is missing, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, cert, key, ca)
    return context


def _load(context: ssl.SSLContext, cert: Path, key: Path, ca: Path) -> None:
    try:
        context.load_cert_chain(cert, key)
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise PolicyError(
            f"expected a certificate {cert} with its key {key} and a CA {ca} (PEM), got {error}"
        ) from error
