"""The report: what it recommends and why, and that nothing in it can act."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from guards import page, report
from guards.charts import front, span, ticks
from guards.material import Material
from guards.roster import BUILTIN
from guards.weights import Layer
from policies.case import Case
from policies.terms import Evidence, Finding, Verdict
from policies.wire import canonical

LAYERS = [Layer("Conv", (3, 3), 1, 8, 2), Layer("Linear", (1,), 8, 4, 1)]
WIDER = [Layer("Conv", (5, 5), 1, 12, 2), Layer("Linear", (1,), 12, 4, 1), Layer("Linear", (1,), 4, 4, 1)]


@pytest.fixture
def verdicts(ticks: Callable[[], float]) -> Callable[[Case], tuple[Verdict, ...]]:
    def all_of(case: Case) -> tuple[Verdict, ...]:
        panel = case.policy.modification_protocol.evaluation.panel
        names = panel.required_founding if case.founding else panel.required
        material = Material(case, ticks)
        return tuple(BUILTIN[name]().judge(case, material) for name in names)

    return all_of


def said(guard: str, finding: Finding, used: float | None = None) -> Verdict:
    evidence = () if used is None else (Evidence(name="used", value=used, unit="share", n=0),)
    return Verdict(guard=guard, clause="MP-5", finding=finding, reason=f"{guard} says so", evidence=evidence)


def words(html: bytes) -> str:
    class Text(HTMLParser):
        parts: list[str] = []  # noqa: RUF012

        def handle_data(self, data: str) -> None:
            self.parts.append(data)

    parser = Text()
    parser.parts = []
    parser.feed(html.decode())
    return re.sub(r"\s+", " ", " ".join(parser.parts))


def test_it_recommends_what_the_guards_clear(shop: Any, verdicts: Any) -> None:
    case = shop.case()
    made = report.make(case, verdicts(case), WIDER, LAYERS)
    text = words(page.render(made))
    assert made.recommendation == "approve"
    assert "9 of 9 required guards pass" in text
    assert 'instar approve c2-abc123 --key KEY --reason "…"' in text
    assert "right on 100.0% of the rows since the change (n=800)" in text


def test_it_offers_no_signature_over_a_no(shop: Any, bench: Any, verdicts: Any) -> None:
    case = shop.case(gate=shop.gate(wrong={bench.CANDIDATE: bench.first(400, 800)}))
    made = report.make(case, verdicts(case), WIDER, LAYERS)
    text = words(page.render(made))
    assert made.recommendation == "reject"
    assert made.commands == ()
    assert "instar approve" not in text
    assert "nobody can approve" in text


@pytest.mark.parametrize(
    ("loudest", "others"),
    [
        (said("a", Finding.FAIL, 0.1), [said("b", Finding.INCONCLUSIVE), said("c", Finding.PASS, 0.9)]),
        (said("a", Finding.INCONCLUSIVE), [said("b", Finding.PASS, 0.99)]),
        (said("a", Finding.PASS, 0.6), [said("b", Finding.PASS, 0.5), said("c", Finding.PASS)]),
    ],
)
def test_the_strongest_argument_is_the_loudest(loudest: Verdict, others: list[Verdict]) -> None:
    for order in ([loudest, *others], [*others, loudest]):
        assert report.strongest_against(order).guard == "a"


@pytest.mark.parametrize("founding", [False, True])
def test_the_page_can_do_nothing(founding: bool, shop: Any, verdicts: Any) -> None:
    case = shop.case(founding=founding)
    html = page.render(report.make(case, verdicts(case), WIDER, [] if founding else LAYERS)).decode()
    assert f'content="{page.CSP}"'.replace("'", "&#39;") in html
    assert "<script" not in html
    assert not re.search(r"\son\w+=", html)
    assert not re.search(r"(src|href)\s*=", html)
    assert "url(" not in html
    assert "@import" not in html
    assert len(html) < 2_000_000


def test_texts_of_others_cannot_become_markup(shop: Any) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x>"
    case = shop.case()
    trigger = case.trigger.model_copy(update={"reason": evil})
    search = case.search.model_copy(update={"versions": {evil: evil}})
    task = case.task.model_copy(update={"classes": (evil, "b", "c", "d")})
    case = case.model_copy(update={"trigger": trigger, "search": search, "task": task})
    slices = Verdict(
        guard="slices",
        clause="MP-5.9",
        finding=Finding.FAIL,
        reason=evil,
        evidence=(
            Evidence(name=f"class {evil} difference", value=0.0, unit=evil, n=9, interval=(-0.1, 0.1)),
            Evidence(name=evil, value=1.0, unit=evil, n=1),
        ),
    )
    html = page.render(report.make(case, (slices,), LAYERS, LAYERS)).decode()
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;") >= 6


def test_the_demo_key_is_announced(shop: Any, verdicts: Any) -> None:
    for demo in (True, False):
        case = shop.case(demo_key=demo)
        html = page.render(report.make(case, verdicts(case), LAYERS, LAYERS))
        assert (b"DEMO KEY" in html) is demo


def test_the_page_is_made_of_the_json_twin_alone(shop: Any, verdicts: Any) -> None:
    case = shop.case()
    made = report.make(case, verdicts(case), WIDER, LAYERS)
    again = report.Report.model_validate_json(canonical(made))
    assert again == made
    assert page.render(again) == page.render(made)


def test_the_page_shows_what_changed(shop: Any, verdicts: Any) -> None:
    case = shop.case()
    made = report.make(case, verdicts(case), WIDER, LAYERS)
    assert made.genes == ("gene 2: 1 → 2", "gene 3: 0 → 1")
    assert [row.change for row in made.layers] == ["changed", "changed", "added"]
    text = words(page.render(made))
    assert "2 genes of 4 differ from the incumbent" in text
    assert "Conv 5×5 1→12, stride 2" in text


def test_the_page_shows_every_class_and_every_digest(shop: Any, verdicts: Any) -> None:
    case = shop.case()
    made = report.make(case, verdicts(case), WIDER, LAYERS)
    html = page.render(made).decode()
    assert [row.name for row in made.slices] == list(case.task.classes)
    files = (case.bundle, case.incumbent, case.baseline, case.gate, case.traffic)
    for digest in (*(f.digest for f in files if f is not None), case.policy_digest):
        assert digest in html


def test_the_page_stands_without_points_layers_or_evidence(shop: Any) -> None:
    case = shop.case()
    case = case.model_copy(update={"search": case.search.model_copy(update={"points": ()})})
    silent = tuple(said(name, Finding.INCONCLUSIVE) for name in BUILTIN)
    text = words(page.render(report.make(case, silent, [], [])))
    assert "Not measured" in text
    assert "handed no points over" in text


def test_runners_up_were_measured_and_did_not_win(shop: Any) -> None:
    found = report.runners_up(shop.case())
    assert [round(p.accuracy, 2) for p in found] == [0.91, 0.89, 0.87, 0.85, 0.83]
    assert all(p.measured and p.genome != shop.genome for p in found)


def test_charts_hold_degenerate_numbers() -> None:
    low, high = span([0.5])
    assert low < 0.5 < high
    assert ticks(low, high)
    assert front([]) == []
