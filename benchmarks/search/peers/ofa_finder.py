"""How many architectures a CPU-second OFA's evolution finder proposes and scores.

Measured: the whole evolution of ``ofa.nas`` with OFA's own accuracy predictor (3 x 400 MLP, untrained: its
cost does not depend on its weights) and OFA's own latency tables, asked by OFA's keys; the entries are made
up. Twice, as OFA has two ways to its table:

* ``fast``: the table of ``ofa.tutorial``, which reads the latency off the genes. The quickest that OFA's
  parts can be put together.
* ``as_is``: the latency model of ``ofa.nas``, which asks the supernet for the configuration of the subnet.

The limit is loose: a percentile of random architectures' latencies. "archs" are those that came into a
population; "lookups" are all whose latency was asked, those over the limit too.
Not measured: imports, any real evaluation, and how good the found architectures are.
"""

import argparse
import random
import time
import zlib
from typing import Any

import numpy as np
from figures import spread, tell
from ofa.nas.accuracy_predictor import AccuracyPredictor, MobileNetArchEncoder
from ofa.nas.efficiency_predictor import Mbv3LatencyModel, MBv3LatencyTable
from ofa.nas.search_algorithm import EvolutionFinder
from ofa.tutorial.latency_table import LatencyEstimator
from ofa_net import DEPTHS, EXPANSIONS, KERNELS, SIZE_PX, supernet

SAMPLES = 300
Arch = dict[str, Any]


class Entries(dict[str, dict[str, float]]):
    """A block's latency in ms, made from its key the first time and the same in every process."""

    def __missing__(self, key: str) -> dict[str, float]:
        self[key] = {"mean": 0.02 + 0.1 * zlib.crc32(key.encode()) / 2**32}
        return self[key]


class GeneTable(LatencyEstimator):
    """The table of ``ofa.tutorial`` without its file, which would be downloaded."""

    def __init__(self) -> None:
        self.lut = Entries()


class ConfigTable(MBv3LatencyTable):
    """The table of ``ofa.nas`` without its file: OFA's loader calls PyYAML in a way that PyYAML 6 refuses."""

    def __init__(self) -> None:
        self.lut = Entries()


class GeneLatency:
    """What the finder asks, answered by the tutorial's table; counts how often it is asked."""

    def __init__(self) -> None:
        self._table = GeneTable()
        self.asked = 0

    def get_efficiency(self, arch_dict: Arch) -> float:
        self.asked += 1
        # The two halves of OFA spell the resolution in different ways.
        spec = {**arch_dict, "r": [arch_dict["image_size"]]}
        return float(self._table.predict_network_latency_given_spec(spec))


class ConfigLatency(Mbv3LatencyModel):
    """OFA's latency model with a table of one resolution; counts how often it is asked."""

    def __init__(self, seed: int) -> None:
        self.ofa_net = supernet(seed)
        self.latency_tables = {SIZE_PX: ConfigTable()}
        self.asked = 0

    def get_efficiency(self, arch_dict: Arch) -> float:
        self.asked += 1
        return float(super().get_efficiency(arch_dict))


def rates(latency: GeneLatency | ConfigLatency, arguments: argparse.Namespace) -> dict[str, object]:
    """Return architectures and look-ups per CPU-second over the repeats."""
    encoder = MobileNetArchEncoder([SIZE_PX], KERNELS, EXPANSIONS, DEPTHS)
    finder = EvolutionFinder(
        latency,
        AccuracyPredictor(encoder, hidden_size=400, n_layers=3, device="cpu"),
        population_size=arguments.population,
        max_time_budget=arguments.generations,
    )
    random.seed(arguments.seed)
    samples = [latency.get_efficiency(encoder.random_sample_arch()) for _ in range(SAMPLES)]
    limit_ms = float(np.percentile(samples, arguments.percentile))
    archs, archs_per_cpu_s, lookups_per_cpu_s = arguments.population * (arguments.generations + 1), [], []
    for repeat in range(arguments.repeats):
        random.seed(arguments.seed + repeat)
        np.random.seed(arguments.seed + repeat)  # the finder draws parents from it
        latency.asked = 0
        began = time.process_time()
        finder.run_evolution_search(limit_ms)
        spent_s = time.process_time() - began
        archs_per_cpu_s.append(archs / spent_s)
        lookups_per_cpu_s.append(latency.asked / spent_s)
    return {"archs_per_cpu_s": spread(archs_per_cpu_s), "lookups_per_cpu_s": spread(lookups_per_cpu_s)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--population", type=int, default=100)
    parser.add_argument("--generations", type=int, default=60)
    parser.add_argument("--percentile", type=float, default=50.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    # The supernet's latency first: making the supernet sets torch to one thread, for both.
    as_is = rates(ConfigLatency(arguments.seed), arguments)
    fast = rates(GeneLatency(), arguments)
    tell({"peer": "ofa", "engine": "EvolutionFinder", "fast": fast, "as_is": as_is} | vars(arguments))


if __name__ == "__main__":
    main()
