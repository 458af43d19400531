"""What a lane's search begins with: the main lane's supernet, priced as the lane's own devices would have it.

* A device class is founded from the main lane's live generation: its weights and its archive, chosen from
  anew within the lane's limits. Nothing is trained twice.
* The archive's profile is of the machine that searched. One network that has been timed on a device of the
  lane gives the ratio of the two, and the profile's lines are scaled by it. A search asks of a median that it
  is half of the limit of the tail; where the device's tail is longer than that, half of its tail counts.
* The guards then judge the chosen network by the device's own timings, so an error of the scaling costs a
  refusal, never a slow network. What was timed for a refusal counts too, and the next search knows better.

Pure but for the blobs that it reads. Called by the lane's briefs.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from daemon.control.book import Book
from daemon.store.blobs import Blobs
from policies.case import Timings
from policies.errors import PermanentError, TamperError
from policies.terms import Genome
from policies.wire import canonical


@dataclass(frozen=True)
class Estate:
    """What one generation left: its number, genome and bundle, and the digests of state and archive."""

    generation: int
    genome: Genome
    bundle: str
    state: str
    archive: str


class Forebear:
    """A control plane's live generation, to be inherited from.

    Args:
        book: Its journal's ledger, which may grow meanwhile.
        blobs: Its store.
    """

    def __init__(self, book: Book, blobs: Blobs) -> None:
        self._book = book
        self.blobs = blobs

    def estate(self) -> Estate | None:
        """Return what the live generation leaves, or None while there is none."""
        ledger = self._book.ledger
        release, candidate = ledger.live, ledger.live_candidate
        if release is None or candidate is None:
            return None
        left = ledger.heritage[candidate.id]
        return Estate(release.generation, candidate.genome, release.bundle, left.state, left.archive)


Timed = tuple[Genome, list[Timings]]
"""A network and what devices timed of it, its own list first."""

_HALF = 0.5
"""Of the tail, what a search asks of a median (``search.bounds``)."""


def as_searched_ms(timings: Timings) -> float:
    """Return the median that a search would have to know of, to choose as the latency guard judges.

    >>> digest = "sha256:" + "0" * 64
    >>> facts = {"job": "j", "device": "d", "machine": "m", "bundles": (digest,), "rows": digest}
    >>> as_searched_ms(Timings(**facts, times_ms=((1.0,) * 99 + (1.5,),)))
    1.0
    >>> as_searched_ms(Timings(**facts, times_ms=((1.0,) * 90 + (6.0,) * 10,)))
    3.0
    """
    p50, p99 = np.quantile(timings.times_ms[0], [0.5, 0.99], method="higher")
    return float(max(p50, _HALF * p99))


def scaled_profile(archive: bytes, timed: list[Timed]) -> tuple[bytes, float]:
    """Return an archive's profile as a device would have it, and the ratio that it was scaled by.

    Args:
        archive: The JSON of a search archive.
        timed: Networks with their timings. The archive must price the first; others count where it does. The
            slowest device and the worst ratio count.

    Raises:
        TamperError: The archive is none.
        PermanentError: It does not know the first network.
    """
    try:
        plain = json.loads(archive)
        points = {_key(point["genome"]): float(point["latency_ms"]) for point in plain["points"]}
        profile: dict[str, Any] = dict(plain["profile"])
        line, int8 = profile["line"], profile["int8_line"]
    except (ValueError, KeyError, TypeError) as error:
        raise TamperError(f"expected a search archive, got {error!r}; restore a backup") from error
    ratios = [
        as_searched_ms(one) / points[key]
        for genome, timings in timed
        for one in timings
        if points.get(key := _key(genome.model_dump(mode="json")), 0.0) > 0.0
    ]
    if points.get(_key(timed[0][0].model_dump(mode="json")), 0.0) <= 0.0:
        raise PermanentError(
            f"expected the archive to price the network that was timed, it has {len(points)} others"
        )
    ratio = max(ratios)
    profile["line"] = [ratio * one for one in line]
    profile["int8_line"] = None if int8 is None else [ratio * one for one in int8]
    profile["machine"] = f"{timed[0][1][0].machine}; {ratio:.3f} times {profile['machine']}"
    return canonical(profile), ratio


def _key(genome: Any) -> tuple[str, tuple[int, ...]]:
    return genome["space"], tuple(genome["genes"])
