"""Serve the models with MLServer: ``HTTP_PORT GRPC_PORT FOLDER WORKERS``; 0 workers is in its own process.

Its logs of every request (``debug``) and its metrics are off, which makes it faster; all else is as it comes.
"""

import json
import os
import sys
from pathlib import Path

from v2 import MODELS

http, grpc, folder, workers = sys.argv[1:]
home = Path(folder) / f"mlserver-{workers}"
settings = {
    "debug": False,
    "host": "127.0.0.1",
    "http_port": int(http),
    "grpc_port": int(grpc),
    "metrics_endpoint": None,
    "parallel_workers": int(workers),
}
home.mkdir(exist_ok=True)
(home / "settings.json").write_text(json.dumps(settings))
for model in MODELS:
    (home / model).mkdir(exist_ok=True)
    told = {
        "name": model,
        "implementation": "mlserver_runtime.OrtRuntime",
        "parameters": {"uri": f"{folder}/{model}.onnx", "version": "1"},
    }
    (home / model / "model-settings.json").write_text(json.dumps(told))
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
command = str(Path(sys.executable).with_name("mlserver"))
os.execv(command, [command, "start", str(home)])
