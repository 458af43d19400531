"""The ONNX bundle: a subnet as one file, with the text that says what it is.

* Its metadata (``policies.bundle.BundleMeta``) carries goldens. In full precision they are what the unfolded
  network computed, so that a mistake in folding or in writing shows when the file is run. A quantised network
  is another function than the trained one; its goldens are what its own graph gives, and what it lost against
  the trained one is said in the evidence (``int8_agreement``).
* Equal weights, equal bytes.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from policies.bundle import KEY, BundleMeta, Exit, Golden
from policies.terms import Brief, Datatype, Genome, Precision, TensorSpec
from policies.wire import canonical
from search.blueprint import Blueprint, Entry
from search.exam import outputs, pooled_outputs
from search.graph import EXIT, Way, Weights, network_model, row_shape, trunk_of
from search.quantise import quantised
from search.runtime import run_bundle, run_outputs
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


def model_of(
    subnet: Subnet, input_name: str, rows: NDArray[np.generic], ways: Sequence[Way] = ()
) -> onnx.ModelProto:
    """Return a subnet's graph without metadata, in the precision of its blueprint.

    Args:
        subnet: The subnet.
        input_name: Of the task.
        rows: (n, ...) raw rows that decide the scales of int8.
        ways: Out in the middle.
    """
    model = network_model(subnet.blueprint, weights_of(subnet), input_name, ways)
    return quantised(model, rows) if subnet.blueprint.precision is Precision.INT8 else model


def bundle_of(
    subnet: Subnet,
    brief: Brief,
    genome: Genome,
    clean: NDArray[np.generic],
    rows: NDArray[np.generic],
    way: Way | None = None,
) -> bytes:
    """Return the file.

    Args:
        subnet: The subnet.
        brief: For the text.
        genome: For the text.
        clean: (``GOLDEN_ROWS``, ...) rows as they are served.
        rows: As in ``model_of``.
        way: Out in the middle, if it has one.
    """
    model = model_of(subnet, brief.task.input.name, rows, () if way is None else (way,))
    odd = probes(subnet.blueprint.entry, np.random.default_rng([brief.seed, 5]))
    int8 = subnet.blueprint.precision is Precision.INT8
    raw = model.SerializeToString(deterministic=True)

    def answers(x: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return run_bundle(raw, x) if int8 else outputs(subnet.net, subnet.blueprint, subnet.statistics, x)

    def exits(x: NDArray[np.generic]) -> NDArray[np.float32] | None:
        if way is None:
            return None
        return run_outputs(raw, x, [EXIT])[0] if int8 else exit_logits(subnet, way, x)

    goldens = tuple(golden(kind, x, *answers(x), exits(x)) for kind, x in (("clean", clean), ("probe", odd)))
    meta = bundle_meta(brief, genome, subnet.blueprint, goldens, way)
    helper.set_model_props(model, {KEY: canonical(meta).decode()})
    done: bytes = model.SerializeToString(deterministic=True)
    return done


def exit_logits(subnet: Subnet, way: Way, x: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return what a way out says of rows, (n, classes), as the unfolded network computes it."""
    pooled = pooled_outputs(subnet.net, subnet.blueprint, subnet.statistics, x)[way.after - 1]
    return np.asarray(pooled @ way.pair[0].T + way.pair[1], dtype=np.float32)


def bundle_meta(
    brief: Brief,
    genome: Genome,
    blueprint: Blueprint,
    goldens: tuple[Golden, ...],
    way: Way | None = None,
) -> BundleMeta:
    """Return what a bundle says of itself."""
    wide = (-1, blueprint.classes)
    exits = () if way is None else (TensorSpec(name=EXIT, datatype=Datatype.FP32, shape=wide),)
    more = 0 if way is None else sum(part.size for part in way.pair)
    return BundleMeta(
        format=1,
        task=brief.task.name,
        model=brief.task.model,
        genome=genome,
        input=brief.task.input,
        outputs=(
            TensorSpec(name="logits", datatype=Datatype.FP32, shape=wide),
            TensorSpec(name="embedding", datatype=Datatype.FP32, shape=(-1, blueprint.embedding)),
            *exits,
        ),
        classes=brief.task.classes,
        brief=brief.id,
        seed=brief.seed,
        params=blueprint.params + more,
        macs=blueprint.macs + more,
        goldens=goldens,
        exit=None if way is None else Exit(output=EXIT, trunk=trunk_of(blueprint, way.after)),
    )


def golden(
    kind: str,
    x: NDArray[np.generic],
    logits: NDArray[np.float32],
    embedding: NDArray[np.float32],
    exits: NDArray[np.float32] | None = None,
) -> Golden:
    """Return inputs (n, ...) and the outputs that belong to them."""
    return Golden(
        kind="clean" if kind == "clean" else "probe",
        rows=len(x),
        input_b64=_base64(x),
        logits_b64=_base64(logits.astype("<f4")),
        embedding_b64=_base64(embedding.astype("<f4")),
        exit_logits_b64=None if exits is None else _base64(exits.astype("<f4")),
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
