"""Searches that start from a parent: after the data moved, after latency moved, without labels, with a
library."""

from pathlib import Path

import numpy as np
import pytest

from policies.errors import PermanentError
from policies.limits import edit_distance
from policies.terms import Heirloom, TriggerKind
from search import adapting, plan
from search.archive import read_archive
from search.costs import Costs
from search.exam import Marks
from search.library import clearly_better
from search.runtime import run_bundle
from search.space import to_genes, to_genome
from tests.search import worlds
from tests.search.worlds import BARS, BOTH, CLOUDS, ROOMY, Searched

_BUDGET_S = 13.0


def test_an_adaptation_regains_what_a_turned_camera_cost_and_stays_near_its_parent(tmp_path, founded):
    data = worlds.write_rows(BARS, tmp_path / "data.npz", 600, 400, turned=True)
    limits = ROOMY.model_copy(update={"max_edit_distance": 6})
    brief = worlds.child_brief(
        founded,
        BARS,
        tmp_path,
        TriggerKind.DATA,
        data=data,
        limits=limits,
        precisions=BOTH,
        budget_cpu_s=_BUDGET_S,
    )
    adapted = worlds.run(brief, tmp_path, tmp_path / "out")
    evidence = adapted.evidence
    assert evidence["accuracy_before"] < 0.6
    assert evidence["accuracy_search"] > evidence["accuracy_before"] + 0.15
    assert {"accuracy_old", "accuracy_old_before", "train_steps"} <= set(evidence)
    distance = edit_distance(adapted.result.winner, brief.parent_genome)
    assert distance == evidence["edit_distance"] <= 6
    # The device was measured before; its profile travels.
    kept = [
        read_archive(path.read_bytes()).profile for path in (adapted.out / "archive.json", _archive(brief))
    ]
    assert kept[0] == kept[1]
    assert adapted.result.state.digest != founded.result.state.digest


def _archive(brief) -> Path:
    return Path(brief.parent_archive.path)


def test_an_adaptation_that_may_change_no_gene_trains_the_parent_and_ships_it(tmp_path, tabled):
    data = worlds.write_rows(CLOUDS, tmp_path / "data.npz", 400, 200, turned=True)
    limits = ROOMY.model_copy(update={"max_edit_distance": 0})
    brief = worlds.child_brief(
        tabled, CLOUDS, tmp_path, TriggerKind.DATA, data=data, limits=limits, budget_cpu_s=_BUDGET_S
    )
    adapted = worlds.run(brief, tmp_path, tmp_path / "out")
    assert adapted.result.winner == tabled.result.winner
    assert adapted.evidence["accuracy_search"] > adapted.evidence["accuracy_before"] + 0.1


def test_an_adaptation_takes_the_profile_of_the_archive_where_the_brief_has_none(tmp_path, tabled):
    data = worlds.write_rows(CLOUDS, tmp_path / "data.npz", 400, turned=True)
    brief = worlds.child_brief(
        tabled, CLOUDS, tmp_path, TriggerKind.DATA, data=data, profile=None, budget_cpu_s=10.0
    )
    adapted = worlds.run(brief, tmp_path, tmp_path / "out")
    assert "profile" not in adapted.result.phases_s
    assert not {"accuracy_old", "accuracy_old_before"} & set(adapted.evidence)


def _mostly_one_class(tabled: Searched, tmp_path: Path, **changed: object):
    """Return a brief whose new rows follow the old law, but that one class became common."""
    path = tmp_path / "data.npz"
    worlds.write_rows(CLOUDS, path, 3000, 400)
    with np.load(path) as file:
        arrays = dict(file)
    new = arrays["regime"] == 1
    rare = new & (arrays["y"] != 0) & (np.arange(len(new)) % 21 > 0)
    common = new & (arrays["y"] == 0) & (np.arange(len(new)) > 1500)
    np.savez(path, **{name: array[~rare & ~common] for name, array in arrays.items()})
    return worlds.child_brief(
        tabled, CLOUDS, tmp_path, TriggerKind.DATA, data=worlds.artefact(path), budget_cpu_s=10.0, **changed
    )


def test_a_parent_is_judged_with_the_calibration_that_suits_it_so_that_no_gain_is_flattered(tmp_path, tabled):
    desk = worlds.desk(_mostly_one_class(tabled, tmp_path), tmp_path)
    parent, marks = desk.parent.genes, []
    desk.net.load(desk.parent.state)
    for mix in (0.5, 0.0, 1.0):
        desk.record.mix = mix
        marks.append(desk.examiner(plan.CALIBRATION_ROWS).examine(parent))
    adapting.settle(desk)
    desk.crew.close()
    before = next(one.value for one in desk.record.evidence if one.name == "accuracy_before")
    assert before == max(one.accuracy for one in marks)
    assert desk.record.old_before == max(one.accuracy_old for one in marks)
    # What it would have been by one rule for all: new rows alone, or both in equal parts.
    assert marks[2].accuracy < before - 0.2
    assert marks[0].accuracy < before


def test_an_adaptation_without_time_to_train_still_answers_and_a_founding_is_refused(tmp_path, tabled):
    data = worlds.write_rows(CLOUDS, tmp_path / "data.npz", 400, 200, turned=True)
    brief = worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.DATA, data=data, budget_cpu_s=_BUDGET_S)
    # A clock that is beyond the share of training from the first look on.
    spent = 0.9 * _BUDGET_S
    late = worlds.run(brief, tmp_path, tmp_path / "late", cpu=lambda: spent)
    assert late.evidence["train_steps"] == 0
    assert late.evidence["phases_cut"] >= 1
    assert late.evidence["accuracy_search"] >= late.evidence["accuracy_before"]
    founding = worlds.founding_brief(CLOUDS, tmp_path, budget_cpu_s=_BUDGET_S)
    with pytest.raises(PermanentError, match="expected time to train"):
        worlds.run(founding, tmp_path, tmp_path / "founding", cpu=lambda: spent)


# -- latency ----------------------------------------------------------------------------------------------


def _slowest(tabled: Searched, tmp_path: Path, **changed: object):
    space = CLOUDS.space()
    largest = to_genome(space, space.largest)
    return worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.LATENCY, parent_genome=largest, **changed)


def test_a_latency_search_chooses_a_faster_point_of_the_archive_without_training(tmp_path, tabled):
    space = CLOUDS.space()
    chosen = worlds.run(_slowest(tabled, tmp_path), tmp_path, tmp_path / "out")
    archive = read_archive((tabled.out / "archive.json").read_bytes())
    networks = {space.blueprint(to_genes(space, point.genome)) for point in archive.points}
    found = to_genes(space, chosen.result.winner)
    assert space.blueprint(found) in networks
    fast, slow = Costs(space, archive.profile).latency_ms(np.stack([found, space.largest]))
    assert fast < 0.9 * slow
    assert chosen.evidence["latency_predicted_ms"] == fast
    assert {"train", "tune"}.isdisjoint(chosen.result.phases_s)
    assert "train_steps" not in chosen.evidence
    assert chosen.result.state.digest == tabled.result.state.digest


def test_a_latency_search_that_may_change_no_gene_is_refused(tmp_path, tabled):
    limits = ROOMY.model_copy(update={"max_edit_distance": 0})
    with pytest.raises(PermanentError, match=r"median|archived"):
        worlds.run(_slowest(tabled, tmp_path, limits=limits), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "result.json").exists()


def test_telemetry_that_leaves_no_room_for_a_network_is_refused(tmp_path, tabled):
    served_ms = ROOMY.max_p99_ms / 2
    good = worlds.run(_slowest(tabled, tmp_path, served_p50_ms=served_ms / 2), tmp_path, tmp_path / "good")
    assert good.evidence["accuracy_search"] > 0.8
    brief = _slowest(tabled, tmp_path, served_p50_ms=served_ms + 1)
    with pytest.raises(PermanentError, match="serving alone takes 101 ms by telemetry"):
        worlds.run(brief, tmp_path, tmp_path / "out")


# -- the library --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def turned(tmp_path_factory) -> Searched:
    """A generation of the turned world."""
    folder = tmp_path_factory.mktemp("turned")
    data = worlds.write_rows(CLOUDS, folder / "turned.npz", 800, turned=True)
    return worlds.run(worlds.founding_brief(CLOUDS, folder, data=data), folder, folder / "out")


def _heirloom(of: Searched, accuracy: float) -> Heirloom:
    return Heirloom(
        generation=1, genome=of.result.winner, state=of.left("state.safetensors"), accuracy=accuracy
    )


def _returning(turned: Searched, tmp_path: Path, *library: Heirloom, **changed: object):
    """Return a brief of the turned generation, in whose world the old law holds again."""
    fields: dict[str, object] = {
        "data": worlds.write_rows(CLOUDS, tmp_path / "data.npz", 400),
        "library": library,
        "budget_cpu_s": 10.0,
    }
    return worlds.child_brief(turned, CLOUDS, tmp_path, TriggerKind.DATA, **(fields | changed))


def test_an_heirloom_of_the_regime_that_returns_is_taken_without_training(tmp_path, tabled, turned):
    heirloom = _heirloom(tabled, tabled.evidence["accuracy_search"])
    back = worlds.run(_returning(turned, tmp_path, heirloom), tmp_path, tmp_path / "out")
    evidence = back.evidence
    assert evidence["regime_returned"] == 1
    assert evidence["accuracy_before"] < 0.7 < 0.9 < evidence["accuracy_search"]
    assert evidence["accuracy_search"] >= evidence["accuracy_generation_1"] - 0.02
    assert {"train", "settle", "search", "tune"}.isdisjoint(back.result.phases_s)
    assert "train_steps" not in evidence
    assert back.result.state.digest == tabled.result.state.digest
    space = CLOUDS.space()
    names = [space.blueprint(to_genes(space, one.result.winner)) for one in (back, tabled)]
    assert names[0] == names[1]


def test_an_heirloom_that_does_worse_than_in_its_time_is_passed_over(tmp_path, turned, tabled):
    """One of the turned world: it stands for a regime that is not the one of today."""
    heirloom = _heirloom(turned, 0.95)
    found = worlds.run(_returning(turned, tmp_path, heirloom), tmp_path, tmp_path / "out")
    assert "regime_returned" not in found.evidence
    assert found.evidence["accuracy_generation_1"] < 0.7
    assert found.evidence["train_steps"] >= 1
    assert found.result.state.digest != turned.result.state.digest


def test_an_heirloom_beyond_the_limits_is_not_even_examined(tmp_path, turned, tabled):
    heirloom = _heirloom(tabled, tabled.evidence["accuracy_search"])
    heirloom = heirloom.model_copy(update={"genome": _far_from(turned)})
    limits = ROOMY.model_copy(update={"max_edit_distance": 1})
    found = worlds.run(_returning(turned, tmp_path, heirloom, limits=limits), tmp_path, tmp_path / "out")
    assert not {"regime_returned", "accuracy_generation_1"} & set(found.evidence)


def _far_from(parent: Searched):
    space = CLOUDS.space()
    genes = to_genes(space, parent.result.winner)
    far = np.where(genes > 0, 0, np.maximum(space.cardinalities - 1, 0))
    assert space.distance(far[None], genes)[0] > 1
    return to_genome(space, far)


def test_a_few_more_right_rows_are_chance_and_many_are_not():
    nothing = np.zeros(0, dtype=np.bool_)
    one, few, many = (Marks(np.arange(100) < n, nothing) for n in (50, 52, 60))
    assert not clearly_better(few, one)
    assert clearly_better(many, one)
    assert not clearly_better(one, many)
    assert not clearly_better(one, one)


# -- without labels -----------------------------------------------------------------------------------------


def _unlabelled(tabled: Searched, tmp_path: Path, **changed: object):
    path = tmp_path / "data.npz"
    worlds.write_rows(CLOUDS, path, 400, 200)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["x"][:400] = arrays["x"][:400] * 1.5 + 0.5
    arrays["y"] = np.where(arrays["regime"] == 1, -1, arrays["y"])
    np.savez(path, **arrays)
    fields: dict[str, object] = {"data": worlds.artefact(path), "budget_cpu_s": _BUDGET_S}
    return worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.DATA, **(fields | changed))


@pytest.mark.parametrize("trusting", [False, True])
def test_without_labels_the_parent_is_refreshed_and_nothing_is_said_of_accuracy(tmp_path, tabled, trusting):
    brief = _unlabelled(tabled, tmp_path, pseudo_labels=trusting)
    fresh = worlds.run(brief, tmp_path, tmp_path / "out")
    assert fresh.result.winner == tabled.result.winner
    evidence = fresh.evidence
    assert not [name for name in evidence if "accuracy" in name]
    assert not {"tuned", "winners_curse", "train_steps"} & set(evidence)
    assert {"confidence_before", "confidence", "agreement_before"} <= set(evidence)
    assert evidence["confidence"] > evidence["confidence_before"]
    assert ("pseudo_labels" in evidence) is trusting
    assert fresh.result.architectures == 1
    assert fresh.result.points
    assert not any(point.measured for point in fresh.result.points)
    assert fresh.result.bundle.digest != tabled.result.bundle.digest


@pytest.mark.parametrize("over", ["params", "int8"])
def test_without_labels_a_parent_beyond_the_limits_is_refused(tmp_path, tabled, over):
    """Nothing can be put in its place: other architectures cannot be ranked."""
    space, parent = CLOUDS.space(BOTH), tabled.result.winner
    params = space.blueprint(to_genes(space, parent)).params
    int8 = parent.model_copy(update={"genes": (*parent.genes[:-1], 1)})
    good: dict[str, object] = {"limits": ROOMY.model_copy(update={"max_params": params})}
    bad: dict[str, object] = {"limits": ROOMY.model_copy(update={"max_params": params - 1})}
    if over == "int8":
        good, bad = {"parent_genome": int8, "precisions": BOTH}, {"parent_genome": int8}
    kept = worlds.run(_unlabelled(tabled, tmp_path, **good), tmp_path, tmp_path / "good")
    assert kept.evidence["params"] == params
    with pytest.raises(PermanentError, match=f"parameters and a median .* in an allowed .* {params} param"):
        worlds.run(_unlabelled(tabled, tmp_path, **bad), tmp_path, tmp_path / "bad")
    assert not (tmp_path / "bad" / "result.json").exists()


def test_a_refreshed_parent_does_no_worse_on_rows_that_only_moved(tmp_path, tabled):
    fresh = worlds.run(_unlabelled(tabled, tmp_path), tmp_path, tmp_path / "out")
    x, y = CLOUDS.law(500, np.random.default_rng(7), False)
    x = (x * 1.5 + 0.5).astype(np.float32)
    shares = []
    for out in (tabled.out, fresh.out):
        logits, _ = run_bundle((out / "bundle.onnx").read_bytes(), x)
        shares.append(float((logits.argmax(axis=1) == y).mean()))
    assert shares[1] >= shares[0] - 0.01


def test_one_labelled_new_row_of_role_train_makes_it_a_search_with_labels(tmp_path, tabled):
    """Rows without a label are then left out, and too few are left."""
    path = tmp_path / "few.npz"
    worlds.write_rows(CLOUDS, path, 400, 200)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["y"][2:400] = -1
    np.savez(path, **arrays)
    with pytest.raises(PermanentError, match="at least 100 new rows of role train, got 1"):
        worlds.run(_unlabelled(tabled, tmp_path, data=worlds.artefact(path)), tmp_path, tmp_path / "out")
