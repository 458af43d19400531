"""The log: a story that an operator can read. The journal, not the log, is the record."""

import logging
import os
import sys

_FORMAT = "%(levelname)s %(name)s: %(message)s"


def setup(level: str) -> None:
    """Log to standard error; with times unless systemd's journal adds its own."""
    stamp = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    logging.basicConfig(level=level.upper(), format=stamp + _FORMAT, stream=sys.stderr, force=True)
    for noisy in ("apscheduler", "httpx", "httpcore", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
