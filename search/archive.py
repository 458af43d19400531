"""What one search leaves to the next: the Pareto points, and the table of block costs."""

from typing import Literal

from pydantic import ValidationError

from policies.errors import TamperError
from policies.terms import Name, Point, Term


class Archive(Term):
    """The text of ``archive.json``."""

    format: Literal[1]
    space: Name
    points: tuple[Point, ...]
    table_us: dict[str, float]


def read_archive(raw: bytes) -> Archive:
    """Return an archive.

    Raises:
        TamperError: The bytes are no archive of this format.
    """
    try:
        return Archive.model_validate_json(raw)
    except ValidationError as error:
        raise TamperError(f"expected a search archive of format 1, got {error}") from error
