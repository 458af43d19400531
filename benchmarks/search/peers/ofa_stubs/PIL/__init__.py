"""Stands in for Pillow while OFA is imported; see ``torchvision`` beside it for why."""
# ruff: noqa: N999  the name is Pillow's


class Image:
    """The names of resampling filters that OFA's image loader puts into a table; the values mean nothing."""

    NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)
