"""What a worker left in its folder, believed only as far as it can be checked.

* Bytes are what the answer's digest says, in a plain file of the folder.
* A number that a search says of itself is read within its bounds; what cannot be read counts for nothing.

Called by ``jobs``; decides nothing about the loop.
"""

import json
import math
from pathlib import Path

from pydantic import ValidationError

from policies.case import PanelResult
from policies.errors import TamperError
from policies.terms import Artefact, SearchResult
from policies.wire import digest_bytes

_ACCURACY = "accuracy_search"
"""Name of the evidence for the winner's accuracy on rows of role search."""


def search_result(out: Path) -> SearchResult:
    """Return what a search says in its output folder.

    Raises:
        TamperError: There is no whole result.
    """
    try:
        return SearchResult.model_validate_json((out / "result.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise TamperError(f"expected a search result in {out}, got {error}") from error


def accuracy(result: SearchResult) -> float | None:
    """Return the winner's accuracy on rows of role search; None where no label told.

    Raises:
        TamperError: It is no share.
    """
    said = next((each.value for each in result.evidence if each.name == _ACCURACY), None)
    # It goes into later briefs: one that is no share would refuse them all.
    if said is not None and not 0.0 <= said <= 1.0:
        raise TamperError(f"expected {_ACCURACY} of {result.brief} in [0, 1], got {said}")
    return said


def panel_result(out: Path, candidate: str) -> tuple[PanelResult, bytes]:
    """Return the panel's verdicts on a candidate, and its report.

    Raises:
        TamperError: A file is not what the panel says of it, or it sat on another candidate.
    """
    try:
        result = PanelResult.model_validate_json((out / "panel.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise TamperError(f"expected a panel's result in {out}, got {error}") from error
    report = checked(out, Artefact(path="report.html", digest=result.report))
    if result.candidate != candidate:
        raise TamperError(f"expected a panel on {candidate}, got one on {result.candidate}")
    return result, report


def checked(folder: Path, artefact: Artefact) -> bytes:
    """Return an artefact's bytes, which are what its digest says.

    Raises:
        TamperError: They are not, or there are none.
    """
    if "\0" in artefact.path or Path(artefact.path).name != artefact.path:
        raise TamperError(f"expected a file's name in {folder}, got {artefact.path!r}")
    path = folder / artefact.path
    # A link or a device could be read for ever, or be something else than what was hashed.
    if path.is_symlink() or not path.is_file():
        raise TamperError(f"expected a plain file at {path}, there is none")
    raw = path.read_bytes()
    if digest_bytes(raw) != artefact.digest:
        raise TamperError(f"expected {artefact.digest} at {path}, got {digest_bytes(raw)}")
    return raw


def used_cpu_s(path: Path) -> float:
    """Return the CPU-seconds that a search wrote into its progress or its checkpoint; 0 if unreadable."""
    try:
        used = float(json.loads(path.read_bytes())["cpu_s"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0.0
    return used if math.isfinite(used) and used >= 0 else 0.0
