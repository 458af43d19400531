"""Timings that a lane waits for: asked of idle devices, one device a job at a time, kept when they come.

* A job is known by its name; asked for twice it is asked for once. ``wanted`` devices must answer it.
* A device gets a job that it has not answered; one that is silent for ``LEASE_S`` loses it to others.
* Answers lie in the lane's blobs and in a file by the job's name: a restart asks for nothing again.
* An answer is taken when it is of this job: its bundles, its rows, as many times as were asked.

Called by the hub (devices) and the lane's jobs (control). Safe between threads.
"""

import json
import threading
from pathlib import Path

from daemon.fleet.terms import TimingJob
from daemon.ops.files import persist
from daemon.store.blobs import Blobs
from policies.case import Timings
from policies.clock import Clock
from policies.errors import PermanentError, TamperError
from policies.wire import canonical

LEASE_S = 300.0


class TimingDesk:
    """The timings of one lane."""

    def __init__(self, folder: Path, blobs: Blobs, clock: Clock, wanted: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._blobs = blobs
        self._clock = clock
        self._wanted = wanted
        self._lock = threading.Lock()
        self._jobs: dict[str, TimingJob] = {}
        self._leases: dict[tuple[str, str], float] = {}

    @property
    def digests(self) -> frozenset[str]:
        """Return the digests of what open jobs need."""
        with self._lock:
            return frozenset(
                piece.digest for job in self._jobs.values() for piece in (*job.bundles, job.rows)
            )

    def answers(self, job: str) -> dict[str, str]:
        """Return the digests of the timings of a job, by device."""
        try:
            found: dict[str, str] = json.loads(self._path(job).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise TamperError(f"expected timings at {self._path(job)}, got {error}; take it away") from error
        return found

    def known(self, prefix: str) -> list[str]:
        """Return the digests of all timings of jobs whose names begin so."""
        jobs = sorted(path.stem for path in self._folder.glob("*.json") if path.stem.startswith(prefix))
        return [digest for job in jobs for digest in self.answers(job).values()]

    def ask(self, job: TimingJob) -> dict[str, str] | None:
        """Return the answers when enough devices have given theirs; until then, see that they are asked."""
        found = self.answers(job.id)
        with self._lock:
            if len(found) >= self._wanted:
                self._jobs.pop(job.id, None)
                return found
            self._jobs[job.id] = job
        return None

    def waits(self, device: str) -> bool:
        """Tell whether there is a job for a device."""
        with self._lock:
            return self._due(device) is not None

    def take(self, device: str) -> TimingJob | None:
        """Return a job for a device, which has it now, or None."""
        with self._lock:
            job = self._due(device)
            if job is not None:
                self._leases[job.id, device] = self._clock.monotonic() + LEASE_S
            return job

    def accept(self, device: str, timings: Timings) -> None:
        """Keep a device's answer.

        Raises:
            PermanentError: It is not one to a job that is open, or not the device's own.
        """
        with self._lock:
            job = self._jobs.get(timings.job)
            if job is None or timings.device != device:
                raise PermanentError(f"expected timings of an open job by {device}, got {timings.job}")
            bundles = tuple(piece.digest for piece in job.bundles)
            same = timings.bundles == bundles and timings.rows == job.rows.digest
            if not same or len(timings.times_ms[0]) != job.count:
                raise PermanentError(
                    f"expected {job.count} times of {bundles} on {job.rows.digest}, got others"
                )
            found = self.answers(job.id) | {device: self._blobs.put(canonical(timings))}
            persist(self._path(job.id), json.dumps(found).encode())
            self._leases.pop((job.id, device), None)
            if len(found) >= self._wanted:
                self._jobs.pop(job.id)

    def _due(self, device: str) -> TimingJob | None:
        now = self._clock.monotonic()
        for job in self._jobs.values():
            found = self.answers(job.id)
            others = {d for (j, d), end in self._leases.items() if j == job.id and end > now and d != device}
            if device not in found and len(set(found) | others) < self._wanted:
                return job
        return None

    def _path(self, job: str) -> Path:
        return self._folder / f"{job}.json"
