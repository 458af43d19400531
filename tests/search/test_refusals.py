"""What is refused before any training: each mistake beside the brief that is let in."""

from pathlib import Path

import numpy as np
import pytest

from policies.errors import PermanentError, TamperError
from policies.terms import Brief, Genome, Heirloom, Precision, TriggerKind
from policies.wire import canonical, parse_canonical
from search.__main__ import REFUSED, main
from search.admission import admit
from search.archive import read_archive
from search.spaces import BUILTIN
from tests.search import worlds
from tests.search.worlds import BARS, CLOUDS

_NOTHING = "sha256:" + "0" * 64


def _refusal(brief: Brief, folder: Path) -> str:
    with pytest.raises(PermanentError) as caught:
        admit(brief, folder, BUILTIN)
    return str(caught.value)


def test_a_good_brief_is_let_in(tmp_path):
    admission = admit(worlds.founding_brief(BARS, tmp_path), tmp_path, BUILTIN)
    assert (len(admission.data.train_new), len(admission.data.search_new)) == (600, 200)
    assert admission.parent is None
    assert admission.library == ()
    assert admission.profile is not None


@pytest.mark.parametrize(
    ("rows", "changed", "words"),
    [
        (80, {}, "at least 100 new rows of role train, got 60"),
        (180, {}, "at least 50 new rows of role search, got 45"),
        (800, {"y": np.zeros(800, dtype=np.int64)}, "at least two classes among 600 rows of role train"),
        (800, {"y": np.full(800, 3)}, "labels in [0, 3), or -1 where there is none, got 3 to 3"),
        (800, {"y": np.full(800, -2)}, "got -2 to -2"),
        (800, {"y": np.full(800, 1.0)}, "expected whole numbers as labels, got float64"),
        (800, {"y": np.full(800, -1)}, "expected labels in the data of a founding search, got none"),
        (
            800,
            {"role": np.full(800, 2, dtype=np.uint8)},
            "roles 0 (train) and 1 (search) in the data, got [2]",
        ),
        (800, {"x": np.zeros((800, 20, 20), dtype=np.float32)}, "expected x of uint8 (n, 20, 20)"),
        (800, {"x": np.zeros((800, 20, 21), dtype=np.uint8)}, "got uint8 (800, 20, 21)"),
        (800, {"regime": np.ones(7, dtype=np.uint8)}, "arrays of one length, got x 800"),
        (800, {"y": np.array([None] * 800)}, "expected an .npz with arrays x, y, role, regime"),
    ],
)
def test_data_that_cannot_be_learned_from_are_refused(tmp_path, rows, changed, words):
    data = worlds.write_rows(BARS, tmp_path / "bad.npz", rows, **changed)
    assert words in _refusal(worlds.founding_brief(BARS, tmp_path, data=data), tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_no_numbers_are_refused(tmp_path, value):
    x, _ = CLOUDS.law(800, np.random.default_rng(0), False)
    good = worlds.write_rows(CLOUDS, tmp_path / "good.npz", 800, x=x)
    assert admit(worlds.founding_brief(CLOUDS, tmp_path, data=good), tmp_path, BUILTIN).data.labelled
    x[17, 2] = value
    bad = worlds.write_rows(CLOUDS, tmp_path / "bad.npz", 800, x=x)
    assert "got NaN or infinity" in _refusal(worlds.founding_brief(CLOUDS, tmp_path, data=bad), tmp_path)


def test_a_latency_search_without_labels_is_refused_and_an_adaptation_is_not(tmp_path, tabled):
    unknown = worlds.write_rows(CLOUDS, tmp_path / "unknown.npz", 800, y=np.full(800, -1))

    def brief(kind: TriggerKind, **changed: object) -> Brief:
        return worlds.child_brief(tabled, CLOUDS, tmp_path, kind, **changed)

    assert "in the data of a latency search, got none: it has to rank" in _refusal(
        brief(TriggerKind.LATENCY, data=unknown), tmp_path
    )
    assert admit(brief(TriggerKind.LATENCY), tmp_path, BUILTIN).data.labelled
    assert not admit(brief(TriggerKind.DATA, data=unknown), tmp_path, BUILTIN).data.labelled


@pytest.mark.parametrize(
    ("cut", "said"), [(1, "expected genes below"), (2, "expected a genome of table with")]
)
def test_an_archive_with_a_point_that_is_no_genome_of_the_space_is_refused(tmp_path, tabled, cut, said):
    archive = read_archive((tabled.out / "archive.json").read_bytes())
    last = archive.points[-1]
    odd = Genome(space="table", genes=(99, *last.genome.genes[cut:]))
    points = (*archive.points[:-1], last.model_copy(update={"genome": odd}))
    for name, written in (("good", archive), ("odd", archive.model_copy(update={"points": points}))):
        (tmp_path / name).write_bytes(canonical(written))
    good, bad = (
        worlds.child_brief(
            tabled,
            CLOUDS,
            tmp_path,
            TriggerKind.LATENCY,
            parent_archive=worlds.artefact(tmp_path / name),
        )
        for name in ("good", "odd")
    )
    assert admit(good, tmp_path, BUILTIN).parent is not None
    assert f"expected an archive of space table, got {said}" in _refusal(bad, tmp_path)


def test_an_adaptation_counts_new_rows_alone(tmp_path, tabled):
    data = worlds.write_rows(CLOUDS, tmp_path / "data.npz", 80, 800)
    brief = worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.DATA, data=data)
    assert "role train, got 60" in _refusal(brief, tmp_path)


def test_bytes_that_are_not_what_their_digest_says_are_refused(tmp_path):
    brief = worlds.founding_brief(BARS, tmp_path)
    path = tmp_path / brief.data.path
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(TamperError, match="sha256"):
        admit(brief, tmp_path, BUILTIN)
    path.unlink()
    with pytest.raises(TamperError, match=r"founding\.npz"):
        admit(brief, tmp_path, BUILTIN)


@pytest.mark.parametrize("field", ["parent_state", "parent_archive", "profile"])
def test_a_file_of_a_brief_whose_bytes_changed_is_refused(tmp_path, tabled, field):
    good = worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.LATENCY)
    assert admit(good, tmp_path, BUILTIN).parent is not None
    artefact = getattr(good, field).model_copy(update={"digest": _NOTHING})
    assert "sha256" in _refusal(good.model_copy(update={field: artefact}), tmp_path)


@pytest.mark.parametrize("field", ["parent_state", "parent_archive", "parent_genome"])
def test_an_adaptation_without_a_parent_is_refused(tmp_path, tabled, field):
    brief = worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.LATENCY, **{field: None})
    assert "found a first generation before" in _refusal(brief, tmp_path)


def test_a_parent_an_archive_an_heirloom_or_a_profile_of_another_space_is_refused(tmp_path, tabled, founded):
    foreign = Genome(space="other", genes=(1, 2))
    heirloom = Heirloom(generation=3, genome=foreign, state=tabled.left("state.safetensors"), accuracy=0.9)
    (tmp_path / "foreign.json").write_bytes(canonical(worlds.stated_profile(BARS.space())))
    for changed, words in (
        ({"parent_genome": foreign}, "a parent of space table, got expected a genome of table"),
        ({"parent_archive": founded.left("archive.json")}, "archive of space table, got one of image"),
        ({"library": (heirloom,)}, "an earlier regime of space table in generation 3"),
        ({"profile": worlds.artefact(tmp_path / "foreign.json")}, "got one of image that lacks"),
    ):
        brief = worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.LATENCY, **changed)
        assert words in _refusal(brief, tmp_path)


def test_a_state_that_is_no_state_is_refused(tmp_path, tabled):
    (tmp_path / "state").write_bytes(b"no tensors")
    broken = worlds.artefact(tmp_path / "state")
    brief = worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.LATENCY, parent_state=broken)
    assert "expected a parent of space table" in _refusal(brief, tmp_path)


def test_a_state_of_another_supernet_is_refused(tmp_path, tabled, founded):
    brief = worlds.child_brief(
        tabled, CLOUDS, tmp_path, TriggerKind.LATENCY, parent_state=founded.left("state.safetensors")
    )
    with pytest.raises(TamperError, match="the state differs in"):
        worlds.run(brief, tmp_path, tmp_path / "out")


def test_precisions_without_full_precision_are_refused(tmp_path):
    brief = worlds.founding_brief(BARS, tmp_path, precisions=(Precision.INT8,))
    assert "expected fp32 among the precisions, got int8" in _refusal(brief, tmp_path)


def test_a_modality_without_a_space_is_refused(tmp_path):
    with pytest.raises(PermanentError, match="modality"):
        admit(worlds.founding_brief(BARS, tmp_path), tmp_path, {})


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [("max_params", 500, "500"), ("max_size_bytes", 2_000, "2000"), ("max_p99_ms", 0.001, "0.0005")],
)
def test_limits_that_no_genome_meets_end_the_process_with_a_reason(tmp_path, capsys, field, value, word):
    good = worlds.founding_brief(CLOUDS, tmp_path)
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


def test_a_brief_in_another_spelling_or_of_an_unknown_modality_is_refused(tmp_path):
    raw = canonical(worlds.founding_brief(BARS, tmp_path))
    for name, bad in (
        ("spelling", raw + b"\n"),
        ("modality", raw.replace(b'"modality":"image"', b'"modality":"smell"')),
    ):
        path = tmp_path / f"{name}.json"
        path.write_bytes(bad)
        assert main([str(path), str(tmp_path / name)]) == REFUSED
        assert (tmp_path / name / "refusal.json").is_file()


def test_a_budget_that_preparation_eats_up_is_refused(tmp_path):
    brief = worlds.founding_brief(CLOUDS, tmp_path, budget_cpu_s=0.01)
    with pytest.raises(PermanentError, match="raise the budget"):
        worlds.run(brief, tmp_path, tmp_path / "out", cpu=lambda: 1.0)
    assert not (tmp_path / "out" / "result.json").exists()
