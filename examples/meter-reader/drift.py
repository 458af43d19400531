"""What the camera does to a digit: its natural jitter, and the drift that the story plays.

* ``view`` turns clean digits into what the camera sees. Jitter is always there; drift is a kind, a strength
  and a level between 0 (none) and 1 (whole).
* One affine step does tilt and jitter together, so that no picture is blurred twice.
* Pure: the same pictures, drift and ``rng`` give the same bytes.

The camera imports it. The demo runs it as a command that writes a drifted data set, and so never has to
import anything from an example's folder.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

ROTATE_DEG = 6.0
SHIFT_PX = 1.0
SCALE = 0.06
GAIN = 0.10
NOISE = 0.02


@dataclass(frozen=True)
class Drift:
    """How far the camera has gone from what it was: all zeros and ``fade`` 1 is no drift."""

    tilt_deg: float = 0.0
    fade: float = 1.0
    noise: float = 0.0
    blur_px: float = 0.0

    def at(self, level: float) -> "Drift":
        """Return this drift ``level`` of the way; 0 is none, 1 the whole, above 1 more than that.

        >>> Drift(tilt_deg=40.0, fade=0.25).at(0.5)
        Drift(tilt_deg=20.0, fade=0.5, noise=0.0, blur_px=0.0)
        """
        return Drift(self.tilt_deg * level, self.fade**level, self.noise * level, self.blur_px * level)


KINDS = {
    "none": Drift(),
    "tilt-fade": Drift(tilt_deg=35.0, fade=0.5),
    "noise": Drift(noise=0.19),
    "blur": Drift(blur_px=1.7),
}


def view(images: Images, drift: Drift, rng: np.random.Generator) -> Images:
    """Return what the camera sees of clean digits.

    Args:
        images: (n, h, w) uint8.
        drift: How far the camera has drifted.
        rng: Source of the jitter.

    Returns:
        (n, h, w) uint8; bright strokes stay bright where nothing has drifted.
    """
    n = len(images)
    turn, down, across, zoom, gain = rng.uniform(-1.0, 1.0, (5, n))
    angle = np.deg2rad(drift.tilt_deg + ROTATE_DEG * turn)
    seen = _warp(
        images.astype(np.float64) / 255.0, angle, 1 + SCALE * zoom, SHIFT_PX * down, SHIFT_PX * across
    )
    if drift.blur_px > 0:
        seen = gaussian_filter(seen, sigma=(0.0, drift.blur_px, drift.blur_px))
    seen = seen * (drift.fade * (1 + GAIN * gain))[:, None, None]
    seen = seen + rng.normal(0.0, np.hypot(NOISE, drift.noise), seen.shape)
    return np.rint(np.clip(seen, 0.0, 1.0) * 255.0).astype(np.uint8)


def _warp(x: Floats, angle: Floats, zoom: Floats, down: Floats, across: Floats) -> Floats:
    """Turn, zoom and shift every picture about its centre, with bilinear sampling; the outside is black."""
    n, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    rows, columns = np.mgrid[0:height, 0:width].reshape(2, -1)
    middle = ((height - 1) / 2, (width - 1) / 2)
    dy, dx = rows - middle[0] - down[:, None], columns - middle[1] - across[:, None]
    cosine, sine = np.cos(angle)[:, None] / zoom[:, None], np.sin(angle)[:, None] / zoom[:, None]
    # Clipping to the black border makes everything outside black without a mask.
    y = np.clip(cosine * dy + sine * dx + middle[0] + 1, 0, height + 0.999)
    x0 = np.clip(cosine * dx - sine * dy + middle[1] + 1, 0, width + 0.999)
    top, left = y.astype(np.intp), x0.astype(np.intp)
    v, u = y - top, x0 - left
    flat = padded.reshape(n, -1)
    corner = top * (width + 2) + left

    def pick(offset: int) -> Floats:
        return np.take_along_axis(flat, corner + offset, axis=1)

    upper = pick(0) * (1 - u) + pick(1) * u
    lower = pick(width + 2) * (1 - u) + pick(width + 3) * u
    return (upper * (1 - v) + lower * v).reshape(n, height, width)


def main() -> None:
    """Write a data set as the camera sees it: arrays x (n, 28, 28) uint8 and y (n,) int64."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="npz with x and y")
    parser.add_argument("--first", type=int, required=True, help="first row, inclusive")
    parser.add_argument("--last", type=int, required=True, help="last row, exclusive")
    parser.add_argument("--kind", choices=KINDS, default="tilt-fade")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--copies", type=int, default=1, help="views of every row")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with np.load(args.data, allow_pickle=False) as file:
        x, y = file["x"][args.first : args.last], file["y"][args.first : args.last]
    rng = np.random.default_rng(args.seed)
    drift = KINDS[args.kind].at(args.strength)
    views = [view(x, drift, rng) for _ in range(args.copies)]
    np.savez(args.out, x=np.concatenate(views), y=np.tile(y.astype(np.int64), args.copies))


if __name__ == "__main__":
    main()
