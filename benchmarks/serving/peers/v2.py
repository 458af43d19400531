"""The Open Inference Protocol's JSON shape, for peers that do not speak it: the least that answers rightly.

Used by the handlers of LitServe, BentoML and Ray Serve. No validation: what a peer's own framework checks, it
checks; this adds nothing.
"""

import numpy as np
import onnxruntime as ort

MODELS = ("mlp", "conv")


def session(folder, model):
    """Return a session of one thread for a model of the folder."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(f"{folder}/{model}.onnx", options, providers=["CPUExecutionProvider"])


def array(message):
    """Return the image of a request that was read from JSON."""
    tensor = message["inputs"][0]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def answer(model, logits):
    """Return the answer that names the logits (1, 10)."""
    output = {
        "name": "logits",
        "datatype": "FP32",
        "shape": list(logits.shape),
        "data": logits.ravel().tolist(),
    }
    return {"model_name": model, "model_version": "1", "outputs": [output]}
