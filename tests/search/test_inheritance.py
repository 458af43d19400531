"""What one search leaves to the next: the weights that it ships, a regime to come back to, all points."""

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from policies.terms import Brief, Heirloom, SearchResult, TriggerKind
from search.archive import read_archive
from search.space import to_genes, to_genome
from tests.search import worlds
from tests.search.worlds import CLOUDS, ROOMY, Searched


@pytest.fixture(scope="module")
def adapted(tabled, tmp_path_factory) -> Searched:
    """The second generation, in a turned world; its winner was tuned, whatever tuning did to it."""
    folder = tmp_path_factory.mktemp("adapted")
    data = worlds.write_rows(CLOUDS, folder / "data.npz", 800, 200, turned=True)
    brief = worlds.child_brief(tabled, CLOUDS, folder, TriggerKind.DATA, data=data, budget_cpu_s=10.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.final._FINALISTS", 1)
        patch.setattr("search.final.clearly_better", lambda one, other: False)
        return worlds.run(brief, folder, folder / "out")


def _again(tabled: Searched, adapted: Searched, folder, **changed: object) -> Brief:
    """Return a brief over the rows of the adaptation, from a parent of before it that is not its own."""
    space = CLOUDS.space()
    fields: dict[str, object] = {
        "data": adapted.brief.data.model_copy(update={"path": str(adapted.out.parent / "data.npz")}),
        "parent_generation": 3,
        "parent_genome": to_genome(space, space.largest),
        "library": (_heirloom(adapted),),
        "budget_cpu_s": 10.0,
    }
    return worlds.child_brief(tabled, CLOUDS, folder, TriggerKind.DATA, **(fields | changed))


def _heirloom(adapted: Searched) -> Heirloom:
    return Heirloom(
        generation=2,
        genome=adapted.result.winner,
        state=adapted.left("state.safetensors"),
        accuracy=adapted.evidence["accuracy_search"],
    )


@pytest.fixture(scope="module")
def back(tabled, adapted, tmp_path_factory) -> Searched:
    """The fourth generation, when the turned world has come back."""
    folder = tmp_path_factory.mktemp("back")
    return worlds.run(_again(tabled, adapted, folder), folder, folder / "out")


@pytest.fixture(scope="module")
def faster(tabled, tmp_path_factory) -> Searched:
    """A generation that was chosen from the archive because the largest was too slow."""
    folder, space = tmp_path_factory.mktemp("faster"), CLOUDS.space()
    largest = to_genome(space, space.largest)
    brief = worlds.child_brief(tabled, CLOUDS, folder, TriggerKind.LATENCY, parent_genome=largest)
    return worlds.run(brief, folder, folder / "out")


@pytest.fixture(params=["tabled", "adapted", "back", "faster"])
def each(request) -> Searched:
    return request.getfixturevalue(request.param)


# -- the regime -------------------------------------------------------------------------------------------


def test_an_adaptations_own_regime_is_known_again_and_serves_both_regimes_as_it_did(adapted, back):
    evidence = back.evidence
    assert evidence["regime_returned"] == 2
    assert {"train", "settle", "search", "tune"}.isdisjoint(back.result.phases_s)
    assert back.result.winner.genes[-1] == adapted.result.winner.genes[-1]
    for name in ("accuracy_search", "accuracy_old"):
        assert evidence[name] >= adapted.evidence[name] - 0.03
    # The parent knows the old rows alone, and those alone calibrate it best: that would not do for the other.
    assert evidence["accuracy_before"] < 0.7 < 0.9 < evidence["accuracy_old_before"]
    assert back.result.state.digest == adapted.result.state.digest


@pytest.mark.parametrize("library", ["none", "the parent's own weights"])
def test_without_it_or_with_other_weights_the_same_rows_are_learned_anew(tmp_path, tabled, adapted, library):
    other = _heirloom(adapted).model_copy(update={"state": tabled.left("state.safetensors")})
    heirlooms = () if library == "none" else (other,)
    # One step is enough to tell.
    brief = _again(tabled, adapted, tmp_path, library=heirlooms, budget_cpu_s=1.0)
    anew = worlds.run(brief, tmp_path, tmp_path / "out")
    assert "regime_returned" not in anew.evidence
    assert "train" in anew.result.phases_s


# -- the weights ------------------------------------------------------------------------------------------


def _classifiers(one: Searched) -> list[np.ndarray]:
    """Return the last layer's weight as the state, and as the bundle has it."""
    space = CLOUDS.space()
    slot = space.blueprint(to_genes(space, one.result.winner)).classifier
    model = onnx.load(one.out / "bundle.onnx")
    shipped = next(part for part in model.graph.initializer if part.name == "instar.classifier.weight")
    return [load_file(one.out / "state.safetensors")[f"{slot}.weight"], onnx.numpy_helper.to_array(shipped)]


def test_the_state_that_is_left_holds_the_weights_that_are_served(each):
    left, served = _classifiers(each)
    np.testing.assert_array_equal(left, served)


def test_the_weights_of_a_tuned_winner_are_others_than_those_it_was_tuned_from(tabled, adapted):
    """The control of the test above: one of its cases is tuned, and what is left is not what came in."""
    assert adapted.evidence["tuned"] == 1
    assert not np.array_equal(_classifiers(adapted)[0], _classifiers(tabled)[0])


# -- the points -------------------------------------------------------------------------------------------


def test_the_point_of_the_winner_is_as_good_as_the_evidence_says(each):
    result: SearchResult = each.result
    own = [point for point in result.points if point.genome == result.winner]
    assert [point.accuracy for point in own] == [each.evidence["accuracy_search"]]
    assert own[0].measured


@pytest.mark.parametrize("name", ["back", "faster"])
def test_a_search_that_trained_nothing_keeps_the_parents_other_points_as_unmeasured(request, tabled, name):
    later: Searched = request.getfixturevalue(name)
    before = read_archive((tabled.out / "archive.json").read_bytes()).points
    after = read_archive((later.out / "archive.json").read_bytes()).points
    assert after == later.result.points
    space = CLOUDS.space()
    measured, old = (
        {space.blueprint(to_genes(space, point.genome)): point for point in after if point.measured is wanted}
        for wanted in (True, False)
    )
    # Each network once, in whatever spelling.
    assert len(measured) + len(old) == len(measured | old) == len(after)
    assert old
    assert name == "faster" or [point.genome for point in measured.values()] == [later.result.winner]
    for point in before:
        network = space.blueprint(to_genes(space, point.genome))
        assert network in measured or old[network].accuracy == point.accuracy


def test_an_adaptation_measures_all_that_it_keeps(adapted):
    """The control of the test above."""
    assert all(point.measured for point in adapted.result.points)
    assert adapted.brief.limits == ROOMY


@pytest.mark.parametrize("moved", [True, False])
def test_a_network_of_another_device_may_stay_and_one_that_is_too_slow_here_may_not(tabled, tmp_path, moved):
    brief = worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.LATENCY, moved=moved)
    found = worlds.run(brief, tmp_path, tmp_path / "out").result
    parent = next(point for point in found.points if point.genome == brief.parent_genome)
    slower = [point for point in found.points if point.measured and point.latency_ms >= parent.latency_ms]
    assert bool(slower) is moved
