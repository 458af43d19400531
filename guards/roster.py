"""All guards that there are: ours by name, and those of other distributions by entry point.

A new guard is one file, one line here, and its test. The list is not in ``guards/__init__``, so that who only
wants to check a signature does not load a runtime.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points

from guards.baseline import Baseline
from guards.constraints import Constraints
from guards.contract import Factory
from guards.floor import Floor
from guards.incumbent import Incumbent
from guards.integrity import Integrity
from guards.latency import Latency
from guards.parity import Parity
from guards.retention import Retention
from guards.slices import Slices
from policies.errors import PermanentError

GROUP = "instar.guards"

BUILTIN: Mapping[str, Factory] = {
    "integrity": Integrity,
    "parity": Parity,
    "constraints": Constraints,
    "latency": Latency,
    "floor": Floor,
    "incumbent": Incumbent,
    "baseline": Baseline,
    "retention": Retention,
    "slices": Slices,
}


def installed() -> Mapping[str, Factory]:
    """Return the built-in guards and those that other distributions offer.

    Raises:
        PermanentError: A distribution offers a guard under a name that is taken.
    """
    found = dict(BUILTIN)
    for entry in entry_points(group=GROUP):
        if entry.name in found:
            raise PermanentError(
                f"expected a guard of a new name, {entry.value} offers {entry.name!r} again; remove it"
            )
        found[entry.name] = entry.load()
    return found
