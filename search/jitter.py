"""The natural jitter that a task declares, as an augmentation of training batches.

* It knows nothing of any drift: angles, shifts and gains are those that ``Task.augmentation`` allows.
* An image is turned, moved, scaled, lit and grained; a window begins elsewhere (its end comes round to its
  beginning), is amplified and grained; a table row is grained.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.terms import Augmentation
from search.blueprint import Layout


def jitter(x: Tensor, layout: Layout, allowed: Augmentation, rng: torch.Generator) -> Tensor:
    """Return a jittered copy of a batch.

    Args:
        x: (n, c, h, w) float32, as ``Supernet.prepare`` gives it.
        layout: Of the rows: what kind of thing they are.
        allowed: Half-widths of even distributions; ``noise`` is the standard deviation of a number.
        rng: Source of randomness.

    Returns:
        (n, c, h, w) float32; pixels in [0, 1].
    """
    if layout.pixels:
        return _image(x, allowed, rng)
    if layout is Layout.CT:
        x = _window(x, allowed, rng)
    if allowed.noise > 0:
        return x + torch.randn(x.shape, generator=rng) * allowed.noise
    return x


def _window(x: Tensor, allowed: Augmentation, rng: torch.Generator) -> Tensor:
    n, _, _, steps = x.shape
    gain = torch.rand((n, 1, 1, 1), generator=rng) * 2 - 1
    x = x * (1 + gain * allowed.gain)
    if allowed.shift_steps == 0:
        return x
    begin = torch.randint(-allowed.shift_steps, allowed.shift_steps + 1, (n, 1), generator=rng)
    order = (torch.arange(steps)[None] + begin) % steps
    return x.gather(3, order[:, None, None].expand(x.shape))


def _image(x: Tensor, allowed: Augmentation, rng: torch.Generator) -> Tensor:
    n, channels, height, width = x.shape
    angle, across, down, scale, gain = torch.rand((5, n), generator=rng) * 2 - 1
    angle = angle * math.radians(allowed.rotate_deg)
    zoom = 1 + scale * allowed.scale
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # grid_sample's axes run from -1 to 1 over the image, so a pixel is 2 / side, and a turn in a picture
    # that is not square is a shear in them.
    theta = torch.stack(
        [
            torch.stack([cosine, -sine * height / width, across * allowed.shift_px * 2 / width], 1),
            torch.stack([sine * width / height, cosine, down * allowed.shift_px * 2 / height], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, channels, height, width], align_corners=False)
    moved = F.grid_sample(x, grid, align_corners=False)
    bright = moved * (1 + gain * allowed.gain)[:, None, None, None]
    if allowed.noise > 0:
        bright = bright + torch.randn(bright.shape, generator=rng) * allowed.noise
    result: Tensor = bright.clamp(0, 1)
    return result
