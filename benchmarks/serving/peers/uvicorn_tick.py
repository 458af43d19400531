"""What one would write by hand in an afternoon: ``HTTP_PORT GRPC_PORT FOLDER``; the second is not used.

A plain ASGI application on uvicorn with httptools and uvloop. All requests that are read in one turn of the
loop are run as one batch. No validation, no telemetry, no swaps, no limits: where Instar's own server is
slower, these are why; where it is quicker, its own protocol is. Runs in Instar's environment.
"""

import asyncio
import sys

import msgspec
import numpy as np
import orjson
import uvicorn
import v2

MOST_ROWS = 32
JSON = [(b"content-type", b"application/json")]


class Tensor(msgspec.Struct):
    """An input or an output."""

    name: str
    shape: list[int] = []
    data: list[float] | None = None


class Message(msgspec.Struct):
    """A request."""

    inputs: list[Tensor]


class Batch:
    """Runs what came in one turn of the loop together."""

    def __init__(self, session):
        self.session = session
        self.waiting = []

    def ask(self, x):
        """Return the future of the logits of ``x`` (1, 1, 28, 28)."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.waiting.append((x, future))
        if len(self.waiting) == 1:
            loop.call_soon(self.run)
        return future

    def run(self):
        """Answer all that wait."""
        waiting, self.waiting = self.waiting, []
        for first in range(0, len(waiting), MOST_ROWS):
            some = waiting[first : first + MOST_ROWS]
            x = np.concatenate([one for one, _ in some]) if len(some) > 1 else some[0][0]
            (logits,) = self.session.run(["logits"], {"image": x})
            for row, (_, future) in enumerate(some):
                future.set_result(logits[row : row + 1])


class Reader:
    """The application."""

    def __init__(self, folder):
        self.batches = {f"/v2/models/{name}/infer": Batch(v2.session(folder, name)) for name in v2.MODELS}
        self.decoder = msgspec.json.Decoder(Message)

    async def __call__(self, scope, receive, send):
        """Answer one request."""
        if scope["type"] != "http":
            return
        parts, more = [], True
        while more:
            event = await receive()
            parts.append(event.get("body", b""))
            more = event.get("more_body", False)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        length = dict(scope["headers"]).get(b"inference-header-content-length")
        read = self.json if length is None else self.binary
        status, headers, answer = await read(scope["path"], body, length)
        sized = [*headers, (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": sized})
        await send({"type": "http.response.body", "body": answer})

    async def json(self, path, body, _length):
        """Answer numbers written as text."""
        tensor = self.decoder.decode(body).inputs[0]
        logits = await self.batches[path].ask(np.array(tensor.data, np.float32).reshape(tensor.shape))
        output = {"name": "logits", "datatype": "FP32", "shape": [1, 10], "data": logits.ravel()}
        answer = {"model_name": path.split("/")[3], "model_version": "1", "outputs": [output]}
        return 200, JSON, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    async def binary(self, path, body, length):
        """Answer numbers written as bytes."""
        head = int(length)
        shape = self.decoder.decode(body[:head]).inputs[0].shape
        logits = await self.batches[path].ask(np.frombuffer(body, "<f4", offset=head).reshape(shape))
        raw = logits.tobytes()
        sized = {"binary_data_size": len(raw)}
        output = {"name": "logits", "datatype": "FP32", "shape": [1, 10], "parameters": sized}
        told = {"model_name": path.split("/")[3], "model_version": "1", "outputs": [output]}
        answer = orjson.dumps(told)
        length = (b"inference-header-content-length", str(len(answer)).encode())
        return 200, [(b"content-type", b"application/octet-stream"), length], answer + raw


if __name__ == "__main__":
    port, _, folder = sys.argv[1:]
    uvicorn.run(
        Reader(folder),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        lifespan="off",
    )
