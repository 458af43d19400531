"""What the journal says of this run: moments, counts and costs, read from entries in order.

It keeps the entries and decides nothing; the story asks it what happened, the table how long it took. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from daemon.console.client import EntryView

FOUNDING = "founding"
ADAPTATION = "adaptation"
_ENDS = ("REJECTED", "EXPIRED", "ROLLED_BACK", "ABANDONED")


@dataclass
class Chronicle:
    """The entries since the story began, in order."""

    entries: list[EntryView] = field(default_factory=list)

    def add(self, entry: EntryView) -> None:
        """Take the next entry in."""
        self.entries.append(entry)

    @property
    def adaptations(self) -> list[str]:
        """Candidates of adaptations, in order of their proposal."""
        return [
            entry.body["candidate"]
            for entry in self._kind("candidate.moved")
            if (entry.body.get("record") or {}).get("kind") == ADAPTATION
        ]

    def moved(self, candidate: str, to: str) -> float | None:
        """Return when a candidate came to a stage, or None."""
        found = (e.at for e in self._kind("candidate.moved") if _move(e) == (candidate, to))
        return next(found, None)

    def reason(self, candidate: str, to: str) -> str:
        """Return why a candidate came to a stage."""
        found = (e.body["reason"] for e in self._kind("candidate.moved") if _move(e) == (candidate, to))
        return next(found, "")

    def ended(self, candidate: str) -> str | None:
        """Return the stage in which a candidate ended without becoming live, or None."""
        return next((stage for stage in _ENDS if self.moved(candidate, stage) is not None), None)

    @property
    def adapted(self) -> str | None:
        """The candidate of an adaptation that became live, or None."""
        return next((name for name in self.adaptations if self.moved(name, "LIVE") is not None), None)

    def generation(self, candidate: str) -> int | None:
        """Return the generation that a candidate was staged as."""
        found = (
            e.body.get("generation")
            for e in self._kind("candidate.moved")
            if _move(e) == (candidate, "STAGED")
        )
        return next(found, None)

    def alarms(self, first: float, last: float) -> list[EntryView]:
        """Return the alarms that were raised between two moments."""
        return [e for e in self._kind("signal") if e.body["level"] == "alarm" and first <= e.at < last]

    def triggers(self, first: float, last: float) -> list[EntryView]:
        """Return the triggers between two moments, the founding's not among them."""
        return [e for e in self._kind("trigger") if e.body["kind"] != FOUNDING and first <= e.at < last]

    def pages(self) -> list[EntryView]:
        """Return every call for a person."""
        return list(self._kind("page"))

    def search_cpu_s(self, *, founding: bool) -> float:
        """Return the CPU-seconds of all searches of a sort."""
        ended = self._kind("search.ended")
        return sum(float(e.body["cpu_s"]) for e in ended if (e.body["kind"] == FOUNDING) is founding)

    def searches(self) -> list[tuple[float, float]]:
        """Return when each adaptation's search began and ended; one that runs on has no end yet."""
        ends = {e.body["id"]: e.at for e in self._kind("search.ended")}
        begun: dict[str, float] = {}
        for entry in self._kind("search.started"):
            if entry.body["kind"] != FOUNDING:
                begun.setdefault(entry.body["id"], entry.at)
        return [(at, ends.get(name, float("inf"))) for name, at in begun.items()]

    def deployments(self, after: float) -> list[float]:
        """Return when the data plane took each new wanted state."""
        return [e.at for e in self._kind("deploy.done") if e.at >= after]

    def first(self, kind: str, after: float = 0.0) -> float | None:
        """Return when the first entry of a kind was written at or after a moment."""
        return next((e.at for e in self._kind(kind) if e.at >= after), None)

    def _kind(self, kind: str) -> Iterator[EntryView]:
        return (entry for entry in self.entries if entry.kind == kind)


def _move(entry: EntryView) -> tuple[str, str]:
    return entry.body["candidate"], entry.body["to"]
