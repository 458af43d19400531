"""The reporter: takes records without ever waiting, and posts them from a thread of its own.

* ``add`` may be called from any thread or event loop; when ``most`` records wait it drops, and counts.
* It posts when ``batch`` records wait or ``every_s`` have passed, and everything at ``close``.
* What instard refuses, or JSON cannot say, is counted and told in ``problem``; it is not sent again. What
  could not be sent for the moment is sent again as the very same batch, which instard takes once.
"""

import threading
from collections import deque
from types import TracebackType
from typing import Self

from instar_client.client import Client
from instar_client.errors import ClientError, Refused
from instar_client.records import Record


class Reporter:
    """Posts telemetry through a client, in the background.

    Args:
        client: What posts; used by the reporter's thread alone.
        batch: How many records are posted at once.
        every_s: After how long fewer are.
        most: How many may wait.
    """

    def __init__(self, client: Client, *, batch: int = 200, every_s: float = 1.0, most: int = 20_000) -> None:
        if not 1 <= batch <= most or every_s <= 0.0:
            raise ValueError(
                f"expected 1 <= batch <= most and every_s > 0, got {batch}, {most} and {every_s:g}"
            )
        self._client, self._batch, self._every_s, self._most = client, batch, every_s, most
        self._waiting: deque[Record] = deque()
        self._unsent: list[Record] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._dropped = 0
        self._sent = 0
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._work, name="instar-reporter", daemon=True)
        self._thread.start()

    @property
    def sent(self) -> int:
        """How many records instard has taken."""
        return self._sent

    @property
    def dropped(self) -> int:
        """How many records were lost: refused, or too many at once."""
        return self._dropped

    def add(self, record: Record) -> bool:
        """Take a record; False when it had to be dropped. Never waits."""
        with self._lock:
            fits = len(self._waiting) < self._most and not self._closing
            if fits:
                self._waiting.append(record)
            else:
                self._dropped += 1
            full = len(self._waiting) >= self._batch
        if full:
            self._wake.set()
        return fits

    def close(self) -> None:
        """Post what waits, as far as that is possible, then end; what is left counts as dropped."""
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join()
        with self._lock:
            self._dropped += len(self._waiting) + len(self._unsent)
            self._waiting.clear()
            self._unsent.clear()

    def __enter__(self) -> Self:
        """Return the reporter."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Post what waits, then end."""
        self.close()

    def _work(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(self._every_s)
            self._wake.clear()
            # Read first: what was added before the end is posted before the end.
            closing = self._closing
            going = True
            while going:
                going = self._post()

    def _post(self) -> bool:
        """Post the oldest records; tell whether it makes sense to go on."""
        if not self._unsent:
            with self._lock:
                count = min(self._batch, len(self._waiting))
                self._unsent = [self._waiting.popleft() for _ in range(count)]
        if not self._unsent:
            return False
        try:
            self._sent += self._client.report(self._unsent)
        except (Refused, TypeError, ValueError) as error:
            # The latter two: what stands in a record is nothing that JSON can say.
            self.problem = str(error)
            with self._lock:
                self._dropped += len(self._unsent)
        except ClientError as error:
            self.problem = str(error)
            return False
        self._unsent = []
        return True
