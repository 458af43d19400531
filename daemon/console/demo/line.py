"""The line to control, which comes and goes: opened when somebody is there, dropped when nobody answers.

One connection is kept while it holds: the story looks often, and a client is not cheap to make.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from daemon.console.client import Control, Unreachable


class Line:
    """A connection to control's socket, made when it is wanted; a context manager."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._control: Control | None = None

    def __enter__(self) -> Self:
        """Begin, without a connection."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the connection."""
        self.drop()

    def open(self) -> Control:
        """Return the connection, a new one if there is none.

        Raises:
            Unreachable: Nobody listens.
        """
        if self._control is None:
            if not self._socket.exists():
                raise Unreachable(f"expected instard to listen on {self._socket}, it does not yet")
            self._control = Control(self._socket).__enter__()
        return self._control

    def drop(self) -> None:
        """Close the connection; the next ``open`` makes another."""
        control, self._control = self._control, None
        if control is not None:
            control.__exit__(None, None, None)
