"""Serve the models with LitServe: ``HTTP_PORT GRPC_PORT FOLDER``; the second is not used."""

import sys

import litserve
import v2


class Reader(litserve.LitAPI):
    """One model, in the worker process that LitServe gives it."""

    def __init__(self, folder, model):
        super().__init__(api_path=f"/v2/models/{model}/infer")
        self.folder, self.model = folder, model

    def setup(self, device):  # noqa: ARG002
        """Build the session."""
        self.session = v2.session(self.folder, self.model)

    def decode_request(self, request):
        """Return the image."""
        return v2.array(request)

    def predict(self, x):
        """Return the logits."""
        return self.session.run(["logits"], {"image": x})[0]

    def encode_response(self, output):
        """Return the answer."""
        return v2.answer(self.model, output)


if __name__ == "__main__":
    port, _, folder = sys.argv[1:]
    server = litserve.LitServer(
        [Reader(folder, model) for model in v2.MODELS], accelerator="cpu", workers_per_device=1
    )
    server.run(
        host="127.0.0.1",
        port=int(port),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
