"""A lane's searches and panels: what they inherit, what they wait for, and whose clock their case has."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.control import workers
from daemon.control.ledger import Heritage
from daemon.control.targets.target import Unreachable
from daemon.fleet.desk import TimingDesk
from daemon.fleet.heritage import Forebear
from daemon.fleet.jobs import LaneBriefs, LaneJobs, Turnstile, Waits
from policies.case import Case, Timings
from policies.document import load_task
from policies.lifecycle import Stage
from policies.terms import Brief, Trigger, TriggerKind
from policies.wire import canonical
from policies.world import Candidate
from tests.simulator.host import Host, SimulatedSamples

LANE = "pi5"


class Lane:
    """A main host that is founded, and a lane beside it with its own journal and jobs."""

    def __init__(self, folder: Path) -> None:
        self.main, self.host = Host(folder / "main"), Host(folder / "lane")
        self.main.boot()
        self.host.boot()
        host = self.host
        task = load_task(host.law / "task.toml")
        samples = SimulatedSamples(host.state)
        self.desk = TimingDesk(host.state / "timings", host.blobs, host.clock, wanted=1)
        waits = Waits(LANE, self.desk, host.blobs, samples, host.state / "rows")  # type: ignore[arg-type]
        self.turnstile = Turnstile()
        self.turnstile.join("the main lane", self.main.book)
        self.turnstile.join(LANE, host.book)
        parts = (task, host.policy, host.book, host.blobs, samples)
        self.jobs = LaneJobs(*parts, host.state / "jobs", 1)  # type: ignore[arg-type]
        self.briefs = LaneBriefs(*parts, 1, LANE, waits)  # type: ignore[arg-type]
        self.briefs.heir = lambda: Forebear(self.main.book, self.main.blobs)
        self.jobs.use(self.briefs, self.turnstile, LANE)

    def found_main(self) -> None:
        """Let the main lane found a generation whose archive prices its own network at 0.2 ms."""
        self.main.found()
        live = self.main.book.ledger.live_candidate
        assert live is not None
        point = {"genome": live.genome.model_dump(mode="json"), "latency_ms": 0.2}
        profile = {"line": [0.1, 2.0], "int8_line": None, "machine": "a server"}
        archive = json.dumps({"points": [point], "profile": profile}).encode()
        heritage = self.main.book.ledger.heritage
        heritage[live.id] = Heritage(heritage[live.id].state, self.main.blobs.put(archive), 0.9)

    def trigger(self) -> Trigger:
        return Trigger(
            id="founding-1",
            kind=TriggerKind.FOUNDING,
            at=self.host.clock.now(),
            clause="MP-4",
            reason="no generation is live",
            signals=(),
            policy=self.host.policy.digest,
            generation=0,
        )

    def open_trigger(self) -> Trigger:
        trigger = self.trigger()
        plain = trigger.model_dump(mode="json")
        self.host.book.write("trigger", id=trigger.id, kind="founding", trigger=plain)
        return trigger

    def answer(self, device: str = "pi5-1", ms: float = 0.8) -> str:
        """Let a device do the job that waits; return the job's name."""
        job = self.desk.take(device)
        assert job is not None, "expected a job"
        timings = Timings(
            job=job.id,
            device=device,
            machine="a board",
            bundles=tuple(piece.digest for piece in job.bundles),
            rows=job.rows.digest,
            times_ms=tuple((ms,) * job.count for _ in job.bundles),
        )
        self.desk.accept(device, timings)
        return job.id


@pytest.fixture
def lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lane]:
    made = Lane(tmp_path)
    monkeypatch.setattr(workers, "start", made.host.run_worker)
    monkeypatch.setattr(workers, "find", made.host.find_worker)
    yield made
    for host in (made.main, made.host):
        host.book.journal.close()


def brief_of(lane: Lane) -> Brief:
    return Brief.model_validate_json((lane.host.state / "jobs" / "search-1" / "brief.json").read_bytes())


def test_a_lane_waits_for_the_main_lane_and_journals_nothing_meanwhile(lane: Lane) -> None:
    before = len(lane.host.kinds())
    with pytest.raises(Unreachable, match="live generation of the main lane for pi5"):
        lane.jobs.start_search(lane.trigger())
    assert len(lane.host.kinds()) == before


def test_it_is_founded_from_the_main_lanes_weights_at_its_devices_prices(lane: Lane) -> None:
    lane.found_main()
    trigger = lane.open_trigger()
    with pytest.raises(Unreachable, match="devices of pi5 to time scale-1-"):
        lane.jobs.start_search(trigger)
    assert lane.answer(ms=0.8).startswith("scale-1-")
    lane.jobs.start_search(trigger)
    brief, live = brief_of(lane), lane.main.book.ledger.live_candidate
    assert live is not None
    assert (brief.kind, brief.parent_generation, brief.parent_genome) == (TriggerKind.LATENCY, 1, live.genome)
    assert brief.parent_state is not None
    assert brief.parent_state.digest == lane.main.book.ledger.heritage[live.id].state
    assert brief.profile is not None
    profile = json.loads(Path(brief.profile.path).read_bytes())
    assert profile["line"] == pytest.approx([0.4, 8.0]), "four times as slow as where the archive was priced"
    policy = lane.host.policy.policy.modification_protocol
    assert brief.limits.max_p99_ms == policy.evaluation.latency.max_p99_ms
    assert brief.budget_cpu_s == policy.search.budget_cpu_s


def test_a_lane_that_inherits_nothing_founds_by_itself(lane: Lane) -> None:
    lane.briefs.heir = lambda: None
    lane.jobs.start_search(lane.open_trigger())
    brief = brief_of(lane)
    assert (brief.kind, brief.parent_state, brief.profile) == (TriggerKind.FOUNDING, None, None)


def test_one_search_at_a_time_over_all_lanes(lane: Lane) -> None:
    lane.found_main()
    trigger = lane.open_trigger()
    with pytest.raises(Unreachable):
        lane.jobs.start_search(trigger)
    lane.answer()
    body = {"id": "search-9", "trigger": "t", "seed": 1, "attempt": 1, "charged_cpu_s": 0.0}
    lane.main.book.write("search.started", **body, kind="data", resumed_cpu_s=0.0)
    with pytest.raises(Unreachable, match="the main lane has search-9"):
        lane.jobs.start_search(trigger)
    assert lane.host.book.ledger.search is None
    plain = {"id": "search-9", "kind": "data", "outcome": "failed", "reason": "lost", "cpu_s": 0.0}
    lane.main.book.write("search.ended", **plain)
    lane.jobs.start_search(trigger)
    assert lane.host.book.ledger.search is not None


def exported(lane: Lane) -> Candidate:
    """Return the lane's first candidate, exported and to be judged."""
    lane.found_main()
    trigger = lane.open_trigger()
    with pytest.raises(Unreachable):
        lane.jobs.start_search(trigger)
    lane.answer()
    lane.jobs.start_search(trigger)
    lane.jobs.adopt(lane.host.clock.now())
    candidate = lane.host.book.ledger.open_candidate
    assert candidate is not None
    lane.jobs.export(candidate)
    candidate = lane.host.book.ledger.open_candidate
    assert candidate is not None
    assert candidate.stage is Stage.EXPORTED
    return candidate


def test_the_panel_waits_for_devices_and_its_case_has_their_timings(lane: Lane) -> None:
    candidate = exported(lane)
    with pytest.raises(Unreachable, match=f"to time {candidate.id}-alone"):
        lane.jobs.start_panel(candidate)
    assert "judge.started" not in lane.host.kinds()
    lane.answer(ms=0.3)
    lane.jobs.start_panel(candidate)
    path = lane.host.state / "jobs" / f"panel-{candidate.id}" / "case.json"
    case = Case.model_validate_json(path.read_bytes())
    assert case.device_class == LANE
    assert len(case.timings) == 1
    timings = Timings.model_validate_json(Path(case.timings[0].path).read_bytes())
    assert (timings.rows, timings.bundles) == (case.traffic.digest, (case.bundle.digest,))
    assert canonical(timings)


def test_a_device_that_answers_late_finds_its_rows_unchanged(lane: Lane) -> None:
    candidate = exported(lane)
    for _ in range(2):
        with pytest.raises(Unreachable):
            lane.jobs.start_panel(candidate)
    rows = {path.read_text() for path in (lane.host.state / "rows").glob(f"{candidate.id}*.rows")}
    job = lane.desk.take("pi5-1")
    assert job is not None
    assert {job.rows.digest} == rows
