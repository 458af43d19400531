"""``python -m daemon.fleet.timing FOLDER``: one timing on this device, as a process of its own.

* ``FOLDER/job.json`` says which bundles on which rows; they lie beside it under their digests' hex, verified.
* Bundles are timed as the latency guard times them: row by row, in turns, who goes first alternates, one
  thread, each row with the best of its runs.
* ``FOLDER/timings.json`` is written last; without it the timing failed.

A process of its own, so that a bundle that crashes the runtime takes only this with it.
"""

import io
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from daemon.fleet.hardware import hardware
from daemon.fleet.terms import Piece, TimingJob
from guards.latency import interleave
from guards.material import Array, Net
from policies.case import Timings
from policies.errors import PermanentError, TamperError
from policies.wire import canonical, digest_bytes


def measure(folder: Path, device: str) -> Timings:
    """Return the timings of the job in a folder.

    Raises:
        PermanentError: A file is not what the job says, or there are too few rows.
    """
    job = TimingJob.model_validate_json((folder / "job.json").read_bytes())
    nets = [Net(_read(folder, bundle)) for bundle in job.bundles]
    x = _rows(_read(folder, job.rows))[-job.count :]
    if len(x) < job.count:
        raise PermanentError(f"expected {job.count} rows to time on, there are {len(x)}")
    times = interleave(nets, x, time.perf_counter)
    return Timings(
        job=job.id,
        device=device,
        machine=str(hardware()),
        bundles=tuple(bundle.digest for bundle in job.bundles),
        rows=job.rows.digest,
        times_ms=tuple(tuple(round(float(one), 6) for one in row) for row in times),
    )


def _read(folder: Path, piece: Piece) -> bytes:
    path = folder / piece.digest.removeprefix("sha256:")
    data = path.read_bytes()
    if digest_bytes(data) != piece.digest:
        raise TamperError(f"expected {piece.digest} at {path}, got {digest_bytes(data)}")
    return data


def _rows(raw: bytes) -> Array:
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            found: Array = archive["x"]
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TamperError(f"expected an .npz with an array x, got {error}") from error
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = measure(place, sys.argv[2])
    (place / "timings.json.half").write_bytes(canonical(found))
    (place / "timings.json.half").replace(place / "timings.json")
