"""The natural jitter that a task declares, as an augmentation of training batches.

It knows nothing of any drift: angles, shifts and gains are those that ``Task.augmentation`` allows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.terms import Augmentation


def jitter(x: Tensor, allowed: Augmentation, rng: torch.Generator) -> Tensor:
    """Return a jittered copy of a batch.

    Args:
        x: (n, 1, h, w) float32 in [0, 1].
        allowed: Half-widths of even distributions; ``noise`` is the standard deviation of a pixel.
        rng: Source of randomness.

    Returns:
        (n, 1, h, w) float32 in [0, 1].
    """
    n, _, height, width = x.shape
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
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)
    moved = F.grid_sample(x, grid, align_corners=False)
    bright = moved * (1 + gain * allowed.gain)[:, None, None, None]
    if allowed.noise > 0:
        bright = bright + torch.randn(bright.shape, generator=rng) * allowed.noise
    result: Tensor = bright.clamp(0, 1)
    return result
