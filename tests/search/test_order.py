"""Orders: a good file beside one bad twin for each mistake; the brief and rows that a good one becomes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from policies.document import load_task
from policies.errors import PermanentError
from policies.terms import Artefact, Brief, Modality, Precision, TriggerKind
from policies.wire import digest_bytes
from search.errand import draw_roles, keep_profile, prepare
from search.order import read_order
from tests.search.orders import GOOD, LATER, TASK, earlier, lay, rows

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a writer of an order, in a folder that has all which orders name."""
    lay(tmp_path)
    (tmp_path / "out").mkdir()

    def to_file(text: str, name: str = "order.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return to_file


def _prepared(path: Path) -> tuple[Brief, dict[str, np.ndarray]]:
    brief = prepare(read_order(path), path.parent, path.parent / "out")
    with np.load(path.parent / "out" / brief.data.path) as file:
        return brief, dict(file)


# -- the text ---------------------------------------------------------------------------------------------


def test_a_good_order_becomes_a_brief_that_lies_beside_its_rows(write: Write, tmp_path: Path) -> None:
    brief, arrays = _prepared(write(GOOD))
    assert Brief.model_validate_json((tmp_path / "out" / "brief.json").read_bytes()) == brief
    assert brief.data == Artefact(
        path="data.npz", digest=digest_bytes((tmp_path / "out" / "data.npz").read_bytes())
    )
    assert (brief.id, brief.kind, brief.seed, brief.budget_cpu_s) == (
        "dials-founding",
        TriggerKind.FOUNDING,
        3,
        20,
    )
    assert (brief.threads, brief.max_memory_bytes) == (1, 3 * 2**29)
    assert brief.precisions == (Precision.FP32, Precision.INT8)
    assert (brief.parent_generation, brief.parent_genome, brief.profile, brief.library) == (0, None, None, ())
    assert brief.limits.max_edit_distance >= 1000, "at founding, no bound"
    assert {name: len(array) for name, array in arrays.items()} == dict.fromkeys(
        ("x", "y", "role", "regime"), 80
    )
    assert np.array_equal(arrays["x"], rows()["x"][10:90])  # type: ignore[index]
    assert arrays["role"].sum() == 16
    assert arrays["regime"].all()


@pytest.mark.parametrize(
    ("good", "bad", "line", "said"),
    [
        ("seed = 3", "", 1, "seed: expected it, got nothing"),
        ("seed = 3", "seed = -1", 3, "seed: expected greater than or equal to 0, got -1"),
        ("seed = 3", "seed = 3.5", 3, "seed: expected a valid integer, got 3.5"),
        ("seed = 3", 'seed = "3"', 3, "seed: expected a valid integer, got '3'"),
        ("seed = 3", "seed = 1979-05-27", None, "expected numbers, texts and tables"),
        ("seed = 3", "seed = 3\nspeed = 4", 4, "speed: unknown key"),
        ("seed = 3", "seed = ", None, "expected a readable TOML order"),
        ("budget_cpu_s = 20", "budget_cpu_s = 0", 4, "budget_cpu_s: expected greater than 0, got 0"),
        ("budget_cpu_s = 20", "budget_cpu_s = inf", None, "budget_cpu_s: expected a finite number"),
        ("seed = 3", 'seed = 3\nkind = "speed"', 4, "kind: expected 'founding', 'data' or 'latency', got"),
        ("seed = 3", 'seed = 3\nprecisions = ["int4"]', 4, "precisions.0: expected 'fp32' or 'int8', got"),
        ("seed = 3", "seed = 3\nprecisions = []", 4, "precisions: expected at least one, got none"),
        ("max_p99_ms = 2.0", "", 12, "limits.max_p99_ms: expected it, got nothing"),
        ("max_params = 1000", "max_params = 0", 13, "limits.max_params: expected greater than 0, got 0"),
        ("max_params", "most_params", 13, "limits.most_params: unknown key"),
        ("first = 10", "first = -1", 8, "data.first: expected greater than or equal to 0, got -1"),
        ("last = 90", "last = 10", 9, "data.last: expected more than first = 10, got 10"),
        ("search_share = 0.2", "search_share = 1.0", 10, "data.search_share: expected less than 1, got 1.0"),
        ('path = "rows.npz"', "", 6, "data.path: expected it, got nothing"),
        (
            "search_share = 0.2",
            'replay = { path = "rows.npz", first = 5, last = 4 }',
            10,
            "data.replay.last: expected more than first = 5, got 4",
        ),
        ("seed = 3", 'seed = 3\nparent = "earlier"', 4, "parent: expected none in a search of kind founding"),
        ("seed = 3", "seed = 3\npseudo_labels = true", 4, "pseudo_labels: expected false"),
    ],
)
def test_a_mistake_is_refused_with_file_line_key_and_what_came(
    write: Write, good: str, bad: str, line: int | None, said: str
) -> None:
    assert GOOD.count(good) == 1
    read_order(write(GOOD))
    path = write(GOOD.replace(good, bad))
    with pytest.raises(PermanentError) as caught:
        read_order(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    if line is not None:
        assert f"{path}, line {line}: {said}" in str(caught.value)


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ('parent = "earlier"\n', "", "parent: expected the folder of an earlier search for kind data"),
        ("max_edit_distance = 5\n", "", "limits.max_edit_distance: expected a number of genes for kind data"),
        (
            '[data]\npath = "rows.npz"\nfirst = 10\nlast = 90\nsearch_share = 0.2\n',
            "",
            "data: expected new rows",
        ),
    ],
)
def test_what_a_later_search_must_say_is_no_mistake_at_founding(
    write: Write, good: str, bad: str, said: str
) -> None:
    assert LATER.count(good) == 1
    read_order(write(LATER))
    with pytest.raises(PermanentError, match=said):
        read_order(write(LATER.replace(good, bad)))


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    with pytest.raises(PermanentError) as caught:
        read_order(write(GOOD.replace("seed = 3", "speed = 3").replace("max_params = 1000", "")))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "seed",
        "limits.max_params",
        "speed",
    ]


def test_an_order_that_is_not_there_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"nowhere\.toml"):
        read_order(tmp_path / "nowhere.toml")


def test_the_orders_of_the_examples_and_their_tasks_can_be_read() -> None:
    found = sorted((Path(__file__).parents[2] / "examples").glob("*/brief*.toml"))
    orders = [(path, read_order(path)) for path in found]
    assert {load_task(path.parent / order.task).modality for path, order in orders} == set(Modality)


# -- the rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y": np.zeros(99, dtype=np.uint8)}, "arrays x and y of one length"),
        ({"y": np.zeros(100, dtype=np.float32)}, "whole numbers in y"),
        ({"regime": np.full(100, 2)}, "0 or 1 in regime"),
        ({"x": np.array([None] * 100)}, "Object arrays cannot be loaded"),
        ({"group": np.zeros(100)}, "two groups of rows or more"),
    ],
)
def test_rows_that_are_not_what_they_should_be_are_refused_with_their_file(
    write: Write, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    path = write(GOOD)
    _prepared(path)
    np.savez(tmp_path / "rows.npz", **rows(**changed))
    with pytest.raises(PermanentError, match=said):
        _prepared(path)


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ('"task.toml"', '"no-task.toml"', "no-task.toml"),
        ('path = "rows.npz"', 'path = "no-rows.npz"', "no-rows.npz"),
        ('path = "rows.npz"', 'path = "task.toml"', r"an \.npz with arrays x and y at .*task.toml"),
        ("last = 90", "last = 101", "rows 10 to 101 in .*rows.npz, got 100 rows"),
        ("first = 10\nlast = 90", "first = 100", "rows 100 to 100 in .*rows.npz, got 100 rows"),
    ],
)
def test_a_file_that_is_missing_or_too_short_is_refused_with_its_path(
    write: Write, good: str, bad: str, said: str
) -> None:
    assert GOOD.count(good) == 1
    _prepared(write(GOOD))
    with pytest.raises(PermanentError, match=said):
        _prepared(write(GOOD.replace(good, bad)))


def test_without_data_the_sources_of_the_task_are_taken(write: Write, tmp_path: Path) -> None:
    text = GOOD.replace(GOOD[GOOD.index("[data]") : GOOD.index("[limits]")], "")
    _, arrays = _prepared(write(text))
    x = rows()["x"]
    assert np.array_equal(arrays["x"], np.concatenate([x[:30], x[50:60]]))  # type: ignore[index]
    assert arrays["role"].sum() == 10
    task = TASK[: TASK.index("[[sources]]")].replace("[input]", "sources = []\n[input]") + "[augmentation]\n"
    (tmp_path / "task.toml").write_text(task)
    with pytest.raises(PermanentError, match="got neither"):
        _prepared(write(text))


def test_the_same_order_gives_the_same_bytes_and_another_seed_other_roles(
    write: Write, tmp_path: Path
) -> None:
    found = []
    for text in (GOOD, GOOD, GOOD.replace("seed = 3", "seed = 4")):
        _prepared(write(text))
        found.append([(tmp_path / "out" / name).read_bytes() for name in ("data.npz", "brief.json")])
    first, same, other = found
    assert first == same
    assert first[0] != other[0]


def test_a_group_has_one_role_which_rows_by_themselves_do_not_have() -> None:
    group = np.repeat(np.arange(40), 5)[np.random.default_rng(1).permutation(200)]
    roles = draw_roles(group, 0.3, seed=2)
    assert all(len(np.unique(roles[group == one])) == 1 for one in range(40))
    assert roles.sum() == 60
    single = draw_roles(np.arange(200), 0.3, seed=2)
    assert any(len(np.unique(single[group == one])) == 2 for one in range(40))


@pytest.mark.parametrize("large", [50, 10])
def test_a_group_that_would_overshoot_trains_and_others_rank_in_its_place(large: int) -> None:
    """A quarter of 80 or 120 rows shall rank; ten of a first group fit into that, and fifty do not."""
    group = np.concatenate([np.zeros(large), np.repeat(np.arange(1, 15), 5)])
    drawn = [draw_roles(group, 0.25, seed) for seed in range(30)]
    assert any(roles[:large].any() for roles in drawn) is (large == 10)
    for roles in drawn:
        assert 0.9 * 0.25 * len(group) <= roles.sum() <= 1.5 * 0.25 * len(group)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_whatever_the_share_somebody_trains_and_somebody_ranks(share: float) -> None:
    for seed in range(20):
        roles = draw_roles(np.array([0] * 50 + [1, 2]), share, seed)
        assert 0 < roles.sum() < 52


def test_replay_is_old_and_shares_its_groups_with_the_new_rows(write: Write, tmp_path: Path) -> None:
    earlier(tmp_path / "earlier")
    np.savez(tmp_path / "rows.npz", **rows(group=np.arange(100) // 10))
    text = LATER.replace("search_share", 'replay = { path = "rows.npz", last = 20 }\nsearch_share')
    _, arrays = _prepared(write(text))
    assert arrays["regime"].tolist() == [1] * 80 + [0] * 20
    assert (arrays["role"][:10] == arrays["role"][-10:]).all(), "rows 10 to 19 are in both"
    np.savez(tmp_path / "old.npz", **rows())
    with pytest.raises(PermanentError, match="groups in all or none"):
        _prepared(write(text.replace('replay = { path = "rows.npz"', 'replay = { path = "old.npz"')))


def test_a_files_own_regimes_are_kept_and_rows_without_labels_are_for_kind_data_alone(
    write: Write, tmp_path: Path
) -> None:
    earlier(tmp_path / "earlier")
    given = rows(regime=(np.arange(100) >= 50).astype(np.uint8))
    del given["y"]
    np.savez(tmp_path / "rows.npz", **given)
    _, found = _prepared(write(LATER))
    assert found["regime"].tolist() == [0] * 40 + [1] * 40
    assert (found["y"] == -1).all()
    with pytest.raises(PermanentError, match="arrays x and y of one length"):
        _prepared(write(GOOD))


# -- what came before -------------------------------------------------------------------------------------


def test_a_parent_is_read_from_the_folder_that_its_search_left(write: Write, tmp_path: Path) -> None:
    result = earlier(tmp_path / "earlier")
    brief, _ = _prepared(write(LATER))
    assert (brief.parent_generation, brief.parent_genome) == (1, result.winner)
    assert brief.parent_state == Artefact(path="../earlier/state.safetensors", digest=result.state.digest)
    assert brief.parent_archive == Artefact(path="../earlier/archive.json", digest=result.archive.digest)
    assert brief.limits.max_edit_distance == 5
    shutil.copy(tmp_path / "out" / "brief.json", tmp_path / "earlier")
    assert _prepared(write(LATER))[0].parent_generation == 2
    (tmp_path / "earlier" / "brief.json").write_text("{}")
    with pytest.raises(PermanentError, match="expected a brief in"):
        _prepared(write(LATER))


def test_a_parent_without_a_result_is_refused_and_so_is_its_folder_as_ours(
    write: Write, tmp_path: Path
) -> None:
    with pytest.raises(PermanentError, match="run that search first"):
        _prepared(write(LATER))
    with pytest.raises(PermanentError, match="another folder than the parent's"):
        _prepared(write(LATER.replace('"earlier"', '"out"')))


def test_a_library_keeps_its_order_and_says_how_good_each_was(write: Write, tmp_path: Path) -> None:
    for name in ("earlier", "older", "oldest"):
        earlier(tmp_path / name)
    text = LATER.replace("seed = 3", 'seed = 3\nlibrary = ["older", "oldest"]')
    brief, _ = _prepared(write(text))
    assert [one.state.path for one in brief.library] == [
        "../older/state.safetensors",
        "../oldest/state.safetensors",
    ]
    assert [one.accuracy for one in brief.library] == [0.75, 0.75]


def test_costs_are_kept_once_and_named_by_every_later_brief(write: Write, tmp_path: Path) -> None:
    path = write(GOOD.replace("seed = 3", 'seed = 3\nprofile = "kept/costs.json"'))
    order, out, kept = read_order(path), tmp_path / "out", tmp_path / "kept" / "costs.json"
    assert prepare(order, tmp_path, out).profile is None
    assert keep_profile(order, tmp_path, out) is None, "the search measured nothing"
    (out / "profile.json").write_bytes(b"first")
    assert keep_profile(order, tmp_path, out) == kept
    (out / "profile.json").write_bytes(b"second")
    assert keep_profile(order, tmp_path, out) is None
    assert kept.read_bytes() == b"first"
    assert prepare(order, tmp_path, out).profile == Artefact(
        path="../kept/costs.json", digest=digest_bytes(b"first")
    )
    assert keep_profile(read_order(write(GOOD)), tmp_path, out) is None
