"""The casting: by which commands the parts of the demo are played, and how to ask the data plane if it is up.

Every process is started by its own public command, as an operator or systemd would start it. Pure but for
``is_ready``.
"""

import http.client
import os
import sys
from urllib.parse import urlsplit

from daemon.console.demo.oracle import CAMERA_ROWS
from daemon.console.demo.processes import script
from daemon.console.demo.scene import Scene
from daemon.console.demo.wishes import HOST, Wishes
from policies.errors import PermanentError


def serve(scene: Scene, wishes: Wishes) -> list[str]:
    """Return the data plane's command; it stays on one processor when there are several."""
    argv = [
        *(script("instar-serve"), "--state", str(scene.state), "--model", scene.model),
        *("--listen", f"{HOST}:{wishes.ports.serve}", "--metrics", f"{HOST}:{wishes.ports.metrics}"),
    ]
    cpus = sorted(os.sched_getaffinity(0))
    return argv if len(cpus) == 1 else [*argv, "--pin", str(cpus[0])]


def control(scene: Scene, wishes: Wishes) -> list[str]:
    """Return the control plane's command."""
    folder = scene.folder
    return [
        *(script("instard"), "--state", str(scene.state), "--task", str(folder / "task.toml")),
        *("--policy", str(folder / "policy.toml"), "--signers", str(folder / "allowed_signers")),
        *("--listen", f"{HOST}:{wishes.ports.control}", "--seed", str(wishes.seed)),
    ]


def camera(scene: Scene, wishes: Wishes, now: float) -> list[str]:
    """Return the camera's command; its request ids differ from those of an earlier run here."""
    ports = wishes.ports
    return [
        *(sys.executable, str(scene.example / "camera.py"), "--commands"),
        *("--name", f"cam{wishes.seed}-{int(now)}", "--model", scene.model, "--task", scene.task),
        *("--url", f"http://{HOST}:{ports.serve}", "--labels", f"http://{HOST}:{ports.control}"),
        *("--data", str(scene.folder / "digits.npz")),
        *("--first", str(CAMERA_ROWS[0]), "--last", str(CAMERA_ROWS[1])),
        *("--rate", str(wishes.rate), "--seed", str(wishes.seed), "--log", str(scene.requests)),
    ]


def is_ready(url: str) -> bool:
    """Ask a data plane whether it is ready; nobody there is no."""
    parts = urlsplit(url)
    if parts.hostname is None:
        raise PermanentError(f"expected http://HOST:PORT, got {url!r}")
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
