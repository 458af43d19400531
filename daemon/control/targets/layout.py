"""How a versioned model repository looks, as Triton and the OpenVINO Model Server read it.

``DIR/MODEL/config.pbtxt``, ``DIR/MODEL/<generation>/model.onnx``. Both servers answer with the highest
number that they find, so what is visible is a list of numbers, the active one on top.

* A folder whose name is no whole number is passed over by both. One that only *begins* with a digit is not:
  the OpenVINO server reads ``7.tmp`` as 7 (``std::stoll``). So everything that is not to be served lies in
  ``.instar``, inside the model's folder and therefore on its file system.
* ``max_batch_size: 0`` and an explicit batch dimension: the server adds no limit and no queue of its own.

Source: Triton Inference Server, "Model Repository" and "Model Configuration"; OpenVINO Model Server,
"Model Version Policy" and ``modelmanager.cpp``.
"""

from pathlib import Path

from policies.bundle import BundleMeta
from policies.terms import Datatype, TensorSpec

FILE = "model.onnx"
CONFIG = "config.pbtxt"
HIDDEN = ".instar"
RECORD = "deployment.json"


def versions(folder: Path) -> list[int]:
    """Return the numbers that a server would find in a model's folder, ascending."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if is_version(name))


def is_version(name: str) -> bool:
    """Tell whether a folder's name is a version to both servers.

    >>> [is_version(name) for name in ("7", "07", "7.tmp", ".instar", "0")]
    [True, False, False, False, False]
    """
    return name.isascii() and name.isdigit() and not name.startswith("0")


def config(meta: BundleMeta) -> str:
    """Return Triton's configuration of a model; the same for all generations of one contract."""
    # Another generation's embedding may have another width; the configuration outlives generations.
    outputs = [
        spec if spec.name != "embedding" else spec.model_copy(update={"shape": (-1, -1)})
        for spec in meta.outputs
    ]
    return "\n".join(
        (
            f'name: "{meta.model}"',
            'platform: "onnxruntime_onnx"',
            "max_batch_size: 0",
            _tensors("input", [meta.input]),
            _tensors("output", outputs),
            "version_policy: { latest { num_versions: 1 } }",
            "",
        )
    )


def _tensors(field: str, specs: list[TensorSpec]) -> str:
    inner = ",\n".join(
        f'  {{ name: "{spec.name}", data_type: {triton_type(spec.datatype)}, '
        f"dims: [ {', '.join(map(str, spec.shape))} ] }}"
        for spec in specs
    )
    return f"{field} [\n{inner}\n]"


def triton_type(datatype: Datatype) -> str:
    """Return Triton's name of an element type.

    >>> triton_type(Datatype.FP32), triton_type(Datatype.UINT8)
    ('TYPE_FP32', 'TYPE_UINT8')
    """
    return f"TYPE_{datatype.value}"
