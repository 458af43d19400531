"""A storm: clients that ask at once in every form, until it is over.

* A client (`Json`, `Binary`, `Grpc`) has one connection and one request under way; it keeps what it asked and
  all that came back, and judges nothing: ``account`` does.
* A client whose connection breaks asks no more: what it was waiting for is lost, and the account says so.
"""

import contextlib
import json
import re
import socket
import threading
import time

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from benchmarks.serving.asks import GRPC_METHOD
from benchmarks.serving.openloop import answer_size
from tests.simulator.account import Account, Asked, Came, Course, judge

MODEL = "meter-reader"
PATIENCE_S = 60.0
DARK, SIDE = 100, 28
PIN_EVERY = 16
"""In one request of so many, a client pins the newest version that has traffic just then."""
_LENGTH = re.compile(rb"\r\ninference-header-content-length:\s*(\d+)", re.IGNORECASE)


def pictures() -> list[NDArray[np.uint8]]:
    """Return what is asked ``(rows, 28, 28)``: ten bright ones, four dark ones, and two of three rows."""
    rng = np.random.default_rng(4)

    def drawn(most: int) -> NDArray[np.uint8]:
        return rng.integers(0, most, (1, SIDE, SIDE), dtype=np.uint8)

    bright, dark = [drawn(256) for _ in range(14)], [drawn(DARK) for _ in range(5)]
    mixed = np.concatenate([bright[10], dark[4], bright[11]])
    return [*bright[:10], *dark[:4], np.concatenate(bright[11:14]), mixed]


def counters(text: str, name: str, label: str) -> dict[str, int]:
    """Return a counter of the server by one of its labels."""
    found = {}
    for line in text.splitlines():
        if line.startswith(f"instar_serve_{name}_total{{"):
            value = line.partition(f'{label}="')[2].partition('"')[0]
            found[value] = int(float(line.rpartition(" ")[2]))
    return found


# -- those who ask ------------------------------------------------------------------------------------------


class Wind:
    """What all clients of a storm have in common: how many requests there were, and when it is over."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.pin: int | None = None
        self._count, self._passed = 0, threading.Condition()

    def pinned(self, generation: int | None) -> None:
        """Have clients that pin a version pin this one from now on; None: they pin none."""
        self.pin = generation

    def passed(self) -> None:
        """Count one request."""
        with self._passed:
            self._count += 1
            self._passed.notify_all()

    def reach(self, count: int, deadline: float) -> None:
        """Wait until so many requests were answered; ``deadline`` is on the monotonic clock."""
        with self._passed:
            came = self._passed.wait_for(lambda: self._count >= count, max(0.0, deadline - time.monotonic()))
        assert came, f"expected {count} requests in time, {self._count} were answered"

    def pass_by(self, more: int, deadline: float) -> None:
        """Wait until so many more requests were answered."""
        self.reach(self._count + more, deadline)


class Client(threading.Thread):
    """Asks one request after the other until the storm is over."""

    def __init__(self, name: str, address: str, seen: list[NDArray[np.uint8]], wind: Wind) -> None:
        super().__init__(name=name, daemon=True)
        self.asked: list[Asked] = []
        self.came: list[Came] = []
        self.broken: list[str] = []
        self._address, self._wind, self._seen = address, wind, seen
        self._rng = np.random.default_rng(sum(name.encode()))

    def run(self) -> None:
        """Ask."""
        with contextlib.ExitStack() as stack:
            self._open(stack)
            while not self._wind.over.is_set():
                number = len(self.asked)
                picture, version = int(self._rng.integers(len(self._seen))), None
                if number % PIN_EVERY == 0 and len(self._seen[picture]) == 1:
                    version = self._wind.pin
                request = Asked(f"{self.name}/{number}", picture, time.monotonic(), version)
                self.asked.append(request)
                try:
                    self._ask(request)
                except (OSError, ValueError) as error:
                    # What it asked is lost, and so the account says; a broken connection is not used again.
                    self.broken.append(repr(error))
                    return
                self._wind.passed()
            self._end()

    def _open(self, stack: contextlib.ExitStack) -> None:
        raise NotImplementedError

    def _ask(self, asked: Asked) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        """Look whether more came than was asked."""

    def _note(self, name: str, status: str, generation: int | None, said: bytes) -> None:
        self.came.append(Came(name, status, time.monotonic(), generation, said))


class Json(Client):
    """Asks over HTTP/1.1 in JSON."""

    def _open(self, stack: contextlib.ExitStack) -> None:
        host, _, port = self._address.rpartition(":")
        self._socket = stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._inputs = [json.dumps(self._tensor(x)).encode() for x in self._seen]

    def _tensor(self, x: NDArray[np.uint8]) -> dict[str, object]:
        return {"name": "image", "datatype": "UINT8", "shape": x.shape, "data": x.ravel().tolist()}

    def _body(self, asked: Asked) -> tuple[bytes, bytes]:
        """Return a request's further headers and its body."""
        return b"", b'{"id":"%b","inputs":[%b]}' % (asked.id.encode(), self._inputs[asked.picture])

    def _ask(self, asked: Asked) -> None:
        more, body = self._body(asked)
        pin = "" if asked.version is None else f"/versions/{asked.version}"
        line = f"POST /v2/models/{MODEL}{pin}/infer HTTP/1.1\r\nhost: x\r\n".encode()
        self._socket.sendall(b"%b%bcontent-length: %d\r\n\r\n%b" % (line, more, len(body), body))
        while (size := answer_size(self._buffer)) is None or len(self._buffer) < size:
            part = self._socket.recv(1 << 16)
            if not part:
                raise ConnectionError(f"expected an answer to {asked.id}, the server hung up")
            self._buffer += part
        # What is behind it, if anything, is taken for the next one's answer, and its id tells.
        answer, self._buffer = self._buffer[:size], self._buffer[size:]
        self._read(asked, answer)

    def _read(self, asked: Asked, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head[9:12].decode()
        if status != "200":
            self._note(asked.id, status, None, json.loads(body)["error"].encode())
            return
        length = _LENGTH.search(head)
        text, raw = (body, b"") if length is None else (body[: int(length[1])], body[int(length[1]) :])
        said = json.loads(text)
        for output in said["outputs"]:
            raw += np.array(output.get("data", ()), "<f4").tobytes()
        self._note(said["id"], status, int(said["model_version"]), raw)

    def _end(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        while part := self._socket.recv(1 << 16):
            self._buffer += part
        if self._buffer:
            self._note("", "200", None, self._buffer)


class Binary(Json):
    """Asks over HTTP/1.1 with binary tensors, both ways."""

    def _tensor(self, x: NDArray[np.uint8]) -> dict[str, object]:
        sized = {"binary_data_size": x.nbytes}
        return {"name": "image", "datatype": "UINT8", "shape": x.shape, "parameters": sized}

    def _body(self, asked: Asked) -> tuple[bytes, bytes]:
        form = b'{"id":"%b","parameters":{"binary_data_output":true},"inputs":[%b]}'
        head = form % (asked.id.encode(), self._inputs[asked.picture])
        length = b"inference-header-content-length: %d\r\n" % len(head)
        return length, head + self._seen[asked.picture].tobytes()


class Grpc(Client):
    """Asks over gRPC with raw contents."""

    def _open(self, stack: contextlib.ExitStack) -> None:
        # Without its own, a channel would share one connection with all others.
        own = [("grpc.use_local_subchannel_pool", 1)]
        channel = stack.enter_context(grpc.insecure_channel(self._address, options=own))
        self._call = channel.unary_unary(GRPC_METHOD)

    def _ask(self, asked: Asked) -> None:
        x = self._seen[asked.picture]
        message = pb.ModelInferRequest(model_name=MODEL, id=asked.id, raw_input_contents=[x.tobytes()])
        message.inputs.add(name="image", datatype="UINT8", shape=x.shape)
        if asked.version is not None:
            message.model_version = str(asked.version)
        try:
            said = pb.ModelInferResponse.FromString(
                self._call(message.SerializeToString(), timeout=PATIENCE_S)
            )
        except grpc.RpcError as error:
            self._note(asked.id, error.code().name, None, error.details().encode())
            return
        self._note(said.id, "OK", int(said.model_version), b"".join(said.raw_output_contents))


KINDS: dict[str, type[Client]] = {"json": Json, "binary": Binary, "grpc": Grpc}


class Storm:
    """A context manager: clients of every kind, each on a connection of its own, over when it is left."""

    def __init__(self, rest: str, rpc: str, seen: list[NDArray[np.uint8]], each: int, course: Course) -> None:
        self.wind, self.course = Wind(), course
        self.clients = [
            kind(f"{name}-{number}", rpc if kind is Grpc else rest, seen, self.wind)
            for name, kind in KINDS.items()
            for number in range(each)
        ]

    def __enter__(self) -> "Storm":
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wind.over.set()
        for client in self.clients:
            client.join(PATIENCE_S)

    def account(self) -> Account:
        """Return what it came to, once it is over."""
        alive = [client.name for client in self.clients if client.is_alive()]
        assert not alive, f"expected all clients to have ended, {alive} did not"
        asked = [each for client in self.clients for each in client.asked]
        return judge(asked, [each for client in self.clients for each in client.came], self.course)
