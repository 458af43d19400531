"""The ONNX bundle: a subnet as one file, with the text that says what it is.

* Its metadata (``policies.bundle.BundleMeta``) carries goldens. In full precision they are what the unfolded
  network computed, so that a mistake in folding or in writing shows when the file is run. A quantised network
  is another function than the trained one; its goldens are what its own graph gives, and what it lost against
  the trained one is said in the evidence (``int8_agreement``).
* Equal weights, equal bytes.
"""

import base64
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from policies.bundle import KEY, BundleMeta, Golden
from policies.terms import Brief, Datatype, Genome, Precision, TensorSpec
from policies.wire import canonical
from search.blueprint import Blueprint, Entry
from search.exam import outputs
from search.graph import Weights, network_model, row_shape
from search.quantise import quantised
from search.runtime import run_bundle
from search.supernet import Statistics, Supernet

GOLDEN_ROWS = 8


@dataclass(frozen=True)
class Subnet:
    """A calibrated subnet: all that its bytes depend on, but the text."""

    net: Supernet
    blueprint: Blueprint
    statistics: Statistics


def weights_of(subnet: Subnet) -> Weights:
    """Return a subnet's numbers as they ship."""
    net = subnet.net
    mean, factor = net.standard()
    weight, bias = net.classifier(subnet.blueprint.classifier)
    return Weights(
        convs=tuple(
            (one.contiguous().numpy(), other.numpy())
            for one, other in (net.folded(conv, subnet.statistics) for conv in subnet.blueprint.convs)
        ),
        squeezes=tuple(
            ((a.detach().numpy(), b.detach().numpy()), (c.detach().numpy(), d.detach().numpy()))
            for (a, b), (c, d) in (
                net.squeezed(block.squeeze) for block in subnet.blueprint.blocks if block.squeeze is not None
            )
        ),
        classifier=(weight.detach().numpy(), bias.detach().numpy()),
        standard=(mean.numpy(), factor.numpy()),
    )


def model_of(subnet: Subnet, input_name: str, rows: NDArray[np.generic]) -> onnx.ModelProto:
    """Return a subnet's graph without metadata, in the precision of its blueprint.

    Args:
        subnet: The subnet.
        input_name: Of the task.
        rows: (n, ...) raw rows that decide the scales of int8.
    """
    model = network_model(subnet.blueprint, weights_of(subnet), input_name)
    return quantised(model, rows) if subnet.blueprint.precision is Precision.INT8 else model


def bundle_of(
    subnet: Subnet, brief: Brief, genome: Genome, clean: NDArray[np.generic], rows: NDArray[np.generic]
) -> bytes:
    """Return the file.

    Args:
        subnet: The subnet.
        brief: For the text.
        genome: For the text.
        clean: (``GOLDEN_ROWS``, ...) rows as they are served.
        rows: As in ``model_of``.
    """
    model = model_of(subnet, brief.task.input.name, rows)
    odd = probes(subnet.blueprint.entry, np.random.default_rng([brief.seed, 5]))
    int8 = subnet.blueprint.precision is Precision.INT8
    raw = model.SerializeToString(deterministic=True)

    def answers(x: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return run_bundle(raw, x) if int8 else outputs(subnet.net, subnet.blueprint, subnet.statistics, x)

    goldens = (golden("clean", clean, *answers(clean)), golden("probe", odd, *answers(odd)))
    meta = bundle_meta(brief, genome, subnet.blueprint, goldens)
    helper.set_model_props(model, {KEY: canonical(meta).decode()})
    done: bytes = model.SerializeToString(deterministic=True)
    return done


def bundle_meta(
    brief: Brief, genome: Genome, blueprint: Blueprint, goldens: tuple[Golden, ...]
) -> BundleMeta:
    """Return what a bundle says of itself."""
    return BundleMeta(
        format=1,
        task=brief.task.name,
        model=brief.task.model,
        genome=genome,
        input=brief.task.input,
        outputs=(
            TensorSpec(name="logits", datatype=Datatype.FP32, shape=(-1, blueprint.classes)),
            TensorSpec(name="embedding", datatype=Datatype.FP32, shape=(-1, blueprint.embedding)),
        ),
        classes=brief.task.classes,
        brief=brief.id,
        seed=brief.seed,
        params=blueprint.params,
        macs=blueprint.macs,
        goldens=goldens,
    )


def golden(
    kind: str, x: NDArray[np.generic], logits: NDArray[np.float32], embedding: NDArray[np.float32]
) -> Golden:
    """Return inputs (n, ...) and the outputs that belong to them."""
    return Golden(
        kind="clean" if kind == "clean" else "probe",
        rows=len(x),
        input_b64=_base64(x),
        logits_b64=_base64(logits.astype("<f4")),
        embedding_b64=_base64(embedding.astype("<f4")),
    )


def probes(entry: Entry, rng: np.random.Generator) -> NDArray[np.generic]:
    """Return eight rows that nothing real looks like: constants, extremes, a checkerboard, ramps, noise."""
    shape = row_shape(entry)
    low, high = (0.0, 255.0) if entry.layout.pixels else (-8.0, 8.0)
    places = np.indices(shape)
    ramps = [axis / max(1, size - 1) for axis, size in zip(places, shape, strict=True)]
    shares = [
        np.zeros(shape),
        np.ones(shape),
        np.full(shape, 0.5),
        places.sum(axis=0) % 2,
        ramps[0],
        ramps[-1],
        rng.random(shape),
        rng.random(shape) < 0.02,
    ]
    values = low + np.stack(shares) * (high - low)
    return values.astype(np.uint8 if entry.layout.pixels else np.float32)


def _base64(array: NDArray[np.generic]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
