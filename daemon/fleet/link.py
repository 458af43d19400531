"""A lane's target: what its devices shall serve goes out as a signed release, what they serve comes back.

* ``apply`` publishes, durably, what is not published yet. It returns when enough devices serve it; until then
  it is ``Unreachable``, and names the stragglers. Asked again, it publishes nothing again.
* Enough is the fleet file's share of the devices that are online. One that was not heard of for ``offline_s``
  is not waited for; it takes the newest release when it comes back.
* When so many devices refuse a release that enough cannot be reached, it is a refusal.

Called by the lane's turn. It never talks to a device: the hub does, when devices call.
"""

import math

from daemon.control.targets.target import Abilities, Observed, Unreachable
from daemon.fleet.releases import Releases
from daemon.fleet.roll import Lane
from daemon.fleet.roster import Roster, Seen
from policies.errors import PermanentError
from policies.terms import Deployment


class FleetLink:
    """The devices of one lane, as one data plane.

    Args:
        name: The lane's.
        lane: How many must follow, and who is not waited for.
        releases: What is published.
        roster: What devices say.
    """

    abilities = Abilities(splits=True, previous=True, spool=True)

    def __init__(self, name: str, lane: Lane, releases: Releases, roster: Roster) -> None:
        self._name = name
        self._lane = lane
        self._releases = releases
        self._roster = roster

    def observed(self) -> Observed:
        """Return what is served: the published state once enough devices serve it, else a straggler's.

        Raises:
            Unreachable: No device that is online has said what it serves.
        """
        online = self._online()
        said = [seen for seen in online if seen.report is not None and seen.report.observed is not None]
        if not said:
            raise Unreachable(f"expected a device of {self._name} to report, {self._silent()}")
        wanted = self._releases.deployment
        behind = [seen for seen in online if wanted is None or not _serves(seen, wanted)]
        told = self._told(behind) if wanted is not None and behind else None
        if wanted is not None and len(online) - len(behind) >= self._needed(len(online)):
            return _as_wanted(wanted, told)
        straggler = next((s for s in said if s in behind), said[0])
        if straggler.report is None or straggler.report.observed is None:
            raise ValueError("expected a device that has reported")
        return straggler.report.observed.model_copy(update={"problem": told or straggler.report.problem})

    def apply(self, deployment: Deployment) -> Observed:
        """Have a wanted state served by the lane's devices.

        Raises:
            Unreachable: Not enough of them serve it yet.
            PermanentError: Too many of them refuse it, or a bundle of it is not here.
        """
        published = self._releases.deployment
        if published is None or _content(published) != _content(deployment):
            self._releases.publish(deployment)
            published = deployment
        online = self._online()
        needed = self._needed(len(online))
        behind = [seen for seen in online if not _serves(seen, published)]
        if online and len(online) - len(behind) >= needed:
            return _as_wanted(published, self._told(behind) if behind else None)
        refused = [seen for seen in behind if _refuses(seen, published)]
        if online and len(online) - len(refused) < needed:
            reason = refused[0].report.problem if refused[0].report is not None else ""
            raise PermanentError(
                f"{len(refused)} of {len(online)} devices of {self._name} refuse revision "
                f"{published.revision}; {refused[0].name}: {reason}"
            )
        told = self._told(behind) if behind else self._silent()
        raise Unreachable(
            f"expected {needed} of {len(online)} devices of {self._name} to serve revision "
            f"{published.revision}, {len(online) - len(behind)} do: {told}"
        )

    def close(self) -> None:
        """Let go of nothing: devices serve on."""

    def _online(self) -> list[Seen]:
        return [seen for seen in self._roster.seen() if seen.silent_s <= self._lane.offline_s]

    def _needed(self, online: int) -> int:
        return max(1, math.ceil(self._lane.converged * online - 1e-9))

    def _silent(self) -> str:
        last = min(seen.silent_s for seen in self._roster.seen())
        return f"none was heard of for {last:.0f} s"

    def _told(self, behind: list[Seen]) -> str:
        """Return who is behind, and why, in words."""
        words = []
        for seen in behind[:5]:
            report = seen.report
            at = "nothing yet" if report is None else f"revision {report.revision}"
            why = "" if report is None or report.problem is None else f": {report.problem}"
            words.append(f"{seen.name} has {at}, heard of {seen.silent_s:.0f} s ago{why}")
        more = len(behind) - 5
        return "; ".join(words) + (f"; and {more} more" if more > 0 else "")


def _content(deployment: Deployment) -> Deployment:
    return deployment.model_copy(update={"revision": 0})


def _serves(seen: Seen, wanted: Deployment) -> bool:
    observed = None if seen.report is None else seen.report.observed
    return observed is not None and observed.revision == wanted.revision and observed.matches(wanted)


def _refuses(seen: Seen, wanted: Deployment) -> bool:
    report = seen.report
    return report is not None and report.revision == wanted.revision and report.problem is not None


def _as_wanted(wanted: Deployment, problem: str | None) -> Observed:
    return Observed(
        revision=wanted.revision,
        stable=wanted.stable,
        newcomer=wanted.newcomer,
        previous=wanted.previous,
        newcomer_share=wanted.newcomer_share,
        exit_confidence=wanted.exit_confidence,
        ready=wanted.stable is not None,
        problem=problem,
    )
