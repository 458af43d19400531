"""Pushes that share a commit: answered when durable, refused when the disk is, never left waiting."""

import asyncio
from pathlib import Path

import pytest

from daemon.fleet.intake import Intake, Push
from daemon.fleet.lane import Busy, HubLane
from daemon.fleet.terms import Position
from policies.clock import StandingClock
from policies.errors import PermanentError
from policies.terms import Task
from tests.fleet.world import DEVICES, SpoolWriter, hub_lane


@pytest.fixture
def lane(tmp_path: Path, papers: Path, task: Task, clock: StandingClock) -> HubLane:
    return hub_lane(tmp_path / "hub", papers, task, clock)


def pieces(folder: Path, task: Task) -> list[Push]:
    found = []
    for name in DEVICES:
        writer = SpoolWriter(folder / name, task)
        offset = len(writer.header)
        found.append(Push(name, "telemetry", "0" * 16, 1, offset, writer.header + writer.records(3)))
    return found


def test_pushes_that_come_together_are_committed_together(
    lane: HubLane, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []
    commit = Intake.commit

    def counted(self: Intake, pushes: list[Push]) -> list[Position | PermanentError]:
        commits.append(len(pushes))
        return commit(self, pushes)

    monkeypatch.setattr(Intake, "commit", counted)

    async def go() -> list[Position]:
        return await asyncio.gather(*(lane.push(push) for push in pieces(tmp_path, task)))

    answers = asyncio.run(go())
    assert [answer.segment for answer in answers] == [1, 1]
    assert commits == [2]
    assert {seen.received_bytes > 0 for seen in lane.roster.seen()} == {True}
    lane.intake.close()


def test_a_disk_that_refuses_is_told_as_a_time_to_wait(
    lane: HubLane, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Intake, _pushes: list[Push]) -> list[Position | PermanentError]:
        raise OSError(28, "No space left on device")

    push = pieces(tmp_path, task)[0]
    with monkeypatch.context() as patch:
        patch.setattr(Intake, "commit", full)
        with pytest.raises(Busy, match="No space") as busy:
            asyncio.run(lane.push(push))
    assert busy.value.retry_after_s == 10.0
    assert asyncio.run(lane.push(push)) == Position(segment=1, offset=len(push.body))
    lane.intake.close()


def test_a_defect_in_a_commit_leaves_nobody_waiting(
    lane: HubLane, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: Intake, _pushes: list[Push]) -> list[Position | PermanentError]:
        raise ZeroDivisionError

    async def go() -> None:
        push = pieces(tmp_path, task)[0]
        with monkeypatch.context() as patch:
            patch.setattr(Intake, "commit", broken)
            pushing = asyncio.create_task(lane.push(push))
            await asyncio.sleep(0)
            working = lane._commits
            with pytest.raises(asyncio.CancelledError):
                await pushing
        assert working is not None
        with pytest.raises(ZeroDivisionError):
            await working
        assert await lane.push(push) == Position(segment=1, offset=len(push.body))

    asyncio.run(go())
    lane.intake.close()
