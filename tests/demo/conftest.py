"""The two servers that a camera talks to, small and in a thread."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.console.demo import casting, reckoning
from daemon.console.demo.footage import Share
from tests.demo.world import World

EXAMPLE = Path(__file__).parents[2] / "examples" / "meter-reader"


@dataclass
class Doors:
    """Serves infer and takes labels on one port.

    It always answers class 0; ``refuse(n)`` may answer request ``n`` in its place.
    """

    requests: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    generation: str = "1"
    refuse: Callable[[int], bytes | None] = lambda _n: None
    url: str = ""
    seen: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, requests: int) -> None:
        """Block until so many requests came."""
        with self.seen:
            assert self.seen.wait_for(lambda: len(self.requests) >= requests, timeout=60)

    def infer(self, header: dict[str, Any], pixels: bytes) -> bytes:
        self.note(header, pixels)
        logits = [0.0] * 10
        logits[0] = 1.0
        body = {"model_name": "meter-reader", "model_version": self.generation, "id": header["id"]}
        outputs = [{"name": "logits", "shape": [1, 10], "datatype": "FP32", "data": logits}]
        return http(200, json.dumps(body | {"outputs": outputs}).encode())

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                raw = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = raw.split(" ")[1]
                fields = dict(line.split(": ", 1) for line in raw.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(fields["Content-Length"]))
                refused = None if path.endswith("/labels") else self.refuse(len(self.requests))
                if refused is not None:
                    self.note({}, b"")
                    writer.write(refused)
                    if not _is_whole(refused):
                        break
                    continue
                writer.write(self.route(path, fields, body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    def route(self, path: str, fields: dict[str, str], body: bytes) -> bytes:
        if path.endswith("/labels"):
            items = json.loads(body)["labels"]
            self.labels |= {item["id"]: item["label"] for item in items}
            return http(200, b'{"accepted":1}')
        length = int(fields["Inference-Header-Content-Length"])
        return self.infer(json.loads(body[:length]), body[length:])

    def note(self, header: dict[str, Any], pixels: bytes) -> None:
        with self.seen:
            self.requests.append(header)
            self.pictures.append(pixels)
            self.seen.notify_all()


def _is_whole(answer: bytes) -> bool:
    """Tell whether an answer is HTTP up to its end; after any other the server hangs up."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return f"content-length: {len(body)}".encode() in head.split(b"\r\n")


def http(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def world(tmp_path: Path, example: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A scripted daemon behind a real socket, and a clock that moves when the story waits."""
    world = World.make(tmp_path / "s", example)
    monkeypatch.setattr(casting, "is_ready", lambda _url: world.ready)
    monkeypatch.setattr(casting, "script", lambda name: name)
    monkeypatch.setattr(reckoning, "accuracies", lambda _bundles, _test: [Share(64, 100), Share(96, 100)])
    with world.door():
        yield world


@pytest.fixture
def doors() -> Iterator[Doors]:
    """Both servers, up until the test ends."""
    doors = Doors()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(doors.talk, "127.0.0.1", 0))
    doors.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def close() -> None:
        server.close()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    yield doors
    asyncio.run_coroutine_threadsafe(close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Forty tiny 'digits' of class 0, 0, 1, 1, …, so that a constant answer has a known accuracy."""
    x = np.full((40, 28, 28), 200, np.uint8)
    path = tmp_path / "digits.npz"
    np.savez(path, x=x, y=np.arange(40) // 2 % 10)
    return path


@pytest.fixture
def example() -> Path:
    """The example's folder."""
    return EXAMPLE
