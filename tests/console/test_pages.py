"""The pages: what they show, what they never execute, and what they refuse."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from daemon.console.labels import MAX_BODY_BYTES, MAX_LABELS
from daemon.console.pages import pages
from policies.errors import TamperError, TemporaryError
from policies.status import CandidateView, Status

Labels = list[tuple[str, int | str]]
URL = "/api/v1/tasks/meter-reader/labels"
EVIL = "<script>alert(1)</script>"


class FakeView:
    """What the pages may see, set by a test."""

    def __init__(
        self, status: Status, candidates: list[CandidateView], entries: list[dict[str, Any]]
    ) -> None:
        self._status = status
        self._candidates = candidates
        self._entries = entries
        self.reports: dict[str, bytes] = {}
        self.tampered = False

    def status(self) -> Status:
        return self._status

    def candidates(self) -> list[CandidateView]:
        return self._candidates

    def history(self, after: int, limit: int, kind: str | None) -> list[dict[str, Any]]:
        found = [e for e in self._entries if e["seq"] > after and kind in (None, e["kind"])]
        return found[:limit]

    def report(self, candidate_id: str) -> bytes | None:
        if self.tampered:
            raise TamperError("expected sha256:aa, got sha256:bb")
        return self.reports.get(candidate_id)

    def metrics(self) -> tuple[bytes, str]:
        return b"instar_frozen 0\n", "text/plain; version=0.0.4; charset=utf-8"


class Site:
    """The pages of one view, asked without a network."""

    def __init__(self, view: FakeView) -> None:
        self.view = view
        self.taken: list[tuple[str, Labels]] = []
        self.app = Starlette(routes=pages(view, self.take))
        self.take_with: Callable[[str, Labels], int] = lambda _task, labels: len(labels)

    def take(self, task: str, labels: Labels) -> int:
        accepted = self.take_with(task, labels)
        self.taken.append((task, labels))
        return accepted

    def ask(self, method: str, path: str, **parts: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8090") as http:
                return await http.request(method, path, **parts)

        return asyncio.run(run())

    def get(self, path: str) -> httpx.Response:
        return self.ask("GET", path)

    def post(self, body: Any, path: str = URL, **headers: str) -> httpx.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, content=raw, headers={"content-type": "application/json"} | headers)


@pytest.fixture
def site(made: Any) -> Site:
    view = FakeView(
        made.busy_status(), [made.candidate(), made.candidate("founding-1", "LIVE")], made.entries(61)
    )
    return Site(view)


PAGES = ["/", "/candidates", "/candidates/adapt-1800000000", "/history", "/candidates/nobody"]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_wears_the_demo_banner_and_a_strict_policy(site: Site, made: Any, path: str) -> None:
    seen = site.get(path)
    assert "DEMO KEY" in seen.text
    policy = seen.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe-inline" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "<script" not in seen.text
    assert " style=" not in seen.text
    site.view._status = made.status()
    assert "DEMO KEY" not in site.get(path).text


@pytest.mark.parametrize("path", PAGES)
def test_pages_take_nothing_from_elsewhere(site: Site, path: str) -> None:
    text = site.get(path).text
    assert "http://" not in text
    assert "https://" not in text
    assert "//" not in text.replace("<!doctype html>", "")


def test_overview_says_what_is_served_what_waits_and_the_remedy(site: Site) -> None:
    text = site.get("/").text
    assert "Generation 1 serves" in text
    assert "degraded" in text
    assert "candidate adapt-1800000000 waits for approval" in text
    assert "instar approve adapt-1800000000 --key KEY" in text
    assert 'http-equiv="refresh"' in text
    assert "2.31" in text
    assert "chain verified" in text


def test_overview_of_a_calm_task_has_nothing_waiting(site: Site, made: Any) -> None:
    site.view._status = made.status()
    text = site.get("/").text
    assert 'class="hero ok"' in text
    assert "What waits" not in text


def test_a_frozen_task_says_so_on_every_page(site: Site, made: Any) -> None:
    site.view._status = made.frozen_status()
    for path in PAGES:
        assert "FROZEN" in site.get(path).text


def test_a_candidate_shows_verdicts_evidence_digests_and_commands(site: Site, made: Any) -> None:
    text = site.get("/candidates/adapt-1800000000").text
    assert "difference 0.113 [0.094, 1], limit -0.03 (n=1,012)" in text
    assert made.digest_of("dossier") in text
    assert "instar decline adapt-1800000000" in text
    assert 'aria-current="step"' in text


def test_markup_in_what_others_wrote_is_shown_and_not_run(site: Site, made: Any) -> None:
    evil = made.candidate("evil", reason=EVIL)
    site.view._candidates = [evil]
    site.view._status = made.busy_status(open_candidate=evil, serving=EVIL, trust=EVIL, policy_problem=EVIL)
    site.view._entries = [
        {"seq": 61, "at": 1.0, "kind": EVIL, "body": {EVIL: EVIL}, "prev": "", "digest": ""}
    ]
    for path in [
        "/",
        "/candidates",
        "/candidates/evil",
        "/history",
        f"/history?kind={EVIL}",
        "/candidates/<script>",
    ]:
        text = site.get(path).text
        assert "<script" not in text, path
        assert "&lt;script&gt;" in text, path


def test_without_autoescape_the_test_above_would_fail(site: Site, made: Any) -> None:
    made_pages = site.app.routes[0].endpoint.__self__  # type: ignore[attr-defined]
    made_pages._templates.autoescape = False
    site.view._candidates = [made.candidate("evil", reason=EVIL)]
    assert "<script" in site.get("/candidates").text


def test_a_report_is_shown_in_a_sandbox_of_its_own(site: Site) -> None:
    site.view.reports["adapt-1800000000"] = b"<!doctype html><h1>Report</h1>"
    seen = site.get("/candidates/adapt-1800000000/report")
    assert seen.status_code == 200
    assert seen.content == b"<!doctype html><h1>Report</h1>"
    policy = seen.headers["content-security-policy"].split("; ")
    assert "sandbox" in policy
    assert "default-src 'none'" in policy
    assert seen.headers["x-content-type-options"] == "nosniff"


def test_a_report_that_is_missing_is_404_and_a_tampered_one_500(site: Site) -> None:
    assert site.get("/candidates/adapt-1800000000/report").status_code == 404
    assert site.get("/candidates/nobody/report").status_code == 404
    site.view.tampered = True
    seen = site.get("/candidates/adapt-1800000000/report")
    assert seen.status_code == 500
    assert "not the one that the dossier names" in seen.text


def test_history_goes_back_and_forth_without_losing_an_entry(site: Site, made: Any) -> None:
    site.view._entries = made.entries(250)
    site.view._status = made.status(journal_entries=250)
    seen: set[int] = set()
    path: str | None = "/history"
    while path is not None:
        text = site.get(path).text
        seen |= {seq for seq in range(1, 251) if f'id="seq-{seq}"' in text}
        older = text.partition('">older</a>')[0].rpartition('href="')[2]
        path = older if '">older</a>' in text else None
    assert seen == set(range(1, 251))
    assert "newer" in site.get("/history?after=0").text
    assert "newer" not in site.get("/history").text


def test_history_of_a_kind_shows_only_that_kind(site: Site) -> None:
    text = site.get("/history?kind=candidate.moved").text
    assert 'id="seq-60"' in text
    assert 'id="seq-61"' not in text


@pytest.mark.parametrize("after", ["-1", "x", "1e3", "9" * 40, "١"])
def test_history_refuses_what_is_no_whole_number(site: Site, after: str) -> None:
    assert site.get(f"/history?after={after}").status_code == 400
    assert site.get(f"/api/v1/history?after={after}").status_code == 400
    assert site.get(f"/api/v1/history?limit={after}").status_code == 400


def test_the_json_twins_are_the_terms(site: Site) -> None:
    assert Status.model_validate_json(site.get("/api/v1/status").content) == site.view.status()
    assert [c["id"] for c in site.get("/api/v1/candidates").json()] == ["adapt-1800000000", "founding-1"]
    found = site.get("/api/v1/history?after=58&limit=2").json()
    assert [entry["seq"] for entry in found] == [59, 60]
    assert site.get("/api/v1/history?limit=0").status_code == 400
    assert site.get("/healthz").json() == {"health": "degraded"}


def test_metrics_keep_their_content_type(site: Site) -> None:
    seen = site.get("/metrics")
    assert seen.content == b"instar_frozen 0\n"
    assert seen.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/candidates", "/history", "/api/v1/status", "/candidates/x/approval"])
def test_nothing_but_labels_can_be_posted(site: Site, path: str) -> None:
    assert site.post({"labels": []}, path).status_code in {404, 405}
    assert site.taken == []


def test_labels_are_taken_by_name_and_by_index(site: Site) -> None:
    seen = site.post({"labels": [{"id": "r-1", "label": 7}, {"id": "r-2", "label": "seven"}]})
    assert (seen.status_code, seen.json()) == (200, {"accepted": 2})
    assert site.taken == [("meter-reader", [("r-1", 7), ("r-2", "seven")])]


def item(**changes: Any) -> dict[str, Any]:
    return {"labels": [{"id": "r-1", "label": 7} | changes]}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "JSON object"),
        (b"{", "JSON object"),
        (b"\xff\xfe", "JSON object"),
        (b"[" * 100_000, "JSON object"),
        (b"null", "and nothing else"),
        (b"[]", "and nothing else"),
        ({}, "and nothing else"),
        ({"labels": {}}, "and nothing else"),
        ({"labels": [], "task": "x"}, "and nothing else"),
        ({"labels": []}, "1 to 10000"),
        ({"labels": [7]}, "labels[0]"),
        ({"labels": [{"id": "r-1"}]}, "labels[0]"),
        (item(extra=1), "labels[0]"),
        (item(id=7), "labels[0].id"),
        (item(id=""), "labels[0].id"),
        (item(id="x" * 257), "labels[0].id"),
        (item(id="a\x00b"), "labels[0].id"),
        (item(id="\ud800"), "labels[0].id"),
        (item(label=None), "NoneType"),
        (item(label=True), "bool"),
        (item(label=7.0), "float"),
        (item(label=[]), "list"),
        (item(label=-1), "index >= 0"),
        (item(label=2**31), "index >= 0"),
        (item(label=""), "labels[0].label"),
        (b'{"labels":[{"id":"r","label":NaN}]}', "float"),
        (b'{"labels":[{"id":"r","label":' + b"9" * 5000 + b"}]}", "JSON object"),
        ({"labels": [{"id": "r-1", "label": 7}, {"id": "r-2", "label": None}]}, "labels[1]"),
    ],
)
def test_malformed_labels_are_refused_whole_with_the_place(site: Site, body: Any, word: str) -> None:
    seen = site.post(body)
    assert seen.status_code == 400
    assert word in seen.json()["error"]
    assert site.taken == []


def test_a_body_is_read_up_to_its_bound_and_no_further(site: Site) -> None:
    sent = 0

    async def flood() -> Any:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 65_536

    seen = site.ask("POST", URL, content=flood(), headers={"content-type": "application/json"})
    assert seen.status_code == 413
    assert site.taken == []
    padded = json.dumps(item()).encode().ljust(MAX_BODY_BYTES)
    assert site.post(padded).status_code == 200
    assert site.post(padded + b" ").status_code == 413


def test_the_most_labels_fit_and_one_more_does_not(site: Site) -> None:
    most = [{"id": str(n), "label": 1} for n in range(MAX_LABELS)]
    assert site.post({"labels": most}).json() == {"accepted": MAX_LABELS}
    assert site.post({"labels": [*most, most[0]]}).status_code == 400


def test_a_web_page_cannot_teach(site: Site) -> None:
    assert site.post(item(), origin="http://127.0.0.1:8090").status_code == 403
    assert site.post(item(), origin="null").status_code == 403
    form = site.ask("POST", URL, content=json.dumps(item()), headers={"content-type": "text/plain"})
    assert form.status_code == 415
    assert site.taken == []
    assert site.post(item()).status_code == 200


def test_what_the_taker_refuses_becomes_a_clear_code(site: Site) -> None:
    def refuse(error: Exception) -> Callable[[str, Labels], int]:
        def take(_task: str, _labels: Labels) -> int:
            raise error

        return take

    for error, code in [
        (KeyError("x"), 404),
        (ValueError("expected a label among 0, 1"), 422),
        (TemporaryError("the disk is full"), 503),
    ]:
        site.take_with = refuse(error)
        seen = site.post(item())
        assert seen.status_code == code
        assert "expected" in seen.json()["error"] or "disk" in seen.json()["error"]
