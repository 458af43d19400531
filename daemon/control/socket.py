"""Control's own door: JSON over a UNIX socket that only the operator's group can open.

Every change of the world that a person asks for comes in here; the TCP listener has none of them. Domain
errors become HTTP codes here and nowhere else.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.control.law import Law
from daemon.control.operators import Operators
from daemon.control.turn import Turn
from daemon.control.views import Views
from policies.errors import IllegalMove, InstarError, PermanentError, PolicyError, TamperError, TemporaryError

_MAX_BODY = 1_000_000
_CODES: tuple[tuple[type[InstarError], int], ...] = (
    (TamperError, 403),
    (PolicyError, 422),
    (IllegalMove, 409),
    (TemporaryError, 503),
    (PermanentError, 409),
)

T = TypeVar("T")


def app(views: Views, operators: Operators, law: Law, turn: Turn) -> Starlette:
    """Return the socket's application.

    Whatever waits for a turn waits in a thread: the event loop has labels, pages and signals to look after.
    """

    async def ordered(order: Callable[[], T]) -> T:
        def act() -> T:
            with turn.lock:
                if turn.journal_valid is False:
                    raise TamperError("expected a journal that verifies; run instar audit verify")
                return order()

        return await run_in_threadpool(act)

    def status(_request: Request) -> Response:
        return JSONResponse(views.status().model_dump(mode="json"))

    def candidates(_request: Request) -> Response:
        return JSONResponse([view.model_dump(mode="json") for view in views.candidates()])

    def candidate(request: Request) -> Response:
        with turn.lock:
            found = operators.find(request.path_params["name"])
            subject = operators.subject(found)
            return JSONResponse(
                {
                    "candidate": views.candidate(found).model_dump(mode="json"),
                    "subject": None if subject is None else subject.model_dump(mode="json"),
                }
            )

    async def approval(request: Request) -> Response:
        body = await _body(request, {"approval": str, "signature": str})
        name, raw, signature = request.path_params["name"], body["approval"].encode(), body["signature"]
        seq, state = await ordered(lambda: operators.approve(name, raw, signature))
        return JSONResponse({"seq": seq, "state": state})

    async def freeze(request: Request) -> Response:
        body = await _body(request, {"by": str, "reason": str})
        return JSONResponse({"seq": await ordered(lambda: operators.freeze(body["by"], body["reason"]))})

    async def thaw(request: Request) -> Response:
        body = await _body(request, {"by": str, "reason": str})
        return JSONResponse({"seq": await ordered(lambda: operators.thaw(body["by"], body["reason"]))})

    async def rollback(request: Request) -> Response:
        body = await _body(request, {"by": str, "reason": str}, {"to": int})
        by, reason, to = body["by"], body["reason"], body.get("to")
        return JSONResponse({"seq": await ordered(lambda: operators.rollback(by, reason, to))})

    def reload(_request: Request) -> Response:
        with turn.lock:
            law.reload()
            return JSONResponse({"digest": law.digest, "version": law.policy.version})

    def history(request: Request) -> Response:
        query = request.query_params
        try:
            after, limit = int(query.get("after", "0")), int(query.get("limit", "1000"))
        except ValueError as error:
            raise PolicyError(f"expected whole numbers after and limit, got {error}") from error
        return JSONResponse(views.history(after, min(max(limit, 1), 10_000), query.get("kind")))

    return Starlette(
        routes=[
            Route("/v1/status", status),
            Route("/v1/candidates", candidates),
            Route("/v1/candidates/{name}", candidate),
            Route("/v1/candidates/{name}/approval", approval, methods=["POST"]),
            Route("/v1/freeze", freeze, methods=["POST"]),
            Route("/v1/thaw", thaw, methods=["POST"]),
            Route("/v1/rollback", rollback, methods=["POST"]),
            Route("/v1/policy/reload", reload, methods=["POST"]),
            Route("/v1/history", history),
        ],
        exception_handlers={InstarError: _answer},
    )


async def _answer(_request: Request, error: Exception) -> Response:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), 500)
    return JSONResponse({"error": str(error)}, status_code=code)


async def _body(
    request: Request, required: dict[str, type], optional: dict[str, type] | None = None
) -> dict[str, Any]:
    """Return a JSON object with exactly the expected keys.

    Raises:
        PolicyError: It is something else.
    """
    raw = await request.body()
    if len(raw) > _MAX_BODY:
        raise PolicyError(f"expected at most {_MAX_BODY} bytes, got {len(raw)}")
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise PolicyError(f"expected a JSON object, got {error}") from error
    known = required | (optional or {})
    if not isinstance(body, dict) or set(body) - set(known) or set(required) - set(body):
        got = ", ".join(sorted(body)) if isinstance(body, dict) else type(body).__name__
        raise PolicyError(f"expected a JSON object with {', '.join(sorted(known))}, got {got}")
    for key, value in body.items():
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise PolicyError(f"expected {key} to be {known[key].__name__}, got {type(value).__name__}")
    if "reason" in required and len(body["reason"].strip()) < 10:
        raise PolicyError("expected a reason of at least 10 characters: the journal keeps it")
    return body
