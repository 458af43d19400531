"""Is this file what it says, all of it, and nothing else? Read first, run last.

* The bytes are those of the digest; one file: external data are refused wherever they hide.
* Only allowed operators of the default domain; no graph inside a node (control flow), no functions, no
  training graph, no sparse tensors, whose parts have had escapes of their own.
* Its contract is the task's, its genome is the case's, in its text and in its graph alike.
* Every stored number is finite, and so is every answer to extreme inputs.
* A graph with an exit falls into two at its trunk, and the halves answer as the whole does.
* A row's answer does not depend on the rows beside it: the data plane batches strangers together.

The panel lets no other guard run a file that this one refuses.

Source: onnx CVE-2022-25882, CVE-2024-27318 (paths in external data); ShadowLogic, HiddenLayer 2024
(branches planted in a graph).
"""

from collections.abc import Callable

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from guards import structure
from guards.contract import used, verdict
from guards.material import DTYPES, Array, Floats, Material, Net
from policies.bundle import BundleMeta, check_task
from policies.case import Case
from policies.errors import TamperError
from policies.terms import Datatype, Evidence, Finding, TensorSpec, Verdict

RUNTIME_FAULTS = (
    runtime.Fail,
    runtime.InvalidArgument,
    runtime.InvalidGraph,
    runtime.InvalidProtobuf,
    runtime.NotImplemented,
    runtime.RuntimeException,
)

_SEED = 7
_ALONE_ATOL, _ALONE_RTOL = 1e-3, 1e-3
_ONNX_TYPES: dict[int, Datatype] = {
    TensorProto.BOOL: Datatype.BOOL,
    TensorProto.UINT8: Datatype.UINT8,
    TensorProto.UINT16: Datatype.UINT16,
    TensorProto.UINT32: Datatype.UINT32,
    TensorProto.UINT64: Datatype.UINT64,
    TensorProto.INT8: Datatype.INT8,
    TensorProto.INT16: Datatype.INT16,
    TensorProto.INT32: Datatype.INT32,
    TensorProto.INT64: Datatype.INT64,
    TensorProto.FLOAT16: Datatype.FP16,
    TensorProto.FLOAT: Datatype.FP32,
    TensorProto.DOUBLE: Datatype.FP64,
}


class Integrity:
    """The file itself."""

    name = "integrity"

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        return case.policy.modification_protocol.evaluation.integrity.clause

    def judge(self, case: Case, material: Material) -> Verdict:
        """Read the file, then load it, then run it; the first thing that is wrong is the answer."""
        try:
            raw = material.raw(case.bundle)
            model = structure.parse(raw)
            for look in (_one_file, _operators, _checked, _contract, _finite_numbers):
                wrong = look(model, case)
                if wrong is not None:
                    return verdict(self, case, Finding.FAIL, wrong)
            wrong = _answers(case, material)
        except TamperError as error:
            return verdict(self, case, Finding.FAIL, str(error))
        if wrong is not None:
            return verdict(self, case, Finding.FAIL, wrong)
        count = sum(1 for _ in structure.nodes(model))
        kinds = sorted({node.op_type for node in structure.nodes(model)})
        return verdict(
            self,
            case,
            Finding.PASS,
            f"{len(raw)} bytes are those of {case.bundle.digest[:19]}; {count} nodes of {len(kinds)} allowed "
            f"operators; contract, genome and {_probes(case.task.input).shape[0]} extreme inputs as expected",
            Evidence(name="nodes", value=count, unit="nodes", n=1, source=case.bundle.digest),
            Evidence(name="operators", value=len(kinds), unit="kinds", n=1, source=case.bundle.digest),
            used(0.0),
        )


Look = Callable[[ModelProto, Case], str | None]


def _one_file(model: ModelProto, _case: Case) -> str | None:
    for tensor in structure.tensors(model):
        if structure.external(tensor):
            return f"expected one file, tensor {tensor.name!r} points outside it (external data)"
    if any(graph.sparse_initializer for graph in structure.graphs(model)):
        return "expected dense tensors, the file holds sparse ones"
    if model.functions:
        return f"expected no functions, the file defines {model.functions[0].name!r}"
    if model.training_info:
        return "expected no training graph, the file holds one"
    return None


def _operators(model: ModelProto, case: Case) -> str | None:
    domains = [entry.domain for entry in model.opset_import if entry.domain]
    if domains:
        return f"expected the default operator domain, the file imports {domains[0]!r}"
    allowed = set(case.policy.modification_protocol.evaluation.integrity.allowed_ops)
    for node in structure.nodes(model):
        label = f"node {node.name!r} ({node.op_type})"
        if node.domain:
            return f"expected the default operator domain, {label} is of {node.domain!r}"
        if structure.has_graph(node):
            return f"expected no control flow, {label} holds a graph of its own"
        if node.op_type not in allowed:
            return f"expected one of the {len(allowed)} allowed operators, {label} is none of them"
    return None


def _checked(model: ModelProto, _case: Case) -> str | None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, EncodeError) as error:
        return f"expected a valid ONNX model, the checker says: {str(error).strip().splitlines()[0]}"
    return None


def _contract(model: ModelProto, case: Case) -> str | None:
    meta = structure.read_meta(model)
    wrong = check_task(meta, case.task)
    if wrong is not None:
        return wrong
    if (meta.task, meta.model) != (case.task.name, case.task.model):
        return f"expected task {case.task.name}, model {case.task.model}; it says {meta.task}, {meta.model}"
    if meta.genome != case.genome:
        return f"expected genome {case.genome.genes} of {case.genome.space}, it says {meta.genome}"
    clause = case.policy.modification_protocol.evaluation.integrity
    if meta.input.datatype not in clause.input_datatypes:
        return f"expected input of {', '.join(clause.input_datatypes)}, it takes {meta.input.datatype}"
    if meta.outputs[0].shape != (-1, len(case.task.classes)):
        return f"expected logits (-1, {len(case.task.classes)}), it says {meta.outputs[0].shape}"
    return _graph_contract(model, meta)


def _graph_contract(model: ModelProto, meta: BundleMeta) -> str | None:
    stated = {"inputs": (meta.input,), "outputs": meta.outputs}
    for side, infos in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        found = tuple(_spec(info) for info in infos)
        if found != stated[side]:
            return f"expected graph {side} {_told(stated[side])}, the graph has {_told(found)}"
    return None


def _spec(info: ValueInfoProto) -> TensorSpec | None:
    tensor = info.type.tensor_type
    if tensor.elem_type not in _ONNX_TYPES:
        return None
    # A dimension by name is the batch; a number is a number, also where it stands for the batch.
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return TensorSpec(name=info.name, datatype=_ONNX_TYPES[tensor.elem_type], shape=shape)


def _told(specs: tuple[TensorSpec | None, ...]) -> str:
    return ", ".join("something else" if s is None else f"{s.name} {s.datatype} {s.shape}" for s in specs)


def _finite_numbers(model: ModelProto, _case: Case) -> str | None:
    for name, values in structure.floats(model):
        wrong = int(np.count_nonzero(~np.isfinite(values.astype(np.float64))))
        if wrong:
            return f"expected finite numbers, {wrong} of {values.size} in {name!r} are not"
    return None


def _probes(spec: TensorSpec) -> Array:
    """Return inputs at the ends of what the type can hold; (n, ...)."""
    dtype = DTYPES[spec.datatype]
    if dtype.kind == "f":
        low, high = -1e6 if dtype.itemsize > 2 else -6e4, 1e6 if dtype.itemsize > 2 else 6e4
    elif dtype.kind == "b":
        low, high = 0, 1
    else:
        limits = np.iinfo(dtype.name)
        low, high = limits.min, limits.max
    rng = np.random.default_rng(_SEED)
    row = spec.shape[1:]
    odd = np.indices(row).sum(axis=0) % 2 if row else np.zeros((), np.int64)
    rare = rng.random((2, *row)) < 0.02
    mixed = rng.random((2, *row)) < 0.5
    cases = [np.full(row, low), np.full(row, high), np.where(odd, low, high), *np.where(rare, high, low)]
    return np.stack([*cases, *np.where(mixed, high, low)]).astype(dtype)


def _answers(case: Case, material: Material) -> str | None:
    probes = _probes(case.task.input)
    try:
        net = material.net(case.bundle)
        whole, halves = net.run(probes), net.halves(probes)
        together = whole if halves is None else halves
        alone = [_run(net, probes[place : place + 1]) for place in range(len(probes))]
    except RUNTIME_FAULTS as error:
        return f"expected a model that the runtime runs, it says: {str(error).strip().splitlines()[0]}"
    names = ("logits", "embedding", "exit logits")[: len(together)]
    for name, batch, parts in zip(names, together, zip(*alone, strict=True), strict=True):
        wrong = _apart(name, batch, np.concatenate(parts), len(probes))
        if wrong is not None:
            return wrong
    for name, one, other in zip(names, whole, together[:2], strict=False):
        if not _alike(one, other):
            most = float(np.abs(one - other).max())
            return f"expected the halves of the graph to answer as the whole, {name} differ by {most:.3g}"
    return None


def _run(net: Net, x: Array) -> tuple[Floats, ...]:
    halves = net.halves(x)
    return net.run(x) if halves is None else halves


def _apart(name: str, batch: Floats, single: Floats, rows: int) -> str | None:
    """Return what is wrong with an output of extreme inputs, run together and one by one, or None."""
    for came in (batch, single):
        if len(came) != rows:
            return f"expected {rows} rows of {name} for {rows} inputs, got {len(came)}"
    broken = int(np.count_nonzero(~np.isfinite(batch).all(axis=1)))
    if broken:
        return f"expected finite {name}, {broken} of {rows} extreme inputs give others"
    if not _alike(batch, single):
        most = float(np.abs(batch - single).max())
        return f"expected {name} of a row not to depend on its batch, they differ by {most:.3g}"
    return None


def _alike(one: Floats, other: Floats) -> bool:
    return np.allclose(one, other, rtol=_ALONE_RTOL, atol=_ALONE_ATOL)
