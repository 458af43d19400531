"""Forgetting: five regimes after one another, the last of them the first come back.

    python -m benchmarks.search.forgetting [--seeds 5] [--quick]

The bearings under 0, 1, 2, 3 and again 0 hp; where their data are not at hand, the meter reader's camera
well, tilted, noisy, blurred and well again. Each regime is a real data search with replay of all regimes so
far and a library of all earlier winners, as the daemon orders it.

* *Backward transfer*: accuracy of the last network on each of the four earlier regimes, less the accuracy
  that the network of that regime had on it then; the mean over them.
* *The returning regime*: whether the library served it, and the CPU-seconds that it took, beside those of a
  search. In a life with replay a regime that comes back was never lost, so here the network that it comes
  back to has gone from the first regime to the last without any replay.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.search import regimes, table
from benchmarks.search.row import Figure, Row
from benchmarks.search.shifts import Part, Shift, bearings, digits_regimes, found
from policies.terms import Heirloom
from search.dataset import Rows
from search.runtime import run_bundle

_FOUNDING_S = {"bearings": 40.0, "digits": 60.0}
_ADAPTING_S = {"bearings": 25.0, "digits": 40.0}


def rows(seeds: Sequence[int], quick: bool) -> list[Row]:
    """Return the rows of this part."""
    numbers = [_life(seed) for seed in (seeds[:1] if quick else seeds)]
    name = numbers[0][0]
    transfer, served, seconds, searched = (
        Figure.of([float(one[column]) for _, one in numbers]) for column in range(4)
    )
    return [
        Row(
            f"backward transfer over five regimes ({name})",
            ">= -1 point",
            transfer,
            "points",
            met=transfer.median >= -1.0,
        ),
        Row(
            f"the returning regime ({name}) is served from the library, without a search",
            "yes",
            served,
            "share of runs",
            met=served.low == 1.0,
        ),
        Row("CPU time of that", "", seconds, "CPU-s", {"an adaptation": searched}),
    ]


def _life(seed: int) -> tuple[str, tuple[float, float, float, float]]:
    """Live through the regimes once."""
    path = found("cwru_12k_de.npz")
    shift = digits_regimes(seed) if path is None else bearings(path, seed)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        table.say(f"forgetting: {shift.name}, seed {seed}")
        parent = regimes.found(shift, seed, folder / "0", _FOUNDING_S[shift.name])
        at_first, library, searched = [_accuracy(parent, shift.regimes[0].test)], [_heirloom(1, parent)], []
        for number, part in enumerate((*shift.regimes[1:], shift.regimes[0]), start=1):
            # The last comes back: what there is to replay are the regimes in between.
            old = shift.regimes[:number] if number < len(shift.regimes) else shift.regimes[1:]
            parent = _adapted(shift, part, old, seed, folder / str(number), parent, library)
            at_first.append(_accuracy(parent, part.test))
            library.insert(0, _heirloom(number + 1, parent))
            searched.append(regimes.result_of(parent).cpu_s)
        at_last = [_accuracy(parent, part.test) for part in shift.regimes]
        moved = [last - then for last, then in zip(at_last, at_first[:-1], strict=True)]
        served, seconds = _returned(shift, seed, folder)
        transfer = 100 * float(np.mean(moved))
        return shift.name, (transfer, served, seconds, float(np.median(searched)))


def _returned(shift: Shift, seed: int, folder: Path) -> tuple[float, float]:
    """Leave the first regime for the last without any replay, and come back."""
    first, last = shift.regimes[0], shift.regimes[-1]
    founded = folder / "0" / "out"
    away = _adapted(shift, last, [], seed, folder / "away", founded, [])
    library = [_heirloom(2, away), _heirloom(1, founded)]
    back = regimes.result_of(_adapted(shift, first, [], seed, folder / "back", away, library))
    served = any(one.name == "regime_returned" for one in back.evidence) and "train" not in back.phases_s
    return float(served), back.cpu_s


def _adapted(
    shift: Shift,
    part: Part,
    old: Sequence[Part],
    seed: int,
    folder: Path,
    parent: Path,
    library: Sequence[Heirloom],
) -> Path:
    table.say(f"forgetting: {part.name}, seed {seed}")
    return regimes.adapt(shift, part, old, seed, folder, _ADAPTING_S[shift.name], parent, library)


def _heirloom(generation: int, out: Path) -> Heirloom:
    result = regimes.result_of(out)
    accuracy = next(one.value for one in result.evidence if one.name == "accuracy_search")
    return Heirloom(
        generation=generation,
        genome=result.winner,
        state=regimes.artefact(out / "state.safetensors"),
        accuracy=accuracy,
    )


def _accuracy(out: Path, test: Rows) -> float:
    logits, _ = run_bundle((out / "bundle.onnx").read_bytes(), test.x)
    return float((logits.argmax(axis=1) == test.y).mean())


if __name__ == "__main__":
    table.alone(rows, __doc__)
