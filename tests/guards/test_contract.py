"""One battery for every guard: what holds for each of them, whatever it judges."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from guards.contract import USED
from guards.material import Material
from guards.roster import BUILTIN
from policies.case import Case
from policies.errors import TamperError
from policies.terms import Finding, Verdict

Judge = Callable[[str, Case], Verdict]

every_guard = pytest.mark.parametrize("name", sorted(BUILTIN))


@every_guard
def test_passes_the_benign_twin(name: str, shop: Any, judge: Judge) -> None:
    said = judge(name, shop.case())
    assert said.finding is Finding.PASS, said.reason
    assert said.guard == name


@every_guard
def test_cites_its_clause(name: str, shop: Any, judge: Judge) -> None:
    case = shop.case()
    clause = getattr(case.policy.modification_protocol.evaluation, name).clause
    assert judge(name, case).clause == clause == BUILTIN[name]().clause(case)


@every_guard
def test_says_how_much_of_its_allowance_is_used(name: str, shop: Any, judge: Judge) -> None:
    found = [e.value for e in judge(name, shop.case()).evidence if e.name == USED]
    assert len(found) == 1
    assert 0 <= found[0] <= 1


@every_guard
def test_gives_numbers_in_its_reason(name: str, shop: Any, judge: Judge) -> None:
    assert any(letter.isdigit() for letter in judge(name, shop.case()).reason)


@every_guard
def test_is_deterministic(name: str, shop: Any, bench: Any) -> None:
    case = shop.case()
    said = [BUILTIN[name]().judge(case, Material(case, bench.ticking())) for _ in range(2)]
    assert said[0] == said[1]


@every_guard
def test_leaves_its_material_as_it_was(name: str, shop: Any, ticks: Callable[[], float]) -> None:
    case = shop.case()
    material = Material(case, ticks)
    before = (material.traffic.copy(), material.rows(1).x.copy(), material.rows(1).y.copy())
    BUILTIN[name]().judge(case, material)
    after = (material.traffic, material.rows(1).x, material.rows(1).y)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@every_guard
def test_does_not_pass_bytes_that_are_not_those_of_the_digest(name: str, shop: Any, judge: Judge) -> None:
    case = shop.case()
    path = shop.folder / "net-8.onnx"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    if name in ("integrity", "parity", "constraints"):
        assert judge(name, case).finding is Finding.FAIL
    else:
        with pytest.raises(TamperError, match="changed after it was named"):
            judge(name, case)


ON_THE_GATE = ("floor", "incumbent", "baseline", "retention", "slices")


@pytest.mark.parametrize("name", ON_THE_GATE)
def test_does_not_pass_without_gate_rows(name: str, shop: Any, judge: Judge) -> None:
    said = judge(name, shop.case(gate=shop.gate(new=0, old=0)))
    assert said.finding is Finding.INCONCLUSIVE


@pytest.mark.parametrize("name", ON_THE_GATE)
@pytest.mark.parametrize(
    "fault", ["gone", "other bytes", "not an archive", "doubled group", "labels", "type"]
)
def test_does_not_judge_by_a_gate_that_is_not_one(name: str, fault: str, shop: Any, judge: Judge) -> None:
    n = 1600
    gates: dict[str, Callable[[], Any]] = {
        "not an archive": lambda: shop.file("gate.npz", b"rows"),
        "doubled group": lambda: shop.gate(group=np.zeros(n, np.int64).view("V8")),
        "labels": lambda: shop.gate(y=np.full(n, 4)),
        "type": lambda: shop.gate(x=np.zeros((n, 4, 4), np.float32)),
    }
    case = shop.case(gate=gates.get(fault, shop.gate)())
    if fault == "gone":
        (shop.folder / "gate.npz").unlink()
    if fault == "other bytes":
        shop.gate(new=801)
    with pytest.raises(TamperError, match=r"gate|expected sha256"):
        judge(name, case)


def test_refuses_an_archive_with_a_pickle_inside(shop: Any, judge: Judge) -> None:
    path = shop.folder / "evil.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    case = shop.case(gate=shop.file("gate.npz", path.read_bytes()))
    with pytest.raises(TamperError, match="plain arrays"):
        judge("floor", case)
