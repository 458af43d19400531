"""Whole searches over tiny tasks: what they find, what they leave, what they spend."""

import base64
import json
import subprocess

import numpy as np
import onnx
import pytest

from policies.bundle import KEY, OPSET, BundleMeta, check_task
from policies.terms import Artefact, Precision, SearchResult
from policies.wire import canonical, digest_bytes, parse_canonical
from search.archive import read_archive
from search.costs import Costs
from search.export import probes
from search.profile import read_profile
from search.runtime import run_bundle
from search.space import to_genes
from tests.search import worlds
from tests.search.worlds import BARS, BOTH, CLOUDS, WAVES, Searched

_FILES = ("bundle.onnx", "state.safetensors", "archive.json")
_PROMISED = {
    "accuracy_search",
    "edit_distance",
    "energy_mj",
    "energy_search_j",
    "latency_ms",
    "latency_predicted_ms",
    "macs",
    "memory_bytes",
    "params",
    "phases_cut",
    "rollbacks",
    "size_bytes",
    "train_steps",
    "tuned",
    "winners_curse",
}


@pytest.fixture(params=["founded", "tabled"])
def searched(request) -> Searched:
    return request.getfixturevalue(request.param)


def _meta(raw: bytes) -> BundleMeta:
    props = {prop.key: prop.value for prop in onnx.load_from_string(raw).metadata_props}
    assert list(props) == [KEY]
    parse_canonical(props[KEY].encode(), "metadata")
    return BundleMeta.model_validate_json(props[KEY])


def _worst(raw: bytes) -> float:
    """Return the largest difference of what a bundle's goldens say from what its graph computes."""
    meta = _meta(raw)
    kind = np.uint8 if meta.input.datatype == "UINT8" else "<f4"
    gaps = []
    for golden in meta.goldens:
        shape = (golden.rows, *meta.input.shape[1:])
        x = np.frombuffer(base64.b64decode(golden.input_b64), dtype=kind).reshape(shape)
        for text, array in zip((golden.logits_b64, golden.embedding_b64), run_bundle(raw, x), strict=True):
            said = np.frombuffer(base64.b64decode(text), "<f4").reshape(array.shape)
            gaps.append(float(np.abs(said - array).max()))
    return max(gaps)


def test_a_founding_search_learns_the_task_and_names_its_files_by_digest(searched):
    raw = (searched.out / "result.json").read_bytes()
    result = SearchResult.model_validate_json(raw)
    assert canonical(result) == raw
    assert result == searched.result
    for name, one in zip(_FILES, (result.bundle, result.state, result.archive), strict=True):
        assert one == Artefact(path=name, digest=digest_bytes((searched.out / name).read_bytes()))
    assert searched.evidence["accuracy_search"] > 0.9
    assert result.winner.genes in {point.genome.genes for point in result.points}
    assert result.architectures > len(result.points)


def test_the_evidence_has_every_number_that_was_promised_and_none_about_rows_there_are_not(searched):
    evidence = searched.evidence
    assert set(evidence) >= _PROMISED
    assert not {"accuracy_old", "accuracy_before", "regime_returned"} & set(evidence)
    assert len(evidence) == len(searched.result.evidence)
    assert evidence["rollbacks"] == evidence["phases_cut"] == evidence["edit_distance"] == 0
    limits = {one.name: one.limit for one in searched.result.evidence}
    assert evidence["train_steps"] == limits["train_steps"]
    assert limits["params"] == searched.brief.limits.max_params
    share = next(one for one in searched.result.evidence if one.name == "accuracy_search")
    low, high = share.interval
    assert low - 1e-9 <= share.value <= high + 1e-9
    assert share.n == 200


def test_the_evidence_of_the_winner_is_that_of_its_bundle_and_its_blueprint(searched):
    space = BARS.space(BOTH) if searched.brief.task == BARS.task else CLOUDS.space()
    genes = to_genes(space, searched.result.winner)
    blueprint, evidence = space.blueprint(genes), searched.evidence
    assert (evidence["params"], evidence["macs"]) == (blueprint.params, blueprint.macs)
    assert evidence["size_bytes"] == (searched.out / "bundle.onnx").stat().st_size
    profile = read_profile((searched.out / "profile.json").read_bytes(), space)
    assert evidence["latency_predicted_ms"] == Costs(space, profile).latency_ms(genes[None])[0]
    assert evidence["energy_mj"] == evidence["latency_predicted_ms"] * profile.watts
    # Each run of a session takes one tick of the tests' clock.
    assert evidence["latency_ms"] == pytest.approx(0.5)


def test_the_predictor_says_how_well_it_ranked(tabled):
    found = {one.name: one for one in tabled.result.evidence}
    assert -1 <= found["tau"].value <= 1
    assert found["tau"].n >= found["tau_top"].n >= 4


def test_the_archive_is_a_front_with_the_finalists_and_carries_the_profile(searched):
    archive = read_archive((searched.out / "archive.json").read_bytes())
    assert archive.points == searched.result.points
    assert canonical(archive.profile) == (searched.out / "profile.json").read_bytes()
    accuracies = [point.accuracy for point in archive.points]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(point.measured for point in archive.points)


def test_the_bundle_is_a_plain_graph_that_keeps_the_contract_of_its_task(searched):
    raw = (searched.out / "bundle.onnx").read_bytes()
    model = onnx.load_from_string(raw)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    meta = _meta(raw)
    assert check_task(meta, searched.brief.task) is None
    assert meta.genome == searched.result.winner
    assert meta.params == searched.evidence["params"]
    assert {golden.kind for golden in meta.goldens} == {"clean", "probe"}


def test_the_shipped_graph_computes_what_its_goldens_say_and_one_bias_moved_is_seen(searched):
    raw = (searched.out / "bundle.onnx").read_bytes()
    assert _worst(raw) < 1e-4
    model = onnx.load_from_string(raw)
    bias = next(one for one in model.graph.initializer if one.name == "instar.classifier.bias")
    moved = onnx.numpy_helper.to_array(bias) + np.float32(0.05)
    bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
    assert _worst(model.SerializeToString()) > 1e-3


def test_the_bundle_does_on_fresh_rows_what_the_evidence_says(searched):
    world = BARS if searched.brief.task == BARS.task else CLOUDS
    x, y = world.law(400, np.random.default_rng(99), False)
    logits, _ = run_bundle((searched.out / "bundle.onnx").read_bytes(), x)
    share = float((logits.argmax(axis=1) == y).mean())
    assert abs(share - searched.evidence["accuracy_search"]) < 0.1
    odd, _ = run_bundle(
        (searched.out / "bundle.onnx").read_bytes(),
        probes(world.space().entries()[0], np.random.default_rng(0)),
    )
    assert np.isfinite(odd).all()


def test_a_search_tells_how_far_it_is_and_leaves_no_checkpoint(searched):
    progress = json.loads((searched.out / "progress.json").read_bytes())
    assert set(progress) == {"phase", "done", "total", "cpu_s", "message"}
    assert progress["phase"] == "final"
    assert list(searched.result.phases_s) == ["train", "search", "final", "tune"]
    left = {path.name for path in searched.out.iterdir()}
    assert left == {*_FILES, "result.json", "profile.json", "progress.json"}


def test_a_window_task_is_found_by_the_same_command_in_int8(tmp_path):
    """In full precision nothing fits the file, so that int8 must win."""
    brief = worlds.founding_brief(WAVES, tmp_path, precisions=BOTH)
    space = WAVES.space(BOTH)
    ends = np.stack([space.smallest, space.smallest])
    ends[1, -1] = 1
    full, int8 = Costs(space, worlds.stated_profile(space, int8_line=None)).params(ends)
    assert full == int8
    profile = worlds.stated_profile(space, line=(150.0, 1.0))
    (tmp_path / "slow.json").write_bytes(canonical(profile))
    brief = brief.model_copy(update={"profile": worlds.artefact(tmp_path / "slow.json")})
    found = worlds.run(brief, tmp_path, tmp_path / "out")
    genes = to_genes(space, found.result.winner)
    assert space.blueprint(genes).precision is Precision.INT8
    assert found.evidence["accuracy_search"] > 0.9
    raw = (found.out / "bundle.onnx").read_bytes()
    assert "QuantizeLinear" in {node.op_type for node in onnx.load_from_string(raw).graph.node}
    assert _worst(raw) == 0.0


def test_the_command_measures_its_device_and_says_what_it_won(tmp_path):
    brief = worlds.founding_brief(CLOUDS, tmp_path, profile=None, precisions=BOTH, budget_cpu_s=8.0)
    (tmp_path / "brief.json").write_bytes(canonical(brief))
    command = [*worlds.COMMAND, str(tmp_path / "brief.json"), str(tmp_path / "out"), "--strategy", "aging"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    result = SearchResult.model_validate_json((tmp_path / "out" / "result.json").read_bytes())
    profile = read_profile((tmp_path / "out" / "profile.json").read_bytes(), CLOUDS.space(BOTH))
    assert len(profile.int8_line) == 5
    assert set(result.phases_s) == {"profile", "train", "search", "final", "tune"}
    assert "winner " + "".join(map(str, result.winner.genes)) in done.stdout
    assert 0 < result.cpu_s < 2 * brief.budget_cpu_s


def test_a_machine_that_trains_slowly_cuts_that_stays_near_its_budget_and_says_so(tmp_path, tabled):
    brief, out, used = worlds.founding_brief(CLOUDS, tmp_path), tmp_path / "out", [0.0]

    def cpu() -> float:
        told = out / "progress.json"
        trains = told.exists() and json.loads(told.read_bytes())["phase"] == "train"
        used[0] += 0.5 if trains else 0.01
        return used[0]

    slow = worlds.run(brief, tmp_path, out, cpu=cpu)
    assert slow.evidence["phases_cut"] >= 1
    assert tabled.evidence["phases_cut"] == 0
    assert slow.evidence["train_steps"] < tabled.evidence["train_steps"]
    assert slow.result.cpu_s < 1.1 * brief.budget_cpu_s
    assert slow.result.phases_s["train"] > 0.5 * slow.result.cpu_s
    assert sum(slow.result.phases_s.values()) <= slow.result.cpu_s
    assert slow.evidence["energy_search_j"] == pytest.approx(10.0 * slow.result.cpu_s, rel=1e-3)
