"""The state folder: made afresh, never over something else, its policy signed with the demo's own key."""

import tomllib
from pathlib import Path

import pytest

from daemon.console.demo.scene import PRINCIPAL, Scene, prepare, with_budget
from daemon.console.demo.wishes import Ports, Wishes
from daemon.store.lock import StateLock
from guards.signing import Signers, verify_detached
from policies.document import load
from policies.errors import PermanentError, PolicyError, TamperError
from tests.demo.world import wishes


def _verify(scene: Scene, raw: bytes) -> str:
    signature = (scene.folder / "policy.toml.sig").read_text()
    signers = Signers.parse((scene.folder / "allowed_signers").read_text())
    return verify_detached(raw, signature, signers, "instar-policy@v1", 1.0)


def test_the_policy_is_signed_by_the_demo_key_and_one_changed_byte_is_not(
    tmp_path: Path, example: Path
) -> None:
    scene = prepare(wishes(tmp_path / "s", example))
    raw = (scene.folder / "policy.toml").read_bytes()
    assert raw == (example / "policy.toml").read_bytes()
    assert _verify(scene, raw) == PRINCIPAL
    assert scene.key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TamperError):
        _verify(scene, raw + b"\n")


def test_a_wished_budget_is_in_the_signed_copy_and_not_in_the_example(tmp_path: Path, example: Path) -> None:
    before = (example / "policy.toml").read_bytes()
    scene = prepare(wishes(tmp_path / "s", example, budget_cpu_s=200.0))
    policy, _ = load(scene.folder / "policy.toml")
    search = policy.modification_protocol.search
    assert (search.budget_cpu_s, search.budget_cpu_s_per_day) == (200.0, 600.0)
    assert _verify(scene, (scene.folder / "policy.toml").read_bytes()) == PRINCIPAL
    assert (example / "policy.toml").read_bytes() == before


def test_a_budget_changes_its_two_keys_and_nothing_else(example: Path) -> None:
    text = (example / "policy.toml").read_text()
    old, new = tomllib.loads(text), tomllib.loads(with_budget(text, 7.5))
    assert new["modification_protocol"]["search"].pop("budget_cpu_s") == 7.5
    old["modification_protocol"]["search"].pop("budget_cpu_s")
    assert old == new
    with pytest.raises(PermanentError, match="budget_cpu_s"):
        with_budget(text.replace("[modification_protocol.search]", "[modification_protocol.seek]"), 7.5)


def test_a_budget_that_the_policy_refuses_is_refused_before_anything_starts(
    tmp_path: Path, example: Path
) -> None:
    with pytest.raises(PolicyError, match="budget_cpu_s"):
        prepare(wishes(tmp_path / "s", example, budget_cpu_s=0.0))


def test_a_second_demo_starts_afresh_and_keep_goes_on(tmp_path: Path, example: Path) -> None:
    state = tmp_path / "s"
    first = prepare(wishes(state, example))
    key = first.key.read_bytes()
    (state / "journal.db").write_bytes(b"old")
    prepare(wishes(state, example, keep=True))
    assert (state / "journal.db").read_bytes() == b"old"
    assert first.key.read_bytes() == key
    prepare(wishes(state, example))
    assert not (state / "journal.db").exists()
    assert first.key.read_bytes() != key


def test_a_folder_that_no_demo_made_is_never_cleared(tmp_path: Path, example: Path) -> None:
    precious = tmp_path / "s" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(PermanentError, match=r"thesis\.txt"):
        prepare(wishes(tmp_path / "s", example))
    assert precious.read_text() == "mine"


def test_a_folder_that_an_instard_holds_is_never_cleared(tmp_path: Path, example: Path) -> None:
    scene = prepare(wishes(tmp_path / "s", example))
    with (
        StateLock(scene.state / "instard.lock"),
        pytest.raises(PermanentError, match="only instard"),
    ):
        prepare(wishes(tmp_path / "s", example))
    assert scene.key.is_file()


def test_an_example_that_is_not_whole_and_a_state_too_deep_are_named(tmp_path: Path, example: Path) -> None:
    with pytest.raises(PermanentError, match=r"task\.toml"):
        prepare(wishes(tmp_path / "s", tmp_path))
    with pytest.raises(PermanentError, match="shorter --state"):
        prepare(wishes(tmp_path / ("d" * 100), example))


@pytest.mark.parametrize("text", ["8080", "8080/8082", "1/2/x", "1/2/70000", "1/1/2", "0/1/2"])
def test_ports_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(PermanentError, match="port"):
        Ports.parse(text)


@pytest.mark.parametrize(
    ("flag", "value"), [("drift", "rain"), ("rate", 1000.0), ("strength", -1.0), ("quiet_s", -1.0)]
)
def test_wishes_out_of_range_are_refused_by_name(tmp_path: Path, flag: str, value: object) -> None:
    with pytest.raises(PermanentError, match=flag.replace("_", "-")):
        wishes(tmp_path, tmp_path, **{flag: value})
    assert isinstance(wishes(tmp_path, tmp_path), Wishes)
