"""Fuzzing, in short: the same seed and few runs, and a planted bug that each target must find."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris is not installed: it has wheels for Linux on x86-64 alone")

ROOT = Path(__file__).parents[2]
TARGETS = ("ask", "connection", "line", "messages")


def run(target: str, folder: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{target}", "-seed=4", f"-artifact_prefix={folder}/", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found(target, tmp_path):
    done = run(target, tmp_path, "-runs=20000", "-max_total_time=12")
    assert done.returncode == 0, done.stderr[-4000:]
    (runs,) = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    assert int(runs.split()[-1]) >= 500


@pytest.mark.parametrize("target", TARGETS)
def test_a_planted_bug_is_found(target, tmp_path):
    done = run(target, tmp_path, "--planted", "-runs=200000", "-max_total_time=60")
    assert done.returncode != 0
    assert list(tmp_path.glob("crash-*")), done.stderr[-4000:]
