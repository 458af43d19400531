"""Negative controls of the storms: the account sees every single thing that may go wrong with an answer."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.serving.answer import Answer
from daemon.serving.engine import Engine, Ran
from daemon.serving.settings import ServeSettings
from daemon.serving.slot import Slot as Loaded
from daemon.serving.table import Table
from policies.terms import Deployment, Slot
from tests.serving.conftest import Forge, Process, Thread
from tests.simulator.account import Asked, Came, Course, Model, judge, misrecorded, routed
from tests.simulator.helm import Helm, fleet
from tests.simulator.storm import MODEL, Storm, pictures

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
NOT_FINITE = b"expected finite outputs of generation 2"


def deployed(stable: int, newcomer: int | None = None) -> Deployment:
    """Return a deployment of generations; 1 has bundle ``ONE``, the later ones ``TWO``."""
    digests = {number: ONE if number == 1 else TWO for number in (1, 2, 3)}
    return Deployment(
        revision=1,
        model=MODEL,
        stable=Slot(generation=stable, bundle=digests[stable]),
        newcomer=None if newcomer is None else Slot(generation=newcomer, bundle=digests[newcomer]),
        newcomer_share=0.0 if newcomer is None else 0.5,
        previous=None,
    )


def course() -> Course:
    """Generation 1, then 2 beside it, then 2 alone, then its bytes as 3; picture 1 is none for 2 and 3."""
    made = Course()
    later = Model(TWO, (b"\x02\x00\x00\x00", None))
    made.models = {1: Model(ONE, (b"\x01\x00\x00\x00", b"\x01\x01\x00\x00")), 2: later, 3: later}
    for number, wanted in enumerate((deployed(1), deployed(1, 2), deployed(2), deployed(3))):
        made.add(wanted, 2.0 * number, 2.0 * number + 1.0)
    return made


def to(generation: int, beginning: str) -> str:
    """Return a request id that the second deployment routes to a generation."""
    names = (f"{beginning}{number}" for number in range(100))
    return next(each for each in names if routed(deployed(1, 2), Asked(each, 0, 3.0)) == generation)


OLD, NEW, DARK = to(1, "old"), to(2, "new"), to(2, "dark")
ASKED = [
    Asked("first", 0, 1.2),
    Asked(OLD, 0, 3.2),
    Asked(NEW, 0, 3.2),
    Asked(DARK, 1, 3.2),
    Asked("pinned", 0, 5.2, version=1),
    Asked("between", 0, 5.5),
    Asked("last", 0, 7.2),
]
CAME = {
    "first": Came("first", "200", 1.5, 1, b"\x01\x00\x00\x00"),
    OLD: Came(OLD, "OK", 3.5, 1, b"\x01\x00\x00\x00"),
    NEW: Came(NEW, "200", 3.5, 2, b"\x02\x00\x00\x00"),
    DARK: Came(DARK, "500", 3.5, None, NOT_FINITE),
    "pinned": Came("pinned", "404", 5.4, None, b"expected a served version, got 1"),
    "between": Came("between", "200", 6.5, 3, b"\x02\x00\x00\x00"),
    "last": Came("last", "200", 7.5, 3, b"\x02\x00\x00\x00"),
}


def test_what_is_right_and_what_is_refused_with_a_reason_is_settled_once() -> None:
    account = judge(ASKED, CAME.values(), course())
    assert account.faults == []
    assert (account.asked, account.right) == (7, 5)
    assert account.refused == {"not_finite": 1, "client_error": 1}
    assert account.settled[NEW] == (2, "ok")


MUTANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "one bit": (NEW, {"said": b"\x03\x00\x00\x00"}, "wrong"),
    "a byte less": (NEW, {"said": b"\x02\x00\x00"}, "wrong"),
    "another's bytes": (NEW, {"said": b"\x01\x00\x00\x00"}, "wrong"),
    "another's name": (NEW, {"generation": 1}, "astray"),
    "another by the routing": (NEW, {"generation": 1, "said": b"\x01\x00\x00\x00"}, "astray"),
    "one too early": ("first", {"generation": 2, "said": b"\x02\x00\x00\x00"}, "astray"),
    "one too late, of the same bytes": ("last", {"generation": 2}, "astray"),
    "one that never was": ("last", {"generation": 9}, "astray"),
    "a number where there is none": (
        DARK,
        {"status": "200", "generation": 2, "said": b"\0\0\xc0\x7f"},
        "wrong",
    ),
    "no reason": (DARK, {"said": b""}, "unexplained"),
    "a reason of somebody else": (DARK, {"said": b"expected finite outputs of generation 1"}, "unexplained"),
    "a reason that does not hold": (
        NEW,
        {"status": "500", "generation": None, "said": NOT_FINITE},
        "unexplained",
    ),
    "a broken connection": (
        NEW,
        {"status": "UNAVAILABLE", "generation": None, "said": b"reset"},
        "unexplained",
    ),
    "a version that is there": (
        "pinned",
        {"at": 5.4, "said": b"expected a served version, got 7"},
        "unexplained",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_one_thing_that_is_not_right_is_one_fault(mutant: tuple[str, dict[str, Any], str]) -> None:
    name, changes, kind = mutant
    account = judge(ASKED, (CAME | {name: replace(CAME[name], **changes)}).values(), course())
    assert [fault.split(":")[0].split(",")[0] for fault in account.faults] == [kind]


def test_a_lost_a_doubled_and_an_invented_answer_are_faults() -> None:
    without = [each for each in CAME.values() if each.id != NEW]
    assert [fault[:4] for fault in judge(ASKED, without, course()).faults] == ["lost"]
    twice = judge(ASKED, [*CAME.values(), CAME[NEW]], course())
    assert [fault[:7] for fault in twice.faults] == ["doubled"]
    assert twice.right == 5
    more = judge(ASKED, [*CAME.values(), replace(CAME[NEW], id="nobody")], course())
    assert [fault[:12] for fault in more.faults] == ["nobody asked"]
    exchanged = {NEW: replace(CAME[NEW], id=OLD), OLD: replace(CAME[OLD], id=NEW)}
    assert len(judge(ASKED, (CAME | exchanged).values(), course()).faults) == 2


KEYS = {bytes([number]) * 16: (1 + number // 3, "ok") for number in range(6)}
FOUND = list(KEYS.items())


def test_records_and_counted_losses_are_all_rows_and_nothing_else_is() -> None:
    assert misrecorded(FOUND, 0, KEYS, 0) == []
    assert misrecorded(FOUND[1:], 1, KEYS, 0) == []
    assert misrecorded([*FOUND, (b"x" * 16, (0, "client_error"))], 0, KEYS, 1) == []
    (key, said), *others = FOUND
    wrong = {
        "lost and not counted": others,
        "twice": [*FOUND, FOUND[0]],
        "twice instead of another": [FOUND[1], *others],
        "of another generation": [(key, (9, "ok")), *others],
        "of another outcome": [(key, (said[0], "not_finite")), *others],
        "of nobody": [(b"x" * 16, said), *others],
        "refused and nobody was": [(key, (0, "client_error")), *others],
    }
    assert [what for what, found in wrong.items() if not misrecorded(found, 0, KEYS, 0)] == []
    assert misrecorded(FOUND, 1, KEYS, 0), "one that was counted as lost is there"


# -- mutants of the data plane ------------------------------------------------------------------------------


def second_look(plane: Thread) -> None:
    """An answer is named after what is stable when it is written, not after what gave it."""
    engine, said = plane.plane.engine, Engine._said

    def named(model: str, slot: Loaded, ran: Ran) -> Any:
        return said(model, replace(slot, generation=plane.plane.keeper.table.stable.generation), ran)

    engine._said = named


def stale(plane: Thread) -> None:
    """The engine looks at the table once in thirty turns."""
    looks, kept = 0, plane.plane.keeper.table

    def look() -> Table:
        nonlocal looks, kept
        looks += 1
        if looks % 30 == 0:
            kept = plane.plane.keeper.table
        return kept

    plane.plane.engine._table = look


def mixing(plane: Thread) -> None:
    """The newcomer's requests are run by the stable model."""
    engine, compute = plane.plane.engine, plane.plane.engine._compute

    def mixed(slot: Loaded, *rest: Any) -> list[Ran]:
        return compute(replace(slot, session=plane.plane.keeper.table.stable.session), *rest)

    engine._compute = mixed


def credulous(plane: Thread) -> None:
    """Nobody looks whether an answer is finite."""

    def told(model: str, slot: Loaded, ran: Ran) -> Any:
        said, start = [], 0
        for job in ran.jobs:
            own = slice(start, start := start + len(job.ask.x))
            said.append((Answer(model, slot.generation, *(out[own] for out in ran.out[:2])), "ok"))
        return said

    plane.plane.engine._said = told


@contextlib.contextmanager
def breeze(plane: Thread | Process, address: str, forge: Forge) -> Iterator[Storm]:
    """Let a few hundred requests and a handful of deployments go by; then do what the test does."""
    seen = pictures()
    models, deadline = fleet(forge, seen), time.monotonic() + 60.0
    storm = Storm(address, plane.grpc, seen, 1, Course())
    helm = Helm(plane.admin, storm.course, storm.wind.pinned)
    helm.swap(models["sound-0"])
    with storm:
        steps: list[Callable[[], None]] = [
            lambda: helm.swap(models["sound-1"]),
            lambda: helm.stage(models["blind"]),
            lambda: helm.give(0.5),
            lambda: helm.dismiss(),
            lambda: helm.back(),
        ]
        for step in steps:
            storm.wind.pass_by(100, deadline)
            step()
        storm.wind.pass_by(100, deadline)
        yield storm


@pytest.mark.parametrize(
    ("mutant", "kind"),
    [(None, None), (second_look, "astray"), (stale, "astray"), (mixing, "wrong"), (credulous, "wrong")],
)
def test_a_data_plane_that_is_not_right_is_caught(
    tmp_path: Path, mutant: Callable[[Thread], None] | None, kind: str | None
) -> None:
    state = tmp_path / "s"
    plane = Thread(ServeSettings(state=state, model=MODEL, grpc="127.0.0.1:0")).start()
    try:
        if mutant is not None:
            mutant(plane)
        with breeze(plane, plane.base.removeprefix("http://"), Forge(state)) as storm:
            pass
    finally:
        plane.stop()
    faults = storm.account().faults
    assert {fault.split(":")[0].split(",")[0] for fault in faults} >= ({kind} if kind else set())
    assert bool(faults) is (mutant is not None), faults[:5]


def test_a_data_plane_that_is_killed_loses_requests_and_the_account_says_so(tmp_path: Path) -> None:
    server = Process(tmp_path / "s", "--grpc", "127.0.0.1:0")
    try:
        with breeze(server, server.base.removeprefix("http://"), Forge(tmp_path / "s")) as storm:
            server.end(signal.SIGKILL)
            for client in storm.clients[:2]:
                client.join(30)
    finally:
        if server.popen.poll() is None:
            server.end(signal.SIGKILL)
    faults = storm.account().faults
    # One request a connection was under way; gRPC says that it could not reach anybody, which is no reason.
    assert [fault[:4] for fault in faults if fault.startswith("lost")] == ["lost", "lost"]
    assert all(fault.startswith(("lost", "unexplained")) for fault in faults), faults[:5]
