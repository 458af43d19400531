"""Labels that come in over HTTP: read within bounds, checked whole, handed on; all or nothing.

* A body is read up to its bound and not a byte further, whatever its length header says.
* Every refusal is a sentence and a 4xx; nothing of a refused body is taken.
* A browser is refused: see ``pages``.

What a label means is for whoever takes it.
"""

import json
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from policies.errors import TemporaryError

MAX_BODY_BYTES = 1_000_000
MAX_LABELS = 10_000
MAX_TEXT = 256

Label = tuple[str, int | str]
OnLabels = Callable[[str, list[Label]], int]


async def take_labels(request: Request, on_labels: OnLabels) -> tuple[int, dict[str, Any]]:
    """Return the HTTP code and the JSON answer for a request that brings labels."""
    if "origin" in request.headers:
        return 403, {"error": "expected labels from a machine, got a request from a web page"}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return 415, {"error": f"expected content-type application/json, got {kind or 'none'}"}
    raw = await _bounded(request)
    if raw is None:
        return 413, {"error": f"expected a body of at most {MAX_BODY_BYTES} bytes; send fewer labels at once"}
    try:
        labels = parse(raw)
    except ValueError as error:
        return 400, {"error": str(error)}
    task = request.path_params["task"]
    try:
        return 200, {"accepted": await run_in_threadpool(on_labels, task, labels)}
    except KeyError:
        return 404, {"error": f"expected the name of a task that is kept here, got {task!r}"}
    except ValueError as error:
        return 422, {"error": str(error)}
    except TemporaryError as error:
        return 503, {"error": str(error)}


async def _bounded(request: Request) -> bytes | None:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            return None
    return bytes(raw)


def parse(raw: bytes) -> list[Label]:
    """Return the labels of a body.

    Raises:
        ValueError: With a sentence that names the place.

    >>> parse(b'{"labels":[{"id":"r-1","label":7},{"id":"r-2","label":"seven"}]}')
    [('r-1', 7), ('r-2', 'seven')]
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object, got {error}") from error
    if not isinstance(body, dict) or set(body) != {"labels"} or not isinstance(body["labels"], list):
        raise ValueError('expected {"labels": [{"id": …, "label": …}, …]} and nothing else')
    items = body["labels"]
    if not 1 <= len(items) <= MAX_LABELS:
        raise ValueError(f"expected 1 to {MAX_LABELS} labels, got {len(items)}")
    return [_label(item, place) for place, item in enumerate(items)]


def _label(item: Any, place: int) -> Label:
    where = f"labels[{place}]"
    if not isinstance(item, dict) or set(item) != {"id", "label"}:
        raise ValueError(f"expected {where} to be an object with id and label and nothing else")
    name, label = item["id"], item["label"]
    if not isinstance(name, str) or not 0 < len(name) <= MAX_TEXT or not name.isprintable():
        raise ValueError(f"expected {where}.id to be a printable text of 1 to {MAX_TEXT} characters")
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise ValueError(
            f"expected {where}.label to be a class name or its index, got {type(label).__name__}"
        )
    if isinstance(label, int) and not 0 <= label < 2**31:
        raise ValueError(f"expected {where}.label to be an index >= 0, got {label}")
    if isinstance(label, str) and not 0 < len(label) <= MAX_TEXT:
        raise ValueError(f"expected {where}.label to be a text of 1 to {MAX_TEXT} characters")
    return name, label
