"""Whole searches over a tiny task: what they find, what they leave, what they spend."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from policies.bundle import KEY, OPSET, BundleMeta, check_task
from policies.case import Artefact
from policies.errors import PermanentError
from policies.limits import edit_distance
from policies.terms import Brief, SearchResult, TriggerKind
from policies.wire import digest_bytes, parse_canonical
from search.archive import read_archive
from search.latency import Latency
from search.space import to_genes, to_genome

_ALLOWED = {"Cast", "Mul", "Unsqueeze", "Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}


def _evidence(result: SearchResult) -> dict[str, float]:
    return {one.name: one.value for one in result.evidence}


def _replay(raw: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of what a bundle's goldens say and what its graph computes."""
    meta = _meta(raw)
    session = ort.InferenceSession(raw, providers=["CPUExecutionProvider"])
    pairs = []
    for golden in meta.goldens:
        shape = (golden.rows, *meta.input.shape[1:])
        x = np.frombuffer(base64.b64decode(golden.input_b64), dtype=np.uint8).reshape(shape)
        found = session.run(["logits", "embedding"], {meta.input.name: x})
        for text, array in zip((golden.logits_b64, golden.embedding_b64), found, strict=True):
            pairs.append((np.frombuffer(base64.b64decode(text), "<f4").reshape(array.shape), array))
    return pairs


def _meta(raw: bytes) -> BundleMeta:
    props = {prop.key: prop.value for prop in onnx.load_from_string(raw).metadata_props}
    assert list(props) == [KEY]
    parse_canonical(props[KEY].encode(), "metadata")
    return BundleMeta.model_validate_json(props[KEY])


def test_a_founding_search_learns_the_task_and_names_its_files_by_digest(founded):
    result = SearchResult.model_validate_json((founded.out / "result.json").read_bytes())
    parse_canonical((founded.out / "result.json").read_bytes(), "result")
    assert result == founded.result
    for artefact in (result.bundle, result.state, result.archive):
        assert digest_bytes((founded.out / artefact.path).read_bytes()) == artefact.digest
    evidence = _evidence(result)
    assert evidence["accuracy_search"] > 0.9
    assert {"latency_ms", "params", "macs", "size_bytes", "edit_distance", "winners_curse"} <= set(evidence)
    assert "accuracy_old" not in evidence
    assert result.winner.genes in {point.genome.genes for point in result.points}
    assert result.architectures > len(result.points)


def test_a_search_stays_near_its_budget_and_tells_how_far_it_is(founded):
    assert founded.result.cpu_s < 1.1 * founded.brief.budget_cpu_s
    progress = json.loads((founded.out / "progress.json").read_bytes())
    assert set(progress) == {"phase", "done", "total", "cpu_s", "message"}
    assert progress["phase"] == "final"
    assert list(founded.result.phases_s) == ["latency", "train", "search", "final"]
    assert sum(founded.result.phases_s.values()) <= founded.result.cpu_s + 0.1


def test_the_bundle_is_a_plain_graph_that_keeps_the_contract_of_its_task(founded):
    raw = (founded.out / "bundle.onnx").read_bytes()
    model = onnx.load_from_string(raw)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= _ALLOWED
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    assert model.ir_version == 10
    meta = _meta(raw)
    assert check_task(meta, founded.brief.task) is None
    assert meta.genome == founded.result.winner
    shipped = sum(int(np.prod(one.dims)) for one in model.graph.initializer if ".weight" in one.name)
    shipped += sum(int(np.prod(one.dims)) for one in model.graph.initializer if ".bias" in one.name)
    assert shipped == meta.params


def test_the_shipped_graph_computes_what_the_trained_network_did(founded):
    for said, found in _replay((founded.out / "bundle.onnx").read_bytes()):
        np.testing.assert_allclose(found, said, atol=1e-4, rtol=1e-4)


def test_parity_fails_for_a_graph_with_one_bias_moved(founded):
    model = onnx.load_from_string((founded.out / "bundle.onnx").read_bytes())
    bias = next(one for one in model.graph.initializer if one.name.endswith("0.bias"))
    moved = onnx.numpy_helper.to_array(bias) + 0.05
    bias.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float32), bias.name))
    worst = max(np.abs(said - found).max() for said, found in _replay(model.SerializeToString()))
    assert worst > 1e-3


def test_the_same_weights_come_from_one_thread_and_from_two(
    tmp_path, founded, founding_brief: Callable[..., Brief], run_search
):
    brief = founding_brief(tmp_path, threads=2)
    again = run_search(brief, tmp_path, tmp_path / "out")
    steps = [_evidence(one.result)["train_steps"] for one in (founded, again)]
    if steps[0] != steps[1]:
        pytest.skip(f"this machine was too slow for the plan: {steps} steps")
    assert again.result.state.digest == founded.result.state.digest


def test_an_adaptation_regains_what_a_turned_camera_cost(tmp_path, child_brief, write_data, run_search):
    data = write_data(tmp_path / "data.npz", 600, 400, turned=True)
    brief = child_brief(tmp_path, TriggerKind.DATA, data=data, budget_cpu_s=13.0)
    adapted = run_search(brief, tmp_path, tmp_path / "out")
    evidence = _evidence(adapted.result)
    assert evidence["accuracy_before"] < 0.6
    assert evidence["accuracy_search"] > evidence["accuracy_before"] + 0.15
    assert {"accuracy_old", "accuracy_old_before"} <= set(evidence)
    distance = edit_distance(adapted.result.winner, brief.parent_genome)
    assert distance == evidence["edit_distance"] <= 6
    # Blocks were timed at founding; the table travels.
    table = read_archive((tmp_path / "out" / "archive.json").read_bytes()).table_us
    assert table == read_archive(Path(brief.parent_archive.path).read_bytes()).table_us


def test_a_latency_search_chooses_a_faster_point_of_the_archive_without_training(
    tmp_path, founded, child_brief, run_search, space
):
    brief = child_brief(
        tmp_path,
        TriggerKind.LATENCY,
        parent_genome=to_genome(space, space.largest),
        limits=founded.brief.limits,
    )
    chosen = run_search(brief, tmp_path, tmp_path / "out").result
    archived = read_archive((founded.out / "archive.json").read_bytes()).points
    networks = {space.blueprint(to_genes(space, point.genome)) for point in archived}
    found = space.blueprint(to_genes(space, chosen.winner))
    assert found in networks
    table = Latency(read_archive((founded.out / "archive.json").read_bytes()).table_us, 0.0, 1.0)
    assert table.blocks_us(found) < table.blocks_us(space.blueprint(space.largest))
    assert "train_steps" not in _evidence(chosen)
    assert chosen.state.digest == founded.result.state.digest


def test_a_latency_search_that_may_change_no_gene_is_refused(tmp_path, child_brief, founded, run_search):
    limits = founded.brief.limits.model_copy(update={"max_edit_distance": 0})
    brief = child_brief(tmp_path, TriggerKind.LATENCY, limits=limits)
    with pytest.raises(PermanentError, match="median"):
        run_search(brief, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "result.json").exists()


def test_an_adaptation_that_is_not_cut_gives_the_same_bytes_again(
    tmp_path, child_brief, write_data, run_search
):
    data = write_data(tmp_path / "data.npz", 400, 200, turned=True)
    results = []
    for number, seed in enumerate((5, 5, 6)):
        brief = child_brief(tmp_path, TriggerKind.DATA, data=data, budget_cpu_s=9.5, seed=seed)
        # With a clock that stands, no phase is cut.
        results.append(run_search(brief, tmp_path, tmp_path / f"out{number}", cpu=lambda: 0.0).result)
    first, same, other = results
    assert (first.bundle, first.state) == (same.bundle, same.state)
    assert first.state != other.state


def test_artefacts_of_a_result_are_relative_to_its_folder(founded):
    result = founded.result
    assert [one.path for one in (result.bundle, result.state, result.archive)] == [
        "bundle.onnx",
        "state.safetensors",
        "archive.json",
    ]
    assert all(isinstance(one, Artefact) for one in (result.bundle, result.state, result.archive))
