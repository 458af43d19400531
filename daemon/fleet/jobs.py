"""A lane's searches and panels: they wait for devices, and for one another.

* One search at a time on this machine, whichever lane it is for.
* A search is given its devices' prices: a device times the network that it starts from, first.
* A panel is given its devices' timings of the candidate beside the incumbent: the guards judge those.
* What is waited for is ``Unreachable``: the turn says so and asks again; nothing is journalled before.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from daemon.control.book import Book
from daemon.control.briefs import Briefs
from daemon.control.jobs import Jobs
from daemon.control.law import Law
from daemon.control.targets.target import Unreachable
from daemon.fleet.desk import TimingDesk
from daemon.fleet.heritage import Estate, Forebear, Timed, scaled_profile
from daemon.fleet.terms import Piece, TimingJob
from daemon.store.blobs import Blobs
from daemon.store.samples import Samples
from policies.case import Case, Timings
from policies.lifecycle import Stage
from policies.terms import Artefact, Brief, SearchResult, Task, Trigger, TriggerKind
from policies.wire import digest_bytes
from policies.world import Candidate

_FAR = 10_000
_TRAFFIC_ROWS = 400


class Turnstile:
    """Lets one search begin while no other is at work, over all control planes of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._books: dict[str, Book] = {}

    def join(self, name: str, book: Book) -> None:
        """Take a control plane in, by its lane's name."""
        self._books[name] = book

    def begin(self, name: str, start: Callable[[], None]) -> None:
        """Start a search when nobody else's is open.

        Raises:
            Unreachable: Another one is.
        """
        with self._lock:
            for other, book in self._books.items():
                if other != name and book.ledger.search is not None:
                    raise Unreachable(
                        f"expected no search beside this one, {other} has {book.ledger.search.id}; wait"
                    )
            start()


class TurnstileJobs(Jobs):
    """Jobs whose searches wait for other lanes'."""

    turnstile: Turnstile
    lane: str

    def start_search(self, trigger: Trigger) -> None:
        """Start a search, when no other is at work.

        Raises:
            Unreachable: Another one is.
        """
        self.turnstile.begin(self.lane, lambda: super(TurnstileJobs, self).start_search(trigger))


class Waits:
    """What a lane's jobs wait for from its devices."""

    def __init__(self, lane: str, desk: TimingDesk, blobs: Blobs, samples: Samples, folder: Path) -> None:
        self._lane = lane
        self._desk = desk
        self._blobs = blobs
        self._samples = samples
        self._folder = folder

    def timings(self, name: str, bundles: tuple[str, ...], count: int) -> list[Artefact]:
        """Return devices' timings of bundles of the lane's store.

        Args:
            name: Of the job; the same name is the same job.
            bundles: Digests, the candidate's first.
            count: Rows to time.

        Raises:
            Unreachable: They are not there yet.
        """
        rows = self._rows(name)
        job = TimingJob(
            id=name,
            bundles=tuple(Piece(digest=one, size_bytes=len(self._blobs.read(one))) for one in bundles),
            rows=Piece(digest=rows, size_bytes=len(self._blobs.read(rows))),
            count=count,
        )
        found = self._desk.ask(job)
        if found is None:
            there = ", ".join(self._desk.answers(name)) or "none yet"
            raise Unreachable(
                f"expected devices of {self._lane} to time {name}, {there} did; an idle one is asked"
            )
        return [Artefact(path=str(self._blobs.path(one)), digest=one) for one in found.values()]

    def read(self, timings: list[Artefact]) -> list[Timings]:
        """Return what timings say."""
        return [Timings.model_validate_json(self._blobs.read(one.digest)) for one in timings]

    def known(self, candidate: str) -> list[Timings]:
        """Return what devices have timed of a candidate so far."""
        found = self._desk.known(f"{candidate}-")
        return [Timings.model_validate_json(self._blobs.read(digest)) for digest in found]

    def rows(self, name: str) -> Artefact:
        """Return the rows that a job is timed on."""
        digest = self._rows(name)
        return Artefact(path=str(self._blobs.path(digest)), digest=digest)

    def _rows(self, name: str) -> str:
        """Return the digest of a job's rows: drawn when it is first asked for, and the same ever after."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.rows"
        if not path.is_file():
            drawn = self._folder / f"{name}.npz"
            self._samples.export_traffic(drawn, max_rows=_TRAFFIC_ROWS)
            digest = self._blobs.put(drawn.read_bytes())
            drawn.unlink()
            path.write_text(digest)
        return path.read_text()


class LaneBriefs(Briefs):
    """Briefs and cases of a lane: devices' prices, the main lane's heritage, devices' timings."""

    def __init__(
        self,
        task: Task,
        law: Law,
        book: Book,
        blobs: Blobs,
        samples: Samples,
        seed: int,
        lane: str,
        waits: Waits,
    ) -> None:
        super().__init__(task, law, book, blobs, samples, seed)
        self._lane = lane
        self._waits = waits
        self.heir: Callable[[], Forebear | None] = lambda: None

    def brief(self, name: str, trigger: Trigger, seed: int, folder: Path) -> Brief:
        """Return what a search may spend and must meet on the lane's devices."""
        brief = super().brief(name, trigger, seed, folder)
        estate, store = self.estate(trigger)
        if estate is None:
            return brief
        archive = store.read(estate.archive)
        timed = [(estate.genome, self._waits.read(self.scale(estate))), *self._refused(trigger)]
        profile, _ = scaled_profile(archive, timed)
        digest = self._blobs.put(profile)
        priced = brief.model_copy(update={"profile": self._blob(digest)})
        if trigger.kind is not TriggerKind.FOUNDING:
            return priced
        clause = self._law.policy.modification_protocol.search
        return priced.model_copy(
            update={
                "kind": TriggerKind.LATENCY,
                "moved": True,
                "budget_cpu_s": clause.budget_cpu_s,
                "threads": clause.threads,
                "parent_generation": estate.generation,
                "parent_genome": estate.genome,
                "parent_state": _artefact(store, estate.state),
                "parent_archive": _artefact(store, estate.archive),
                "limits": brief.limits.model_copy(update={"max_edit_distance": _FAR}),
            }
        )

    def case(self, candidate: Candidate, result: SearchResult, folder: Path) -> Case:
        """Return what the panel is shown, devices' timings among it."""
        case = super().case(candidate, result, folder)
        name = self.timing_name(candidate)
        return case.model_copy(
            update={
                "device_class": self._lane,
                "traffic": self._waits.rows(name),
                "timings": tuple(self.timed(candidate)),
            }
        )

    def timed(self, candidate: Candidate) -> list[Artefact]:
        """Return devices' timings of a candidate beside the incumbent.

        Raises:
            Unreachable: They are not there yet.
        """
        live = self._book.ledger.live
        if candidate.bundle is None:
            raise ValueError(f"expected an exported bundle on {candidate.id}")
        bundles = (candidate.bundle,) if live is None else (candidate.bundle, live.bundle)
        return self._waits.timings(self.timing_name(candidate), bundles, self._rows)

    def _refused(self, trigger: Trigger) -> list[Timed]:
        """Return what devices timed of candidates that came of the same base and did not stay."""
        return [
            (candidate.genome, self._waits.known(candidate.id))
            for candidate in self._book.ledger.candidates.values()
            if candidate.base_generation == trigger.generation and candidate.stage is Stage.REJECTED
        ]

    def timing_name(self, candidate: Candidate) -> str:
        """Return the name of a candidate's timing."""
        live = self._book.ledger.live
        beside = "alone" if live is None else f"g{live.generation}"
        return f"{candidate.id}-{beside}"

    def estate(self, trigger: Trigger) -> tuple[Estate | None, Blobs]:
        """Return what a search starts from, and whose store it lies in; None: from nothing.

        Raises:
            Unreachable: There will be something to inherit, but not yet.
        """
        if trigger.kind is not TriggerKind.FOUNDING:
            return Forebear(self._book, self._blobs).estate(), self._blobs
        heir = self.heir()
        if heir is None:
            return None, self._blobs
        estate = heir.estate()
        if estate is None:
            raise Unreachable(
                f"expected a live generation of the main lane for {self._lane} to inherit, none yet"
            )
        self._blobs.put(heir.blobs.read(estate.bundle))
        return estate, heir.blobs

    def scale(self, estate: Estate) -> list[Artefact]:
        """Return devices' timings of the network that a search starts from.

        Raises:
            Unreachable: They are not there yet.
        """
        # What a device does today is asked anew for every generation that is searched from.
        name = f"scale-{estate.generation}-{digest_bytes(estate.bundle.encode())[7:15]}"
        return self._waits.timings(name, (estate.bundle,), self._rows)

    @property
    def _rows(self) -> int:
        return self._law.policy.modification_protocol.evaluation.latency.rows


class LaneJobs(TurnstileJobs):
    """A lane's jobs."""

    def use(self, briefs: LaneBriefs, turnstile: Turnstile, lane: str) -> None:
        """Write by these briefs, and wait at this turnstile."""
        self._briefs: LaneBriefs = briefs
        self.turnstile, self.lane = turnstile, lane

    def start_search(self, trigger: Trigger) -> None:
        """Start a search, when a device has been timed and no other search is at work.

        Raises:
            Unreachable: Something is still waited for.
        """
        estate, _ = self._briefs.estate(trigger)
        if estate is not None:
            self._briefs.scale(estate)
        super().start_search(trigger)

    def start_panel(self, candidate: Candidate) -> None:
        """Let the panel sit, when devices have timed the candidate.

        Raises:
            Unreachable: They have not yet.
        """
        self._briefs.timed(candidate)
        super().start_panel(candidate)


def _artefact(blobs: Blobs, digest: str) -> Artefact:
    return Artefact(path=str(blobs.path(digest)), digest=digest)
