"""A lane as one data plane: when it has followed, who is named, who is not waited for, who refuses."""

from pathlib import Path

import pytest

from daemon.control.targets.target import Observed, Unreachable
from daemon.fleet.hardware import hardware
from daemon.fleet.lane import HubLane
from daemon.fleet.link import FleetLink
from daemon.fleet.terms import Report
from policies.clock import StandingClock
from policies.errors import PermanentError
from policies.terms import Deployment, Task
from tests.fleet.world import LANE, deployment, hub_lane, terms_of

NAMES = ("pi5-1", "pi5-2", "pi5-3", "pi5-4")


class Bench:
    """A lane of four, and what each of them says."""

    def __init__(
        self, folder: Path, papers: Path, task: Task, clock: StandingClock, converged: float
    ) -> None:
        self.lane: HubLane = hub_lane(folder, papers, task, clock, devices=NAMES)
        terms = terms_of(papers, devices=NAMES, converged=converged, offline_s=60.0)
        self.link = FleetLink(LANE, terms, self.lane.releases, self.lane.roster)
        self.first = deployment(self.lane._blobs, 7)
        self.second = deployment(self.lane._blobs, 9, b"other", 2)

    def says(
        self, name: str, wanted: Deployment | None, problem: str | None = None, serves: bool = True
    ) -> None:
        stable = None if wanted is None or not serves else wanted.stable
        observed = Observed(
            revision=0 if wanted is None or not serves else wanted.revision,
            stable=stable,
            newcomer=None,
            previous=None,
            newcomer_share=0.0,
            ready=stable is not None,
        )
        report = Report(
            observed=observed,
            revision=0 if wanted is None else wanted.revision,
            problem=problem,
            idle=True,
            lost_segments=0,
            hardware=hardware(),
        )
        self.lane.roster.report(name, report)


@pytest.fixture
def bench(tmp_path: Path, papers: Path, task: Task, clock: StandingClock) -> Bench:
    return Bench(tmp_path, papers, task, clock, 0.75)


def test_a_lane_that_nobody_reported_from_is_unreachable(bench: Bench) -> None:
    with pytest.raises(Unreachable, match="expected a device of pi5 to report"):
        bench.link.observed()


def test_what_is_asked_is_published_once_and_answered_when_enough_serve_it(bench: Bench) -> None:
    for name in NAMES:
        bench.says(name, None)
    with pytest.raises(Unreachable, match="3 of 4 devices of pi5 to serve revision 7, 0 do"):
        bench.link.apply(bench.first)
    for name in NAMES[:2]:
        bench.says(name, bench.first)
    with pytest.raises(Unreachable, match="2 do: pi5-3 has revision 0"):
        bench.link.apply(bench.first.model_copy(update={"revision": 8}))
    assert bench.lane.releases.number == 1
    bench.says("pi5-3", bench.first)
    found = bench.link.apply(bench.first)
    assert found.matches(bench.first)
    assert found.problem is not None
    assert "pi5-4" in found.problem
    assert bench.link.observed().matches(bench.first)


def test_a_device_that_is_silent_for_long_is_not_waited_for(bench: Bench, clock: StandingClock) -> None:
    for name in NAMES:
        bench.says(name, bench.first)
    bench.link.apply(bench.first)
    clock.advance(50.0)
    for name in NAMES[:2]:
        bench.says(name, bench.second)
    with pytest.raises(Unreachable, match="pi5-3 has revision 7, heard of 50 s ago"):
        bench.link.apply(bench.second)
    clock.advance(11.0)
    assert bench.link.apply(bench.second).matches(bench.second)


def test_a_lane_that_is_wholly_silent_has_not_followed(bench: Bench, clock: StandingClock) -> None:
    for name in NAMES:
        bench.says(name, bench.first)
    bench.link.apply(bench.first)
    clock.advance(61.0)
    with pytest.raises(Unreachable, match="none was heard of for 61 s"):
        bench.link.apply(bench.first)
    with pytest.raises(Unreachable):
        bench.link.observed()


def test_one_refusal_is_a_straggler_and_many_are_a_refusal(bench: Bench) -> None:
    for name in NAMES[:3]:
        bench.says(name, bench.first)
    bench.says("pi5-4", bench.first, problem="its goldens differ", serves=False)
    assert bench.link.apply(bench.first).problem is not None
    bench.says("pi5-3", bench.first, problem="its goldens differ", serves=False)
    with pytest.raises(
        PermanentError, match="2 of 4 devices of pi5 refuse revision 7; pi5-3: its goldens differ"
    ):
        bench.link.apply(bench.first)


def test_a_problem_with_an_older_release_is_no_refusal_of_this_one(bench: Bench) -> None:
    for name in NAMES:
        bench.says(name, bench.first, problem="its goldens differ", serves=False)
    with pytest.raises(PermanentError):
        bench.link.apply(bench.first)
    with pytest.raises(Unreachable):
        bench.link.apply(bench.second)


def test_what_is_observed_while_devices_are_behind_is_a_stragglers(bench: Bench) -> None:
    for name in NAMES:
        bench.says(name, bench.first)
    bench.link.apply(bench.first)
    with pytest.raises(Unreachable):
        bench.link.apply(bench.second)
    found = bench.link.observed()
    assert found.stable == bench.first.stable
    assert not found.matches(bench.second)
    assert found.problem is not None
    assert "pi5-1 has revision 7" in found.problem


def test_it_survives_a_restart_of_the_hub(
    bench: Bench, tmp_path: Path, papers: Path, task: Task, clock: StandingClock
) -> None:
    with pytest.raises(Unreachable):
        bench.link.apply(bench.first)
    bench.lane.intake.close()
    again = Bench(tmp_path, papers, task, clock, 0.75)
    assert again.lane.releases.deployment == bench.first
    for name in NAMES:
        again.says(name, bench.first)
    assert again.link.observed().matches(bench.first)
    assert again.lane.releases.number == 1
