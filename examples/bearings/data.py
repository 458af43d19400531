"""Write the windows that this example learns from, and say which order goes with them.

* With the bearing data at hand: ``windows.npz``, x (n, 1, 1024) float32, one window of vibration a row,
  sorted by the load of the machine, so that a later load can stand for a change.
* Without: ``shuttle-windows.npz``, x (n, 9, 16) float32, the last 16 readings of the Space Shuttle's sensors
  in the order of their time; it is made from a table that ships with river.
* ``y`` are classes of the task file. Rows of equal ``group`` are near-duplicates: a search never trains on
  one and ranks on another.
* The same input gives the same bytes. The network is not used.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
CWRU = "cwru_12k_de.npz"
NORMAL = 9
"""The class without a fault: it was recorded at one load alone, so it would tell loads apart."""

NEIGHBOURS = 8
STEPS, STRIDE, BLOCK = 16, 2, 256

Arrays = dict[str, NDArray[np.generic]]


def bearings(path: Path) -> Arrays:
    """Return windows of vibration, the lowest load first.

    Args:
        path: An ``.npz`` with x (n, 1024) of numbers, y (n,) of 0 to 9, and load_hp (n,) of 0 to 3.
    """
    with np.load(path, allow_pickle=False) as file:
        x, y, load = file["x"], file["y"].astype(np.int64), file["load_hp"].astype(np.int64)
    kept = np.flatnonzero(y != NORMAL)
    kept = kept[np.argsort(load[kept], kind="stable")]
    x, y, load = x[kept], y[kept], load[kept]
    # Windows follow each other within a recording, which is one class at one load.
    recording = np.cumsum(np.diff(load * NORMAL + y, prepend=-1) != 0)
    first = np.searchsorted(recording, recording)
    block = (np.arange(len(y)) - first) // NEIGHBOURS
    group = recording * 1000 + block
    return {"x": x.astype(np.float32)[:, None], "y": y, "group": group, "load_hp": load}


def shuttle() -> Arrays:
    """Return windows of the Space Shuttle's nine sensors, the earliest first; the last reading labels one."""
    from river import datasets

    rows = [(list(x.values()), y) for x, y in datasets.Shuttle()]
    x = np.array([values for values, _ in rows], dtype=np.float32)
    y = np.array([label for _, label in rows], dtype=np.int64)
    order = np.argsort(x[:, 0], kind="stable")
    x, y = x[order], y[order]
    # A window lies within one block, so that windows of different blocks share no reading.
    starts = np.arange(0, len(x) - STEPS + 1, STRIDE)
    starts = starts[starts % BLOCK <= BLOCK - STEPS]
    windows = np.lib.stride_tricks.sliding_window_view(x, STEPS, axis=0)[starts]
    return {"x": np.ascontiguousarray(windows), "y": y[starts + STEPS - 1], "group": starts // BLOCK}


def found(asked: Path | None) -> Path | None:
    """Return where the bearing data lie: as asked, else in INSTAR_DATA, else in a folder ``data`` nearby."""
    if asked is not None:
        return asked
    places = [Path(os.environ["INSTAR_DATA"])] if "INSTAR_DATA" in os.environ else []
    places += sorted(HERE.parents[2].glob("*/data/"))
    return next((place / CWRU for place in places if (place / CWRU).is_file()), None)


def main() -> None:
    """Write the windows; tells what was written, and the next command."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cwru", type=Path, help=f"{CWRU}; default: in $INSTAR_DATA or ../*/data")
    parser.add_argument("--shuttle", action="store_true", help="windows of the shuttle, whatever there is")
    args = parser.parse_args()
    path = None if args.shuttle else found(args.cwru)
    if path is None:
        name, order, arrays = "shuttle-windows.npz", "brief-shuttle-windows.toml", shuttle()
    else:
        name, order, arrays = "windows.npz", "brief.toml", bearings(path)
    np.savez_compressed(HERE / name, **arrays)
    print(f"{name}: x {arrays['x'].shape}, classes {np.bincount(arrays['y'].astype(np.int64)).tolist()}")
    print(f"next: instar search run {os.path.relpath(HERE / order)}")


if __name__ == "__main__":
    main()
