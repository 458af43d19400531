"""The client that waits for its answers; ``aio`` is the same for an event loop."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from instar_client import wire
from instar_client.errors import NotReached, TooBusy
from instar_client.events import Event, Status
from instar_client.records import Record
from instar_client.retry import AGAIN, Retry


class Client:
    """A client of one instard.

    Args:
        url: Where its console listens, ``http://HOST:PORT``.
        task: The task's name.
        retry: How often and how far apart to try again.
        timeout_s: For one answer.
        sleep: What waits between two attempts.
    """

    def __init__(
        self,
        url: str,
        task: str,
        *,
        retry: Retry | None = None,
        timeout_s: float = 10.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s)
        self._task = task
        self._retry = Retry() if retry is None else retry
        self._timeout_s = timeout_s
        self._sleep = sleep

    def label(self, labels: Mapping[str, int | str]) -> int:
        """Post labels (class name or index) by request id; return how many were taken.

        Raises:
            ClientError: They could not be posted.
        """
        return sum(wire.accepted(self._send(ask)) for ask in wire.labels(self._task, labels))

    def report(self, records: Iterable[Record]) -> int:
        """Post telemetry in batches, each of which is taken once; return how many records were.

        Raises:
            ClientError: A batch could not be posted; those before it are taken.
            ValueError: A number is not finite.
        """
        return sum(wire.accepted(self._send(ask)) for ask in wire.telemetry(self._task, records))

    def status(self) -> Status:
        """Return how the task stands.

        Raises:
            ClientError: It could not be asked.
        """
        return wire.read_status(self._send(wire.status()))

    def events(self, after: int = 0, wait_s: int = 0) -> list[Event]:
        """Return the events after a number, waiting up to ``wait_s`` (0 to 60) for the first.

        Raises:
            ClientError: They could not be asked for.
        """
        return wire.read_events(self._send(wire.events(after, wait_s)))

    def follow(self, after: int = 0) -> Iterator[Event]:
        """Yield every event after a number, for ever, as they come.

        Raises:
            ClientError: They could not be asked for.
        """
        while True:
            for event in self.events(after, wire.POLL_S):
                after = event.seq
                yield event

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def _send(self, ask: wire.Ask) -> Any:
        attempt = 0
        while True:
            try:
                answer = self._http.request(
                    ask.method,
                    ask.path,
                    content=ask.content,
                    headers=dict(ask.headers),
                    timeout=self._timeout_s + ask.patience_s,
                )
            except httpx.TransportError as error:
                if attempt + 1 >= self._retry.attempts:
                    raise NotReached(f"expected an answer of {ask.path}, got {error!r}") from error
                self._sleep(self._retry.pause_s(attempt, None))
            else:
                if answer.status_code not in AGAIN:
                    return wire.read(answer.status_code, answer.content)
                if attempt + 1 >= self._retry.attempts:
                    raise TooBusy(f"turned away {attempt + 1} times, last with {answer.status_code}")
                self._sleep(self._retry.pause_s(attempt, answer.headers.get("retry-after")))
            attempt += 1
