"""What a person is told when an order cannot be met: exit 3 and a sentence, never a traceback."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from policies.wire import parse_canonical
from search.__main__ import REFUSED, main
from search.errand import prepare
from search.order import read_order
from tests.search.orders import GOOD, lay

_N = 100


def _run(folder: Path, text: str, out: Path) -> int:
    (folder / "order.toml").write_text(text)
    return main(["run", str(folder / "order.toml"), "--out", str(out)])


def _told(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.out == ""
    return printed.err


def test_the_order_and_the_rows_that_all_others_differ_from_make_a_brief(tmp_path: Path) -> None:
    lay(tmp_path, regime=np.ones(_N, dtype=np.uint8), group=np.arange(_N))
    (tmp_path / "order.toml").write_text(GOOD)
    (tmp_path / "out").mkdir()
    assert prepare(read_order(tmp_path / "order.toml"), tmp_path, tmp_path / "out").seed == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": np.float32(3)}, "expected x of one row or more"),
        ({"y": np.zeros((_N, 1), dtype=np.uint8)}, "'y': (100, 1)"),
        ({"y": np.uint8(1)}, "'y': ()"),
        ({"regime": np.ones((_N, 1), dtype=np.uint8)}, "'regime': (100, 1)"),
        ({"group": np.zeros((_N, 2))}, "'group': (100, 2)"),
    ],
)
def test_arrays_of_other_shapes_are_refused_with_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, object], said: str
) -> None:
    lay(tmp_path, **changed)
    assert _run(tmp_path, GOOD, tmp_path / "out") == REFUSED
    told = _told(capsys)
    assert said in told
    assert str(tmp_path / "rows.npz") in told
    refusal = parse_canonical((tmp_path / "out" / "refusal.json").read_bytes(), "refusal")
    assert said in refusal["reason"]


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("seed = 3", f"seed = {2**63}", "seed: expected"),
        ("seed = 3", f"seed = {2**53}", "seed: expected less than or equal to 9007199254740991"),
        ("max_params = 1000", f"max_params = {10**30}", "limits.max_params: expected"),
        ("max_params = 1000", f"max_params = 1000\nmax_edit_distance = {10**30}", "limits.max_edit_distance"),
        ("max_size_bytes = 20000", f"max_size_bytes = {2**64}", "limits.max_size_bytes: expected"),
        ("seed = 3", "seed = 3\nthreads = 1025", "threads: expected less than or equal to 1024, got 1025"),
    ],
)
def test_numbers_that_no_brief_can_carry_are_refused_with_their_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], good: str, bad: str, said: str
) -> None:
    lay(tmp_path)
    assert GOOD.count(good) == 1
    assert _run(tmp_path, GOOD.replace(good, bad), tmp_path / "out") == REFUSED
    assert said in _told(capsys)


def test_the_greatest_seed_that_a_brief_can_carry_is_taken(tmp_path: Path) -> None:
    lay(tmp_path)
    (tmp_path / "order.toml").write_text(GOOD.replace("seed = 3", f"seed = {2**53 - 1}"))
    (tmp_path / "out").mkdir()
    assert prepare(read_order(tmp_path / "order.toml"), tmp_path, tmp_path / "out").seed == 2**53 - 1


def _a_file(folder: Path) -> Path:
    (folder / "out").write_text("not a folder")
    return folder / "out"


def _below_a_file(folder: Path) -> Path:
    return _a_file(folder) / "deeper"


@pytest.mark.parametrize("out_of", [_a_file, _below_a_file])
def test_a_result_that_cannot_be_written_where_it_should_go_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out_of: Callable[[Path], Path]
) -> None:
    lay(tmp_path)
    out = out_of(tmp_path)
    assert _run(tmp_path, GOOD, out) == REFUSED
    assert f"expected a folder for the result at {out}" in " ".join(_told(capsys).split())
    assert (tmp_path / "out").read_text() == "not a folder"


def test_a_brief_that_is_not_there_is_refused_with_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere.json"), str(tmp_path / "out")]) == REFUSED
    printed = capsys.readouterr()
    assert "expected a brief at" in printed.out
    assert "nowhere.json" in printed.out
    assert (tmp_path / "out" / "refusal.json").is_file()
