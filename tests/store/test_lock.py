"""One control plane a state folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from daemon.store.lock import StateLock
from policies.errors import PermanentError

HOLDER = """
import sys
from pathlib import Path
from daemon.store.lock import StateLock
with StateLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_instard_is_told_who_holds_the_state_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "instard.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PermanentError, match=f"process {holder.pid} holds it"), StateLock(path):
            pytest.fail("the lock was given twice")
        holder.kill()
    with StateLock(path):
        assert path.read_text().strip().isdigit()
    with StateLock(path):
        pass
