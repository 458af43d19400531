"""The spaces that ship with Instar, by the modality that they serve."""

from search.space import SpaceFactory
from search.spaces.image import image_space

BUILTIN: dict[str, SpaceFactory] = {"image": image_space}
