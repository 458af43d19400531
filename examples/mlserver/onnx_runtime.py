"""A runtime for MLServer: serves the highest generation of those that Instar's target ``v2`` writes.

* ``load`` reads the highest number beside ``model-settings.json`` and proves nothing: Instar has proven the
  bytes, and asks the golden rows after every load.
* MLServer loads a model anew before it lets go of the old one, as long as its settings name no version.
  So the settings name none; the version is the generation, and every answer carries it.
* A model without any generation is not ready; that is no error, since Instar writes the first one later.

Copy it with ``model-settings.json`` into ``REPOSITORY/MODEL/``, and put the model's name into the latter.
"""

import asyncio
from pathlib import Path

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse, MetadataTensor
from mlserver.utils import get_model_uri

TYPES = {
    "tensor(uint8)": "UINT8",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
}
"""The runtime's names of element types, and the protocol's."""


class OnnxRuntime(MLModel):
    """The generation that was the highest when it was loaded."""

    _generation: str | None = None
    _session: ort.InferenceSession | None = None

    async def load(self) -> bool:
        """Load the highest generation; False when there is none yet."""
        folder = Path(await get_model_uri(self._settings))
        numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if not numbers:
            return False
        self._generation = str(max(numbers))
        path = folder / self._generation / "model.onnx"
        # In a thread: requests to the generation before this one go on meanwhile.
        self._session = await asyncio.to_thread(_session, path)
        return True

    async def metadata(self) -> MetadataModelResponse:
        """Name the generation as the one version."""
        if self._session is None:
            return MetadataModelResponse(name=self.name, platform="onnxruntime_onnx", versions=[])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        return MetadataModelResponse(
            name=self.name,
            platform="onnxruntime_onnx",
            versions=[self._generation],
            inputs=[_tensor(spec) for spec in inputs],
            outputs=[_tensor(spec) for spec in outputs],
        )

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run one request; without a list of outputs, answer with all of them."""
        if self._session is None:
            raise InferenceError("no generation yet")
        known = [spec.name for spec in self._session.get_outputs()]
        wanted = [output.name for output in payload.outputs or []] or known
        if not set(wanted) <= set(known):
            raise InferenceError(f"expected outputs among {known}, got {wanted}")
        feed = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        try:
            arrays = self._session.run(wanted, feed)
        except (ValueError, ort.capi.onnxruntime_pybind11_state.InvalidArgument) as error:
            raise InferenceError(f"expected the inputs of generation {self._generation}, {error}") from error
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self._generation,
            outputs=[
                NumpyCodec.encode_output(name, array) for name, array in zip(wanted, arrays, strict=True)
            ],
        )


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _tensor(spec: ort.NodeArg) -> MetadataTensor:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    name = TYPES.get(spec.type, spec.type.removeprefix("tensor(").removesuffix(")").upper())
    return MetadataTensor(name=spec.name, datatype=name, shape=shape)
