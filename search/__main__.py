"""``python -m search BRIEF OUT``: one search, as a process of its own.

* BRIEF is the canonical JSON of a ``policies.terms.Brief``; paths in it are relative to its folder.
* OUT receives ``progress.json`` during the run, and at the end the artefacts and, last, ``result.json``.
* Exit 0: a winner. Exit 3: refused, and OUT/refusal.json says why; the same brief will be refused again.
  Anything else is a crash.
* Here alone clocks are read. The network is not used.
"""

import argparse
import sys
import time
from pathlib import Path

from policies.errors import PermanentError
from policies.terms import SearchResult
from policies.wire import canonical
from search.admission import admit, read_brief
from search.progress import write_whole
from search.run import Run, Tools
from search.spaces import BUILTIN as SPACES
from search.strategies import BUILTIN as STRATEGIES

REFUSED = 3


def main(arguments: list[str]) -> int:
    """Run one search and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m search", description="Search for a candidate.")
    parser.add_argument("brief", type=Path, help="file with the brief")
    parser.add_argument("out", type=Path, help="folder for the result")
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default="nsga2")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    tools = Tools(STRATEGIES[options.strategy], time.process_time, time.perf_counter, _say)
    try:
        search(options.brief, options.out, tools)
    except PermanentError as error:
        write_whole(options.out / "refusal.json", canonical({"reason": str(error)}))
        _say(f"refused: {error}")
        return REFUSED
    return 0


def search(brief: Path, out: Path, tools: Tools) -> SearchResult:
    """Read a brief, search, and write the result.

    Raises:
        PermanentError: The brief is refused.
    """
    asked = read_brief(brief)
    admission = admit(asked, brief.parent, SPACES)
    return Run(admission, out, tools).search()


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
