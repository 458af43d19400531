"""The Grafana board: built from code, complete, and asking for what exists. Grafana itself never drew it."""

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "monitoring/grafana"
RULES = FOLDER.parent / "rules/instar.rules.yml"
BOARD = json.loads((FOLDER / "instar.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]

Promtool = Callable[..., subprocess.CompletedProcess[str]]


def expressions() -> Iterator[str]:
    for panel in PANELS:
        yield from (target["expr"] for target in panel["targets"])
    yield from (annotation["expr"] for annotation in BOARD["annotations"]["list"])


def metrics(expression: str) -> set[str]:
    return set(re.findall(r"(?<![:\w])instar_\w+", expression))


def test_building_it_gives_the_committed_bytes() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="the extra dev is not installed")
    spec = importlib.util.spec_from_file_location("board", FOLDER / "board.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.text() == (FOLDER / "instar.json").read_text(), "run python monitoring/grafana/board.py"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    assert panel["options"] is not None


def test_nothing_lies_upon_anything_else() -> None:
    assert BOARD["uid"] == "instar"
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_it_asks_only_for_metrics_that_exist(exported: frozenset[str]) -> None:
    named = set().union(*map(metrics, expressions()))
    assert named - exported == set()
    assert metrics("sum(instar_serve_requests_totl)") - exported != set()


def test_every_metric_stands_on_the_board_or_in_an_alert(exported: frozenset[str]) -> None:
    shown = set().union(*map(metrics, expressions())) | metrics(RULES.read_text())
    families = {re.sub(r"_(bucket|sum|count|total|created|info)$", "", name) for name in exported}
    known = {re.sub(r"_(bucket|sum|count|total|info)$", "", name) for name in shown}
    assert families - known == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on this machine")
@pytest.mark.parametrize("slip", [False, True], ids=["the-board", "a-slip"])
def test_prometheus_can_parse_every_expression(slip: bool, promtool: Promtool, tmp_path: Path) -> None:
    """Expressions become recording rules, with Grafana's variables filled in, for promtool parses those."""
    rules = []
    for number, expression in enumerate(expressions()):
        filled = expression.replace("$__rate_interval", "5m").replace("$model", "m")
        assert "$" not in filled
        rules.append({"record": f"board:{number}", "expr": filled + (")" if slip and number == 3 else "")})
    # JSON is YAML.
    (tmp_path / "board.yml").write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    found = promtool("check", "rules", "board.yml", folder=tmp_path)
    assert (found.returncode == 0) is not slip, found.stdout + found.stderr
