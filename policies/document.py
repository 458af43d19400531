"""A policy file: TOML that an operator reads, reviews and signs.

* The file is the law byte for byte: its digest is over its bytes, comments and all.
* Every refusal names the key, the clause it stands in, and the line.
* A threshold that is not written is refused; an unknown key too.

It does not check signatures: that is the approval's ground (``guards``).
"""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from policies.clauses import Policy
from policies.errors import PolicyError
from policies.support import unsupported
from policies.terms import Task
from policies.wire import digest_bytes

_TABLE = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\s-]+?)\s*\]\]?")
_KEY = re.compile(r"^\s*([A-Za-z0-9_-]+)\s*=")

Path_ = tuple[str | int, ...]


def _lines(text: str) -> dict[Path_, int]:
    """Return the line of every table header and key of a TOML text (1-based)."""
    found: dict[Path_, int] = {}
    counts: dict[tuple[str, ...], int] = {}
    table: Path_ = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header = _TABLE.match(line)
        if header:
            names = tuple(part.strip() for part in header.group(2).split("."))
            if header.group(1) == "[[":
                counts[names] = counts.get(names, -1) + 1
                table = (*names, counts[names])
            else:
                table = names
            found[table] = number
            continue
        key = _KEY.match(line)
        if key:
            found[(*table, key.group(1))] = number
    return found


def _line_of(path: Path_, lines: dict[Path_, int]) -> int:
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def _clause_of(path: Path_, data: Any) -> str:
    """Return the clause id of the innermost table on the way to ``path``."""
    clause = "no clause"
    for part in path:
        if isinstance(data, dict) and isinstance(data.get("clause"), str):
            clause = data["clause"]
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
    if isinstance(data, dict) and isinstance(data.get("clause"), str):
        clause = data["clause"]
    return clause


def _refusal(where: str, path: Path_, clause: str, line: int, reason: str) -> str:
    key = ".".join(str(part) for part in path) or "the document"
    return f"{where}, line {line}: {key} ({clause}): {reason}"


def parse(text: str, where: str = "policy") -> Policy:
    """Read a policy.

    Args:
        text: The TOML text.
        where: What to call it in a refusal.

    Raises:
        PolicyError: With one line for every key that is missing, unknown, out of bounds or unsupported.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{where}: expected TOML, got {error}") from error
    lines = _lines(text)
    try:
        policy = Policy.model_validate_json(json.dumps(data))
    except ValidationError as error:
        told = []
        for fault in error.errors(include_url=False):
            path: Path_ = tuple(fault["loc"])
            reason = {
                "missing": "missing; a policy must say it, there is no default",
                "extra_forbidden": "unknown key; remove it or correct its name",
            }.get(fault["type"], f"{fault['msg']}, got {fault['input']!r}"[:300])
            told.append(_refusal(where, path, _clause_of(path, data), _line_of(path, lines), reason))
        raise PolicyError("\n".join(told)) from error
    except ValueError as error:  # a TOML date or an infinity has no JSON
        raise PolicyError(f"{where}: expected numbers, texts and tables, got {error}") from error
    faults = [
        _refusal(where, key, clause, _line_of(key, lines), reason)
        for key, clause, reason in [*unsupported(policy), *_doubles(policy)]
    ]
    if faults:
        raise PolicyError("\n".join(faults))
    return policy


def _doubles(policy: Policy) -> list[tuple[tuple[str, ...], str, str]]:
    """Return every clause id that two tables share: a verdict could not cite it."""
    seen: dict[str, tuple[str, ...]] = {}
    found: list[tuple[tuple[str, ...], str, str]] = []

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, list):
            for item in value:
                walk(item, path)
        if not isinstance(value, dict):
            return
        clause = value.get("clause")
        if isinstance(clause, str):
            if clause in seen:
                found.append(((*path, "clause"), clause, f"id already used by {'.'.join(seen[clause])}"))
            seen.setdefault(clause, path)
        for key, item in value.items():
            walk(item, (*path, key))

    walk(policy.model_dump(mode="json"), ())
    return found


def load(path: Path) -> tuple[Policy, str]:
    """Read a policy file and return it with the digest of its bytes.

    Raises:
        PolicyError: The file cannot be read or is refused.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"expected a readable UTF-8 policy file at {path}, got {error}") from error
    return parse(text, str(path)), digest_bytes(raw)


def load_task(path: Path) -> Task:
    """Read a task file.

    Raises:
        PolicyError: The file cannot be read or is refused.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
        return Task.model_validate_json(json.dumps(data))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"expected a readable TOML task file at {path}, got {error}") from error
    except ValidationError as error:
        lines = _lines(text)
        told = [
            _refusal(str(path), tuple(f["loc"]), "task", _line_of(tuple(f["loc"]), lines), f["msg"])
            for f in error.errors(include_url=False)
        ]
        raise PolicyError("\n".join(told)) from error
