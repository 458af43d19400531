"""The strategies that ship with Instar, by name."""

from search.strategies.aging import Aging
from search.strategies.nsga2 import Nsga2
from search.strategies.uniform import Uniform
from search.strategy import StrategyFactory

BUILTIN: dict[str, StrategyFactory] = {"aging": Aging, "nsga2": Nsga2, "random": Uniform}
