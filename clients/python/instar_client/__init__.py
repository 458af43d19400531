"""A small client of instard: labels and telemetry in, events and the status out.

``Client`` and ``AsyncClient`` have the same methods; ``Reporter`` gathers telemetry in the background.
"""

from instar_client.aio import AsyncClient
from instar_client.client import Client
from instar_client.errors import ClientError, NotReached, Refused, TooBusy, Unexpected
from instar_client.events import Event, Status
from instar_client.records import Record, summarise
from instar_client.reporter import Reporter
from instar_client.retry import Retry

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Event",
    "NotReached",
    "Record",
    "Refused",
    "Reporter",
    "Retry",
    "Status",
    "TooBusy",
    "Unexpected",
    "summarise",
]
