"""Figures of a peer's script: how repeats are summed up, and the one line that carries them.

Used by every script here that measures. Times are CPU times (`time.process_time`), never wall times.
"""

import json
from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest of the repeats, and how many there were.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0, 'repeats': 3}
    """
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "repeats": len(values),
    }


def tell(record: dict[str, object]) -> None:
    """Print the record as the last line of the script."""
    print(json.dumps(record), flush=True)
