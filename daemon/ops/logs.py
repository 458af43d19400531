"""The log: a story that an operator can read. The journal, not the log, is the record.

* One line an event on standard error; facts stand in it as ``key=value``, put there by who logs.
* Under systemd's journal a line begins with its priority (``<4>``), which the journal takes off, and has no
  time, which the journal adds. Elsewhere it has time and level.
* A message of several lines is one entry: the journal would make several of it, without a priority.
"""

import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

_NOISY = {
    # A turn that takes longer than its interval is ordinary, and counted by the scheduler's metrics.
    "apscheduler": logging.ERROR,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "uvicorn": logging.WARNING,
}


class JournalLine(logging.Formatter):
    """A line with the priority that systemd's journal reads. Source: sd-daemon(3), syslog(3)."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        level = record.levelno
        if level >= logging.CRITICAL:
            priority = 2
        elif level >= logging.ERROR:
            priority = 3
        elif level >= logging.WARNING:
            priority = 4
        else:
            priority = 6 if level >= logging.INFO else 7
        return f"<{priority}>" + super().format(record).replace("\n", " | ")


def setup(level: str, environ: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Log everything from ``level`` up: debug, info, warning or error.

    Args:
        level: The least level that is logged.
        environ: Where systemd says which stream is its journal's.
        stream: Where to; standard error by default.
    """
    out = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(out)
    if _is_journal(out, environ.get("JOURNAL_STREAM", "")):
        handler.setFormatter(JournalLine())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy, least in _NOISY.items():
        logging.getLogger(noisy).setLevel(least)


def _is_journal(stream: TextIO, said: str) -> bool:
    """Tell whether a stream is the journal's: the variable is inherited, the stream may be redirected."""
    if not said:
        return False
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        # Not backed by a file, so not by the journal's socket.
        return False
    return said == f"{status.st_dev}:{status.st_ino}"
