"""What is refused before any training: each mistake beside the brief that is let in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from policies.errors import PermanentError, TamperError
from policies.terms import Brief, Genome, TriggerKind
from policies.wire import canonical, parse_canonical
from search.__main__ import REFUSED, main
from search.admission import admit
from search.bounds import Bounds, median_ceiling_ms, nearest
from search.latency import Latency, key
from search.spaces import BUILTIN

_NOTHING = "sha256:" + "0" * 64


def _refusal(brief: Brief, folder: Path) -> str:
    with pytest.raises(PermanentError) as caught:
        admit(brief, folder, BUILTIN)
    return str(caught.value)


def test_a_good_brief_is_let_in(tmp_path, founding_brief):
    admission = admit(founding_brief(tmp_path), tmp_path, BUILTIN)
    assert (len(admission.data.train_new), len(admission.data.search_new)) == (600, 200)
    assert admission.parent is None


@pytest.mark.parametrize(
    ("rows", "changed", "words"),
    [
        (80, {}, "at least 100 new rows of role train, got 60"),
        (800, {"y": np.zeros(800, dtype=np.int64)}, "at least two classes"),
        (800, {"y": np.full(800, 3)}, "labels in [0, 3), got 3"),
        (800, {"role": np.full(800, 2, dtype=np.uint8)}, "roles 0 (train) and 1 (search)"),
        (800, {"x": np.zeros((800, 20, 20), dtype=np.float32)}, "uint8"),
        (800, {"x": np.zeros((800, 20, 21), dtype=np.uint8)}, "uint8"),
        (800, {"regime": np.ones(7, dtype=np.uint8)}, "arrays of one length"),
        (800, {"y": np.array([None] * 800)}, "expected an .npz"),
    ],
)
def test_data_that_cannot_be_learned_from_are_refused(
    tmp_path, founding_brief, write_data, rows, changed, words
):
    data = write_data(tmp_path / "bad.npz", rows, **changed)
    assert words in _refusal(founding_brief(tmp_path, data=data), tmp_path)


def test_an_adaptation_counts_new_rows_alone(tmp_path, child_brief, write_data):
    data = write_data(tmp_path / "data.npz", 80, 800)
    assert "got 60" in _refusal(child_brief(tmp_path, TriggerKind.DATA, data=data), tmp_path)


def test_bytes_that_are_not_what_their_digest_says_are_refused(tmp_path, founding_brief):
    brief = founding_brief(tmp_path)
    path = tmp_path / brief.data.path
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(TamperError, match="sha256"):
        admit(brief, tmp_path, BUILTIN)
    path.unlink()
    with pytest.raises(TamperError, match=r"founding\.npz"):
        admit(brief, tmp_path, BUILTIN)


@pytest.mark.parametrize("field", ["parent_state", "parent_archive"])
def test_a_parent_whose_bytes_changed_is_refused(tmp_path, child_brief, field):
    good = child_brief(tmp_path, TriggerKind.LATENCY)
    assert admit(good, tmp_path, BUILTIN).parent is not None
    artefact = getattr(good, field).model_copy(update={"digest": _NOTHING})
    assert "sha256" in _refusal(good.model_copy(update={field: artefact}), tmp_path)


@pytest.mark.parametrize("field", ["parent_state", "parent_archive", "parent_genome"])
def test_an_adaptation_without_a_parent_is_refused(tmp_path, child_brief, field):
    brief = child_brief(tmp_path, TriggerKind.LATENCY, **{field: None})
    assert "parent" in _refusal(brief, tmp_path)


def test_a_parent_of_another_space_is_refused(tmp_path, child_brief):
    genome = Genome(space="other", genes=(1, 2))
    assert "other" in _refusal(child_brief(tmp_path, TriggerKind.LATENCY, parent_genome=genome), tmp_path)


def test_a_modality_without_a_space_is_refused(tmp_path, founding_brief):
    with pytest.raises(PermanentError, match="modality"):
        admit(founding_brief(tmp_path), tmp_path, {})


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [("max_params", 5000, "5000"), ("max_size_bytes", 20_000, "20000"), ("max_p99_ms", 0.001, "0.0005")],
)
def test_limits_that_no_genome_meets_end_the_process_with_a_reason(
    tmp_path, founding_brief, capsys, field, value, word
):
    good = founding_brief(tmp_path)
    brief = good.model_copy(update={"limits": good.limits.model_copy(update={field: value})})
    path = tmp_path / "brief.json"
    path.write_bytes(canonical(brief))
    assert main([str(path), str(tmp_path / "out")]) == REFUSED
    refusal = parse_canonical((tmp_path / "out" / "refusal.json").read_bytes(), "refusal")
    assert set(refusal) == {"reason"}
    assert word in refusal["reason"]
    assert "widen" in refusal["reason"]
    assert "refused" in capsys.readouterr().out
    assert not (tmp_path / "out" / "state.safetensors").exists()


def test_a_brief_in_another_spelling_or_of_an_unknown_modality_is_refused(tmp_path, founding_brief):
    raw = canonical(founding_brief(tmp_path))
    for name, bad in (
        ("spelling", raw + b"\n"),
        ("modality", raw.replace(b'"modality":"image"', b'"modality":"smell"')),
    ):
        path = tmp_path / f"{name}.json"
        path.write_bytes(bad)
        assert main([str(path), str(tmp_path / name)]) == REFUSED
        assert (tmp_path / name / "refusal.json").is_file()


def _bounds(space, limits, parent) -> Bounds:
    costs = Latency({key(block): 10.0 for block in space.blocks()}, 0.0, 1.0)
    return Bounds(space, limits, costs, median_ceiling_ms(limits, None), parent)


def test_a_parent_beyond_the_limits_is_led_back_within_the_edit_distance(space, limits):
    params = space.blueprint(space.largest).params
    tight = limits.model_copy(update={"max_params": params // 2, "max_edit_distance": 3})
    bounds = _bounds(space, tight, space.largest)
    found = nearest(bounds)
    assert bounds.violation(found[None])[0] == 0
    assert 0 < space.distance(found[None], space.largest)[0] <= 3
    none = limits.model_copy(update={"max_params": params // 2, "max_edit_distance": 0})
    with pytest.raises(PermanentError, match="0 genes"):
        nearest(_bounds(space, none, space.largest))


def test_each_limit_alone_makes_a_violation(space, limits, founding_brief: Callable[..., Brief]):
    genes = space.largest[None]
    assert _bounds(space, limits, None).violation(genes)[0] == 0
    params = space.blueprint(space.largest).params
    for field, value in (
        ("max_params", params - 1),
        ("max_size_bytes", params * 4),
        ("max_p99_ms", 0.01),
    ):
        tight = limits.model_copy(update={field: value})
        assert _bounds(space, tight, None).violation(genes)[0] > 0
    near = limits.model_copy(update={"max_edit_distance": 3})
    assert _bounds(space, near, space.smallest).violation(genes)[0] > 0


def test_a_budget_that_preparation_eats_up_is_refused(tmp_path, founding_brief, run_search):
    brief = founding_brief(tmp_path, budget_cpu_s=0.01)
    with pytest.raises(PermanentError, match="raise the budget"):
        run_search(brief, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "result.json").exists()
