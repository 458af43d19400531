"""An ONNX runtime class for MLServer, which ships none; loaded by MLServer itself."""

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse, ResponseOutput


class OrtRuntime(MLModel):
    """One session of one thread."""

    async def load(self):
        """Build the session."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload):
        """Answer the logits."""
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        (logits,) = self.session.run(["logits"], {"image": x})
        output = ResponseOutput(
            name="logits", datatype="FP32", shape=list(logits.shape), data=logits.ravel().tolist()
        )
        return InferenceResponse(model_name=self.name, model_version="1", outputs=[output])
