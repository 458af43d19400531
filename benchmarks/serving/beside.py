"""Latency at 1,000 requests a second while a search runs on the same two processors, against none.

    python -m benchmarks.serving.beside [--runs 5] [--quick]

* The open loop of ``swap`` (MLP, binary tensors) against ``instar-serve --pin 0``, which asks the kernel for
  what it may (``daemon.ops.scheduling``). The client has the other processor and asks for the same.
* The search is the founding search of ``benchmarks/search/neighbour.py``, started by ``workers.start`` as
  control starts it; while it shall not be there it is stopped (SIGSTOP):

  - ``idle``: no search.
  - ``search``: one of one thread, as an adaptation has it, on whichever processor the kernel gives it.
  - ``crowd``: two, so that the server has no processor for itself.
  - ``kept off``: one, kept off the server's processor (``scheduling.keep_off``).
  - ``unprotected``: the control. Two at normal priority, their sessions too.

* The phases take turns within a run; a ratio is that of one run's own phases. The search's share of the
  processors is told, so that nobody takes a search that starved for one that was kept away well.
"""

import argparse
import contextlib
import os
import signal
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.search import neighbour
from benchmarks.search.table import say
from benchmarks.serving import asks, models, stage, tree
from benchmarks.serving.openloop import Loop
from benchmarks.serving.quiet import TRIES, Watch
from benchmarks.serving.row import Figure, Row
from benchmarks.serving.stage import SERVER_CORE, Served
from benchmarks.serving.swap import MODEL, RATE
from daemon.control import workers
from daemon.ops import scheduling

PHASES = ("idle", "search", "crowd", "kept off", "unprotected")
SECONDS, QUICK_SECONDS = 8.0, 3.0
CEILING_MS, MOST_OF_IDLE = 1.0, 1.5
LIMIT_CORES = 0.15


@dataclass(frozen=True)
class Moment:
    """What a phase gave: latency, losses, and the cores that the searches and others had."""

    p99_ms: float
    lost: int
    search: float
    others: float


class Neighbours:
    """Searches that are there or not, as a phase wants them."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._everywhere = os.sched_getaffinity(0)

    @property
    def cpu_s(self) -> float:
        """Return what they have used."""
        return sum(workers.process_cpu_s(pid) or 0.0 for pid in self._pids)

    def enter(self, phase: str) -> None:
        """Let those go on that the phase has, as it has them, and the others stand still."""
        here = {"idle": 0, "search": 1, "kept off": 1}.get(phase, len(self._pids))
        for place, pid in enumerate(self._pids):
            neighbour.schedule(pid, protected=phase != "unprotected")
            _everywhere(pid, self._everywhere)
            if phase == "kept off":
                _keep_off(pid)
            os.kill(pid, signal.SIGCONT if place < here else signal.SIGSTOP)


def _threads(pid: int) -> list[int]:
    return [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]


def _everywhere(pid: int, cpus: set[int]) -> None:
    for thread in _threads(pid):
        # A thread may end between the two lines.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cpus)


def _keep_off(pid: int) -> None:
    for thread in _threads(pid):
        scheduling.keep_off(thread, {SERVER_CORE})


@contextlib.contextmanager
def searching(folder: Path) -> Iterator[Neighbours]:
    """Start two searches, and stop them until somebody enters a phase."""
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(neighbour.searching(folder / f"search-{n}")).pid for n in range(2)]
        yield Neighbours(pids)


def moment(served: Served, searches: Neighbours, phase: str, seconds: float) -> Moment:
    """Measure one phase, again while others had more than ``LIMIT_CORES``; keep the least disturbed."""
    found: list[Moment] = []
    searches.enter(phase)
    try:
        for _ in range(TRIES):
            found.append(_once(served, searches, seconds))
            say(f"  {phase}: {found[-1]}")
            if found[-1].others <= LIMIT_CORES:
                break
    finally:
        searches.enter("idle")
    return min(found, key=lambda one: one.others)


def _once(served: Served, searches: Neighbours, seconds: float) -> Moment:
    watch, server_s, search_s = Watch.start(), tree.cpu_s(served.process.pid), searches.cpu_s
    loop = Loop(served, asks.ask(asks.Form.BINARY, MODEL, models.digit(0)), RATE, seconds, served.state)
    trace = loop.trace()
    search_s = searches.cpu_s - search_s
    others = watch.others(tree.cpu_s(served.process.pid) - server_s + search_s)
    return Moment(trace.ms(0.99), trace.lost, round(search_s / seconds, 2), round(others, 2))


def measure(runs: int, quick: bool) -> list[Row]:
    """Return the rows of this part."""
    found: dict[str, list[Moment]] = {phase: [] for phase in PHASES}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        state = Path(folder) / "state"
        digest = stage.put(state, models.make_bundle(MODEL))
        served = stage.start(state, MODEL)
        stack.callback(served.stop)
        stage.apply(state, MODEL, 1, digest)
        searches = stack.enter_context(searching(Path(folder)))
        for number in range(runs):
            turned = PHASES[number % len(PHASES) :] + PHASES[: number % len(PHASES)]
            for phase in turned:
                say(f"beside: run {number + 1}, {phase}")
                one = moment(served, searches, phase, QUICK_SECONDS if quick else SECONDS)
                found[phase].append(one)
    return rows(found)


def rows(found: dict[str, list[Moment]]) -> list[Row]:
    """Return what the phases came to."""
    what = {
        "search": "a search",
        "crowd": "two searches, none kept off",
        "kept off": "a search kept off its processor",
        "unprotected": "two searches, nothing protected (the control)",
    }
    return [_row(found["idle"], found[phase], words, phase) for phase, words in what.items()]


def _row(idle: list[Moment], busy: list[Moment], words: str, phase: str) -> Row:
    ours = Figure.of([one.p99_ms for one in busy])
    times = Figure.of([round(b.p99_ms / i.p99_ms, 3) for i, b in zip(idle, busy, strict=True)])
    lost = sum(one.lost for one in idle + busy)
    judged = phase in ("search", "kept off")
    good = ours.median < CEILING_MS and times.median <= MOST_OF_IDLE and lost == 0
    had = statistics.median(one.search for one in busy)
    others = max(one.others for one in idle + busy)
    return Row(
        f"p99 at 1,000/s, MLP binary, beside {words}",
        f"< {CEILING_MS:g} ms and <= {MOST_OF_IDLE:g} x idle" if judged else "",
        ours,
        "ms",
        peers={"idle": Figure.of([one.p99_ms for one in idle])},
        ratio=f"{times} x idle",
        met=good if judged else None,
        note=f"the search had {had:g} cores, others at most {others:g}; {lost} lost",
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description="Latency of instar-serve beside a search.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="shorter phases")
    flags = parser.parse_args()
    for row in measure(flags.runs, flags.quick):
        print(
            f"{row.what}: {row.ours} {row.unit}, {row.ratio}, wanted {row.target}: {row.verdict} ({row.note})"
        )


if __name__ == "__main__":
    main()
