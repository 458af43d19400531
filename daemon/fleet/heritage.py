"""What a lane's search begins with: the main lane's supernet, priced as the lane's own devices would have it.

* A device class is founded from the main lane's live generation: its weights and its archive, chosen from
  anew within the lane's limits. Nothing is trained twice.
* The archive's profile is of the machine that searched. One network that has been timed on a device of the
  lane gives the ratio of the two, and the profile's lines are scaled by it. The guards then judge the chosen
  network by the device's own timings, so an error of the scaling costs a refusal, never a slow network.

Pure but for the blobs that it reads. Called by the lane's briefs.
"""

import json
from dataclasses import dataclass
from statistics import median
from typing import Any

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


def scaled_profile(archive: bytes, genome: Genome, timings: list[Timings]) -> tuple[bytes, float]:
    """Return an archive's profile as a device would have it, and the ratio that it was scaled by.

    Args:
        archive: The JSON of a search archive.
        genome: Of the network that was timed; the archive has its predicted latency.
        timings: Of that network alone; of several devices the slowest counts.

    Raises:
        TamperError: The archive is none.
        PermanentError: It does not know the network.
    """
    try:
        plain = json.loads(archive)
        points = {_key(point["genome"]): float(point["latency_ms"]) for point in plain["points"]}
        profile: dict[str, Any] = dict(plain["profile"])
        line, int8 = profile["line"], profile["int8_line"]
    except (ValueError, KeyError, TypeError) as error:
        raise TamperError(f"expected a search archive, got {error!r}; restore a backup") from error
    here_ms = points.get(_key(genome.model_dump(mode="json")))
    if here_ms is None or here_ms <= 0:
        raise PermanentError(
            f"expected the archive to price the network that was timed, it has {len(points)} others"
        )
    there_ms = max(median(one.times_ms[0]) for one in timings)
    ratio = there_ms / here_ms
    profile["line"] = [ratio * one for one in line]
    profile["int8_line"] = None if int8 is None else [ratio * one for one in int8]
    profile["machine"] = f"{timings[0].machine}; {ratio:.3f} times {profile['machine']}"
    return canonical(profile), ratio


def _key(genome: Any) -> tuple[str, tuple[int, ...]]:
    return genome["space"], tuple(genome["genes"])
