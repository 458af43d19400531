"""The house holds: rooms import as they may, files name no machine, modules say what they are."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("daemon", "monitors", "search", "guards", "policies")
SKIPPED = {"__pycache__", "build", "dist", "node_modules"}

# A folder of somebody's machine.
PLACE = re.compile(
    r"(?<![\w.$}~-])/(?:" + "|".join(("home/[a-z]", "root/", "work/[a-z]", "Users/[A-Za-z]")) + ")"
)


def files() -> Iterator[Path]:
    """Yield every file of the tree, but caches, environments and state; git need not be there."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [n for n in folders if n not in SKIPPED and (not n.startswith(".") or n == ".ci")]
        yield from (Path(folder) / name for name in names)


def lint_imports(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    if not program.is_file():
        pytest.skip("import-linter is not installed (extra dev)")
    command = [str(program), "--no-cache", "--config", str(config)]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=folder, env=environment
    )


def test_the_rooms_import_only_what_they_may() -> None:
    found = lint_imports(ROOT, ROOT / "pyproject.toml")
    assert found.returncode == 0, found.stdout
    assert "0 broken" in found.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("policies/law.py", "import guards"),
        ("monitors/eye.py", "import search"),
        ("guards/judge.py", "import torch"),
        ("policies/sum.py", "import numpy"),
        ("daemon/serving/door.py", "import daemon.store"),
        ("daemon/work.py", "import search"),
    ],
)
def test_an_import_that_breaks_the_house_is_found(module: str, line: str, tmp_path: Path) -> None:
    """A doll's house with the same contracts, and one forbidden import in it."""
    packages = [*ROOMS, "daemon/serving", "daemon/control", "daemon/store", "daemon/console"]
    for package in packages:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / module).write_text(f"{line}\n")
    found = lint_imports(tmp_path, tmp_path / "pyproject.toml")
    assert found.returncode == 1, found.stdout
    assert module.removesuffix(".py").replace("/", ".") in found.stdout


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    found = []
    for path in files():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
            if PLACE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


@pytest.mark.parametrize(
    ("before", "first", "after", "named"),
    [
        ("state = '", "home", "/ann/instar'", True),
        ("see ", "work", "/main", True),
        ("nothing under `", "home", "` is seen", False),
        ("url = 'http://localhost", "work", "/x'", False),
        ("", "var", "/lib/instar", False),
    ],
)
def test_a_folder_of_a_machine_is_told_from_other_paths(
    before: str, first: str, after: str, named: bool
) -> None:
    assert bool(PLACE.search(f"{before}/{first}{after}")) is named


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_says_what_it_is(room: str) -> None:
    modules = [p for p in sorted((ROOT / room).rglob("*.py")) if "__pycache__" not in p.parts]
    assert modules
    silent = [str(p.relative_to(ROOT)) for p in modules if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    wanted = {
        re.split(r"[^\w.-]", text, maxsplit=1)[0].lower().replace("_", "-")
        for text in requires("instar") or ()
    }
    assert "torch" in wanted
    assert wanted - pinned == set()
    assert all(re.fullmatch(r"(\d+!)?\d[\w.]*", version) for version in pins.values()), (
        "a local build is pinned"
    )
