"""A real MLServer in an environment of its own, with the example's runtime."""

import subprocess
import time
import venv
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import pytest

from tests.simulator.site import free_port

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "mlserver"
HOME = ROOT / ".instar" / "peers" / "mlserver-target"
PACKAGES = ("mlserver==1.7.1", "uvloop<0.22", "onnxruntime==1.32.0")
STAMP = HOME / "instar-packages"
INSTALL_S = 900
DEADLINE_S = 60.0


def environment() -> Path:
    """Return the Python of MLServer's environment, made once; skip the test where it cannot be had."""
    python = HOME / "bin" / "python"
    if STAMP.is_file() and STAMP.read_text() == "\n".join(PACKAGES):
        return python
    venv.create(HOME, clear=True, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    try:
        done = subprocess.run(
            [*pip, *PACKAGES], capture_output=True, text=True, check=False, timeout=INSTALL_S
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"MLServer was not installed within {INSTALL_S} s")
    if done.returncode != 0:
        pytest.skip(f"MLServer cannot be installed from the package index: {done.stderr.strip()[-300:]}")
    STAMP.write_text("\n".join(PACKAGES))
    return python


class MlServer:
    """The process, over a repository that has the example's runtime; a context manager."""

    def __init__(self, repository: Path, model: str) -> None:
        self._python = environment()
        self._repository = repository
        self.ports = [free_port() for _ in range(3)]
        self.url = f"http://127.0.0.1:{self.ports[0]}"
        self.log = repository.parent / "mlserver.log"
        self.process: subprocess.Popen[bytes] | None = None
        folder = repository / model
        folder.mkdir(parents=True)
        for name in ("onnx_runtime.py", "model-settings.json"):
            (folder / name).write_bytes((EXAMPLE / name).read_bytes())
        text = (EXAMPLE / "settings.json").read_text()
        for port, own in zip(("8080", "8081", "8082"), self.ports, strict=True):
            text = text.replace(port, str(own))
        (repository / "settings.json").write_text(text)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [str(self._python.with_name("mlserver")), "start", str(self._repository)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/v2/health/live", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        self.stop()
        raise AssertionError(f"MLServer did not start: {self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
