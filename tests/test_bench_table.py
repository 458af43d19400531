"""The page of the search benchmarks says what was measured: medians, spreads, verdicts, and what is kept."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.search import table
from benchmarks.search.row import Figure, Row, times


def row(*, met: bool | None = None) -> Row:
    return Row(
        "a step",
        "" if met is None else "<= 3 CPU-ms",
        Figure.of([1.0, 4.0, 2.0]),
        "CPU-ms",
        peers={"a peer": Figure.of([9.0])},
        ratio="4.5 x less than a peer",
        met=met,
        note="a | b",
    )


def kept(*rows: Row) -> dict[str, Any]:
    return {
        "date": "2026-01-01 00:00 UTC",
        "machine": "a machine",
        "versions": {"python": "3.11"},
        "command": "python -m benchmarks.search.table --only step",
        "seeds": [1, 2],
        "quick": False,
        "wall_s": 2.0,
        "cpu_s": 1.0,
        "how": "What it is.\n\n    a command\n\nHow ``it`` is.",
        "rows": [asdict(one) for one in rows],
    }


def test_a_figure_is_the_median_with_its_ends() -> None:
    assert Figure.of([5.0, 1.0, 2.0]) == Figure(2.0, 1.0, 5.0, 3)
    assert str(Figure.of([5.0, 1.0, 2.0])) == "2 (1 to 5)"


def test_a_figure_of_one_value_claims_no_spread() -> None:
    assert str(Figure.of([5.0])) == "5"


def test_what_a_peer_tells_becomes_a_figure() -> None:
    told = {"median": 2.0, "min": 1.0, "max": 3.0, "repeats": 3}
    assert Figure.told(told) == Figure(2.0, 1.0, 3.0, 3)


def test_a_ratio_is_of_the_medians() -> None:
    assert times(Figure.of([9.0]), Figure.of([1.0, 2.0, 40.0]), "less") == "4.5 x less"


@pytest.mark.parametrize(
    ("met", "word"), [(True, "met"), (False, "**missed**"), (None, "")], ids=["met", "missed", "told"]
)
def test_only_a_row_with_a_target_is_judged(met: bool | None, word: str) -> None:
    assert row(met=met).verdict == word


def test_a_row_survives_its_json() -> None:
    one = row(met=True)
    assert Row.read(json.loads(json.dumps(asdict(one)))) == one


def test_a_row_with_another_figure_is_another_row_after_its_json() -> None:
    told = json.loads(json.dumps(asdict(row(met=True))))
    told["ours"]["median"] = 3.0
    assert Row.read(told) != row(met=True)


def test_a_line_has_seven_cells_whatever_stands_in_them() -> None:
    (line,) = table.lines([row(met=False)])
    assert line.replace("\\|", "").count("|") == table.HEAD.splitlines()[0].count("|")
    assert "2 (1 to 4)" in line
    assert "a peer: 9" in line
    assert "missed" in line


def test_the_page_counts_what_was_met_and_what_was_missed() -> None:
    text = table.page({"step": kept(row(met=True), row(met=False), row()), "cold": kept(row(met=True))})
    assert "Of 3 targets 2 are met and 1 missed." in text


def test_the_page_says_of_each_part_how_it_was_measured() -> None:
    text = table.page({"step": kept(row())})
    assert "## step\n\nWhat it is.\n\n```\na command\n```\n\nHow `it` is.\n" in text
    assert "`python -m benchmarks.search.table --only step`; seeds 1, 2" in text


def test_a_quick_run_is_called_one() -> None:
    assert "too little to quote" in table.page({"step": kept(row()) | {"quick": True}})
    assert "too little to quote" not in table.page({"step": kept(row())})


def test_parts_stand_in_the_order_of_the_table_not_in_that_of_their_runs() -> None:
    text = table.page({"memory": kept(row()), "step": kept(row())})
    assert text.index("## step") < text.index("## memory")


def test_a_part_that_is_run_again_leaves_the_others_alone(tmp_path: Path) -> None:
    table.write({"step": kept(row(met=True)), "cold": kept(row())}, tmp_path)
    again = table.read_book(tmp_path) | {"step": kept(row(met=False))}
    table.write(again, tmp_path)
    book = table.read_book(tmp_path)
    assert book["cold"] == json.loads(json.dumps(kept(row())))
    assert book["step"]["rows"][0]["met"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search.json", "search.md"]


def test_nothing_was_kept_before_the_first_run(tmp_path: Path) -> None:
    assert table.read_book(tmp_path) == {}


def test_a_part_that_is_not_there_is_known_to_be_missing() -> None:
    assert table.there("step")
    assert not table.there("a_part_that_nobody_wrote")


def test_an_unknown_part_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        table.main(["--only", "engine,engin"])
    assert "got engin\n" in capsys.readouterr().err


def test_a_service_beside_a_search_is_judged_by_its_ratio() -> None:
    told = {"p99_ms": {"idle": 2.0, "search": 2.8, "crowd": None, "unprotected": 9.0}}
    told["p99_ms"] |= {"search/idle": 1.4, "crowd/idle": None, "unprotected/idle": 4.5}
    (one,) = table.neighbour(told)
    assert one.met
    assert one.ratio == "search 1.4 x idle; unprotected 4.5 x idle"
    told["p99_ms"]["search/idle"] = 1.6
    assert table.neighbour(told)[0].met is False
