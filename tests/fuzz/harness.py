"""What every fuzz target shares: atheris, its flags, a small corpus, and planted bugs that must be found.

Run a target by hand, for as long as you like (libFuzzer's flags)::

    python -m tests.fuzz.ask -max_total_time=600
    python -m tests.fuzz.ask --planted -runs=100000     # must end with a crash

A crash leaves its input in ``crash-…``; give that file as an argument to see it again. In the tests, runs are
few and the seed is fixed.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=8192", "-print_final_stats=1")


def fuzz(one: Callable[[bytes], None], corpus: list[bytes], plant: Callable[[], None]) -> None:
    """Run a target until its flags say so, or until it finds something.

    Args:
        one: Tries one input; raises when something is wrong.
        corpus: Inputs to begin with.
        plant: Puts the target's bug into the code under test.
    """
    args = [each for each in sys.argv[1:] if each != "--planted"]
    if len(args) < len(sys.argv) - 1:
        plant()
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(corpus):
            (Path(folder) / str(number)).write_bytes(data)
        files = [each for each in args if not each.startswith("-")]
        atheris.Setup([sys.argv[0], *LIMITS, *args, *([] if files else [folder])], one)
        atheris.Fuzz()
