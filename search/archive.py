"""What one search leaves to the next: the Pareto points, and what its device costs."""

from typing import Literal

from pydantic import ValidationError

from policies.errors import TamperError, first_fault
from policies.terms import Name, Point, Term
from search.profile import Profile


class Archive(Term):
    """The text of ``archive.json``."""

    format: Literal[2]
    space: Name
    points: tuple[Point, ...]
    profile: Profile


def read_archive(raw: bytes) -> Archive:
    """Return an archive.

    Raises:
        TamperError: The bytes are no archive of this format.
    """
    try:
        return Archive.model_validate_json(raw)
    except ValidationError as error:
        raise TamperError(
            f"expected a search archive of format 2, got {first_fault(error)}; if an older "
            "version wrote it, found the task anew"
        ) from error
