"""False alarms and delay of the drift family beside river's detectors, on synthetic channels.

Run ``python benchmarks/monitors/arl.py [--seeds 12]``; about half a minute on one thread.

* Ten standard channels; one of them shifts by a number of standard deviations. Rows are independent, or
  AR(0.6) with the same variance.
* Every detector is asked for one false alarm of the whole family in ``ARL0`` rows. The CUSUM family is
  calibrated on a reference of 2500 rows that is drawn anew for each seed; ADWIN and Page-Hinkley, which
  have no such promise, are given the setting of a grid whose measured ARL0 on independent rows is nearest.
* ``none`` never alarms and ``random`` alarms once in ``ARL0`` rows whatever happens: what to beat.
* ARL0 is quiet rows over alarms, restarted at each; delay is the median over seeds without an alarm before
  the change; "missed" is no alarm within 1500 rows, "early" an alarm before the change in most seeds.
"""

import argparse
from collections.abc import Callable
from statistics import median

import numpy as np
from river.drift import ADWIN, PageHinkley

from monitors.bootstrap import Tail, simulate, window_rows
from monitors.cusum import Cusum

CHANNELS, ARL0, REFERENCE, QUIET, BEFORE, AFTER = 10, 5000, 2500, 8000, 200, 1500
SHIFTS = (0.25, 0.5, 1.0, 2.0)
ALLOWANCE, BLOCK, CHUNK = 0.25, 50, 100

# A detector answers with the row of its first alarm, or None.
Detector = Callable[[np.ndarray], int | None]


def rows(rng: np.random.Generator, n: int, phi: float) -> np.ndarray:
    noise = rng.normal(size=(n, CHANNELS))
    for i in range(1, n):
        noise[i] = phi * noise[i - 1] + np.sqrt(1 - phi**2) * noise[i]
    return noise


def cusum(rng: np.random.Generator, phi: float, block: int) -> Detector:
    reference = rows(rng, REFERENCE, phi)
    mean, scale = reference.mean(axis=0), reference.std(axis=0)
    window = window_rows(ARL0)
    streams = simulate((reference - mean) / scale, ALLOWANCE, block, window, rng, REFERENCE)
    height = Tail.of(streams, window).threshold(ARL0)

    def detect(data: np.ndarray) -> int | None:
        family = Cusum(CHANNELS, height, ALLOWANCE)
        for start in range(0, len(data), CHUNK):
            hits = np.flatnonzero(family.run((data[start : start + CHUNK] - mean) / scale) >= 1.0)
            if len(hits):
                return start + int(hits[0])
        return None

    return detect


def first(detector: ADWIN | PageHinkley, values: list[float]) -> int | None:
    for place, value in enumerate(values):
        detector.update(value)
        if detector.drift_detected:
            return place
    return None


def each_channel(make: Callable[[], ADWIN | PageHinkley]) -> Detector:
    def detect(data: np.ndarray) -> int | None:
        detectors = [make() for _ in range(CHANNELS)]
        for start in range(0, len(data), CHUNK):
            columns = data[start : start + CHUNK].T.tolist()
            firsts = [
                place for pair in zip(detectors, columns, strict=True) if (place := first(*pair)) is not None
            ]
            if firsts:
                return start + min(firsts)
        return None

    return detect


def chance(rng: np.random.Generator) -> Detector:
    def detect(data: np.ndarray) -> int | None:
        place = int(rng.geometric(1 / ARL0)) - 1
        return place if place < len(data) else None

    return detect


def false_alarms(detect: Detector, data: np.ndarray) -> int:
    count = 0
    while (place := detect(data)) is not None:
        count += 1
        data = data[place + 1 :]
    return count


def measure(make: Callable[[np.random.Generator], Detector], phi: float, seeds: int) -> str:
    alarms, delays, early = 0, {shift: [] for shift in SHIFTS}, 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        detect = make(rng)
        alarms += false_alarms(detect, rows(rng, QUIET, phi))
        for shift in SHIFTS:
            data = rows(rng, BEFORE + AFTER, phi)
            data[BEFORE:, 0] += shift
            place = detect(data)
            if place is not None and place < BEFORE:
                early += 1
                continue
            delays[shift].append(np.inf if place is None else place - BEFORE + 1)
    arl0 = f"{seeds * QUIET / alarms:8.0f}" if alarms else f">{seeds * QUIET:7d}"
    cells = []
    for found in delays.values():
        if 2 * len(found) < seeds:
            cells.append("   early      ")
            continue
        missed, middle = sum(np.isinf(found)) / len(found), median(found)
        cells.append("   missed     " if np.isinf(middle) else f"{middle:6.0f} ({missed:4.0%}) ")
    return f"{arl0} ({alarms:4d})  {early:5d}  " + "  ".join(cells)


def nearest(make: Callable[[float], Detector], grid: tuple[float, ...], seeds: int) -> float:
    """Return the setting whose measured ARL0 on independent rows is nearest to ours."""
    gaps = {}
    for setting in grid:
        alarms = sum(
            false_alarms(make(setting), rows(np.random.default_rng(1000 + seed), QUIET, 0.0))
            for seed in range(seeds)
        )
        gaps[setting] = abs(np.log(max(alarms, 0.5) / (seeds * QUIET / ARL0)))
    return min(gaps, key=gaps.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    seeds = parser.parse_args().seeds

    def adwin(delta: float) -> Detector:
        return each_channel(lambda: ADWIN(delta=delta))

    def page_hinkley(threshold: float) -> Detector:
        return each_channel(lambda: PageHinkley(threshold=threshold, delta=ALLOWANCE))

    delta = nearest(adwin, (0.02, 0.05, 0.1, 0.2, 0.4, 0.8), max(1, seeds // 4))
    threshold = nearest(page_hinkley, (15.0, 20.0, 25.0, 30.0, 40.0), max(1, seeds // 4))
    detectors: dict[str, Callable[[np.random.Generator, float], Detector]] = {
        "family of CUSUMs": lambda rng, phi: cusum(rng, phi, BLOCK),
        "the same, block 1": lambda rng, phi: cusum(rng, phi, 1),
        f"ADWIN x{CHANNELS}, delta {delta:g}": lambda rng, phi: adwin(delta),  # noqa: ARG005
        f"ADWIN x{CHANNELS}, delta 0.002": lambda rng, phi: adwin(0.002),  # noqa: ARG005
        f"Page-Hinkley x{CHANNELS}, {threshold:g}": lambda rng, phi: page_hinkley(threshold),  # noqa: ARG005
        "none": lambda rng, phi: lambda data: None,  # noqa: ARG005
        "random": lambda rng, phi: chance(rng),  # noqa: ARG005
    }
    head = "  ".join(f"shift {shift:<4g}   " for shift in SHIFTS)
    print(f"asked for ARL0 {ARL0}; {seeds} seeds; median delay in rows (share missed)")
    for phi, title in ((0.0, "independent rows"), (0.6, "AR(0.6) rows")):
        print(f"\n{title:26}  ARL0 (alarms)  early  {head}")
        for name, make in detectors.items():
            print(
                f"{name:26}  {measure(lambda rng, make=make, phi=phi: make(rng, phi), phi, seeds)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
