"""The page of the serving benchmarks says what was measured, of whom, and what could not be."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving import contestants, table, throughput, verdicts
from benchmarks.serving.asks import Form
from benchmarks.serving.contestants import INSTAR, RAW, SILENT, UVICORN, Bursts
from benchmarks.serving.course import Cell, Course
from benchmarks.serving.load import Burst
from benchmarks.serving.row import Figure, Row
from benchmarks.serving.verdicts import CONV, MLP, MLP_BINARY, MLP_GRPC, Book
from policies.errors import PermanentError


def burst(rate: float, others: float = 0.0) -> Burst:
    return Burst(rate, p50_ms=1.0, p99_ms=2.0, cpu_us=1e6 / rate, others=others)


def book(rates: dict[str, Iterable[float]], cell: Cell = MLP) -> Book:
    found = Book()
    for name, each in rates.items():
        for rate in each:
            found.add({(name, cell): burst(rate)})
    return found


def row(*, met: bool | None = None) -> Row:
    target = "" if met is None else "≥ 0.75"
    return Row(
        "a rate", target, Figure.of([1.0, 4.0, 2.0]), "x raw", peers={"a|b": Figure.of([9.0])}, met=met
    )


def missing() -> Row:
    return Row("a rate", "≥ 2", None, "x", note="there is no door")


def kept(*rows: Row, runs: int = 5, quick: bool = False) -> dict[str, Any]:
    return {
        "date": "2026-01-01 00:00 UTC",
        "machine": "a machine",
        "versions": {"python": "3.11"},
        "command": "python -m benchmarks.serving.table",
        "runs": runs,
        "quick": quick,
        "wall_s": 2.0,
        "cpu_s": 1.0,
        "how": "How ``it`` is.",
        "rows": [asdict(one) for one in rows],
    }


# -- rows and the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "word"),
    [(row(met=True), "met"), (row(met=False), "**missed**"), (row(), ""), (missing(), "not measured")],
    ids=["met", "missed", "told", "not measured"],
)
def test_a_row_is_judged_in_a_word(one: Row, word: str) -> None:
    assert one.verdict == word


def test_a_row_without_a_figure_says_why_and_is_never_met() -> None:
    for lacking in ({"note": ""}, {"note": "there is no door", "met": True}):
        with pytest.raises(ValueError, match="a note that says why"):
            Row("a rate", "≥ 2", None, "x", **lacking)


@pytest.mark.parametrize("one", [row(met=True), missing()], ids=["measured", "not measured"])
def test_a_row_survives_its_json(one: Row) -> None:
    assert Row.read(json.loads(json.dumps(asdict(one)))) == one


def test_a_line_has_seven_cells_whatever_stands_in_them() -> None:
    for line in table.lines([row(met=False), missing()]):
        assert line.replace("\\|", "").count("|") == table.HEAD.splitlines()[0].count("|") == 8


def test_the_page_counts_what_was_met_missed_and_not_measured() -> None:
    text = table.page({"throughput": kept(row(met=True), row(met=False), row(), missing())})
    assert "Of 3 targets 1 are met, 1 missed and 1 not measured." in text
    assert "Parts that were not run: storm, swap, beside, memory, devices." in text
    assert "Fewer" not in text


def test_what_has_no_target_stands_apart_from_what_is_judged() -> None:
    text = table.page({"throughput": kept(row(), row(met=False))})
    judged, _, told = text.partition("Told beside these:")
    assert "missed" in judged.partition(table.HEAD)[2]
    assert "missed" not in told.partition("##")[0]


@pytest.mark.parametrize("few", [{"runs": 3}, {"quick": True}], ids=["few runs", "quick"])
def test_too_few_runs_are_said(few: dict[str, Any]) -> None:
    assert "Fewer than 5 whole runs: throughput" in table.page({"throughput": kept(row(met=True), **few)})


def test_a_part_that_is_run_again_leaves_the_others_alone(tmp_path: Path) -> None:
    table.write({"throughput": kept(row(met=True)), "storm": kept(missing())}, tmp_path)
    table.write(table.read_book(tmp_path) | {"throughput": kept(row(met=False))}, tmp_path)
    again = table.read_book(tmp_path)
    assert again["storm"] == json.loads(json.dumps(kept(missing())))
    assert again["throughput"]["rows"][0]["met"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["serving.json", "serving.md"]


def test_a_part_that_fails_leaves_its_rows_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write({"throughput": kept(row(met=True))}, tmp_path)

    def fail(*_: object) -> dict[str, Any]:
        raise PermanentError("expected wrk")

    monkeypatch.setattr(table, "run", fail)
    assert table.main(["--only", "throughput", "--into", str(tmp_path)]) == 1
    assert "expected wrk" in capsys.readouterr().err
    assert table.read_book(tmp_path)["throughput"]["rows"][0]["met"] is True


def test_the_page_can_be_written_anew_without_a_run(tmp_path: Path) -> None:
    table.write({"throughput": kept(row(met=True))}, tmp_path)
    (tmp_path / "serving.md").unlink()
    assert table.main(["--write", "--into", str(tmp_path)]) == 0
    assert "1 are met" in (tmp_path / "serving.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "word"), [(["--only", "throughputt"], "got throughputt"), (["--runs", "0"], "got 0")]
)
def test_a_wrong_flag_is_refused_by_name(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        table.main(arguments)
    assert word in capsys.readouterr().err


# -- verdicts ---------------------------------------------------------------------------------------------


def test_a_ratio_is_taken_in_each_run_and_the_median_of_these_is_judged() -> None:
    # The second run was slow for both: medians of rates, 100 and 200, would say 0.5.
    one = book({INSTAR: [160.0, 80.0, 100.0], RAW: [200.0, 100.0, 250.0]})
    found = verdicts.against_raw(one, MLP, 0.6)
    assert found.ours == Figure(0.8, 0.4, 0.8, 3)
    assert found.met is True


@pytest.mark.parametrize(("rate", "met"), [(75.0, True), (74.9, False)])
def test_a_floor_is_reached_or_missed(rate: float, met: bool) -> None:
    assert verdicts.against_raw(book({INSTAR: [rate], RAW: [100.0]}), MLP, 0.75).met is met


def test_mlserver_stands_with_its_faster_mode() -> None:
    rates = {INSTAR: [600.0], "MLServer": [90.0], "MLServer, 1 worker": [110.0]}
    found = verdicts.against_mlserver(book(rates), MLP, 6.0)
    assert found.ours is not None
    assert found.ours.median == pytest.approx(600 / 110)
    assert found.met is False
    slower_mode_alone = book(rates | {"MLServer, 1 worker": [50.0]})
    assert verdicts.against_mlserver(slower_mode_alone, MLP, 6.0).met is True


def test_the_fastest_of_the_others_decides() -> None:
    rates = {INSTAR: [1200.0]} | {name: [50.0] for name in verdicts.OTHERS}
    assert verdicts.against_others(book(rates), MLP, 12.0).met is True
    found = verdicts.against_others(book(rates | {"PyTriton": [101.0]}), MLP, 12.0)
    assert found.met is False
    assert "11.88 x PyTriton" in found.ratio
    assert "24 x LitServe" in found.ratio


def test_who_is_absent_is_never_beaten() -> None:
    one = book({INSTAR: [1200.0]} | {name: [50.0] for name in verdicts.OTHERS})
    one.drop(["Ray Serve"], "it did not answer")
    found = verdicts.against_others(one, MLP, 12.0)
    assert (found.verdict, found.note) == ("not measured", "Ray Serve: it did not answer")
    none = verdicts.against_mlserver(one, MLP, 6.0)
    assert none.verdict == "not measured"


def test_without_a_door_or_a_switch_a_row_says_so() -> None:
    one = book({INSTAR: [1.0], RAW: [1.0]})
    one.absent[SILENT] = "instar-serve has no --telemetry"
    found = {each.what: each for each in verdicts.rows(one)}
    grpc = found["MLP, gRPC: against MLServer"]
    assert (grpc.verdict, "Instar: has no gRPC door" in grpc.note) == ("not measured", True)
    silent = found["MLP, JSON: telemetry and capture on, against off"]
    assert (silent.verdict, silent.note) == ("not measured", f"{SILENT}: instar-serve has no --telemetry")


def test_telemetry_may_cost_eight_in_a_hundred() -> None:
    for rate, met in ((92.0, True), (91.9, False)):
        assert verdicts.telemetry(book({INSTAR: [rate], SILENT: [100.0]}), MLP).met is met


def test_rates_costs_and_tails_of_everybody_are_told() -> None:
    one = book({INSTAR: [100.0], RAW: [200.0], UVICORN: [90.0]}, MLP_BINARY)
    told = {each.what: each for each in verdicts.rows(one) if not each.target}
    assert told["MLP, binary: requests a second"].peers == {
        RAW: Figure.of([200.0]),
        UVICORN: Figure.of([90.0]),
    }
    assert told["MLP, binary: CPU time of a request"].ours == Figure.of([1e4])
    assert told["MLP, binary: p99"].ours == Figure.of([2.0])
    assert "MLP, JSON: p99" not in told


@pytest.mark.parametrize(("others", "quiet"), [(0.1, True), (0.2, False)])
def test_figures_of_a_busy_machine_are_marked(others: float, quiet: bool) -> None:
    one = Book()
    one.add({(INSTAR, MLP): burst(1.0, others)})
    found = verdicts.company(one)
    assert found.ours == Figure.of([others])
    assert ("not to be quoted" in found.note) is not quiet


def test_every_target_has_its_row_also_when_nothing_stands_beside() -> None:
    judged = [each for each in verdicts.rows(book({INSTAR: [1.0], RAW: [1.0]})) if each.target]
    assert len(judged) == 3 + 4 + 2 + 4
    assert {each.verdict for each in judged} == {"met", "not measured"}


# -- turns ------------------------------------------------------------------------------------------------


class Actor:
    """A contestant that answers, but for the turns that are named."""

    names = ("an actor",)

    def __init__(self, *fails: int) -> None:
        self.fails = fails
        self.turns = 0

    def turn(self, course: Course, number: int) -> Bursts:
        self.turns += 1
        if self.turns in self.fails:
            raise PermanentError("it refused\nat length")
        return {("an actor", CONV): burst(1.0)}


def test_a_peer_that_fails_twice_is_struck_out_with_its_reason(tmp_path: Path) -> None:
    one, actor, course = Book(), Actor(2, 3), Course(tmp_path, 1, 1)
    throughput.take_turn(one, actor, course, 0)
    assert one.has("an actor", CONV)
    throughput.take_turn(one, actor, course, 1)
    assert not one.has("an actor", CONV)
    assert one.absent == {"an actor": "it refused"}


def test_a_peer_that_fails_once_is_measured_once(tmp_path: Path) -> None:
    one, actor = Book(), Actor(1)
    throughput.take_turn(one, actor, Course(tmp_path, 1, 1), 0)
    assert (actor.turns, len(one.bursts["an actor", CONV]), one.absent) == (2, 1, {})


def test_instar_gets_no_second_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "Ours", Actor)
    actor = Actor(1)
    with pytest.raises(PermanentError, match="it refused"):
        throughput.take_turn(Book(), actor, Course(tmp_path, 1, 1), 0)
    assert actor.turns == 1


def test_nobody_is_always_first() -> None:
    names = ["a", "b", "c"]
    firsts = [contestants.rotated(names, run)[0] for run in range(4)]
    assert firsts == ["a", "b", "c", "a"]
    assert all(sorted(contestants.rotated(names, run)) == names for run in range(4))


def test_a_course_lays_the_files_that_it_names(tmp_path: Path) -> None:
    course = Course(tmp_path, 1, 1)
    course.lay()
    assert course.body(MLP).read_bytes() == course.ask(MLP).body
    assert course.body(MLP_GRPC).read_bytes()[:1] == b"\0"
    assert np.isfinite(course.wanted("conv")).all()
    assert len(list(tmp_path.iterdir())) == 2 + 2 * len(Form)
