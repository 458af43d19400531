"""A slot is built from proven bytes only."""

import numpy as np
import pytest

from daemon.serving.refusals import BundleRefused, ModelFailed
from daemon.serving.slot import build


def build_of(forge, tiny, model="meter-reader"):
    return build(forge.state / "blobs", model, 1, tiny.digest, 4)


def test_a_good_bundle_becomes_a_slot_with_the_models_numbers(forge, kit):
    tiny = forge.tiny(width=12)
    slot = build_of(forge, tiny)
    x = kit.digits(4)
    logits, embedding = slot.run(x)
    wanted = tiny.expected(x)
    np.testing.assert_allclose(logits, wanted[0], atol=1e-4)
    np.testing.assert_allclose(embedding, wanted[1], atol=1e-4)
    assert (slot.embedding, slot.generation, slot.digest) == (12, 1, tiny.digest)


def test_a_batch_gives_the_same_bits_as_its_rows(forge, kit):
    slot = build_of(forge, forge.tiny())
    x = kit.digits(4)
    rows = np.concatenate([slot.run(x[i : i + 1])[0] for i in range(4)])
    np.testing.assert_allclose(slot.run(x)[0], rows, rtol=0, atol=1e-5)


def test_altered_bytes_are_refused(forge):
    tiny = forge.tiny()
    raw = bytearray(tiny.raw)
    raw[len(raw) // 2] ^= 1
    forge.put(tiny.digest, bytes(raw))
    with pytest.raises(BundleRefused, match="the file was altered"):
        build_of(forge, tiny)
    forge.put(tiny.digest, tiny.raw)
    assert build_of(forge, tiny).generation == 1


def test_missing_bytes_are_refused(forge):
    tiny = forge.tiny()
    forge.put(tiny.digest, b"").unlink()
    with pytest.raises(BundleRefused, match="stage it again"):
        build_of(forge, tiny)


def test_goldens_that_do_not_come_out_are_refused(forge):
    with pytest.raises(BundleRefused, match=r"logits of golden 0 \(clean\).*gap of 0\.01"):
        build_of(forge, forge.tiny(spoil="golden"))


def test_a_foreign_models_bundle_is_refused(forge):
    tiny = forge.tiny(model="other")
    with pytest.raises(BundleRefused, match=r"expected a bundle of model 'meter-reader'.*'other'"):
        build_of(forge, tiny)
    assert build_of(forge, tiny, model="other").generation == 1


def image(name="image", datatype="UINT8", shape=(-1, 28, 28)) -> dict:
    return {"input": {"name": name, "datatype": datatype, "shape": list(shape)}}


BAD_META = {
    "unknown key": ({"colour": "red"}, "metadata"),
    "other format": ({"format": 2}, "metadata"),
    "no goldens": ({"goldens": []}, "metadata"),
    "other input type": (image(datatype="INT8"), "tensor image"),
    "other input shape": (image(shape=(-1, 28, 27)), "tensor image"),
    "fixed batch": (image(shape=(1, 28, 28)), "tensor image"),
    "other input name": (image(name="picture"), "the graph has"),
    "one class less": ({"classes": ["a", "b"]}, "expected logits"),
    "outputs swapped": (
        {
            "outputs": [
                {"name": "embedding", "datatype": "FP32", "shape": [-1, 16]},
                {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
            ]
        },
        "expected outputs logits and embedding",
    ),
}


@pytest.mark.parametrize(("meta", "reason"), BAD_META.values(), ids=BAD_META)
def test_metadata_that_differs_from_the_graph_is_refused(forge, meta, reason):
    with pytest.raises(BundleRefused, match=reason):
        build_of(forge, forge.tiny(meta=meta))


def test_broken_golden_base64_is_refused(forge):
    golden = {"kind": "clean", "rows": 1, "input_b64": "?", "logits_b64": "", "embedding_b64": ""}
    with pytest.raises(BundleRefused, match="expected base64"):
        build_of(forge, forge.tiny(meta={"goldens": [golden, golden]}))


def test_bytes_that_are_no_model_are_refused(forge):
    tiny = forge.tiny()
    tiny.digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    forge.put(tiny.digest, b"")
    with pytest.raises(BundleRefused, match="expected an ONNX model"):
        build_of(forge, tiny)


def test_a_digest_that_is_a_path_is_refused(forge):
    tiny = forge.tiny()
    tiny.digest = "sha256:../../etc/passwd"
    with pytest.raises(BundleRefused, match="expected a digest"):
        build_of(forge, tiny)


def test_a_batch_of_another_shape_is_the_models_failure(forge):
    slot = build_of(forge, forge.tiny())
    with pytest.raises(ModelFailed, match="the runtime says"):
        slot.run(np.zeros((1, 27, 28), np.uint8))
