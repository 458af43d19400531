"""The whole story over a scripted daemon: it closes, and every way in which it must not be said to close."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from daemon.console import signoff
from daemon.console.demo import story as stories
from daemon.console.demo import table
from daemon.console.demo.line import Line
from daemon.console.demo.narrative import Narrative
from daemon.console.demo.reckoning import reckon
from daemon.console.demo.result import Figures, faults
from daemon.console.demo.story import Story, Stuck
from tests.demo.world import FakeProcesses, World


@dataclass
class Played:
    figures: Figures
    text: str
    processes: FakeProcesses

    @property
    def faults(self) -> list[str]:
        return faults(self.figures)


def play(world: World, pause: Callable[[float], None] | None = None, linger_s: int | None = None) -> Played:
    out = io.StringIO()
    began = world.clock.monotonic()
    console = Console(file=out, width=160, force_terminal=False)
    narrative = Narrative(console, lambda: world.clock.monotonic() - began)
    processes = FakeProcesses(world)
    stuck = None
    with Line(world.scene.socket) as line:
        story = Story(
            world.scene, world.wishes, processes, line, narrative, world.clock, pause or world.pause
        )
        try:
            story.play()
        except Stuck as error:
            stuck = str(error)
        story.close()
        if linger_s is not None:
            _linger(story, world, linger_s)
    oracle = story.oracle.verdict() if stuck is None else None
    figures = reckon(
        world.scene,
        world.wishes,
        story.moments,
        story.chronicle,
        # The scripted bundles have no bytes; two digests are enough for a scripted comparison.
        story.bundles,
        oracle,
        story.oracle.test,
        stuck,
    )
    console.print(table.render(figures))
    return Played(figures, out.getvalue(), processes)


def _linger(story: Story, world: World, seconds: int) -> None:
    """Let the story stay up for a while, then interrupt it."""
    ends = world.clock.monotonic() + seconds

    def pause(one: float) -> None:
        world.pause(one)
        if world.clock.monotonic() > ends:
            raise KeyboardInterrupt

    story._pause = pause
    with pytest.raises(KeyboardInterrupt):
        story.linger()


@pytest.fixture(autouse=True)
def _no_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.store.blobs.Blobs.read", lambda _self, _digest: b"")


def test_a_loop_that_closes_is_told_as_closed_with_its_figures(world: World) -> None:
    played = play(world)
    figures = played.figures
    assert played.faults == []
    assert (figures.candidate, figures.generation) == ("c2-abc", 2)
    assert figures.before.value == pytest.approx(0.97)
    assert figures.under.value == pytest.approx(0.64)
    assert figures.after.value == pytest.approx(0.96)
    assert figures.regained == pytest.approx(0.96 / 0.97)
    assert figures.founding_cpu_s == 41.0
    assert figures.adaptation_cpu_s == 42.0
    assert figures.false_alarms == figures.false_triggers == 0
    assert 2000 <= (figures.trigger_delay_requests or 0) <= 3000
    assert figures.alarm_delay_requests == figures.trigger_delay_requests
    assert figures.sent == world.sent
    assert figures.phases_s["quiet while"] == 20.0
    assert figures.phases_s["probation"] == 6.0
    assert all(figures.latency.values())
    assert world.checks > 50


def test_the_story_says_demo_key_and_tells_every_change_of_stage(world: World) -> None:
    text = play(world).text
    assert "UnsafeDemoApprover (DEMO KEY): approve" in text
    assert "The loop, once around (DEMO KEY)" in text
    for stage in ("PROPOSED", "EXPORTED", "CLEARED", "APPROVED", "STAGED", "PROBATION", "LIVE"):
        assert f"candidate c2-abc {stage}" in text
    assert "The loop closed." in text


def test_the_demo_approves_with_a_signature_that_control_accepts(world: World) -> None:
    play(world)
    assert world.refused == []
    assert [said.principal for said in world.approved] == ["UnsafeDemoApprover"] * 2


def test_processes_get_the_public_commands_and_the_camera_is_started_when_ready(world: World) -> None:
    started = play(world).processes.started
    assert list(started)[:3] == ["instar-serve", "instard", "camera"]
    assert "127.0.0.1:1" in started["instar-serve"]
    assert "127.0.0.1:3" in started["instard"]
    assert list(started)[3:] == ["oracle-train", "oracle-test", "oracle"]


@pytest.mark.parametrize(
    ("knob", "value", "expected"),
    [
        ("fail_request", 900, "expected 0 failed requests, 1 of"),
        ("false_trigger_after", 5.0, "expected 0 triggers in the quiet while, there were 1"),
        ("right", (0.97, 0.90, 0.96), "expected accuracy to fall by 15 points, it fell by 7.0"),
        ("right", (0.97, 0.64, 0.80), "expected 95 % of the oracle's accuracy, got 82.5 %"),
        ("oracle", 1.02, "expected 95 % of the oracle's accuracy, got 94.1 %"),
    ],
)
def test_each_fault_is_named_and_the_loop_not_said_to_close(
    world: World, knob: str, value: Any, expected: str
) -> None:
    setattr(world, knob, value)
    played = play(world)
    assert len(played.faults) == 1
    assert played.faults[0].startswith(expected)
    assert "The loop closed." not in played.text


def test_a_journal_that_was_changed_is_a_fault(world: World) -> None:
    def pause(seconds: float) -> None:
        world.pause(seconds)
        if world.generation == 2 and world.phase == "watching":
            world.journal._connection.execute("UPDATE entries SET at = at + 1 WHERE seq = 2")

    played = play(world, pause)
    assert [fault for fault in played.faults if "entry 2" in fault]


def test_a_candidate_that_the_guards_reject_leaves_the_story_stuck(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stories, "_ADAPTING_LIMIT_S", 60.0)

    def pause(seconds: float) -> None:
        world.guards = "pass" if world.generation is None else "fail"
        world.pause(seconds)

    played = play(world, pause)
    assert "expected an adapted generation to be live within 60 s" in played.faults[0]
    assert "parity FAIL" in played.text
    assert played.figures.generation is None
    assert len(world.approved) == 1


def test_control_that_does_not_answer_for_a_while_is_waited_for(world: World) -> None:
    def pause(seconds: float) -> None:
        world.pause(seconds)
        world.answers = int(world.clock.monotonic()) % 3 != 0

    assert play(world, pause).faults == []


def test_a_refused_approval_is_told_once_and_what_is_up_stays_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = signoff.sign
    monkeypatch.setattr(signoff, "sign", lambda said, key: _other_words(forged(said, key)))
    played = play(world, linger_s=30)
    assert "approval was refused" in played.faults[0]
    assert len(world.refused) == 1
    assert world.generation is None


def _other_words(signed: signoff.Signed) -> signoff.Signed:
    return signoff.Signed(signed.text.replace("the demo says yes", "the demo said yes"), signed.signature)


def _wait_for_me(world: World, decision: signoff.Decision, linger_s: int | None = None) -> Played:
    world.wishes = type(world.wishes)(**(vars(world.wishes) | {"wait_for_me": True}))

    asked_at: list[float] = []

    def pause(seconds: float) -> None:
        world.pause(seconds)
        if world.stage != "CLEARED" or world.generation != 1:
            return
        # A person takes longer than any limit of the story.
        world.clock.advance(99.0)
        asked_at.append(world.clock.monotonic())
        if asked_at[-1] - asked_at[0] > 1200.0:
            said = signoff.write(
                decision, world.subject(), "UnsafeDemoApprover", "read the report", world.clock.now(), 60.0
            )
            signed = signoff.sign(said, world.scene.key)
            assert world.post({"approval": signed.text, "signature": signed.signature})[0] == 200

    return play(world, pause, linger_s)


def test_a_person_who_is_waited_for_gets_two_commands_and_all_the_time_to_approve(world: World) -> None:
    played = _wait_for_me(world, "approve")
    assert f"instar approve c2-abc --state {world.scene.state}" in played.text
    assert f"instar decline c2-abc --state {world.scene.state}" in played.text
    assert played.faults == []
    assert played.figures.phases_s["approval"] > 900


def test_a_decline_ends_the_story_without_a_swap_and_says_who_and_why(world: World) -> None:
    played = _wait_for_me(world, "decline", linger_s=10)
    assert "declined by UnsafeDemoApprover: read the report; the incumbent serves on" in played.faults[0]
    assert played.figures.generation is None
    assert world.generation == 1
