"""Timings that a hub asks for, done when the device is idle: one at a time, in a process of their own.

* A job's files are fetched and verified as releases are: by digest and size.
* The process is looked at every beat and never waited for; one that takes longer than ``TIMING_S`` is ended.
* An answer that could not be sent is sent again with the next beat.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
from pydantic import ValidationError

from daemon.fleet.caller import call
from daemon.fleet.terms import TimingJob
from daemon.fleet.trust import Trust
from policies.errors import PermanentError, TemporaryError, first_fault
from policies.wire import canonical

log = logging.getLogger(__name__)

TIMING_S = 240.0


class Stopwatch:
    """Does the hub's timings.

    Args:
        folder: For the job at hand; emptied at every start.
        http: A client of the hub.
        trust: Fetches blobs.
        device: This device's name.
        monotonic: Returns seconds that never go back.
    """

    def __init__(
        self, folder: Path, http: httpx.Client, trust: Trust, device: str, monotonic: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._http = http
        self._trust = trust
        self._device = device
        self._monotonic = monotonic
        self._process: subprocess.Popen[bytes] | None = None
        self._end = 0.0

    @property
    def busy(self) -> bool:
        """Whether a timing is at work or waits to be sent."""
        return self._process is not None

    def begin(self) -> None:
        """Take a job from the hub, when it has one, and start it.

        Raises:
            TemporaryError: The hub does not answer.
            PermanentError: The job or a file of it is not to be believed.
        """
        raw = call(self._http, "GET", "/v1/job")
        if not raw:
            return
        try:
            job = TimingJob.model_validate_json(raw)
        except ValidationError as error:
            raise PermanentError(f"expected a timing job from the hub, got {first_fault(error)}") from error
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        for piece in (*job.bundles, job.rows):
            name = piece.digest.removeprefix("sha256:")
            (self._folder / name).write_bytes(self._trust.fetch(name, piece.size_bytes))
        (self._folder / "job.json").write_bytes(canonical(job))
        command = [sys.executable, "-m", "daemon.fleet.timing", str(self._folder), self._device]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (self._folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        self._end = self._monotonic() + TIMING_S
        log.info("timing=%s bundles=%d rows=%d", job.id, len(job.bundles), job.count)

    def look(self) -> None:
        """Send the timings when they are there; give up what failed or takes too long.

        Raises:
            TemporaryError: The hub does not answer; the next look sends them.
            PermanentError: It refuses them.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            if self._monotonic() > self._end:
                self.stop()
                log.warning("a timing took longer than %g s and was ended", TIMING_S)
            return
        path = self._folder / "timings.json"
        if not path.is_file():
            log.warning(
                "a timing ended with exit code %s; see %s", self._process.returncode, self._folder / "log"
            )
            self._process = None
            return
        try:
            call(self._http, "POST", "/v1/timings", path.read_bytes())
        except TemporaryError:
            raise
        except PermanentError:
            self._process = None
            raise
        self._process = None
        log.info("timings sent")

    def stop(self) -> None:
        """End a timing at work."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
