"""A server of the V2 protocol over a model repository, with the manners that servers have.

It serves the highest version that it found when it was told to load, answers 404 for what is not loaded, and
422 for an empty body, as MLServer does. A test can make it refuse, lie, or fall ill.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

TYPES = {"UINT8": np.uint8, "FP32": np.float32}


class V2Server:
    """The simulator; ``url`` is where it answers."""

    def __init__(self, repository: Path, model: str) -> None:
        self._repository = repository
        self._model = model
        self.loaded: tuple[str, ort.InferenceSession] | None = None
        self.calls: list[str] = []
        self.names_versions = True
        self.refuse_load: set[str] = set()
        self.lies: set[str] = set()
        self.status: int | None = None
        self.on_load: Callable[[], None] = lambda: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(*outer.answer("GET", self.path, None))

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                self._answer(*outer.answer("POST", self.path, raw))

            def _answer(self, status: int, body: Any) -> None:
                raw = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def answer(self, method: str, path: str, raw: bytes | None) -> tuple[int, Any]:
        self.calls.append(f"{method} {path}")
        if self.status is not None:
            return self.status, {"error": "not now"}
        if raw is not None and not raw:
            return 422, {"error": "expected a body"}
        model = f"/v2/models/{self._model}"
        table: dict[tuple[str, str], Callable[[bytes], tuple[int, Any]]] = {
            ("GET", "/v2/health/live"): lambda _raw: (200, None),
            ("GET", f"{model}/ready"): lambda _raw: (200 if self.loaded else 404, None),
            ("GET", model): lambda _raw: self._metadata(),
            ("POST", f"{model}/infer"): self._infer,
            ("POST", "/v2/repository/index"): lambda _raw: (200, self._index()),
            ("POST", f"/v2/repository/models/{self._model}/load"): lambda _raw: self._load(),
            ("POST", f"/v2/repository/models/{self._model}/unload"): lambda _raw: self._unload(),
        }
        known = table.get((method, path))
        return (404, {"error": f"no {path}"}) if known is None else known(raw or b"")

    def versions(self) -> list[int]:
        folder = self._repository / self._model
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []

    def _index(self) -> list[dict[str, str]]:
        return [{"name": path.name} for path in self._repository.iterdir() if path.is_dir()]

    def _metadata(self) -> tuple[int, Any]:
        if self.loaded is None:
            return 404, {"error": "not loaded"}
        versions = [self.loaded[0]] if self.names_versions else []
        return 200, {"name": self._model, "versions": versions}

    def _load(self) -> tuple[int, Any]:
        self.on_load()
        version = str(self.versions()[-1])
        if version in self.refuse_load:
            return 400, {"error": f"version {version} does not load here"}
        path = self._repository / self._model / version / "model.onnx"
        self.loaded = version, ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        return 200, None

    def _unload(self) -> tuple[int, Any]:
        self.loaded = None
        return 200, None

    def _infer(self, raw: bytes) -> tuple[int, Any]:
        if self.loaded is None:
            return 404, {"error": "not loaded"}
        version, session = self.loaded
        tensor = json.loads(raw)["inputs"][0]
        x = np.array(tensor["data"], TYPES[tensor["datatype"]]).reshape(tensor["shape"])
        names = ["logits", "embedding"]
        arrays = session.run(names, {tensor["name"]: x})
        if version in self.lies:
            arrays[0] = arrays[0] + 0.5
        outputs = [
            {"name": name, "datatype": "FP32", "shape": list(a.shape), "data": a.ravel().tolist()}
            for name, a in zip(names, arrays, strict=True)
        ]
        named = {"model_version": version} if self.names_versions else {}
        return 200, {"model_name": self._model, "outputs": outputs} | named
