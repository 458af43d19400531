"""Fuzz a gRPC line: any bytes in any pieces after the greeting, of a client that reads, stops or goes.

Stories are steps, then frames. Whatever comes, it never raises, keeps its bounds, answers each call at most
once and with a whole answer, loses none, and is gone in the end.
"""

import asyncio

import atheris
from hpack import Decoder, Encoder

with atheris.instrument_imports(include=["daemon.serving", "h2", "hpack", "hyperframe"]):
    from daemon.serving import line as under_test
    from daemon.serving.call import framed
    from daemon.serving.gate import MOST_FRAME_BYTES
    from daemon.serving.intake import MOST_OPEN_STREAMS, MOST_OWED_BYTES, MOST_SETTINGS, MOST_STREAMS

from tests.fuzz.harness import fuzz
from tests.serving.lines import ECHO, GOAWAY, LARGE, RUN, Client, Door, frame, frames

MAX_BODY = 500
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LOOP = asyncio.new_event_loop()
SEND, ANSWER, PASS, STOP_READING, READ, LEAVE, DRAIN = range(7)
DATA, HEADERS, RESET = 0, 1, 3
END_STREAM, END_HEADERS = 1, 4


def step(kind: int, size: int = 0) -> bytes:
    """Return one step of a story."""
    return bytes([kind]) + size.to_bytes(2, "big")


def one(data: bytes) -> None:
    """Live one story: steps, then the bytes that they send."""
    LOOP.run_until_complete(story(data))


async def story(data: bytes) -> None:
    count = data[0] % 24 if data else 0
    steps, rest = data[1 : 1 + 3 * count], data[1 + 3 * count :]
    door = Door(max_body=MAX_BODY)
    door.large = 70_000
    client = door.connect(greet=False, high=100_000)
    for start in range(0, len(steps) - 2, 3):
        size = int.from_bytes(steps[start + 1 : start + 3], "big")
        rest = await act(door, client, steps[start] % 7, size, rest)
        bounded(client)
    await act(door, client, SEND, len(rest), rest)
    bounded(client)
    await the_end(door, client)


async def act(door: Door, client: Client, kind: int, size: int, rest: bytes) -> bytes:
    """Do one step; return what is not sent yet."""
    transport = client.transport
    if kind == SEND:
        if rest[:size] and transport.reading and not transport.gone:
            client.line.data_received(rest[:size])
        rest = rest[size:]
    elif kind == ANSWER and door.later:
        door.answer()
    elif kind == PASS:
        door.passes(size % 40)
    elif kind == STOP_READING:
        transport.client_reads = False
    elif kind == READ and not transport.gone:
        transport.read_by_client()
    elif kind == LEAVE:
        transport.close()
    elif kind == DRAIN:
        client.line.drain() if size % 2 else client.line.part()
    for _ in range(3):
        await asyncio.sleep(0)
    return rest


def bounded(client: Client) -> None:
    """Raise when a line keeps more than it may."""
    line, h2 = client.line, client.line._h2
    open_ = len(line._calls) + len(line._outbox)
    assert open_ <= MOST_STREAMS, "too many streams"
    assert 0 <= line._held <= line._exchange.most_held
    assert sum(each.size for each in line._calls.values() if each.work is None) >= line._held
    assert line._outbox.owed <= MOST_OWED_BYTES + MOST_STREAMS * 70_005
    assert len(h2.streams) <= MOST_OPEN_STREAMS
    assert len(h2.remote_settings) <= MOST_SETTINGS + 32
    assert len(line._gate._cut) < 9
    assert not line._ready


async def the_end(door: Door, client: Client) -> None:
    """Answer what waits, let all time go by; raise unless every call was answered once, and all is gone."""
    transport, line = client.transport, client.line
    if not transport.gone:
        transport.read_by_client()
    while door.later:
        door.answer()
    for _ in range(3):
        await asyncio.sleep(0)
    door.passes(31.0)
    await asyncio.sleep(0)
    door.passes(110.0)
    for _ in range(3):
        await asyncio.sleep(0)
    assert transport.gone, "a client stayed for ever"
    assert (door.exchange.count, line._held, len(line._calls)) == (0, 0, 0)
    sound(transport.sent)


def sound(sent: bytes) -> None:
    """Raise unless what was sent is HTTP/2, and every answer a whole one."""
    heads, bodies, ended, decoder = {}, {}, set(), Decoder()
    # A client may say that its table is of any size.
    decoder.max_allowed_table_size = 1 << 32
    for kind, flags, stream, body in frames(sent):
        assert len(body) <= MOST_FRAME_BYTES
        if kind == HEADERS:
            assert stream % 2
            assert stream not in ended
            said = dict(decoder.decode(body, raw=True))
            heads.setdefault(stream, []).append(said)
        elif kind == DATA:
            assert stream in heads
            assert stream not in ended
            bodies[stream] = bodies.get(stream, b"") + body
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            ended.add(stream)
    for stream in ended:
        first, last = heads[stream][0], heads[stream][-1]
        assert first[b":status"] in (b"200", b"405", b"415")
        if last.get(b"grpc-status") == b"0":
            message = bodies[stream]
            assert int.from_bytes(message[1:5], "big") == len(message) - 5, "an answer is not whole"
        else:
            assert stream not in bodies
            assert len(heads[stream]) == 1


def head(path: bytes, encoder: Encoder, *more: tuple[bytes, bytes]) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"),
              (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]  # fmt: skip
    return encoder.encode(fields)


def corpus() -> list[bytes]:
    """Return stories of every kind of frame and client."""
    encoder = Encoder()
    hello = framed(b"hello")

    def call(stream: int, path: bytes, body: bytes = hello, *more: tuple[bytes, bytes]) -> bytes:
        return frame(HEADERS, stream, head(path, encoder, *more), END_HEADERS) + frame(
            DATA, stream, body, END_STREAM
        )

    def fresh(*parts) -> bytes:
        nonlocal encoder
        encoder = Encoder()
        return PREFACE + frame(4) + b"".join(part() for part in parts)

    requests = [
        fresh(lambda: call(1, ECHO), lambda: call(3, RUN), lambda: call(5, ECHO)),
        fresh(lambda: call(1, LARGE), lambda: frame(8, 1, b"\0\1\0\0"), lambda: frame(8, 0, b"\0\1\0\0")),
        fresh(lambda: call(1, RUN), lambda: frame(RESET, 1, b"\0\0\0\x08"), lambda: call(3, RUN)),
        fresh(lambda: call(1, b"/none"), lambda: frame(6, 0, b"12345678"), lambda: call(3, ECHO)),
        fresh(lambda: call(1, RUN), lambda: frame(GOAWAY, 0, bytes(8)), lambda: frame(8, 0, b"\0\1\0\0")),
        fresh(lambda: call(1, RUN, b"\0\0\0\1", (b"grpc-timeout", b"1S"), (b"grpc-encoding", b"gzip"))),
        fresh(lambda: frame(HEADERS, 1, head(RUN, encoder), END_HEADERS), lambda: frame(DATA, 1, hello[:4])),
        fresh(lambda: frame(HEADERS, 1, head(RUN, encoder)[:9], 0), lambda: frame(9, 1, b"\x82", 4)),
        fresh(lambda: frame(4, 0, b"\0\4\0\0\0\0\0\3\0\0\0\1"), lambda: call(1, LARGE)),
        fresh(lambda: call(1, LARGE), lambda: frame(RESET, 1, bytes(4)), lambda: frame(DATA, 1, b"x")),
        fresh(lambda: call(1, ECHO, hello * 200), lambda: call(3, ECHO, framed(b"x" * 600))),
        PREFACE + frame(4) + frame(2, 1, b"\0\0\0\0\1") + frame(5, 1, bytes(4)) + frame(99, 1, b"z"),
    ]  # fmt: skip
    stories = [
        [],
        [step(SEND, 60), step(SEND, 60), step(ANSWER), step(PASS, 11)],
        [step(SEND, 300), step(DRAIN, 1), step(ANSWER), step(DRAIN)],
        [step(SEND, 33), step(STOP_READING), step(SEND, 400), step(ANSWER), step(PASS, 9), step(READ)],
        [step(SEND, 110), step(PASS, 30), step(ANSWER)],
        [step(SEND, 200), step(LEAVE), step(ANSWER)],
    ]
    return [bytes([len(each)]) + b"".join(each) + request for each in stories for request in requests]


def plant() -> None:
    """Forget that a call which was taken back is not to be answered any more."""

    def taken_back(self, stream: int) -> None:
        self._reset_counts()

    under_test.Line._taken_back = taken_back


if __name__ == "__main__":
    fuzz(one, corpus(), plant)
