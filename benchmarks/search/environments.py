"""Environments of the peers that stand beside our search: one virtual environment for each.

The bench calls `run` for a script that measures and ends, and `start` for one that it talks with.

* An environment lies in ``.instar/peers/<peer>`` of the checkout. It is made once, from
  ``peers/<peer>.txt``, where every package is pinned; a stamp holds the digest of those files and of the
  Python that made it, and is written last, so that a half-made one or an outdated one is made anew.
* ``peers/<peer>-alone.txt``, where it exists, names packages that are installed without what they require.
* The scripts are ours, in ``peers/``; they see their own folder, the peer's packages and nothing of ours.
* Every script runs with one OpenMP thread: what is compared is CPU time, not how many cores were free.
* Nothing here measures anything, and a number that a script did not print is never made up.
"""

import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from policies.errors import PermanentError

PEERS = ("ofa", "pymoo", "optuna", "archai")
SCRIPTS = Path(__file__).resolve().parent / "peers"
ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".instar" / "peers"

_STAMP = "instar-requirements.sha256"
_TAIL_LINES = 15
_TIMEOUT_S = 3600.0


def python_of(peer: str) -> Path:
    """Return the Python of a peer's environment, which is made if it is missing or outdated.

    Args:
        peer: One of `PEERS`.

    Raises:
        PermanentError: No such peer, or its packages could not be installed.
    """
    if peer not in PEERS:
        raise PermanentError(f"expected a peer of {', '.join(PEERS)}, got {peer!r}: name one of them")
    home = ENVIRONMENTS / peer
    python = home / "bin" / "python"
    stamp, digest = home / _STAMP, _digest(peer)
    if python.exists() and stamp.is_file() and stamp.read_text() == digest:
        return python
    _say(peer, f"makes {home}, once")
    venv.create(home, clear=True, with_pip=True)
    for options, file in _installs(peer):
        count = len(_packages(file))
        _say(peer, f"installs {count} pinned package{'s' if count > 1 else ''} of {file.name}")
        _install(python, options, file)
    stamp.write_text(digest)
    _say(peer, "is ready")
    return python


def run(
    peer: str,
    script: str,
    *arguments: str,
    input: str | None = None,  # noqa: A002  the name it has in subprocess.run
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, Any]:
    """Run a script of ``peers/`` in a peer's environment and return what its last line says.

    Args:
        peer: One of `PEERS`.
        script: File name, such as ``ofa_step.py``.
        *arguments: Of the script.
        input: Text for its standard input; nothing if None.
        timeout_s: Wall seconds after which it is ended.

    Returns:
        The JSON object of its last line on standard output.

    Raises:
        PermanentError: It failed, took too long, or its last line is no JSON object.
    """
    try:
        done = subprocess.run(
            _command(peer, script, arguments),
            input=input if input is not None else "",
            env=_environment(peer),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PermanentError(
            f"{script} of {peer} did not end within {timeout_s:g} s: give it less work or more time"
        ) from error
    if done.returncode != 0:
        raise PermanentError(
            f"{script} of {peer} should end with 0, ended with {done.returncode}: mend it; its last words:\n"
            f"{_tail(done.stderr)}"
        )
    return _record(peer, script, done.stdout)


def start(peer: str, script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script that talks in lines over its standard input and output; the caller ends it.

    Its standard error goes where the caller's goes. The lines are described in ``peers/asker.py``.

    Args:
        peer: One of `PEERS`.
        script: File name, such as ``pymoo_search.py``.
        *arguments: Of the script.

    Raises:
        PermanentError: No such peer or script, or its packages could not be installed.
    """
    return subprocess.Popen(
        _command(peer, script, arguments),
        env=_environment(peer),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def _command(peer: str, script: str, arguments: tuple[str, ...]) -> list[str]:
    path = SCRIPTS / script
    if not path.is_file():
        raise PermanentError(f"expected a script in {SCRIPTS}, got {script!r}: name a file that is there")
    return [str(python_of(peer)), str(path), *arguments]


def _environment(peer: str) -> dict[str, str]:
    # PYTHONPATH of the caller would let a peer import our packages, or ours import the stubs.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    stubs = SCRIPTS / f"{peer}_stubs"
    path = {"PYTHONPATH": str(stubs)} if stubs.is_dir() else {}
    # Archai draws plots; without a screen it must not look for one.
    return inherited | threads | path | {"PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}


def _installs(peer: str) -> list[tuple[list[str], Path]]:
    """Return pip's options and the requirements file of each install, in order."""
    alone = SCRIPTS / f"{peer}-alone.txt"
    first: list[tuple[list[str], Path]] = [([], SCRIPTS / f"{peer}.txt")]
    return [*first, (["--no-deps"], alone)] if alone.is_file() else first


def _packages(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]


def _install(python: Path, options: list[str], file: Path) -> None:
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *options]
    done = subprocess.run([*pip, "-r", str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PermanentError(
            f"pip could not install {file.name}: look at the network and the pins; its last words:\n"
            f"{_tail(done.stderr)}"
        )


def _digest(peer: str) -> str:
    content = b"".join(file.read_bytes() for _, file in _installs(peer))
    return hashlib.sha256(sys.version.encode() + content).hexdigest()


def _record(peer: str, script: str, output: str) -> dict[str, Any]:
    last = output.strip().rpartition("\n")[2]
    try:
        record = json.loads(last)
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict):
        raise PermanentError(
            f"the last line of {script} of {peer} should be a JSON object, is {last[:200]!r}: mend the script"
        )
    return record


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])


def _say(peer: str, what: str) -> None:
    print(f"peers: {peer}: {what}", file=sys.stderr, flush=True)
