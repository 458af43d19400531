"""What it costs to make an ONNX file of a subnet.

    python -m benchmarks.search.export [--seeds 5] [--quick]

Measured, CPU-ms for random subnets of the meter reader's supernet, already calibrated: from the supernet's
weights to the bytes of the file (weights sliced, batch norms folded, graph written, serialised). ``the
bundle`` is the same with its text, its goldens (what the unfolded network answers to 16 rows) and a second
serialisation. In int8 the runtime's quantiser does nearly all. A median over subnets is taken for each seed;
one subnet goes before and is not counted.

Beside it in the same run: OFA's ``get_active_subnet`` and ``torch.onnx.export`` of its subnet, which is
larger; its newer exporter fails on these subnets.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.search import digits, table
from benchmarks.search.environments import run
from benchmarks.search.row import Figure, Row, number, times
from policies.terms import Artefact, Brief, Precision, TriggerKind
from policies.wire import digest_bytes
from search.crew import Crew
from search.export import GOLDEN_ROWS, Subnet, bundle_of, model_of
from search.space import to_genome
from search.spaces import BUILTIN as SPACES
from search.supernet import Supernet

TARGET_MS = 15.0
SUBNETS, QUICK_SUBNETS = 20, 5
_CALIBRATION_ROWS = 256


def one_seed(seed: int, count: int) -> dict[str, float]:
    """Return the median CPU-ms of each way, and the median bytes of a file in full precision."""
    task, train = digits.task(), digits.rows(slice(0, _CALIBRATION_ROWS))
    space = SPACES[task.modality](task, (Precision.FP32, Precision.INT8))
    net = Supernet(space.shapes(), space.entries()[0], seed)
    x, brief = net.prepare(train.x), _brief()
    spent: dict[str, list[float]] = {"fp32": [], "bundle": [], "int8": [], "bytes": []}
    genes = space.sample(np.random.default_rng(seed), 1 + count)
    for row in genes:
        for precision in (0, 1):
            row[-1] = precision
            blueprint = space.blueprint(row)
            subnet = Subnet(net, blueprint, net.calibrate(blueprint, x))
            ms, raw = _timed(lambda s=subnet: model_of(s, task.input.name, train.x).SerializeToString())
            spent["int8" if precision else "fp32"].append(ms)
            if not precision:
                spent["bytes"].append(float(len(raw)))
                clean, genome = train.x[:GOLDEN_ROWS], to_genome(space, row)
                make = partial(bundle_of, subnet, brief, genome, clean, train.x)
                spent["bundle"].append(_timed(make)[0])
    return {name: float(np.median(values[1:])) for name, values in spent.items()}


def _timed(make: Callable[[], bytes]) -> tuple[float, bytes]:
    began = time.process_time()
    raw = make()
    return 1000 * (time.process_time() - began), raw


def _brief() -> Brief:
    """Return a brief for the text of a bundle."""
    return Brief(
        id="bench-export",
        kind=TriggerKind.FOUNDING,
        task=digits.task(),
        seed=0,
        budget_cpu_s=1.0,
        max_memory_bytes=1,
        threads=1,
        limits=digits.LOOSE,
        data=Artefact(path="none", digest=digest_bytes(b"")),
        parent_generation=0,
        parent_genome=None,
        parent_state=None,
        parent_archive=None,
    )


def rows(seeds: Sequence[int], quick: bool) -> list[Row]:
    """Return the rows of this part."""
    crew = Crew(1)  # it sets the library to one thread
    found = [one_seed(seed, QUICK_SUBNETS if quick else SUBNETS) for seed in seeds]
    crew.close()
    ours = {name: Figure.of([one[name] for one in found]) for name in found[0]}
    table.say("export: OFA")
    told = run("ofa", "ofa_extract.py", "--subnets", "3" if quick else "9")
    extract, export = Figure.told(told["extract_cpu_ms"]), Figure.told(told["export_cpu_ms"])
    both = Figure(
        extract.median + export.median, extract.low + export.low, extract.high + export.high, export.n
    )
    sizes = f"median file {number(ours['bytes'].median)} bytes; OFA's {number(told['onnx_bytes']['median'])}"
    return [
        Row(
            "subnet to ONNX bytes",
            "<= 15 CPU-ms",
            ours["fp32"],
            "CPU-ms",
            peers={"OFA, extraction": extract, "OFA, export": export, "OFA, both": both},
            ratio=times(both, ours["fp32"], "less than OFA"),
            met=ours["fp32"].median <= TARGET_MS,
            note=sizes,
        ),
        Row("the bundle, with text and goldens", "", ours["bundle"], "CPU-ms"),
        Row("subnet to ONNX bytes in int8", "", ours["int8"], "CPU-ms"),
    ]


if __name__ == "__main__":
    table.alone(rows, __doc__)
