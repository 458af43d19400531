"""Searches that all tests of the room share."""

import pytest

from tests.search import worlds
from tests.search.worlds import BARS, CLOUDS, Searched


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A founding search over images, in both precisions."""
    folder = tmp_path_factory.mktemp("founded")
    brief = worlds.founding_brief(BARS, folder, precisions=worlds.BOTH)
    return worlds.run(brief, folder, folder / "out")


@pytest.fixture(scope="session")
def tabled(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A founding search over a table."""
    folder = tmp_path_factory.mktemp("tabled")
    return worlds.run(worlds.founding_brief(CLOUDS, folder), folder, folder / "out")
