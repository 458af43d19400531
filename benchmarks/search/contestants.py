"""The methods that meet in the arena; each spends a budget of virtual CPU time and leaves its events.

* ``ours``: ``search.explore.Explorer``, as a founding search uses it, run on until the budget ends.
* ``random``, ``aging`` (regularised evolution) and ``nsga2`` (ours without the predictor): strategies of the
  search room, told what is true instead of guesses.
* ``pymoo`` and ``optuna``: their NSGA-II, in their own environments (``peers/``), a population of 50.

All begin at both ends of the space, the largest and the smallest network.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.search.arena import Account, Arena, Event
from benchmarks.search.environments import start
from policies.errors import PermanentError
from policies.terms import TriggerKind
from search import plan
from search.budget import Budget
from search.exam import Marks
from search.explore import Explorer
from search.space import Genes
from search.strategies import BUILTIN as STRATEGIES

_ENDLESS = 10**9
_MOST_IDLE = 200
"""Questions in a row that bring nothing new, after which a method has come to its end."""


class Asked:
    """An examiner that answers from the arena; the search reads the share alone, so the rows are made up."""

    def __init__(self, account: Account, rows: int) -> None:
        self._account = account
        self._rows = rows

    def examine(self, genes: Genes) -> Marks:
        """Return marks with the right share of right rows."""
        error, _ = self._account.ask(genes)
        right = round((1 - error) * self._rows)
        return Marks(np.arange(self._rows) < right, np.zeros(0, dtype=np.bool_))


def ours(arena: Arena, seed: int, budget_s: float) -> list[Event]:
    """Run Instar's explorer."""
    account, space = Account(arena, inside=True), arena.space
    rng = np.random.default_rng([seed, 2])
    strangers = space.sample(rng, plan.SHAPES[TriggerKind.FOUNDING].least_looks - 2)
    explorer = Explorer(
        space,
        Asked(account, 1000),  # type: ignore[arg-type]  # it has all of an examiner that an explorer uses
        arena.bounds,
        STRATEGIES["nsga2"],
        space.smallest,
        seed,
        arena.crew,
    )
    explorer.explore(
        np.concatenate([ends(arena), strangers]),
        _ENDLESS,
        Budget(budget_s, account.now_s),
        1.0,
        lambda *_: None,
        lambda: None,
    )
    return account.events


def strategy(name: str, at_once: int, arena: Arena, seed: int, budget_s: float) -> list[Event]:
    """Run a strategy of the search room on the truth."""
    account, space = Account(arena, inside=True), arena.space
    one = STRATEGIES[name](space, np.random.default_rng([seed, 41]), ends(arena), space.smallest)
    idle = 0
    while account.now_s() <= budget_s and idle < _MOST_IDLE:
        before = len(account.events)
        genes = one.ask(at_once)
        one.tell(genes, np.array([account.ask(row) for row in genes]))
        idle = 0 if len(account.events) > before else idle + 1
    return account.events


def peer(name: str, arena: Arena, seed: int, budget_s: float) -> list[Event]:
    """Talk with a peer's process until the budget ends."""
    account = Account(arena, inside=False)
    first = ";".join(",".join(str(gene) for gene in row) for row in ends(arena))
    counts = ",".join(str(count) for count in arena.space.cardinalities)
    options = ("--cardinalities", counts, "--seed", str(seed), "--first", first)
    with start(name, f"{name}_search.py", *options) as process:
        if process.stdin is None or process.stdout is None:
            raise PermanentError(f"expected pipes to {name}, got none")
        idle = 0
        while idle < _MOST_IDLE:
            asked = _heard(name, process.stdout.readline())
            account.charge(asked["cpu_s"])
            if not asked["ask"] or account.now_s() > budget_s:
                break
            before = len(account.events)
            answers = [account.ask(np.array(row, dtype=np.int64)) for row in asked["ask"]]
            idle = 0 if len(account.events) > before else idle + 1
            process.stdin.write(json.dumps({"objectives": answers}) + "\n")
            process.stdin.flush()
        process.stdin.close()
        process.wait(60)
    return account.events


def ends(arena: Arena) -> Genes:
    """Return the largest and the smallest genome."""
    return np.stack([arena.space.largest, arena.space.smallest])


def _heard(name: str, line: str) -> dict[str, Any]:
    if not line:
        raise PermanentError(f"expected a question from {name}, but it has ended; its words are above")
    told: dict[str, Any] = json.loads(line)
    return told


METHODS: dict[str, Callable[[Arena, int, float], list[Event]]] = {
    "ours": ours,
    "random": partial(strategy, "random", 16),
    "aging": partial(strategy, "aging", 1),
    "nsga2": partial(strategy, "nsga2", 50),
    "pymoo": partial(peer, "pymoo"),
    "optuna": partial(peer, "optuna"),
}
