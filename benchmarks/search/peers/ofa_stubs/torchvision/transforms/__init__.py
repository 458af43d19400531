"""The names that OFA's image loader needs to define its classes; see the package's docstring."""


class RandomResizedCrop:
    """A class to derive from; it cannot be made."""

    def __init__(self) -> None:
        raise NotImplementedError("torchvision is a stub here: OFA's image loader cannot be used")
