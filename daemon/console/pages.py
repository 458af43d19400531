"""The pages and the JSON twin of them, for instard's TCP listener; only labels and telemetry come in there.

Called by ``daemon.compose``, which hands in a ``View`` and what takes labels.

* Read-only: what changes the world goes over the UNIX socket, never here.
* A label comes from a machine. A browser always says where a POST comes from (``Origin``), so a POST with an
  origin is refused: a page elsewhere, or a name rebound to this host, cannot teach us anything.
* Server-rendered, no script, no asset from elsewhere; a strict content security policy on every answer.
* A report is shown in a sandbox of its own: it is made of what guards measured, not of what we trust.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import jinja2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.console import words
from daemon.console.health import diagnose
from daemon.console.labels import OnLabels, take_labels
from policies.errors import TamperError
from policies.lifecycle import OPEN, Stage
from policies.status import CandidateView, Status

_TEMPLATES = Path(__file__).with_name("templates")
_PAGE = 100
_MAX_PAGE = 1000
_MAX_OF_A_KIND = 10_000
_LATEST = 12
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_REPORT_HEADERS = _HEADERS | {
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; sandbox"
    ),
}

ROAD = (
    Stage.PROPOSED,
    Stage.EXPORTED,
    Stage.CLEARED,
    Stage.APPROVED,
    Stage.STAGED,
    Stage.PROBATION,
    Stage.LIVE,
)
"""The road that a page draws; ends beside it are told in words."""

Handler = Callable[[Request], Response | Awaitable[Response]]


class View(Protocol):
    """What the pages may see; control's views fit it."""

    def status(self) -> Status:
        """Return the state of the task."""
        ...

    def candidates(self) -> list[CandidateView]:
        """Return every candidate, the latest first."""
        ...

    def history(self, after: int, limit: int, kind: str | None) -> list[dict[str, Any]]:
        """Return up to ``limit`` journal entries after a sequence number, in order."""
        ...

    def report(self, candidate_id: str) -> bytes | None:
        """Return a candidate's report, checked against its digest, or None when there is none."""
        ...

    def metrics(self) -> tuple[bytes, str]:
        """Return Prometheus' text and its content type."""
        ...


class Pages:
    """One handler a page; plain functions run in Starlette's threads, for a view may wait for a turn."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {"words": words, "road": [stage.value for stage in ROAD]}
        self._style = (_TEMPLATES / "style.css").read_bytes()

    def overview(self, _request: Request) -> Response:
        """Show how the task stands."""
        status = self._view.status()
        latest = self._view.history(max(0, status.journal_entries - _LATEST), _LATEST, None)
        return self._page("overview.html", status, latest=latest[::-1], road_at=_place(status.open_candidate))

    def candidates(self, _request: Request) -> Response:
        """Show every candidate."""
        return self._page("candidates.html", self._view.status(), candidates=self._view.candidates())

    def candidate(self, request: Request) -> Response:
        """Show one candidate."""
        found = self._find(request.path_params["name"])
        if found is None:
            return self._missing(request)
        still_open = found.stage in {stage.value for stage in OPEN}
        return self._page(
            "candidate.html",
            self._view.status(),
            candidate=found,
            road_at=_place(found),
            still_open=still_open,
        )

    def report(self, request: Request) -> Response:
        """Show the report that a person signs, as the guards wrote it."""
        found = self._find(request.path_params["name"])
        try:
            raw = None if found is None else self._view.report(found.id)
        except TamperError as error:
            return self._refusal(500, f"The report on disk is not the one that the dossier names: {error}")
        if raw is None:
            return self._missing(request)
        return Response(raw, headers=_REPORT_HEADERS, media_type="text/html; charset=utf-8")

    def history(self, request: Request) -> Response:
        """Show a stretch of the journal, the latest entry first; of one kind, its latest entries."""
        status = self._view.status()
        kind = request.query_params.get("kind") or None
        if kind is not None:
            entries = self._view.history(0, _MAX_OF_A_KIND, kind)[-_PAGE:]
            return self._page(
                "history.html", status, entries=entries[::-1], kind=kind, older=None, newer=None
            )
        last = max(0, status.journal_entries - _PAGE)
        after = _whole(request, "after", last)
        if after is None:
            return self._refusal(400, "Expected a whole number for after.")
        entries = self._view.history(after, _PAGE, None)
        older = max(0, after - _PAGE) if after else None
        newer = after + _PAGE if after + _PAGE < status.journal_entries else None
        return self._page("history.html", status, entries=entries[::-1], kind=None, older=older, newer=newer)

    def metrics(self, _request: Request) -> Response:
        """Give Prometheus its numbers."""
        raw, kind = self._view.metrics()
        return Response(raw, headers=_HEADERS | {"Content-Type": kind})

    def health(self, _request: Request) -> Response:
        """Say that control answers; whether the task is well is in the body, not in the code."""
        return JSONResponse({"health": diagnose(self._view.status()).health.value}, headers=_HEADERS)

    def style(self, _request: Request) -> Response:
        """Give the one style sheet."""
        headers = _HEADERS | {"Cache-Control": "max-age=300"}
        return Response(self._style, headers=headers, media_type="text/css; charset=utf-8")

    def api_status(self, _request: Request) -> Response:
        """Return the status as JSON."""
        return JSONResponse(self._view.status().model_dump(mode="json"), headers=_HEADERS)

    def api_candidates(self, _request: Request) -> Response:
        """Return all candidates as JSON."""
        found = [view.model_dump(mode="json") for view in self._view.candidates()]
        return JSONResponse(found, headers=_HEADERS)

    def api_history(self, request: Request) -> Response:
        """Return a stretch of the journal as JSON, in order."""
        after, limit = _whole(request, "after", 0), _whole(request, "limit", _PAGE)
        if after is None or limit is None or not 1 <= limit <= _MAX_PAGE:
            sentence = f"expected whole numbers: after >= 0 and limit in 1..{_MAX_PAGE}"
            return JSONResponse({"error": sentence}, status_code=400, headers=_HEADERS)
        found = self._view.history(after, limit, request.query_params.get("kind") or None)
        return JSONResponse(found, headers=_HEADERS)

    def _find(self, name: str) -> CandidateView | None:
        return next((view for view in self._view.candidates() if view.id == name), None)

    def _page(self, template: str, status: Status, code: int = 200, **facts: Any) -> Response:
        text = self._templates.get_template(template).render(
            status=status, diagnosis=diagnose(status), now=status.at, **facts
        )
        return Response(text, code, headers=_HEADERS, media_type="text/html; charset=utf-8")

    def _missing(self, request: Request) -> Response:
        return self._refusal(404, f"There is no such page for candidate {request.path_params['name']}.")

    def _refusal(self, code: int, sentence: str) -> Response:
        return self._page("refusal.html", self._view.status(), code, sentence=sentence)


def pages(view: View, on_labels: OnLabels) -> list[Route]:
    """Return the routes of the TCP listener.

    Args:
        view: What the pages may see; called from several threads.
        on_labels: Takes ``(task, [(request id, class name or index), ...])`` and returns how many it took;
            raises KeyError for an unknown task and ValueError for an unknown class.
    """
    made = Pages(view)

    async def labels(request: Request) -> Response:
        code, answer = await take_labels(request, on_labels)
        return JSONResponse(answer, status_code=code, headers=_HEADERS)

    return [
        Route("/", made.overview),
        Route("/candidates", made.candidates),
        Route("/candidates/{name}", made.candidate),
        Route("/candidates/{name}/report", made.report),
        Route("/history", made.history),
        Route("/metrics", made.metrics),
        Route("/healthz", made.health),
        Route("/style.css", made.style),
        Route("/api/v1/status", made.api_status),
        Route("/api/v1/candidates", made.api_candidates),
        Route("/api/v1/history", made.api_history),
        Route("/api/v1/tasks/{task}/labels", labels, methods=["POST"]),
    ]


def _place(view: CandidateView | None) -> int | None:
    """Return how far along the drawn road a candidate is; None when it left it."""
    names = [stage.value for stage in ROAD]
    return names.index(view.stage) if view is not None and view.stage in names else None


def _whole(request: Request, name: str, default: int) -> int | None:
    """Return a query parameter as a whole number >= 0; None when it is something else."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None
