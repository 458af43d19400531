"""Plugins: what others add to a room, beside what it was built with.

* Groups are ``instar.monitors``, ``instar.strategies``, ``instar.spaces``, ``instar.guards``.
* A plugin may add a name, never take one: with a built-in's or another plugin's name it is refused, because
  nobody could then tell from a record which of the two spoke.
* A plugin that cannot be loaded stops the start. Going on without it would be a house with a guard less.

What a plugin must be is the room's contract, not checked here.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from policies.errors import PermanentError

GROUPS = ("instar.monitors", "instar.strategies", "instar.spaces", "instar.guards")

T = TypeVar("T")


def load(group: str, builtin: Mapping[str, T]) -> dict[str, T]:
    """Return a room's built-ins and its plugins, by name, built-ins first.

    Args:
        group: One of ``GROUPS``.
        builtin: The room's own; not changed.

    Raises:
        PermanentError: No such group, a name that is taken, or a plugin that cannot be loaded.
    """
    if group not in GROUPS:
        raise PermanentError(f"expected a plugin group among {', '.join(GROUPS)}, got {group!r}")
    return merge(builtin, entry_points(group=group))


def merge(builtin: Mapping[str, T], points: Iterable[EntryPoint]) -> dict[str, T]:
    """Return built-ins and loaded entry points by name.

    Raises:
        PermanentError: A name that is taken, or a plugin that cannot be loaded.
    """
    owners = dict.fromkeys(builtin, "instar")
    found = dict(builtin)
    for point in sorted(points, key=lambda point: (point.name, _owner(point))):
        if point.name in owners:
            raise PermanentError(
                f"expected a new name from plugin {point.value} of {_owner(point)}, got {point.name!r}, "
                f"which {owners[point.name]} has in {point.group}; uninstall one of them"
            )
        try:
            found[point.name] = point.load()
        except (ImportError, AttributeError) as error:
            raise PermanentError(
                f"expected {point.value} of {_owner(point)} for {point.group} to load, got {error}; "
                "repair or uninstall it"
            ) from error
        owners[point.name] = _owner(point)
    return found


def _owner(point: EntryPoint) -> str:
    return "an unknown distribution" if point.dist is None else point.dist.name
