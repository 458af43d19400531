"""Write the table that this example learns from: ``table.npz``, one reading of nine sensors a row.

* x (n, 9) float32, y (n,) of 0 (normal) and 1 (anomaly), in the order of the first column, which is time.
* It is made from ``river.datasets.Shuttle``, which ships with river.
* The same river gives the same bytes. The network is not used.
"""

import os
from pathlib import Path

import numpy as np
from river import datasets

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write the table; tells what was written, and the next command."""
    rows = [(list(x.values()), y) for x, y in datasets.Shuttle()]
    x = np.array([values for values, _ in rows], dtype=np.float32)
    y = np.array([label for _, label in rows], dtype=np.int64)
    order = np.argsort(x[:, 0], kind="stable")
    np.savez_compressed(HERE / "table.npz", x=x[order], y=y[order])
    print(f"table.npz: x {x.shape}, classes {np.bincount(y).tolist()}")
    print(f"next: instar search run {os.path.relpath(HERE / 'brief.toml')}")


if __name__ == "__main__":
    main()
