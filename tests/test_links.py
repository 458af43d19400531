"""The links between our documents hold, and the checker that says so finds those that do not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKER = ROOT / "docs/check_links.py"


def check(*arguments: str) -> tuple[int, str]:
    found = subprocess.run(
        [sys.executable, str(CHECKER), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.stderr == ""
    return found.returncode, found.stdout


def test_every_link_in_the_documents_leads_somewhere() -> None:
    assert check() == (0, "")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[a](b.md)", None),
        ("[a](b.md#the-word-it)", None),
        ("[a](#here)\n# Here", None),
        ("[a](https://example.org/none) and <mailto:a@b>", None),
        ("`[a](none.md)`\n```\n[a](none.md)\n```", None),
        ("[`a`](none.md)", "expected a file, there is none at none.md"),
        ("![a](none.png)", "expected a file, there is none at none.png"),
        ("[a](b.md#none)", "expected a heading for #none in b.md, there is none"),
        ("[a][1]\n\n[1]: none.md", "expected a file, there is none at none.md"),
        ('<a href="none.md">a</a>', "expected a file, there is none at none.md"),
        ("[a](/etc/hostname)", "expected a link inside the repository, got /etc/hostname"),
        ("[a](../a.md)", "expected a link inside the repository, got ../a.md"),
    ],
)
def test_a_link_is_followed(line: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"{line}\n")
    (tmp_path / "b.md").write_text("## The *word* `it`\n")
    number = 1 + line[: line.find("none.md")].count("\n") if fault else 0
    expected = (1, f"a.md:{number}: {fault}\n") if fault else (0, "")
    assert check(str(tmp_path)) == expected


def test_the_checkers_own_examples_hold() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "doctest", str(CHECKER)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")
