"""Serve the models with BentoML: ``HTTP_PORT GRPC_PORT FOLDER``; the second is not used."""

import os
import sys
from pathlib import Path

import bentoml
import v2

FOLDER = os.environ.get("BENCH_MODELS", "")


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Reader:
    """Both models, in one worker."""

    def __init__(self):
        self.sessions = {model: v2.session(FOLDER, model) for model in v2.MODELS}

    def read(self, model, inputs):
        """Return the answer."""
        (logits,) = self.sessions[model].run(["logits"], {"image": v2.array({"inputs": inputs})})
        return v2.answer(model, logits)

    @bentoml.api(route="/v2/models/mlp/infer")
    def mlp(self, inputs: list[dict], outputs: list[dict]) -> dict:  # noqa: ARG002
        """Answer for the one."""
        return self.read("mlp", inputs)

    @bentoml.api(route="/v2/models/conv/infer")
    def conv(self, inputs: list[dict], outputs: list[dict]) -> dict:  # noqa: ARG002
        """Answer for the other."""
        return self.read("conv", inputs)


if __name__ == "__main__":
    port, _, folder = sys.argv[1:]
    # It writes its own things below its home; the bench's folder goes away at the end.
    os.environ.update(BENCH_MODELS=folder, BENTOML_HOME=f"{folder}/bentoml", BENTOML_DO_NOT_TRACK="True")
    command = str(Path(sys.executable).with_name("bentoml"))
    here = Path(__file__)
    options = ["--host", "127.0.0.1", "--port", port, "--working-dir", str(here.parent)]
    os.execv(command, [command, "serve", f"{here.stem}:Reader", *options])
