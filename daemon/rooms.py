"""Nobody else may live in our rooms.

The five rooms are plain top-level packages. Another distribution that installs one of the same name (there is
a ``python-daemon``) would be merged into ours, silently; so we refuse to start.
"""

from importlib.metadata import packages_distributions

from policies.errors import PermanentError

ROOMS = ("daemon", "monitors", "search", "guards", "policies")
OWNER = "instar"


def check_rooms() -> None:
    """Check that every room belongs to this distribution alone.

    Raises:
        PermanentError: A foreign distribution owns a room too.
    """
    owners = packages_distributions()
    for room in ROOMS:
        foreign = sorted(set(owners.get(room, [])) - {OWNER})
        if foreign:
            raise PermanentError(
                f"expected package {room!r} to belong to {OWNER} alone, {', '.join(foreign)} installs it "
                "too; install instar into an environment of its own"
            )
