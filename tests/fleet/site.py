"""A fleet over real processes: a hub, two device classes with a device each, traffic on them, an approver.

Devices may live in network namespaces of their own, behind links that can be cut, and one may be slower than
the others.
"""

import contextlib
import copy
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from daemon.fleet import enrol
from guards.signing import sign
from tests.simulator.site import EXAMPLE, Site, free_port, small_policy

MODEL = "meter-reader"


class Namespaces:
    """Network namespaces with one link each to the host, for as long as the block lasts."""

    def __init__(self, names: list[str]) -> None:
        self._names = {name: f"in{os.getpid() % 10_000}{place}" for place, name in enumerate(names)}
        self._places = {name: 4 * place for place, name in enumerate(names)}
        self._net = 0

    @staticmethod
    def missing() -> str | None:
        """Return why there can be none here, or None."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            return "network namespaces need root and the command ip"
        probe = f"inprobe{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
        return None if made.returncode == 0 else f"ip netns is not permitted: {made.stderr.strip()}"

    def __enter__(self) -> Self:
        # A run that was killed leaves its links behind: theirs are other networks.
        taken = subprocess.run(["ip", "-4", "addr"], capture_output=True, text=True, check=True).stdout
        self._net = next(net for net in range(256) if f" 10.219.{net}." not in taken)
        for name, space in self._names.items():
            outer, inner = self.addresses(name)
            run("ip", "netns", "add", space)
            run("ip", "link", "add", f"{space}h", "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "addr", "add", f"{outer}/30", "dev", f"{space}h")
            run("ip", "link", "set", f"{space}h", "up")
            self._inside(name, "ip", "addr", "add", f"{inner}/30", "dev", "eth0")
            self._inside(name, "ip", "link", "set", "eth0", "up")
            self._inside(name, "ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for space in self._names.values():
            subprocess.run(["ip", "link", "del", f"{space}h"], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)

    def addresses(self, name: str) -> tuple[str, str]:
        """Return the host's and the device's address on a link."""
        net, place = self._net, self._places[name]
        return f"10.219.{net}.{place + 1}", f"10.219.{net}.{place + 2}"

    def prefix(self, name: str) -> list[str]:
        """Return what a command begins with to run on a device."""
        return ["ip", "netns", "exec", self._names[name]]

    def cut(self, name: str) -> None:
        """Take a device's link down."""
        run("ip", "link", "set", f"{self._names[name]}h", "down")

    def heal(self, name: str) -> None:
        """Bring a device's link up."""
        run("ip", "link", "set", f"{self._names[name]}h", "up")

    def _inside(self, name: str, *command: str) -> None:
        run(*self.prefix(name), *command)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Slower:
    """What processes are started with, so that each run of ONNX Runtime takes ``times`` as long in them.

    The runtime is what is slowed, and nothing of Instar: as on a device with a slower clock, whatever else
    the machine does meanwhile.
    """

    def __init__(self, folder: Path, times: float) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_SLOWER.format(times=times))
        self.environment = {"PYTHONPATH": str(folder)}


_SLOWER = """
import time
import onnxruntime

run = onnxruntime.InferenceSession.run

def slower(*args, **kwargs):
    began = time.perf_counter()
    answers = run(*args, **kwargs)
    end = began + {times} * (time.perf_counter() - began)
    while time.perf_counter() < end:
        pass
    return answers

onnxruntime.InferenceSession.run = slower
"""


class Traffic(threading.Thread):
    """Asks one device for digits, one after the other; counts answers and generations."""

    def __init__(self, name: str, ask: Callable[[bytes], tuple[int, bytes]], pause_s: float = 0.01) -> None:
        super().__init__(daemon=True)
        self._name = name
        self._ask, self._pause_s = ask, pause_s
        self._ended = threading.Event()
        self.sent = self.answered = 0
        self.failed: list[str] = []
        self.versions: set[str] = set()

    def run(self) -> None:
        with np.load(EXAMPLE / "digits.npz") as digits:
            x = digits["x"][6000:7000]
        place = 0
        while not self._ended.wait(self._pause_s):
            place = (place + 1) % len(x)
            tensor = {
                "name": "image",
                "datatype": "UINT8",
                "shape": [1, 28, 28],
                "data": x[place].ravel().tolist(),
            }
            body = {
                "id": f"{self._name}/{self.sent}",
                "parameters": {"group": f"g{place}"},
                "inputs": [tensor],
            }
            self.sent += 1
            try:
                status, raw = self._ask(json.dumps(body).encode())
            except OSError as error:
                self.failed.append(repr(error))
                continue
            if status == 200:
                self.answered += 1
                self.versions.add(json.loads(raw)["model_version"])
            elif status != 503:
                self.failed.append(f"{status} {raw[:200]!r}")

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=20)


class Field:
    """One device: its instar-serve and its instar-device, perhaps in a namespace."""

    def __init__(
        self,
        folder: Path,
        papers: Path,
        name: str,
        hub: str,
        prefix: list[str],
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.name, self._papers, self._hub, self._prefix = name, papers, hub, prefix
        self._environment = os.environ | dict(environment)
        self.state = folder / name
        self.state.mkdir()
        self.port, self._metrics = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start("instar-serve")
        self.start("instar-device")

    def start(self, which: str) -> None:
        """Start one of the device's processes."""
        own = self._papers / "devices" / self.name
        flags = {
            "instar-serve": (
                *("--state", self.state, "--model", MODEL),
                *("--listen", f"127.0.0.1:{self.port}", "--metrics", f"127.0.0.1:{self._metrics}"),
            ),
            "instar-device": (
                *("--hub", self._hub, "--state", self.state, "--name", self.name),
                *("--cert", own / "device.pem", "--key", own / "device.key", "--ca", own / "ca.pem"),
                *(
                    "--root",
                    own / "root.json",
                    "--beat-s",
                    "0.2",
                    "--report-s",
                    "1",
                    "--idle-rows-per-s",
                    "1000",
                ),
            ),
        }[which]
        command = [*self._prefix, str(Path(sys.executable).with_name(which)), *map(str, flags)]
        with (self.state / f"{which}.log").open("ab") as log:
            self.processes[which] = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    def kill(self, which: str) -> None:
        """Kill one of the device's processes as a power cut would."""
        self.processes[which].send_signal(signal.SIGKILL)
        self.processes[which].wait()

    def ask(self, body: bytes) -> tuple[int, bytes]:
        """Ask the device's instar-serve, from inside its namespace where it has one."""
        if self._prefix:
            return self._ask_inside(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", f"/v2/models/{MODEL}/infer", body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _ask_inside(self, body: bytes) -> tuple[int, bytes]:
        asker = self.processes.get("asker")
        if asker is None or asker.poll() is not None:
            asker = subprocess.Popen(
                [*self._prefix, sys.executable, "-c", _ASKER, str(self.port), MODEL],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self.processes["asker"] = asker
        assert asker.stdin is not None
        assert asker.stdout is not None
        asker.stdin.write(body + b"\n")
        asker.stdin.flush()
        status, _, raw = asker.stdout.readline().partition(b" ")
        return int(status), raw

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            if process.poll() is None:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def words(self) -> str:
        """Return what its processes said last."""
        return "\n".join(
            f"== {p.name} of {self.name}\n{p.read_text()[-1500:]}" for p in self.state.glob("*.log")
        )


_ASKER = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
for line in sys.stdin.buffer:
    try:
        connection.request("POST", f"/v2/models/{sys.argv[2]}/infer", line)
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        status, body = 503, b"not there"
    sys.stdout.buffer.write(b"%d %s\\n" % (status, body.replace(b"\\n", b" ")))
    sys.stdout.buffer.flush()
"""


class FleetSite:
    """A main site, and a fleet that joins it."""

    def __init__(
        self, folder: Path, lanes: list[str], spaces: Namespaces | None = None, **policy: str
    ) -> None:
        """Make a site, and papers for lanes of a device each; ``policy`` is the main lane's."""
        self.site = Site(folder, **policy)
        self.papers = folder / "papers"
        self._spaces = spaces
        self.port = free_port()
        hosts = ["127.0.0.1", *(spaces.addresses(f"{lane}-1")[0] for lane in lanes if spaces is not None)]
        enrol.init(self.papers, hosts, lanes, time.time())
        for lane in lanes:
            enrol.enrol(self.papers, lane, f"{lane}-1", time.time())
        self.path = self.papers / "fleet.toml"
        self.devices: dict[str, Field] = {}
        self.traffic: dict[str, Traffic] = {}

    def open_fleet(self, limits_ms: dict[str, float], **policy: str) -> None:
        """Start the control plane again with lanes, each with its latency limit; ``policy`` is all theirs."""
        example = 25.0
        for lane, limit_ms in limits_ms.items():
            text = small_policy(min_labels="0", **policy)
            # Of the guard alone: the probation's is of the whole service, on a machine that is shared.
            assert text.count(f"max_p99_ms = {example}\n") == 1
            text = text.replace(f"max_p99_ms = {example}\n", f"max_p99_ms = {limit_ms:.4f}\n")
            (self.papers / f"{lane}.toml").write_text(text)
            signed = sign(self.site.key, text.encode(), "instar-policy@v1")
            (self.papers / f"{lane}.toml.sig").write_text(signed)
        self.path.write_text(self._text(list(limits_ms)))
        arguments = self.site.control_args
        self.site.control_args = lambda: (*arguments(), "--fleet", str(self.path))  # type: ignore[method-assign]
        self.site.kill_control()

    def _text(self, lanes: list[str]) -> str:
        listen = "0.0.0.0" if self._spaces else "127.0.0.1"
        head = f'format = 1\n[hub]\nlisten = "{listen}:{self.port}"\n'
        head += 'cert = "hub.pem"\nkey = "hub.key"\nca = "ca.pem"\n'
        return head + "".join(
            f'[lanes.{lane}]\npolicy = "{lane}.toml"\nroots = "{lane}"\nrelease_key = "{lane}/release.key"\n'
            f'devices = ["{lane}-1"]\ninherit = true\nfresh_s = 600\nconverged = 1.0\noffline_s = 30\n'
            "timed_by = 1\ntelemetry_bytes = 67108864\ndevice_bytes_per_s = 4194304\n"
            for lane in lanes
        )

    def __enter__(self) -> Self:
        self.site.start_serve()
        self.site.start_control()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for traffic in self.traffic.values():
            traffic.stop()
        for device in self.devices.values():
            device.stop()
        self.site.__exit__(kind, error, trace)

    def join(self, lane: str, slower: Slower | None = None) -> Field:
        """Start a lane's device, and ask it for digits."""
        name = f"{lane}-1"
        space = self._spaces
        prefix = [] if space is None else space.prefix(name)
        host = "127.0.0.1" if space is None else space.addresses(name)[0]
        hub = f"https://{host}:{self.port}"
        environment = {} if slower is None else slower.environment
        device = Field(self.site.state.parent, self.papers, name, hub, prefix, environment)
        self.devices[name] = device
        self.traffic[name] = Traffic(name, device.ask)
        self.traffic[name].start()
        return device

    def lane(self, name: str) -> Site:
        """Return a lane as a site of its own, to be looked at and approved for."""
        view = copy.copy(self.site)
        view.state = self.site.state / "lanes" / name
        view.words = lambda: "\n".join(  # type: ignore[method-assign]
            [self.site.words(), *(device.words() for device in self.devices.values())]
        )
        return view

    def heard(self, device: str) -> Any:
        """Return what the hub knows of a device."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as line:
            line.connect(str(self.site.state / "run" / "hub.sock"))
            line.sendall(b"GET /v1/devices HTTP/1.1\r\nhost: hub\r\nconnection: close\r\n\r\n")
            raw = b""
            while part := line.recv(65536):
                raw += part
        found = json.loads(raw.partition(b"\r\n\r\n")[2])
        return next(one for one in found if one["name"] == device)
