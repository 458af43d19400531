"""Small parts: the guess, the score, the evidence of the choice, progress, the yardstick."""

import json

import numpy as np
import pytest

from policies.wire import canonical
from search import oracle
from search.budget import Budget
from search.choice import score, tau_top
from search.exam import Marks
from search.explore import Look, spread
from search.predictor import Predictor
from search.progress import Progress
from search.space import to_genome
from tests.search import worlds
from tests.search.worlds import BARS, CLOUDS


def test_the_guess_ranks_an_additive_truth():
    space, rng = BARS.space(), np.random.default_rng(0)
    genes = space.sample(rng, 160)
    features = space.encode(genes)
    truth = features @ np.linspace(0, 0.02, features.shape[1])
    predictor = Predictor(features[:120], truth[:120], rng)
    mean, doubt = predictor.predict(features[120:])
    assert np.corrcoef(mean, truth[120:])[0, 1] > 0.85
    assert (doubt > 0).any()
    shuffled = Predictor(features[:120], rng.permutation(truth[:120]), rng)
    assert np.corrcoef(shuffled.predict(features[120:])[0], truth[120:])[0, 1] < 0.5


def _marks(accuracy: float, old: float) -> Marks:
    rows = np.arange(100)
    return Marks(rows < 100 * accuracy, rows < 100 * old)


def test_the_better_wins_unless_it_forgets_and_the_faster_breaks_a_tie():
    def scored(accuracy: float, old: float, ms: float) -> float:
        return score(ms, _marks(accuracy, old), 0.95, 1.0)

    assert scored(0.95, 0.95, 1.0) > scored(0.93, 0.95, 0.1)
    assert scored(0.95, 0.95, 0.5) > scored(0.95, 0.95, 1.0)
    assert scored(0.94, 0.95, 1.0) > scored(0.96, 0.80, 1.0)
    # Within the allowance nothing is lost.
    assert scored(0.95, 0.94, 1.0) == scored(0.95, 0.95, 1.0)
    # Where nothing is known of old rows nothing is lost, and a score without any rows is still a number.
    assert score(1.0, _marks(0.9, 0.1), None, 1.0) == score(1.0, _marks(0.9, 0.9), None, 1.0)
    nothing = np.zeros(0, dtype=np.bool_)
    assert np.isfinite(score(1.0, Marks(nothing, nothing), None, 1.0))


def _look(accuracy: float, predicted: float | None) -> Look:
    return Look(np.zeros(3, dtype=np.int64), _marks(accuracy, 1.0), 1.0, predicted)


def test_tau_says_how_guesses_ranked_and_is_silent_where_it_cannot_know():
    right = [_look(share / 100, share / 100) for share in range(60, 90)]
    wrong = [_look(share / 100, 1 - share / 100) for share in range(60, 90)]
    assert [(one.name, round(one.value, 9), one.n) for one in tau_top(right)] == [
        ("tau_top", 1, 8),
        ("tau", 1, 30),
    ]
    assert [round(one.value, 9) for one in tau_top(wrong)] == [-1, -1]
    assert tau_top(right[:3]) == []
    assert tau_top([_look(0.9, 0.8)] * 10) == []
    assert tau_top([_look(share / 100, None) for share in range(60, 90)]) == []


def test_what_is_measured_next_is_half_by_the_guess_and_half_spread_over_latency():
    rng = np.random.default_rng(0)
    front = np.column_stack([np.linspace(0.1, 0.9, 40), np.linspace(9.0, 1.0, 40)])
    points = np.concatenate([front, front + 5 * rng.random((40, 2)) + 0.5])
    chosen = spread(points, 8)
    assert len(set(chosen)) == 8
    assert {0, 1, 2, 3, 39} <= set(chosen)
    assert spread(points[:3], 8) == [0, 1, 2]


def test_progress_is_always_a_whole_file_and_phases_add_up(tmp_path):
    used = iter([1.0, 2.0, 4.0, 7.0])
    lines: list[str] = []
    progress = Progress(tmp_path, lambda: next(used), lines.append)
    progress.report("train", 0, 2, "train: begins")
    progress.report("train", 1, 2, "train: goes on")
    progress.report("search", 0, 1, "search: begins")
    assert json.loads((tmp_path / "progress.json").read_bytes())["phase"] == "search"
    progress.end("done")
    assert progress.phases_s == {"train": 3.0, "search": 3.0}
    assert len(lines) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_the_oracle_trains_one_genome_and_says_how_well(tmp_path, tabled, capsys):
    for name, rows in (("train.npz", 300), ("test.npz", 120)):
        worlds.write_rows(CLOUDS, tmp_path / name, rows)
    space = CLOUDS.space()
    case = oracle.OracleCase(
        task=CLOUDS.task,
        genome=to_genome(space, space.smallest),
        train="train.npz",
        test="test.npz",
        budget_cpu_s=1000.0,
        seed=0,
        threads=1,
        state=str(tabled.out / "state.safetensors"),
    )
    # This process has used CPU time before: a budget below that leaves no step.
    poor = case.model_copy(update={"budget_cpu_s": 0.01})
    (tmp_path / "poor.json").write_bytes(canonical(poor))
    assert oracle.main([str(tmp_path / "poor.json"), str(tmp_path / "poor-out.json")]) == 3
    assert not (tmp_path / "poor-out.json").exists()
    assert "raise budget_cpu_s" in capsys.readouterr().out
    long = oracle.consult(case, tmp_path, Budget(60.0, worlds.ticking(4.0)))
    assert long.epochs > 2
    assert long.n == 120
    assert long.accuracy > 0.8


@pytest.mark.parametrize(("share", "stops"), [(0.5, True), (0.9, False)])
def test_a_phase_stops_at_its_share_of_the_budget_and_is_noted_once(share, stops):
    budget = Budget(10.0, lambda: 7.0)
    assert [budget.stop("train", share) for _ in range(2)] == [stops, stops]
    assert budget.cut == (["train"] if stops else [])
