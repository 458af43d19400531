"""The bundle's bytes, the cost of blocks, the guess, the yardstick, and the doctests of the room."""

import doctest
import importlib
import itertools
import json
import pkgutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import search
from policies.bundle import KEY
from policies.wire import canonical
from search import export, latency, oracle
from search.choice import score
from search.exam import Marks
from search.explore import Look
from search.predictor import Predictor
from search.progress import Progress
from search.space import to_genome


def _model(space, genes, seed: int = 0) -> onnx.ModelProto:
    blueprint = space.blueprint(genes)
    return export.network_model(
        blueprint, export.random_weights(blueprint, np.random.default_rng(seed)), "image"
    )


def _meta(founding_brief, space, tmp_path, genes):
    x = np.zeros((2, 20, 20), dtype=np.uint8)
    zeros = np.zeros((2, 3), dtype=np.float32)
    goldens = (export.golden("clean", x, zeros, zeros), export.golden("probe", x, zeros, zeros))
    return export.bundle_meta(
        founding_brief(tmp_path), to_genome(space, genes), space.blueprint(genes), goldens
    )


def test_equal_weights_give_equal_bytes_and_others_do_not(space, founding_brief, tmp_path):
    meta = _meta(founding_brief, space, tmp_path, space.largest)
    one, two, three = (export.bundle_bytes(_model(space, space.largest, seed), meta) for seed in (0, 0, 1))
    assert one == two
    assert one != three
    assert onnx.load_from_string(one).metadata_props[0].key == KEY


def test_every_kind_of_network_is_a_valid_graph_that_runs(space):
    for genes in (space.largest, space.smallest, *space.sample(np.random.default_rng(0), 6)):
        model = _model(space, genes)
        onnx.checker.check_model(model, full_check=True)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        blueprint = space.blueprint(genes)
        logits, embedding = session.run(
            ["logits", "embedding"], {"image": np.ones((5, 20, 20), dtype=np.uint8)}
        )
        assert (logits.shape, embedding.shape) == ((5, 3), (5, blueprint.embedding))


def test_probes_lie_outside_the_data():
    probes = export.probes(20, 20, np.random.default_rng(0))
    assert probes.shape == (8, 20, 20)
    assert {0, 255} <= set(np.unique(probes[3]))
    assert len({probe.tobytes() for probe in probes}) == 8


def test_a_line_through_the_table_follows_the_clock(space):
    """Each run of a session takes one tick, so all networks cost the same: the slope says nothing."""
    ticks = itertools.count()
    table = {latency.key(block): 10.0 for block in space.blocks()}
    networks = [space.blueprint(space.largest), space.blueprint(space.smallest)]
    costs = latency.fit(table, networks, lambda: next(ticks) / 1000, 0)
    mean = np.mean([costs.predict_ms(network) for network in networks])
    assert mean == pytest.approx(1.0)
    assert costs.predict_ms(networks[0]) > costs.predict_ms(networks[1])


def test_a_block_that_was_not_timed_is_not_guessed(space):
    costs = latency.Latency({}, 0.0, 1.0)
    with pytest.raises(KeyError):
        costs.predict_ms(space.blueprint(space.smallest))


def test_blocks_are_timed_by_the_clock_that_is_given(space):
    ticks = itertools.count()
    blocks = space.blocks()[:3]
    table = latency.measure_table(blocks, lambda: next(ticks) / 1000, 0)
    assert table == {latency.key(block): 1000.0 for block in blocks}


def test_the_guess_ranks_an_additive_truth(space):
    rng = np.random.default_rng(0)
    genes = space.sample(rng, 120)
    features = space.encode(genes)
    truth = features @ np.linspace(0, 0.02, features.shape[1])
    predictor = Predictor(features[:80], truth[:80], rng)
    mean, doubt = predictor.predict(features[80:])
    assert np.corrcoef(mean, truth[80:])[0, 1] > 0.9
    assert (doubt > 0).any()
    shuffled = Predictor(features[:80], rng.permutation(truth[:80]), rng)
    assert np.corrcoef(shuffled.predict(features[80:])[0], truth[80:])[0, 1] < 0.6


def _look(space, accuracy: float, old: float, ms: float) -> Look:
    rows = np.arange(100)
    marks = Marks(rows < 100 * accuracy, rows < 100 * old)
    return Look(space.smallest, space.blueprint(space.smallest), marks, ms, None)


def test_the_better_wins_unless_it_forgets_and_the_faster_breaks_a_tie(space):
    def scored(accuracy: float, old: float, ms: float) -> float:
        look = _look(space, accuracy, old, ms)
        return score(look, look.marks, 0.95, 1.0)

    assert scored(0.95, 0.95, 1.0) > scored(0.93, 0.95, 0.1)
    assert scored(0.95, 0.95, 0.5) > scored(0.95, 0.95, 1.0)
    assert scored(0.94, 0.95, 1.0) > scored(0.96, 0.80, 1.0)
    # Within the allowance nothing is lost.
    assert scored(0.95, 0.94, 1.0) == scored(0.95, 0.95, 1.0)


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


def test_the_oracle_trains_one_genome_and_says_how_well(tmp_path, task, space, founded, write_data, capsys):
    for name, rows in (("train.npz", 300), ("test.npz", 120)):
        write_data(tmp_path / name, rows)
    case = oracle.OracleCase(
        task=task,
        genome=to_genome(space, space.smallest),
        train="train.npz",
        test="test.npz",
        budget_cpu_s=1000.0,
        seed=0,
        threads=1,
        state=str(founded.out / "state.safetensors"),
    )
    (tmp_path / "case.json").write_bytes(canonical(case))
    # This process has used CPU time before: a budget below that leaves no step.
    poor = case.model_copy(update={"budget_cpu_s": 0.01})
    (tmp_path / "poor.json").write_bytes(canonical(poor))
    assert oracle.main([str(tmp_path / "poor.json"), str(tmp_path / "poor-out.json")]) == 3
    assert not (tmp_path / "poor-out.json").exists()
    ticks = itertools.count()
    long = oracle.consult(case, tmp_path, oracle.Budget(60.0, lambda: next(ticks) * 4.0))
    assert long.epochs > 5
    assert long.n == 120
    assert long.accuracy > 0.9
    assert "raise budget_cpu_s" in capsys.readouterr().out


def _modules() -> list[str]:
    return [
        one.name for one in pkgutil.walk_packages(search.__path__, "search.") if "__main__" not in one.name
    ]


@pytest.mark.parametrize("name", _modules())
def test_the_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
