"""Where a newcomer stands on its way into the traffic: in the terminal, on the pages, in the story."""

from typing import Any

import pytest

from daemon.console.demo import narrative
from policies.probation import Step
from policies.shadow import ShadowVerdict
from policies.status import CandidateView
from policies.terms import Finding
from tests.console.test_pages import FakeView, Site

BESIDE = "another answer in 31.0 % of rows [27.1, 35.2], limit 60 <b>"


@pytest.fixture
def newcomer(made: Any) -> CandidateView:
    return made.candidate(  # type: ignore[no-any-return]
        stage="PROBATION",
        generation=2,
        expires_at=None,
        shadow=ShadowVerdict(finding=Finding.PASS, reason=BESIDE),
        step=Step(number=2, of=3, share=0.2, since=1_800_000_000.0 - 65),
    )


def test_status_and_show_tell_step_share_and_shadow(
    instar: Any, control: Any, made: Any, newcomer: CandidateView
) -> None:
    control.status = made.status(open_candidate=newcomer, phase="probation", newcomer_share=0.2)
    control.candidates = [newcomer]
    for words in (("status",), ("show", newcomer.id)):
        seen = instar(*words)
        assert "step 2 of 3, 20% of the traffic" in seen.out
        assert "another answer in 31.0 %" in seen.out


def test_before_its_way_began_they_tell_neither(instar: Any, control: Any, made: Any) -> None:
    control.status = made.busy_status()
    control.candidates = [made.candidate()]
    for words in (("status",), ("show", "adapt")):
        seen = instar(*words)
        assert "step" not in seen.out
        assert "beside the traffic" not in seen.out


def test_the_pages_tell_them_too_and_run_no_markup(made: Any, newcomer: CandidateView) -> None:
    status = made.status(open_candidate=newcomer, phase="probation", newcomer_share=0.2)
    site = Site(FakeView(status, [newcomer], made.entries(3)))
    for path in ("/", f"/candidates/{newcomer.id}"):
        text = site.get(path).text
        assert "step 2 of 3, 20% of the traffic" in text
        assert "limit 60 &lt;b&gt;" in text


def test_a_candidate_without_a_step_has_an_en_dash(made: Any) -> None:
    assert narrative.words.step(made.candidate()) == "–"


def test_the_story_tells_of_shadow_and_steps() -> None:
    judged = narrative._TELLERS["shadow.judged"]({"finding": "pass", "reason": BESIDE})
    step = narrative._TELLERS["probation.step"]({"step": 1, "of": 3, "share": 0.1, "reason": "it begins"})
    assert judged is not None
    assert step is not None
    assert judged.plain.startswith("beside the traffic: pass, another answer")
    assert step.plain == "step 1 of 3: 10% of the traffic; it begins"
