"""OFA's MobileNetV3 supernet as all OFA scripts here measure it, and the images that it gets.

Width 0.5, kernels 3/5/7, expansion 3/4/6, depth 2/3/4 in five stages, 10 classes, 32x32x3 images. Initial
weights, dropout and batch-norm settings are OFA's defaults.
"""

import random

import numpy as np
import torch
from numpy.typing import NDArray
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
from ofa.utils import init_models
from torch import Tensor

KERNELS, EXPANSIONS, DEPTHS = [3, 5, 7], [3, 4, 6], [2, 3, 4]
WIDTH, CLASSES, SIZE_PX = 0.5, 10, 32


def supernet(seed: int) -> OFAMobileNetV3:
    """Return a new supernet; seeds torch, and Python's chance, from which OFA draws subnets."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random.seed(seed)
    net = OFAMobileNetV3(
        n_classes=CLASSES, width_mult=WIDTH, ks_list=KERNELS, expand_ratio_list=EXPANSIONS, depth_list=DEPTHS
    )
    init_models(net, "he_fout")
    return net


def parameters(net: torch.nn.Module) -> int:
    """Return how many numbers the net learns."""
    return sum(weight.numel() for weight in net.parameters())


def images(digits: NDArray[np.uint8]) -> Tensor:
    """Return (n, 28, 28) uint8 as (n, 3, 32, 32) float32 in [0, 1]: padded with black, one channel thrice."""
    edge = (SIZE_PX - digits.shape[1]) // 2
    padded = np.pad(digits, ((0, 0), (edge, edge), (edge, edge))).astype(np.float32) / 255
    return torch.from_numpy(padded)[:, None].expand(-1, 3, -1, -1).contiguous()
