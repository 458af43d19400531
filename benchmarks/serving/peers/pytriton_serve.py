"""Serve the models with PyTriton, Triton's Python backend: ``HTTP_PORT GRPC_PORT FOLDER``."""

import sys

import numpy as np
import v2
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def reader(session):
    """Return the function that answers for a session."""

    @batch
    def read(image):
        (logits,) = session.run(["logits"], {"image": image})
        return {"logits": logits}

    return read


http, grpc, folder = sys.argv[1:]
config = TritonConfig(
    http_address="127.0.0.1",
    http_port=int(http),
    grpc_address="127.0.0.1",
    grpc_port=int(grpc),
    allow_metrics=False,
    log_verbose=0,
)
with Triton(config=config) as triton:
    for model in v2.MODELS:
        triton.bind(
            model_name=model,
            infer_func=reader(v2.session(folder, model)),
            inputs=[Tensor(name="image", dtype=np.float32, shape=(1, 28, 28))],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=16, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
    triton.serve()
