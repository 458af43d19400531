"""The spaces that ship with Instar, by modality."""

from policies.terms import Modality
from search.space import SpaceFactory
from search.spaces.image import image_space
from search.spaces.table import table_space
from search.spaces.window import window_space

BUILTIN: dict[Modality, SpaceFactory] = {
    Modality.IMAGE: image_space,
    Modality.WINDOW: window_space,
    Modality.TABLE: table_space,
}
