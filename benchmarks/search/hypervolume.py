"""How good a front each method of search finds on the same supernet for the same CPU time.

    python -m benchmarks.search.hypervolume [--seeds 5] [--quick] [--budget 300] [--methods ours,pymoo]
    python -m benchmarks.search.hypervolume --status

Measured: the area that a method's front dominates after 30, 60 and 300 virtual CPU-seconds, over error in
[0, 0.5] and latency up to that of the largest network in full precision, as a share of that whole area. The
front is what is best on the digits that methods ask about; its area is taken on 1,000 other digits, and once
more on the first ones. What costs what: ``arena``. Who competes: ``contestants``. One supernet; the seeds are
the methods'.

Ours hands over the front that its search would (``search.explore.believed``); the others the front of what
they were told. 300 CPU-s of six methods take the better part of an hour a seed: all seeds run for 60, the
first for 300, and ``--budget 300`` runs them all. A target is met when the median of ours is above that of
every other method. What a method did is kept in ``.instar/bench/arena-.../METHOD-SEED-BUDGET.json`` as soon
as it is done, so that a run that was broken off goes on, and ``--status`` says what there is. ``--quick``:
two seeds, 30 CPU-s.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.search import table
from benchmarks.search.arena import Arena, Event
from benchmarks.search.contestants import METHODS
from benchmarks.search.row import Figure, Row
from search.explore import believed
from search.pareto import hypervolume, ranks

BUDGETS_S = (30.0, 60.0, 300.0)
SUPERNET_SEED = 1
_ROWS = 1000
"""Digits that a method asks about."""

NAMES = {
    "ours": "Instar",
    "random": "random",
    "aging": "regularised evolution",
    "nsga2": "Instar without its predictor",
    "pymoo": "pymoo NSGA-II",
    "optuna": "Optuna NSGA-II",
}


def events_of(arena: Arena, method: str, seed: int, budget_s: float) -> list[Event]:
    """Return what a method did within a budget; run it unless it is kept, of this budget or a larger one."""
    for path in sorted(arena.folder.glob(f"{method}-{seed}-*.json")):
        if _budget_of(path) >= budget_s:
            return [Event(**one) for one in json.loads(path.read_text())]
    table.say(f"hypervolume: {method}, seed {seed}, {budget_s:g} CPU-s")
    events = METHODS[method](arena, seed, budget_s)
    path = arena.folder / f"{method}-{seed}-{budget_s:g}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps([asdict(event) for event in events]))
    part.replace(path)
    return events


def is_kept(arena: Arena, method: str, seed: int, budget_s: float) -> bool:
    """Tell whether a method's run of this budget, or of a larger one, is kept."""
    return any(_budget_of(path) >= budget_s for path in arena.folder.glob(f"{method}-{seed}-*.json"))


def areas(arena: Arena, events: Sequence[Event], at_s: float, *, model: bool) -> tuple[float, float]:
    """Return the share of the area that a front dominates, on other digits and on those of the search.

    Args:
        arena: Where it was.
        events: What a method asked.
        at_s: The moment.
        model: Whether the method hands over a front by what it believes (``search.explore.believed``), as our
            search does; the others know only what they were told.
    """
    known = [event for event in events if event.at_s <= at_s]
    if not known:
        return 0.0, 0.0
    points = np.array([[event.error, event.ms] for event in known])
    handed = points.copy()
    if model:
        genes = np.array([event.genes for event in known], dtype=np.int64)
        handed[:, 0] = 1 - believed(arena.space, genes, 1 - points[:, 0], _ROWS, SUPERNET_SEED)
    front = [event for event, rank in zip(known, ranks(handed), strict=True) if rank == 0]
    held = [[arena.ask(np.array(event.genes, dtype=np.int64), "held").error, event.ms] for event in front]
    whole = arena.reference[0] * arena.reference[1]
    return (
        hypervolume(np.array(held), arena.reference) / whole,
        hypervolume(points, arena.reference) / whole,
    )


def rows(seeds: Sequence[int], quick: bool) -> list[Row]:
    """Return the rows: 30 and 60 CPU-s for all seeds, 300 for the first and for those that are kept."""
    arena, methods = Arena(SUPERNET_SEED), tuple(METHODS)
    if quick:
        return compared(arena, seeds[:2], BUDGETS_S[:1], methods)
    kept = [seed for seed in seeds[1:] if all(is_kept(arena, one, seed, BUDGETS_S[-1]) for one in methods)]
    long = compared(arena, [*seeds[:1], *kept], BUDGETS_S[-1:], methods)
    return compared(arena, seeds, BUDGETS_S[:-1], methods) + long


def compared(
    arena: Arena, seeds: Sequence[int], budgets_s: Sequence[float], methods: Sequence[str]
) -> list[Row]:
    """Return the rows of some seeds, budgets and methods; ours among them."""
    ran = {method: [events_of(arena, method, seed, max(budgets_s)) for seed in seeds] for method in methods}
    made = []
    for budget_s in budgets_s:
        pairs = {
            method: [areas(arena, one, budget_s, model=method == "ours") for one in ran[method]]
            for method in methods
        }
        made += [_row(pairs, budget_s, judged=True), _row(pairs, budget_s, judged=False)]
    return made


def _row(pairs: dict[str, list[tuple[float, float]]], budget_s: float, *, judged: bool) -> Row:
    figures = {
        method: Figure.of([held if judged else search for held, search in each])
        for method, each in pairs.items()
    }
    mine = figures.pop("ours")
    digits = "other digits" if judged else "the digits of the search"
    return Row(
        f"hypervolume after {budget_s:g} CPU-s, on {digits}",
        "above every other" if judged else "",
        mine,
        "share of the area",
        peers={NAMES[method]: figure for method, figure in figures.items()},
        met=all(mine.median > one.median for one in figures.values()) if judged and figures else None,
        note=f"{mine.n} seeds of each method",
    )


def _budget_of(path: Path) -> float:
    return float(path.stem.rpartition("-")[2])


def status(arena: Arena) -> str:
    """Return what is kept, a line each."""
    return "\n".join(path.stem for path in sorted(arena.folder.glob("*-*-*.json"))) or "nothing yet"


def main() -> None:
    """Be the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=table.SEEDS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--budget", type=float, default=max(BUDGETS_S), help="CPU-seconds of each method")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--status", action="store_true", help="run nothing; say what is kept")
    options = parser.parse_args()
    arena = Arena(SUPERNET_SEED)
    if options.status:
        print(status(arena))
        return
    most = 2 if options.quick else options.seeds
    budget_s = BUDGETS_S[0] if options.quick else options.budget
    budgets_s = [one for one in BUDGETS_S if one <= budget_s] or [budget_s]
    found = compared(arena, range(1, most + 1), budgets_s, options.methods.split(","))
    print("\n".join([table.HEAD, *table.lines(found)]))


if __name__ == "__main__":
    main()
