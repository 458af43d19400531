"""Fuzz a connection: any bytes in any pieces, of a client that reads, stops, half closes or goes.

Whatever comes, it never raises, keeps its bounds, answers in order what it took, and is gone in the end.
"""

import asyncio

import atheris
import httptools

with atheris.instrument_imports(include=["daemon.serving"]):
    from daemon.serving import connection as under_test
    from daemon.serving.connection import MOST_PIPELINED, Connection
    from daemon.serving.reading import MOST_HEAD_BYTES

from tests.fuzz.harness import fuzz
from tests.serving.wire import INFER, Transport, Wire, get, post

MAX_BODY = 500
LOOP = asyncio.new_event_loop()
WIRE = Wire(max_body=MAX_BODY, most=10)
SEND, ANSWER, HALF_CLOSE, PASS, STOP_READING, READ, LEAVE = range(7)


class Answers:
    """Reads what came back, as a client would."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.bodies: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.codes.append(self._parser.get_status_code())

    def read(self, sent: bytes) -> "Answers":
        self._parser.feed_data(sent)
        return self


def step(kind: int, size: int = 0) -> bytes:
    """Return one step of a story."""
    return bytes([kind]) + size.to_bytes(2, "big")


def one(data: bytes) -> None:
    """Live one story: steps, then the bytes that they send."""
    LOOP.run_until_complete(story(data))


async def story(data: bytes) -> None:
    count = data[0] % 24 if data else 0
    steps, rest = data[1 : 1 + 3 * count], data[1 + 3 * count :]
    for transport in [each._transport for each in list(WIRE.reception._open)]:
        transport.close()
    await asyncio.sleep(0)
    WIRE.desk.asked.clear()
    WIRE.desk.later.clear()
    transport = WIRE.connect(high=2000)
    for start in range(0, len(steps) - 2, 3):
        size = int.from_bytes(steps[start + 1 : start + 3], "big")
        rest = await act(transport, steps[start] % 7, size, rest)
        bounded(transport.protocol)
    await act(transport, SEND, len(rest), rest)
    bounded(transport.protocol)
    await the_end(transport)


async def act(transport: Transport, kind: int, size: int, rest: bytes) -> bytes:
    """Do one step; return what is not sent yet."""
    if kind == SEND:
        await WIRE.send(rest[:size], to=transport)
        return rest[size:]
    if kind == ANSWER and WIRE.desk.later:
        WIRE.desk.answer()
    elif kind == HALF_CLOSE and not transport.gone and not transport.half:
        transport.half = True
        if not transport.protocol.eof_received():
            transport.close()
    elif kind == PASS:
        WIRE.passes(size % 40)
    elif kind == STOP_READING:
        transport.client_reads = False
    elif kind == READ and not transport.gone:
        transport.read_by_client()
    elif kind == LEAVE:
        transport.close()
    await asyncio.sleep(0)
    return rest


def bounded(connection: Connection) -> None:
    """Raise when a connection keeps more than it may."""
    assert sum(map(len, connection._body)) <= MAX_BODY
    assert len(connection._queue) <= MOST_PIPELINED + MOST_HEAD_BYTES // 16
    assert sum(len(name) + len(value) for name, value in connection._headers.items()) <= 2 * MOST_HEAD_BYTES
    assert WIRE.reception.count <= 1


async def the_end(transport: Transport) -> None:
    """Answer what waits, let all time go by; raise unless everything was answered in order, and is gone."""
    if not transport.gone:
        transport.read_by_client()
    for _ in range(2000):
        await asyncio.sleep(0)
        if WIRE.desk.later:
            WIRE.desk.answer()
        elif not transport.protocol.busy:
            break
    left = transport.gone
    WIRE.passes(100.0)
    await asyncio.sleep(0)
    WIRE.passes(100.0)
    for _ in range(3):
        await asyncio.sleep(0)
    assert transport.gone, "a client stayed for ever"
    assert WIRE.reception.count == 0
    came = Answers().read(transport.sent.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))
    targets = [each.target for each in WIRE.desk.asked if each.method != b"HEAD"]
    good = [body for code, body in zip(came.codes, came.bodies, strict=True) if code == 200]
    if any(each.method == b"HEAD" for each in WIRE.desk.asked):
        return
    assert good == targets[: len(good)], "answers are out of order"
    assert left or transport.aborted or len(good) == len(targets), "an answer is missing"


def corpus() -> list[bytes]:
    """Return stories of every kind of request and client."""
    chunked = (
        b"POST /later HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n"
    )
    requests = [
        get(b"/a") + get(b"/later") + get(b"/b"),
        post(INFER, b"{}") + post(b"/later", b"body", b"expect: 100-continue"),
        chunked + get(b"/c"),
        b"GET /d HTTP/1.0\r\n\r\n",
        get(b"/later") + b"\x00garbage\r\n\r\n",
        get(b"/e", b"connection: upgrade", b"upgrade: h2c") * 3,
        get(b"/later", b"connection: close") + get(b"/f"),
        post(b"/g", b"x" * 400) + post(b"/h", b"x" * 600),
        b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        get(b"/i") * 40,
    ]
    stories = [
        [],
        [step(SEND, 30), step(SEND, 30), step(ANSWER), step(PASS, 11)],
        [step(SEND, 200), step(HALF_CLOSE), step(ANSWER), step(ANSWER)],
        [step(STOP_READING), step(SEND, 1000), step(ANSWER), step(PASS, 20), step(READ), step(ANSWER)],
        [step(SEND, 50), step(PASS, 30), step(ANSWER)],
        [step(SEND, 80), step(LEAVE)],
    ]
    return [bytes([len(each)]) + b"".join(each) + request for each in stories for request in requests]


def plant() -> None:
    """Refuse at once what is wrong, before what is owed."""
    under_test.Connection._fail = lambda self, status, text: self._refuse(status, text)


if __name__ == "__main__":
    fuzz(one, corpus(), plant)
