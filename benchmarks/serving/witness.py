"""A client that holds every answer against what the generation that it names must say, bit for bit.

    python -m benchmarks.serving.witness ADDRESS FORM CASE COUNT OUT

* A closed loop in a process of its own on ``CLIENT_CORE``: 8 connections (gRPC: 8 calls), each with one
  request under way.
* CASE (`Case`) says what is asked, and what onnxruntime alone, one row at a time, answers: by image and by
  the generation's place in turn. So a witness needs to be told nothing of swaps.
* OUT (`Tally`) counts what was right, refused, lost and wrong, and when each generation was seen; whether a
  generation was seen too early or too late, ``storm`` judges, who knows when they were ordered.
* On one connection generations never go back: an answer that names an older one than the answer before is
  wrong. Calls of gRPC may overtake one another; there it is not judged.
"""

import json
import os
import queue
import re
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving import asks, models
from benchmarks.serving.asks import Form
from benchmarks.serving.openloop import answer_size, raw
from benchmarks.serving.stage import CLIENT_CORE

CONNECTIONS, IMAGES = 8, 16
_PATIENCE_S = 20.0
_BUFFER = 1 << 16
_VERSION = re.compile(rb'"model_version"\s*:\s*"(\d+)"')
_DATA = re.compile(rb'"data"\s*:\s*\[([^\]]*)\]')
_HEADER_LENGTH = re.compile(rb"\r\ninference-header-content-length:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """Images ``(k, 1, 28, 28)`` and the right logits ``(places, k, 10)``; places are taken in turn."""

    images: NDArray[np.float32]
    logits: NDArray[np.float32]

    @classmethod
    def of(cls, bundles: list[bytes], turns: tuple[int, ...]) -> "Case":
        """Return the case of bundles that take turns, asked of onnxruntime one row at a time."""
        images = np.concatenate([models.digit(1000 + seed) for seed in range(IMAGES)])
        sessions = [models.session(each) for each in bundles]
        own = [[one.run(["logits"], {"image": x[None]})[0][0] for x in images] for one in sessions]
        return cls(images, np.array([own[turn] for turn in turns], np.float32))

    def write(self, path: Path) -> None:
        """Keep it for a witness."""
        np.savez(path, images=self.images, logits=self.logits)

    @classmethod
    def read(cls, path: Path) -> "Case":
        """Return a kept one."""
        with np.load(path, allow_pickle=False) as kept:
            return cls(kept["images"], kept["logits"])


@dataclass
class Tally:
    """What became of the requests. Moments are seconds on the monotonic clock, by generation."""

    right: int = 0
    lost: int = 0
    wrong: int = 0
    refused: dict[str, int] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    last_asked: dict[int, float] = field(default_factory=dict)
    first_seen: dict[int, float] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """How many requests there were."""
        return self.right + self.lost + self.wrong + sum(self.refused.values())

    @classmethod
    def read(cls, path: Path) -> "Tally":
        """Return what a witness has left."""
        kept = json.loads(path.read_text())
        for key in ("last_asked", "first_seen"):
            kept[key] = {int(generation): moment for generation, moment in kept[key].items()}
        return cls(**kept)


class Jury:
    """Judges answers; what it has parsed once it knows again."""

    def __init__(self, case: Case) -> None:
        self.tally = Tally()
        self._right = [[row.tobytes() for row in place] for place in case.logits]
        self._texts: dict[bytes, bytes] = {}

    def judge(self, image: int, generation: int, logits: bytes, asked: float, least: int = 0) -> None:
        """Count one answer.

        Args:
            image: Which was asked.
            generation: That the answer names.
            logits: That it gives, as float32 bytes.
            asked: When, on the monotonic clock.
            least: Generation below which the answer goes back.
        """
        tally = self.tally
        tally.first_seen.setdefault(generation, time.monotonic())
        tally.last_asked[generation] = max(asked, tally.last_asked.get(generation, 0.0))
        if generation < least:
            self.object(f"generation {generation} after {least}")
        elif logits != (right := self._right[generation % len(self._right)][image]):
            wanted, came = np.frombuffer(right, "<f4")[:3], np.frombuffer(logits[:12], "<f4")
            self.object(f"image {image}, generation {generation}: expected {wanted}..., got {came}...")
        else:
            tally.right += 1

    def object(self, why: str) -> None:
        """Count a wrong answer."""
        self.tally.wrong += 1
        if len(self.tally.examples) < 5:
            self.tally.examples.append(why)

    def text(self, numbers: bytes) -> bytes:
        """Return the float32 bytes of numbers as JSON has them."""
        if numbers not in self._texts:
            self._texts[numbers] = np.array(json.loads(b"[" + numbers + b"]"), np.float32).tobytes()
        return self._texts[numbers]


@dataclass
class _Line:
    """A connection: what it was last asked, and the generation of its last answer."""

    socket: socket.socket
    buffer: bytearray
    image: int = 0
    asked: float = 0.0
    generation: int = 0


class Rest:
    """Asks over HTTP/1.1, in JSON or with binary tensors."""

    def __init__(self, address: str, form: Form, case: Case) -> None:
        self.jury, self._form = Jury(case), form
        self._requests = [raw(asks.ask(form, "mlp", x[None])) for x in case.images]
        self._poll, self._lines = select.epoll(), {}
        host, _, port = address.rpartition(":")
        for _ in range(CONNECTIONS):
            line = _Line(socket.create_connection((host, int(port))), bytearray())
            line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._lines[line.socket.fileno()] = line
            self._poll.register(line.socket.fileno(), select.EPOLLIN)

    def run(self, count: int) -> Tally:
        """Ask ``count`` times."""
        left, open_ = count, 0
        for line in list(self._lines.values())[:count]:
            self._ask(line, left)
            left, open_ = left - 1, open_ + 1
        while open_ and (events := self._poll.poll(_PATIENCE_S)):
            for fileno, _ in events:
                line = self._lines[fileno]
                if not self._receive(line):
                    continue
                open_ -= 1
                if left and fileno in self._lines:
                    self._ask(line, left)
                    left, open_ = left - 1, open_ + 1
        self.jury.tally.lost += open_ + left
        return self.jury.tally

    def close(self) -> None:
        """Hang up."""
        self._poll.close()
        for line in self._lines.values():
            line.socket.close()

    def _ask(self, line: _Line, number: int) -> None:
        line.image, line.asked = number % len(self._requests), time.monotonic()
        line.socket.sendall(self._requests[line.image])

    def _receive(self, line: _Line) -> bool:
        """Take what came; return whether the request has come to its end."""
        part = line.socket.recv(_BUFFER)
        line.buffer += part
        if not part:
            self._poll.unregister(line.socket.fileno())
            del self._lines[line.socket.fileno()]
            line.socket.close()
            self.jury.tally.lost += 1
            return True
        size = answer_size(line.buffer)
        if size is None or len(line.buffer) < size:
            return False
        answer = bytes(line.buffer)
        line.buffer.clear()
        if len(answer) > size:
            self.jury.object(f"{len(answer) - size} bytes too many: {answer[size : size + 60]!r}")
        elif answer[9:12] != b"200":
            self.jury.tally.refused[answer[9:12].decode()] += 1
        else:
            self._read(line, answer)
        return True

    def _read(self, line: _Line, answer: bytes) -> None:
        version = _VERSION.search(answer)
        if version is None:
            self.jury.object(f"no version in {answer[-200:]!r}")
            return
        generation, least = int(version[1]), line.generation
        line.generation = generation
        if self._form is Form.JSON:
            found = _DATA.search(answer)
            logits = b"" if found is None else self.jury.text(found[1])
        else:
            length = _HEADER_LENGTH.search(answer)
            body = answer.index(b"\r\n\r\n") + 4
            logits = b"" if length is None else answer[body + int(length[1]) :]
        self.jury.judge(line.image, generation, logits, line.asked, least)


class Grpc:
    """Asks over gRPC with raw contents."""

    def __init__(self, address: str, case: Case) -> None:
        import grpc

        self.jury, self._errors = Jury(case), grpc.RpcError
        # After the length prefix, which the channel writes itself.
        self._requests = [asks.ask(Form.GRPC, "mlp", x[None]).body[5:] for x in case.images]
        self._channel = grpc.insecure_channel(address)
        self._call = self._channel.unary_unary(asks.GRPC_METHOD)

    def run(self, count: int) -> Tally:
        """Ask ``count`` times."""
        done: queue.SimpleQueue[tuple[int, float, Any]] = queue.SimpleQueue()
        open_ = 0
        for number in range(count):
            if open_ == CONNECTIONS:
                self._settle(*done.get(timeout=_PATIENCE_S))
                open_ -= 1
            self._begin(number % len(self._requests), done)
            open_ += 1
        for _ in range(open_):
            self._settle(*done.get(timeout=_PATIENCE_S))
        self._channel.close()
        return self.jury.tally

    def _begin(self, image: int, done: "queue.SimpleQueue[tuple[int, float, Any]]") -> None:
        asked = time.monotonic()
        future = self._call.future(self._requests[image], timeout=_PATIENCE_S)
        future.add_done_callback(lambda future: done.put((image, asked, future)))

    def _settle(self, image: int, asked: float, future: Any) -> None:
        try:
            answer = future.result()
        except self._errors as error:
            self.jury.tally.refused[str(error.code())] += 1
            return
        version, *contents = [content for number, content in fields(answer) if number in (2, 6)]
        self.jury.judge(image, int(version), b"".join(contents), asked)


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """Return the length-delimited fields of a protobuf message, in order, with their numbers.

    >>> fields(bytes([0x0A, 1, 65, 0x12, 2, 66, 67]))
    [(1, b'A'), (2, b'BC')]

    Raises:
        ValueError: It has another kind of field.
    """
    found, at = [], 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 != 2:
            raise ValueError(f"expected length-delimited fields, got wire type {tag & 7}")
        length, at = _varint(message, at)
        found.append((tag >> 3, message[at : at + length]))
        at += length
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def main(arguments: list[str]) -> None:
    """Ask, and leave the tally."""
    address, form, case, count, out = arguments
    os.sched_setaffinity(0, {CLIENT_CORE})
    what = Case.read(Path(case))
    makers: dict[Form, Callable[[], Rest | Grpc]] = {
        Form.JSON: lambda: Rest(address, Form.JSON, what),
        Form.BINARY: lambda: Rest(address, Form.BINARY, what),
        Form.GRPC: lambda: Grpc(address, what),
    }
    tally = makers[Form(form)]().run(int(count))
    Path(out).write_text(json.dumps(asdict(tally)))


if __name__ == "__main__":
    main(sys.argv[1:])
