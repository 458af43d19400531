"""What the data plane says of itself: server, model, configuration, repository, statistics.

* One source for both fronts: REST sends these objects as JSON, gRPC fills its messages with them.
* The model's name is stable; a version is a generation. What has traffic is ``READY``, what is only loaded
  (a staged newcomer, the previous one) is told in the index with its reason.

Pure, over a table. Source: Open Inference Protocol v2; Triton's model configuration, model repository and
statistics extensions.
"""

from typing import Any

from daemon.serving.ask import OUTPUTS
from daemon.serving.refusals import NotReady, Unknown
from daemon.serving.slot import Slot
from daemon.serving.table import Table
from policies.terms import TensorSpec

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")


def slot_of(table: Table, model: str, version: str | None) -> Slot:
    """Return the slot that speaks for a model and version: the pinned one, or the stable one.

    Raises:
        Unknown: The model or the version is not served here.
        NotReady: No model is.
    """
    if model != table.model:
        raise Unknown(f"expected model {table.model!r}, got {model[:80]!r}")
    if table.stable is None:
        raise NotReady("expected a stable model, there is none now; send again later")
    slot = table.stable if version is None else table.version(version)
    if slot is None:
        served = [str(each.generation) for each in table.open()]
        raise Unknown(f"expected a version among {served}, got {(version or '')[:40]!r}")
    return slot


def server(version: str) -> dict[str, Any]:
    """Return the server's metadata."""
    return {"name": "instar", "version": version, "extensions": list(EXTENSIONS)}


def metadata(table: Table, slot: Slot) -> dict[str, Any]:
    """Return the model's metadata."""
    return {
        "name": table.model,
        "versions": [str(each.generation) for each in table.open()],
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(slot.meta.input)],
        "outputs": [_tensor(spec) for spec in slot.meta.outputs if spec.name in OUTPUTS],
    }


def configuration(table: Table, slot: Slot, max_batch: int) -> dict[str, Any]:
    """Return the model's configuration, in the words of Triton's ``ModelConfig``."""
    return {
        "name": table.model,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [each.generation for each in table.open()]}},
        "max_batch_size": max_batch,
        "input": [_port(slot.meta.input)],
        "output": [_port(spec) for spec in slot.meta.outputs if spec.name in OUTPUTS],
        "instance_group": [{"name": table.model, "kind": "KIND_CPU", "count": 1}],
        "default_model_filename": "model.onnx",
        # How long a request waits for others: never. What is there at once may share a run.
        "dynamic_batching": {
            "preferred_batch_size": sorted(slot.pace.sizes)[-1:],
            "max_queue_delay_microseconds": 0,
        },
        "parameters": {
            "instar.bundle": {"string_value": slot.digest},
            "instar.exit_confidence": {"string_value": _exit(table, slot)},
        },
    }


def index(table: Table, ready_only: bool, unloaded: bool) -> list[dict[str, str]]:
    """Return the repository's index: every loaded generation with its state and why it has it."""
    places = [
        (table.stable, "READY", ""),
        (
            table.newcomer,
            "READY" if table.share else "UNAVAILABLE",
            "" if table.share else "staged, no traffic",
        ),
        (table.previous, "UNAVAILABLE", "kept warm for a rollback"),
    ]
    told: dict[str, dict[str, str]] = {}
    for slot, state, reason in places:
        version = "" if slot is None else str(slot.generation)
        if slot is not None and version not in told:
            told[version] = {"name": table.model, "version": version, "state": state, "reason": reason}
    if not any(each["state"] == "READY" for each in told.values()):
        reason = "unloaded by a client" if unloaded else "no stable model"
        told[""] = {"name": table.model, "version": "", "state": "UNAVAILABLE", "reason": reason}
    return [each for each in told.values() if not ready_only or each["state"] == "READY"]


def statistics(table: Table, version: str | None) -> dict[str, Any]:
    """Return the statistics of one version, or of all that have traffic."""
    slots = table.open() if version is None else [slot_of(table, table.model, version)]
    return {"model_stats": [slot.stats.told(table.model, str(slot.generation)) for slot in slots]}


def _exit(table: Table, slot: Slot) -> str:
    if slot.staged is None:
        return "no exit"
    return "off" if table.exit_confidence is None else f"{table.exit_confidence:g}"


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": list(spec.shape)}


def _port(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{spec.datatype.value}", "dims": list(spec.shape[1:])}
