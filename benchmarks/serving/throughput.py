"""Requests a second, beside the runtime alone and beside other servers, all of them in one run.

Each server has one core and the load generator another; 16 kept connections, each with one request under way.
One image 1x28x28 FP32 a request, ten logits an answer, and everybody serves the same two ONNX files with one
thread of the same onnxruntime. A run gives everybody one turn, in an order that moves on from run to run: the
server is started, alone on its core; one answer of each door is held against the runtime's; each cell gets a
second to warm up and three that count. Instar, Instar without telemetry and the runtime alone are measured
cell by cell in one turn, in three bursts of a second that take turns. The runtime alone is asked for one row
at a time: a server that runs the rows of several requests at once can be faster than that. Ratios are taken
within a run. A burst during which other programs had more than 0.15 cores is made again, at most twice, and
the least disturbed one counts; what they still had is told. A peer whose turn fails gets one more, then it is
struck out; Instar gets none.

Instar validates every request, keeps telemetry of each and captures inputs up to its default budget, unless
the column says otherwise. ``uvicorn, tick batching`` is a plain ASGI application that batches what it reads
in one turn of the loop, without any of that. LitServe, BentoML and Ray Serve do not speak the protocol: a
handler by hand gives them its JSON shape, one request at a time. MLServer ships no ONNX runtime: a class by
hand gives it one. PyTriton is Triton's Python backend with its dynamic batching; this is no measurement of
Triton's onnxruntime backend. Servers of several processes share the one core, as Instar would. Logs of single
requests are off everywhere, and so are the peers' metrics where there is a switch. CPU time is that of the
whole process tree.
"""

import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.serving import environments, load
from benchmarks.serving.contestants import PEERS, SILENT, Contestant, Ours, Peer, rotated
from benchmarks.serving.course import Course
from benchmarks.serving.row import Row
from benchmarks.serving.verdicts import Book, rows
from policies.errors import PermanentError

WARM_S, SECONDS = 1, 3
_QUICK_S = 1


def measure(runs: int, quick: bool) -> list[Row]:
    """Return the rows.

    Args:
        runs: Turns of each contestant.
        quick: Shorter bursts, to see that it works.

    Raises:
        PermanentError: A load generator is missing, or Instar itself could not be measured.
    """
    load.check_tools()
    book = Book()
    there: list[Contestant] = [Ours(), *present(book)]
    if SILENT not in there[0].names:
        book.absent[SILENT] = "instar-serve has no --telemetry"
    warm_s, seconds = (_QUICK_S, _QUICK_S) if quick else (WARM_S, SECONDS)
    for run in range(runs):
        with tempfile.TemporaryDirectory(prefix="instar-") as folder:
            course = Course(Path(folder), warm_s, seconds)
            course.lay()
            for contestant in rotated(there, run):
                if contestant.names[0] not in book.absent:
                    take_turn(book, contestant, course, run)
    return rows(book)


def present(book: Book) -> list[Peer]:
    """Return the peers that can be had, whose environments are made; the others are absent in the book."""
    there = []
    for peer in PEERS:
        try:
            if peer.environment:
                environments.python_of(peer.environment)
        except PermanentError as error:
            book.drop(peer.names, str(error).splitlines()[0])
        else:
            there.append(peer)
    return there


def take_turn(book: Book, contestant: Contestant, course: Course, run: int) -> None:
    """Measure a contestant once; a peer that fails gets one more turn, and is then struck out.

    Raises:
        PermanentError: It is Instar that failed: it gets no second turn.
    """
    for again in (False, True):
        _say(f"run {run + 1}: {contestant.names[-1]}{' again' if again else ''}")
        try:
            turn = contestant.turn(course, run)
        except PermanentError as error:
            if isinstance(contestant, Ours):
                raise
            _say(f"  it failed: {error}")
            if again:
                book.drop(contestant.names, str(error).splitlines()[0])
        else:
            book.add(turn)
            return


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=sys.stderr, flush=True)


def versions() -> dict[str, str]:
    """Return the versions of everybody."""
    mine = {name: version(name) for name in ("instar", "uvicorn", "uvloop", "httptools")}
    return mine | {name: environments.version_of(name) for name in environments.PEERS}
