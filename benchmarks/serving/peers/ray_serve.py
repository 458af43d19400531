"""Serve the models with Ray Serve: ``HTTP_PORT GRPC_PORT FOLDER``; the second is not used."""

import signal
import sys
from pathlib import Path

import ray
import v2
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Reader:
    """Both models, in one replica."""

    def __init__(self, folder):
        self.sessions = {model: v2.session(folder, model) for model in v2.MODELS}

    async def __call__(self, request):
        """Answer for the model that the path names."""
        model = request.url.path.split("/")[3]
        (logits,) = self.sessions[model].run(["logits"], {"image": v2.array(await request.json())})
        return v2.answer(model, logits)


if __name__ == "__main__":
    port, _, folder = sys.argv[1:]
    scripts = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=scripts,
        _temp_dir=f"{folder}/ray",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(Reader.bind(folder), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
