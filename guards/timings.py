"""What devices measured of a case: read, and held against what the case says.

* A timing counts when it is of these bundles, on these rows, and of as many rows as the policy asks for.
* Anything else is a ``TamperError``: a number that belongs to another network says nothing of this one.

Called by ``guards.latency``. Whether the device itself is believed was decided where it was let in.
"""

from pydantic import ValidationError

from guards.material import Material
from policies.case import Case, Timings
from policies.errors import TamperError, first_fault
from policies.terms import Artefact


def read(case: Case, artefact: Artefact, material: Material) -> Timings:
    """Return a device's timings of this case.

    Raises:
        TamperError: They are missing, are others, or are of something else.
    """
    try:
        found = Timings.model_validate_json(material.raw(artefact))
    except ValidationError as error:
        raise TamperError(
            f"expected a device's timings at {artefact.path}, got {first_fault(error)}"
        ) from error
    wanted = tuple(one.digest for one in (case.bundle, case.incumbent) if one is not None)
    if found.bundles != wanted:
        raise TamperError(f"expected timings of {wanted}, {found.device} timed {found.bundles}")
    if found.rows != case.traffic.digest:
        raise TamperError(f"expected timings on {case.traffic.digest}, {found.device} ran {found.rows}")
    rows, n = case.policy.modification_protocol.evaluation.latency.rows, len(found.times_ms[0])
    if n != rows:
        raise TamperError(f"expected {rows} timed rows, {found.device} timed {n}")
    return found
