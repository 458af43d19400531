"""The fleet of one ``instard``: a control plane a lane, the hub before them, and what they share.

* A lane is a whole control plane over ``STATE/lanes/<class>``: its own journal, policy, jobs and control
  socket. ``instar --state STATE/lanes/<class> …`` works on it as on any other.
* All lanes take their turns in one schedule, and their searches at one turnstile: one at a time.
* Telemetry is deleted when a lane's monitors have read it and their memory of it is durable, not before.

Called by ``daemon.compose``, which knows how a control plane is put together.
"""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.fleet import door
from daemon.fleet.certificates import tls
from daemon.fleet.desk import TimingDesk
from daemon.fleet.heritage import Forebear
from daemon.fleet.hub import Hub
from daemon.fleet.intake import Intake
from daemon.fleet.jobs import LaneBriefs, LaneJobs, Turnstile, TurnstileJobs, Waits
from daemon.fleet.lane import HubLane
from daemon.fleet.link import FleetLink
from daemon.fleet.releases import Releases
from daemon.fleet.roll import Fleet, Lane
from daemon.fleet.roster import Roster
from daemon.ops.doors import Door, bind, bind_unix
from daemon.settings import ControlSettings
from daemon.store.blobs import Blobs
from daemon.store.lock import StateLock
from policies.clock import Clock
from policies.document import load_task

if TYPE_CHECKING:
    from socket import socket as Listener

    from daemon.compose import Control

log = logging.getLogger(__name__)

FRESH_S = 5.0
"""How often releases are looked at, whether they must be signed again."""

Assemble = Callable[[ControlSettings, Clock, FleetLink, type[LaneJobs]], "Control"]


@dataclass(frozen=True)
class Yard:
    """All lanes of a fleet, put together."""

    fleet: Fleet
    lanes: dict[str, "Control"]
    hub_lanes: dict[str, HubLane]
    hub: Hub
    socket: Path

    def doors(self, drain_s: float) -> list[tuple[Door, "Listener"]]:
        """Return the hub's doors with their listeners.

        Raises:
            PermanentError: An address cannot be had.
            PolicyError: A certificate or key is refused.
        """
        context = tls(self.fleet.hub)
        return [
            (door.tls_door(self.hub, context, drain_s), bind(self.fleet.hub.listen)),
            (door.unix_door(self.hub, drain_s), bind_unix(self.socket)),
        ]

    def keep_fresh(self) -> None:
        """Sign again what is about to run out."""
        for lane in self.hub_lanes.values():
            lane.releases.keep_fresh()

    def forget(self) -> None:
        """Delete telemetry that the lanes' monitors have read and remember durably."""
        for name, control in self.lanes.items():
            for kind, cursor in control.sensors.saved.items():
                self.hub_lanes[name].intake.forget(kind, cursor.segment, cursor.offset)

    def close(self) -> None:
        """Close the lanes' files."""
        for lane in self.hub_lanes.values():
            lane.intake.close()


def open_yard(
    fleet: Fleet, main: "Control", clock: Clock, assemble: Assemble, held: contextlib.ExitStack
) -> Yard:
    """Put all lanes of a fleet together.

    Args:
        fleet: The fleet file.
        main: The control plane that lanes inherit from; its jobs are ``TurnstileJobs``.
        clock: Everybody's.
        assemble: Puts a control plane together over a state folder, a target, and a class of jobs.
        held: Takes the lanes' locks.

    Raises:
        InstarError: A policy, a key, a root, a journal or a log is refused; or somebody else has a lane.
    """
    turnstile = Turnstile()
    turnstile.join("the main lane", main.book)
    if isinstance(main.jobs, TurnstileJobs):
        main.jobs.turnstile, main.jobs.lane = turnstile, "the main lane"
    forebear = Forebear(main.book, Blobs(main.settings.blobs))
    lanes: dict[str, Control] = {}
    hub_lanes: dict[str, HubLane] = {}
    for name, lane in fleet.lanes.items():
        settings = _settings(main.settings, name, lane)
        held.enter_context(StateLock(settings.state / "instard.lock"))
        hub_lane = _hub_lane(name, lane, settings, clock)
        link = FleetLink(name, lane, hub_lane.releases, hub_lane.roster)
        control = assemble(settings, clock, link, LaneJobs)
        turnstile.join(name, control.book)
        _use(control, name, hub_lane, turnstile, forebear if lane.inherit else None)
        lanes[name], hub_lanes[name] = control, hub_lane
        log.info("lane=%s devices=%d release=%d", name, len(lane.devices), hub_lane.releases.number)
    return Yard(fleet, lanes, hub_lanes, Hub(hub_lanes, fleet.lane_of), main.settings.run / "hub.sock")


def _settings(main: ControlSettings, name: str, lane: Lane) -> ControlSettings:
    return main.model_copy(
        update={
            "state": main.state / "lanes" / name,
            "policy": lane.policy,
            "target": f"fleet:{name}",
            "fleet": None,
        }
    )


def _hub_lane(name: str, lane: Lane, settings: ControlSettings, clock: Clock) -> HubLane:
    blobs, own = Blobs(settings.blobs), settings.state / "fleet"
    own.mkdir(parents=True, exist_ok=True)
    return HubLane(
        name,
        lane,
        Releases(own / "releases", lane.roots, lane.release_key, blobs, lane.fresh_s, clock),
        Roster(lane.devices, clock),
        Intake(load_task(settings.task), settings.spool, own / "positions.log"),
        TimingDesk(own / "timings", blobs, clock, lane.timed_by),
        blobs,
        clock.monotonic,
    )


def _use(
    control: "Control", name: str, hub_lane: HubLane, turnstile: Turnstile, forebear: Forebear | None
) -> None:
    """Give a lane's jobs their briefs and their turnstile."""
    settings = control.settings
    blobs = Blobs(settings.blobs)
    waits = Waits(name, hub_lane.desk, blobs, control.samples, settings.state / "fleet" / "rows")
    briefs = LaneBriefs(
        control.task, control.law, control.book, blobs, control.samples, settings.seed, name, waits
    )
    briefs.heir = lambda: forebear
    if isinstance(control.jobs, LaneJobs):
        control.jobs.use(briefs, turnstile, name)
