"""The reckoning: the story's moments, the journal and the camera's record, made into the table's figures.

A figure that cannot be known is None or left out; it is never made up from another. Pure but for the files
that it is given.
"""

from dataclasses import dataclass
from pathlib import Path

from daemon.console.demo.chronicle import Chronicle
from daemon.console.demo.footage import Footage, Share
from daemon.console.demo.oracle import Verdict, accuracies
from daemon.console.demo.result import Figures, Latency
from daemon.console.demo.scene import Scene
from daemon.console.demo.wishes import Wishes
from daemon.store.blobs import Blobs
from daemon.store.journal import verify

SWAP_WINDOW_S = 3.0
_WHOLE = 0.999
_NOTHING = Share(0, 0)


@dataclass(frozen=True)
class Moments:
    """When the story turned, in seconds since the epoch; None is not yet."""

    began: float
    ready: float | None = None
    watching: float | None = None
    drift_asked: float | None = None
    measured: float | None = None
    ended: float | None = None


def reckon(
    scene: Scene,
    wishes: Wishes,
    moments: Moments,
    chronicle: Chronicle,
    bundles: dict[int, str],
    oracle: Verdict | None,
    test: Path,
    stuck: str | None,
) -> Figures:
    """Return the figures of a run.

    Args:
        scene: Where its files lie.
        wishes: What was asked for.
        moments: When the story turned.
        chronicle: The journal's entries of this run.
        bundles: Digest of each generation that was seen live.
        oracle: What the oracle reached, if it came to that.
        test: The drifted digits that the camera never sends; need not be there without an oracle.
        stuck: Why the story ended early, if it did.

    Raises:
        PermanentError: The camera's record is not readable.
        TamperError: A bundle or the journal is not what it was.
    """
    footage = Footage.load(scene.requests)
    name = chronicle.adapted
    generation = None if name is None else chronicle.generation(name)
    before, under, after = _live(footage, moments, chronicle, generation)
    unseen = None if oracle is None else _unseen(scene, bundles, generation, test)
    watching = moments.watching or 0.0
    quiet_ends = moments.drift_asked or moments.ended or 0.0
    quiet = (watching, quiet_ends) if moments.watching is not None else (0.0, 0.0)
    sound = verify(scene.journal)
    return Figures(
        demo_key=True,
        drift=wishes.drift,
        strength=wishes.strength,
        seed=wishes.seed,
        candidate=name,
        generation=generation,
        before=before,
        under=under,
        after=after,
        unseen_before=None if unseen is None else unseen[0],
        unseen_after=None if unseen is None else unseen[1],
        oracle=None if oracle is None else oracle.accuracy,
        oracle_n=0 if oracle is None else oracle.n,
        alarm_delay_requests=_delay(footage, [e.at for e in chronicle.alarms(*_since_drift(footage))]),
        trigger_delay_requests=_delay(footage, [e.at for e in chronicle.triggers(*_since_drift(footage))]),
        false_alarms=len(chronicle.alarms(*quiet)),
        false_triggers=len(chronicle.triggers(moments.began, quiet_ends)),
        quiet_requests=footage.count(*quiet),
        founding_cpu_s=chronicle.search_cpu_s(founding=True),
        adaptation_cpu_s=chronicle.search_cpu_s(founding=False),
        oracle_cpu_s=None if oracle is None else oracle.cpu_s,
        sent=footage.sent,
        failed=footage.failed,
        unrecorded=footage.unrecorded,
        latency=latencies(footage, moments, chronicle),
        phases_s=phases(moments, chronicle),
        journal_entries=sound.entries,
        journal_fault=None if sound.valid else f"entry {sound.seq}: {sound.reason}",
        report=None if name is None else str(scene.state / "reports" / f"{name}.html"),
        journal=str(scene.journal),
        stuck=stuck,
    )


def _live(
    footage: Footage, moments: Moments, chronicle: Chronicle, generation: int | None
) -> tuple[Share, Share, Share]:
    """Return accuracy on live traffic before the drift, under the whole of it, and after the adaptation."""
    if moments.watching is None or moments.drift_asked is None:
        return _NOTHING, _NOTHING, _NOTHING
    whole = footage.level >= _WHOLE
    before = footage.accuracy(footage.within((moments.watching, moments.drift_asked)) & (footage.level == 0))
    if generation is None or chronicle.adapted is None:
        return before, footage.accuracy(whole), _NOTHING
    live_at = chronicle.moved(chronicle.adapted, "LIVE") or float("inf")
    under = footage.accuracy(whole & (footage.at < live_at) & (footage.generation < generation))
    after = footage.accuracy(whole & (footage.at >= live_at) & (footage.generation == generation))
    return before, under, after


def _unseen(
    scene: Scene, bundles: dict[int, str], generation: int | None, test: Path
) -> tuple[Share, Share] | None:
    """Return how the generation before the drift and the adapted one read digits that neither has seen."""
    former = min(bundles, default=None)
    if generation is None or former is None or generation not in bundles or former == generation:
        return None
    blobs = Blobs(scene.state / "blobs")
    first, last = accuracies([blobs.read(bundles[former]), blobs.read(bundles[generation])], test)
    return first, last


def _since_drift(footage: Footage) -> tuple[float, float]:
    at = footage.drifted_at
    return (float("inf"), float("inf")) if at is None else (at, float("inf"))


def _delay(footage: Footage, moments: list[float]) -> int | None:
    """Return how many requests were due between the first drifted one and the first of these moments."""
    if footage.drifted_at is None or not moments:
        return None
    return footage.count(footage.drifted_at, moments[0])


def phases(moments: Moments, chronicle: Chronicle) -> dict[str, float]:
    """Return how long each part of the story took, in seconds; parts that did not come are left out."""
    name = chronicle.adapted or (chronicle.adaptations or [""])[-1]
    drift = moments.drift_asked
    searches = chronicle.searches()
    later = float("inf") if drift is None else drift
    marks = [
        ("founding", moments.began, moments.ready),
        ("commissioning", moments.ready, moments.watching),
        ("quiet while", moments.watching, drift),
        ("drift to trigger", drift, chronicle.first("trigger", later)),
        ("gathering labels", chronicle.first("trigger", later), searches[0][0] if searches else None),
        ("search", searches[-1][0] if searches else None, chronicle.moved(name, "PROPOSED")),
        ("guards", chronicle.moved(name, "PROPOSED"), chronicle.moved(name, "CLEARED")),
        ("approval", chronicle.moved(name, "CLEARED"), chronicle.moved(name, "APPROVED")),
        ("staging", chronicle.moved(name, "APPROVED"), chronicle.moved(name, "PROBATION")),
        ("probation", chronicle.moved(name, "PROBATION"), chronicle.moved(name, "LIVE")),
        ("measuring and oracle", chronicle.moved(name, "LIVE"), moments.ended),
        ("all", moments.began, moments.ended),
    ]
    return {
        what: round(last - first, 1) for what, first, last in marks if first is not None and last is not None
    }


def latencies(footage: Footage, moments: Moments, chronicle: Chronicle) -> dict[str, Latency | None]:
    """Return latencies in steady state, during the adaptation's search, and in the swap windows."""
    drift = moments.drift_asked
    if moments.watching is None or drift is None:
        return {"steady": None, "search": None, "swap": None}
    swaps = [(at - SWAP_WINDOW_S, at + SWAP_WINDOW_S) for at in chronicle.deployments(drift)]
    spans = {"steady": [(moments.watching, drift)], "search": chronicle.searches(), "swap": swaps}
    found: dict[str, Latency | None] = {}
    for name, parts in spans.items():
        chosen = footage.within(*parts)
        pair = footage.latency_ms(chosen)
        found[name] = (
            None if pair is None else Latency(round(pair[0], 2), round(pair[1], 2), int(chosen.sum()))
        )
    return found
