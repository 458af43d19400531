"""Environments of the servers that stand beside ours: one virtual environment for each.

* An environment lies in ``.instar/peers/<peer>`` of the checkout. It is made once, from
  ``peers/<peer>.txt``, where every package is pinned; a stamp holds the digest of that file and of the Python
  that made it, and is written last, so that a half-made one or an outdated one is made anew.
* The scripts are ours, in ``peers/``; they see their own folder, the peer's packages and nothing of ours.
* Every script runs with one OpenMP thread, and at home in the bench's own folder: what a peer leaves behind
  goes with it.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from policies.errors import PermanentError

SCRIPTS = Path(__file__).resolve().parent / "peers"
ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".instar" / "peers"

# Each peer's own distribution, whose version the page names.
PEERS: Mapping[str, str] = {
    "mlserver": "mlserver",
    "litserve": "litserve",
    "bentoml": "bentoml",
    "pytriton": "nvidia-pytriton",
    "ray": "ray",
}
# PyTriton's stub carries an interpreter of its own, like Debian's 3.11.2, and reads this Python's standard
# library: that of 3.11.7 wants an RLock which the stub has not.
PYTHONS: Mapping[str, str] = {"pytriton": "/usr/bin/python3.11"}

_STAMP = "instar-requirements.sha256"
_TAIL_LINES = 15


def python_of(peer: str) -> Path:
    """Return the Python of a peer's environment, which is made if it is missing or outdated.

    Args:
        peer: One of `PEERS`.

    Raises:
        PermanentError: No such peer, no Python for it, or its packages could not be installed.
    """
    if peer not in PEERS:
        raise PermanentError(f"expected a peer of {', '.join(PEERS)}, got {peer!r}: name one of them")
    base = PYTHONS.get(peer, sys.executable)
    if not Path(base).is_file():
        raise PermanentError(f"expected {base} for {peer}, found none: install Debian's python3.11")
    home = ENVIRONMENTS / peer
    python = home / "bin" / "python"
    requirements = SCRIPTS / f"{peer}.txt"
    stamp, digest = home / _STAMP, stamp_of(base, requirements)
    if python.exists() and stamp.is_file() and stamp.read_text() == digest:
        return python
    print(f"peers: {peer}: makes {home}, once", file=sys.stderr, flush=True)
    _do(peer, [base, "-m", "venv", "--clear", str(home)])
    _do(peer, [str(python), "-m", "pip", "--quiet", "install", "-r", str(requirements)])
    stamp.write_text(digest)
    return python


def stamp_of(base: str, requirements: Path) -> str:
    """Return the digest of what an environment is made from."""
    told = subprocess.run([base, "-c", "import sys; print(sys.version)"], capture_output=True, check=True)
    return hashlib.sha256(told.stdout + requirements.read_bytes()).hexdigest()


def environment(home: Path) -> dict[str, str]:
    """Return the environment variables of a peer's processes, at home in ``home``."""
    # PYTHONPATH of the caller would let a peer import our packages.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return inherited | threads | {"HOME": str(home), "TMPDIR": str(home)}


def version_of(peer: str) -> str:
    """Return the pinned version of a peer.

    Raises:
        PermanentError: Its requirements do not pin it.
    """
    for line in (SCRIPTS / f"{peer}.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if name == PEERS[peer]:
            return version
    raise PermanentError(f"expected {PEERS[peer]}==VERSION in peers/{peer}.txt, found none: pin it")


def _do(peer: str, command: list[str]) -> None:
    """Run a command of an installation."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-_TAIL_LINES:])
        raise PermanentError(f"{peer}: {command[1:4]} ended with {done.returncode}; its last words:\n{last}")
