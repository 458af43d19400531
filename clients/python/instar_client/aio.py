"""The client for an event loop: the methods of ``client.Client``, awaited."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from instar_client import wire
from instar_client.errors import NotReached, TooBusy
from instar_client.events import Event, Status
from instar_client.records import Record
from instar_client.retry import AGAIN, Retry


class AsyncClient:
    """A client of one instard; its arguments are those of ``Client``."""

    def __init__(
        self,
        url: str,
        task: str,
        *,
        retry: Retry | None = None,
        timeout_s: float = 10.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_s)
        self._task = task
        self._retry = Retry() if retry is None else retry
        self._timeout_s = timeout_s
        self._sleep = sleep

    async def label(self, labels: Mapping[str, int | str]) -> int:
        """Post labels (class name or index) by request id; return how many were taken.

        Raises:
            ClientError: They could not be posted.
        """
        return sum([wire.accepted(await self._send(ask)) for ask in wire.labels(self._task, labels)])

    async def report(self, records: Iterable[Record]) -> int:
        """Post telemetry in batches, each of which is taken once; return how many records were.

        Raises:
            ClientError: A batch could not be posted; those before it are taken.
            ValueError: A number is not finite.
        """
        return sum([wire.accepted(await self._send(ask)) for ask in wire.telemetry(self._task, records)])

    async def status(self) -> Status:
        """Return how the task stands.

        Raises:
            ClientError: It could not be asked.
        """
        return wire.read_status(await self._send(wire.status()))

    async def events(self, after: int = 0, wait_s: int = 0) -> list[Event]:
        """Return the events after a number, waiting up to ``wait_s`` (0 to 60) for the first.

        Raises:
            ClientError: They could not be asked for.
        """
        return wire.read_events(await self._send(wire.events(after, wait_s)))

    async def follow(self, after: int = 0) -> AsyncIterator[Event]:
        """Yield every event after a number, for ever, as they come.

        Raises:
            ClientError: They could not be asked for.
        """
        while True:
            for event in await self.events(after, wire.POLL_S):
                after = event.seq
                yield event

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()

    async def _send(self, ask: wire.Ask) -> Any:
        attempt = 0
        while True:
            try:
                answer = await self._http.request(
                    ask.method,
                    ask.path,
                    content=ask.content,
                    headers=dict(ask.headers),
                    timeout=self._timeout_s + ask.patience_s,
                )
            except httpx.TransportError as error:
                if attempt + 1 >= self._retry.attempts:
                    raise NotReached(f"expected an answer of {ask.path}, got {error!r}") from error
                await self._sleep(self._retry.pause_s(attempt, None))
            else:
                if answer.status_code not in AGAIN:
                    return wire.read(answer.status_code, answer.content)
                if attempt + 1 >= self._retry.attempts:
                    raise TooBusy(f"turned away {attempt + 1} times, last with {answer.status_code}")
                await self._sleep(self._retry.pause_s(attempt, answer.headers.get("retry-after")))
            attempt += 1
