#!/usr/bin/env python3
"""Check the links between our documents: every relative one leads to a file, every anchor to a heading.

* Reads all ``*.md`` below a folder but the hidden ones; code is no prose and is left out.
* An anchor is what GitHub makes of a heading, or an ``id`` written in HTML.
* Says ``file:line`` of each link that leads nowhere, and exits 1.

Does not follow links to other hosts: those break without us.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_LINK = re.compile(
    r"""\]\(\s*<?([^)\s>]+)>?(?:\s+["'(][^)]*)?\)|^\s*\[[^\]]+\]:\s*(\S+)|\b(?:href|src)=["']([^"']+)"""
)
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_ID = re.compile(r"""<[a-z]+[^>]*\b(?:id|name)=["']([^"']+)""")
_FENCE = re.compile(r"^\s*(```+|~~~+)")
_ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines that are not in a fenced block.

    >>> list(prose("a\\n```\\n[x](y)\\n```\\nb"))
    [(1, 'a'), (5, 'b')]
    """
    fence = ""
    for number, line in enumerate(text.splitlines(), start=1):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        elif not fence:
            yield number, line


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading.

    >>> slug("When does it `search`?"), slug("A [link](b.md), too")
    ('when-does-it-search', 'a-link-too')
    """
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return all anchors of a document; a heading that comes again gets a number.

    >>> sorted(anchors("# A\\n# A\\n<a id='b'></a>"))
    ['a', 'a-1', 'b']
    """
    found: dict[str, int] = {}
    names: set[str] = set()
    for _, line in prose(text):
        names.update(_ID.findall(line))
        if heading := _HEADING.match(line):
            name = slug(heading[1])
            count = found[name] = found.get(name, -1) + 1
            names.add(f"{name}-{count}" if count else name)
    return names


def links(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the target of every link that stays on this disk.

    >>> list(links("[a](b.md#c) `[x](y)` [d](https://e.org)"))
    [(1, 'b.md#c')]
    """
    for number, line in prose(text):
        for found in _LINK.findall(re.sub(r"`[^`]*`", "", line)):
            target = next(part for part in found if part)
            if not _ELSEWHERE.match(target):
                yield number, unquote(target)


def faults(root: Path) -> Iterator[str]:
    """Yield a sentence for every link below ``root`` that leads nowhere."""
    files = [
        p for p in sorted(root.rglob("*.md")) if not any(q.startswith(".") for q in p.relative_to(root).parts)
    ]
    for file in files:
        for number, target in links(file.read_text(encoding="utf-8")):
            place = f"{file.relative_to(root)}:{number}"
            path, _, anchor = target.partition("#")
            goal = (file.parent / path).resolve() if path else file
            if path.startswith("/") or not goal.is_relative_to(root):
                yield f"{place}: expected a link inside the repository, got {target}"
            elif not goal.exists():
                yield f"{place}: expected a file, there is none at {target}"
            elif anchor and goal.suffix == ".md" and anchor not in anchors(goal.read_text(encoding="utf-8")):
                yield f"{place}: expected a heading for #{anchor} in {goal.relative_to(root)}, there is none"


def main(arguments: list[str]) -> int:
    """Check a folder, by default the repository that this file lies in; return the exit code."""
    root = Path(arguments[0]) if arguments else Path(__file__).parent.parent
    found = list(faults(root.resolve()))
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
