"""A gRPC line: calls in any pieces, bounds that hold against whoever tries, patience, and a decent end."""

import asyncio
import gzip
import zlib

import pytest

from daemon.serving import gate, intake, line
from daemon.serving.call import Status, framed
from daemon.serving.connection import LINGER_S, WRITE_S
from daemon.serving.intake import MOST_STREAMS
from tests.serving.lines import BODY_S, ECHO, HEAD_S, IDLE_S, LARGE, RUN, Door, frame, frames

CALM, PROTOCOL, REFUSED, NO_ERROR, CANCEL = 0xB, 0x1, 0x7, 0x0, 0x8
ENDLESS = 10**9


def aio(test):
    """Run a test in a loop of its own."""

    def run(*given, **named):
        asyncio.run(test(*given, **named))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = __import__("inspect").signature(test)
    return run


# -- calls --------------------------------------------------------------------------------------------------


@aio
async def test_a_call_is_answered_with_head_message_and_status():
    client = Door().connect()
    stream = client.call()
    await client.turn()
    answer = client.answers[stream]
    assert answer.head[b":status"] == b"200"
    assert answer.head[b"content-type"] == b"application/grpc"
    assert answer.head[b"grpc-accept-encoding"] == b"identity,deflate,gzip"
    assert (answer.data, answer.trailers, answer.ended) == (framed(b"hello"), {b"grpc-status": b"0"}, True)


@aio
async def test_a_call_may_come_in_any_pieces():
    client = Door().connect()
    stream = client.begin()
    for byte in framed(b"hello"):
        client.h2.send_data(stream, bytes([byte]))
    client.h2.end_stream(stream)
    for byte in client.h2.data_to_send():
        client.line.data_received(bytes([byte]))
    await client.turn()
    assert client.answers[stream].data == framed(b"hello")


@aio
async def test_many_calls_of_one_piece_go_out_in_one_write():
    client = Door().connect()
    await client.turn()
    writes = []
    client.transport.write = writes.append
    streams = [client.call(body=b"%d" % number) for number in range(20)]
    await client.turn()
    assert len(writes) == 1
    client.transport.sent += writes[0]
    client.read()
    assert [client.answers[each].data for each in streams] == [framed(b"%d" % n) for n in range(20)]


@aio
async def test_answers_come_as_they_are_ready():
    door = Door()
    client = door.connect()
    slow, fast = client.call(RUN), client.call(ECHO)
    await client.turn()
    assert (client.answers[fast].ended, client.answers[slow].ended) == (True, False)
    door.answer()
    await client.turn()
    assert client.answers[slow].data == framed(b"hello")


@pytest.mark.parametrize("kind", ["application/grpc+proto", "application/grpc;x=y"])
@aio
async def test_other_names_of_the_content_are_known(kind):
    client = Door().connect()
    stream = client.call(content_type=kind.encode())
    await client.turn()
    assert client.answers[stream].status == 0


@aio
async def test_trailers_of_a_client_are_the_end_of_its_call():
    client = Door().connect()
    stream = client.begin()
    client.h2.send_data(stream, framed(b"hello"))
    client.h2.send_headers(stream, [(b"x", b"y")], end_stream=True)
    await client.turn()
    assert client.answers[stream].data == framed(b"hello")


CODINGS = {b"gzip": gzip.compress, b"deflate": zlib.compress}


def packed(raw: bytes) -> bytes:
    return b"\x01" + len(raw).to_bytes(4, "big") + raw


@pytest.mark.parametrize("coding", CODINGS)
@aio
async def test_compressed_messages_are_read_and_bounded(coding):
    door = Door(max_body=1000)
    client = door.connect()
    good = client.call(RUN, CODINGS[coding](b"a" * 1000), packed, grpc_encoding=coding)
    plain = client.call(ECHO, grpc_encoding=coding)
    bomb = client.call(RUN, CODINGS[coding](b"a" * 1001), packed, grpc_encoding=coding)
    broken = client.call(RUN, b"no such stream", packed, grpc_encoding=coding)
    unsaid = client.call(RUN, CODINGS[coding](b"a"), packed)
    await client.turn()
    assert [call.raw for call, _, _ in door.later] == [b"a" * 1000]
    assert client.answers[good].status == -1
    assert client.answers[plain].status == 0
    assert client.answers[bomb].status == Status.RESOURCE_EXHAUSTED
    assert client.answers[broken].status == Status.INVALID_ARGUMENT
    assert client.answers[unsaid].status == Status.INTERNAL
    assert door.lost == ["client_error"] * 3


UNFIT = {
    "no message": (b"", Status.INVALID_ARGUMENT),
    "half a prefix": (b"\0\0", Status.INVALID_ARGUMENT),
    "cut short": (framed(b"hello")[:-1], Status.INVALID_ARGUMENT),
    "two messages": (framed(b"a") + framed(b"b"), Status.INVALID_ARGUMENT),
    "a flag of its own": (b"\x02" + framed(b"a")[1:], Status.INVALID_ARGUMENT),
    "too large": (framed(b"a" * 1001), Status.RESOURCE_EXHAUSTED),
    "announced too large": (b"\0\xff\xff\xff\xff", Status.RESOURCE_EXHAUSTED),
}


@pytest.mark.parametrize("unfit", UNFIT.values(), ids=UNFIT)
@aio
async def test_what_is_not_one_message_is_refused_and_counted(unfit):
    door = Door(max_body=1000)
    client = door.connect()
    stream = client.begin(RUN)
    client.h2.send_data(stream, unfit[0], end_stream=True)
    # Negative control: the largest that is allowed is taken.
    client.call(RUN, b"a" * 1000)
    await client.turn()
    assert client.answers[stream].status == unfit[1], client.answers[stream].text
    assert "expected" in client.answers[stream].text
    assert (door.lost, len(door.later)) == (["client_error"], 1)


HEADS = {
    "unknown method": ({":path": b"/t/None"}, 200, Status.UNIMPLEMENTED),
    "unknown coding": ({"grpc_encoding": b"zstd"}, 200, Status.UNIMPLEMENTED),
    "no trailers": ({"te": None}, 200, Status.INVALID_ARGUMENT),
    "bad timeout": ({"grpc_timeout": b"1h"}, 200, Status.INVALID_ARGUMENT),
    "long timeout": ({"grpc_timeout": b"123456789S"}, 200, Status.INVALID_ARGUMENT),
    "other content": ({"content_type": b"application/json"}, 415, -1),
    "grpc-web": ({"content_type": b"application/grpc-web"}, 415, -1),
    "no content type": ({"content_type": None}, 415, -1),
    "GET": ({":method": b"GET"}, 405, -1),
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@aio
async def test_a_head_that_is_no_call_is_refused_at_once(head, whole):
    changes, http, status = head
    client = Door().connect()
    stream = client.begin(**changes)
    if whole:
        client.h2.send_data(stream, framed(b"hello"), end_stream=True)
    good = client.call()
    await client.turn()
    answer = client.answers[stream]
    assert (answer.head[b":status"], answer.status, answer.ended) == (b"%d" % http, status, True)
    # What its client might still send is not wanted.
    assert answer.reset == (None if whole else NO_ERROR)
    assert client.answers[good].status == 0


BROKEN = {
    "no path": {":path": None},
    "unknown pseudo": {":protocol": b"x"},
    "a header of a connection": {"connection": b"close"},
    "upper case": {"X_Y": b"z"},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
@aio
async def test_a_head_that_http2_forbids_is_reset(changes):
    client = Door().connect()
    stream, good = client.begin(**changes), client.call()
    await client.turn()
    assert (client.answers[stream].reset, client.answers[good].status) == (PROTOCOL, 0)


@aio
async def test_pseudo_headers_come_first_and_once():
    client = Door().connect()
    head = client.head()
    late = client.begin(head=[*head[1:], head[0]])
    twice = client.begin(head=[head[0], *head])
    await client.turn()
    assert [client.answers[each].reset for each in (late, twice)] == [PROTOCOL] * 2


@aio
async def test_a_text_of_a_refusal_is_percent_encoded():
    client = Door().connect()
    stream = client.call("/t/50%é\n".encode())
    await client.turn()
    assert client.answers[stream].text.endswith("50%25%C3%83%C2%A9%0A")


# -- time ---------------------------------------------------------------------------------------------------


@aio
async def test_the_deadline_counts_from_the_calls_head_and_is_told_from_the_whole_message_on():
    door = Door()
    client = door.connect()
    stream = client.begin(RUN, grpc_timeout=b"5S")
    await client.turn()
    door.clock.advance(2.0)
    client.h2.send_data(stream, framed(b"x"), end_stream=True)
    await client.turn()
    ((call, _, _),) = door.later
    assert (call.received, call.within_s) == (door.clock.monotonic(), 3.0)


@aio
async def test_a_message_that_does_not_come_is_waited_for_so_long():
    door = Door()
    client = door.connect()
    slow, short = client.begin(RUN), client.begin(RUN, grpc_timeout=b"3S")
    client.h2.send_data(slow, b"\0\0")
    await client.turn()
    door.passes(2.5)
    await client.turn()
    assert client.answers[short].status == -1
    door.passes(1.0)
    await client.turn()
    assert client.answers[short].status == Status.DEADLINE_EXCEEDED
    # Negative control: the other one has all its time.
    door.passes(BODY_S - 4.5)
    await client.turn()
    assert client.answers[slow].status == -1
    door.passes(2.0)
    await client.turn()
    assert client.answers[slow].status == Status.INVALID_ARGUMENT
    assert sorted(door.lost) == ["client_error", "timeout"]
    good = client.call()
    await client.turn()
    assert client.answers[good].status == 0


@aio
async def test_a_client_that_does_not_greet_is_left():
    door = Door()
    silent, half, greeted = door.connect(greet=False), door.connect(greet=False), door.connect()
    half.line.data_received(b"PRI * HTTP/2.0\r\n\r\n")
    await greeted.turn()
    door.passes(HEAD_S - 1.0)
    await greeted.turn()
    assert not silent.transport.gone
    door.passes(2.0)
    await greeted.turn()
    assert [each.transport.gone for each in (silent, half, greeted)] == [True, True, False]
    assert silent.goaways() == half.goaways() == [(CALM, 0)]


@pytest.mark.parametrize("trickle", [False, True])
@aio
async def test_a_head_that_does_not_come_is_waited_for_so_long(trickle):
    door = Door()
    client = door.connect()
    await client.turn()
    await client.turn()
    client.line.data_received(frame(1, 1, b"\x82\x86")[:-1])
    for _ in range(int(HEAD_S) + 2):
        door.passes(1.0)
        if trickle and not client.transport.gone:
            # A head in continuations is still one head.
            client.line.data_received(b"\x86" + frame(9, 1, b"\x82\x86")[:-1])
        await client.turn()
    assert (client.transport.gone, client.goaways()[-1][0]) == (True, CALM)


@aio
async def test_an_idle_client_is_told_to_go_and_a_busy_one_is_not():
    door = Door()
    idle, busy = door.connect(), door.connect()
    busy.call(RUN)
    for each in (idle, busy):
        await each.turn()
    door.passes(IDLE_S + 2)
    for each in (idle, busy):
        await each.turn()
    assert (idle.transport.gone, idle.goaways()) == (True, [(NO_ERROR, 0)])
    assert not busy.transport.gone
    door.answer()
    await busy.turn()
    # Its time begins with its answer; pings do not lengthen it.
    for _ in range(int(IDLE_S) + 2):
        door.passes(1.0)
        if not busy.transport.gone:
            busy.h2.ping(b"12345678")
            await busy.turn()
    assert busy.transport.gone


# -- windows ------------------------------------------------------------------------------------------------


@aio
async def test_an_answer_waits_for_both_windows():
    door = Door()
    client = door.connect()
    streams = [client.call(LARGE), client.call(LARGE)]
    await client.turn()
    assert sum(len(client.answers[each].data) for each in streams) == 65_535
    client.h2.increment_flow_control_window(1 << 20)
    await client.turn()
    # Now the streams' own windows are in the way.
    assert [len(client.answers[each].data) for each in streams] == [65_535] * 2
    for stream in streams:
        client.h2.increment_flow_control_window(1 << 20, stream)
    await client.turn()
    whole = framed(b"l" * door.large)
    assert [(client.answers[each].data, client.answers[each].status) for each in streams] == [(whole, 0)] * 2
    assert not client.line.busy


@aio
async def test_a_window_that_a_setting_opens_counts_too():
    door = Door()
    client = door.connect()
    client.h2.increment_flow_control_window(1 << 20)
    stream = client.call(LARGE)
    await client.turn()
    assert len(client.answers[stream].data) == 65_535
    client.h2.update_settings({4: 1 << 20})
    await client.turn()
    assert client.answers[stream].ended


@aio
async def test_small_answers_overtake_one_that_waits_for_its_own_window_in_order():
    door = Door()
    client = door.connect()
    client.h2.increment_flow_control_window(1 << 20)
    large, small = client.call(LARGE), client.call(ECHO)
    await client.turn()
    assert (client.answers[large].ended, client.answers[small].ended) == (False, True)


@aio
async def test_a_client_that_never_opens_its_window_is_left():
    door = Door()
    client, other = door.connect(), door.connect()
    client.call(LARGE)
    for each in (client, other):
        await each.turn()
    door.passes(WRITE_S - 1)
    await client.turn()
    assert not client.transport.gone
    door.passes(2)
    await client.turn()
    assert (client.transport.aborted, other.transport.gone) == (True, False)


@pytest.mark.parametrize("bounded", [True, False])
@aio
async def test_answers_that_wait_are_bounded(monkeypatch, bounded):
    door = Door()
    door.large = 1 << 20
    if not bounded:
        monkeypatch.setattr(intake, "MOST_OWED_BYTES", ENDLESS)
    client = door.connect()
    for _ in range(8):
        last = client.call(LARGE)
        await client.turn()
    assert (client.line._outbox.owed <= (4 << 20) + door.large) is bounded
    assert (client.answers[last].status == Status.RESOURCE_EXHAUSTED) is bounded


@aio
async def test_an_answer_that_is_taken_back_while_it_waits_is_forgotten():
    door = Door()
    client = door.connect()
    stream = client.call(LARGE)
    await client.turn()
    assert client.line.busy
    client.h2.reset_stream(stream, CANCEL)
    await client.turn()
    assert (client.line.busy, client.line._outbox.owed) == (False, 0)
    client.h2.increment_flow_control_window(1 << 20)
    good = client.call()
    await client.turn()
    assert client.answers[good].status == 0


@aio
async def test_an_answer_that_is_taken_back_right_after_its_window_was_opened_is_forgotten():
    client = Door().connect()
    stream = client.call(LARGE)
    await client.turn()
    client.h2.increment_flow_control_window(1 << 20)
    client.h2.increment_flow_control_window(1 << 20, stream)
    client.h2.reset_stream(stream, CANCEL)
    good = client.call()
    await client.turn()
    assert client.answers[good].status == 0
    assert not client.goaways()


@aio
async def test_a_client_that_does_not_read_is_not_read_and_left_in_the_end():
    door = Door()
    client = door.connect(high=2000)
    await client.turn()
    client.transport.client_reads = False
    streams = [client.call(ECHO, b"x" * 900) for _ in range(5)]
    await client.turn()
    assert not client.transport.reading
    # It reads again: everything comes, and it is read.
    client.transport.read_by_client()
    await client.turn()
    assert client.transport.reading
    assert [client.answers[each].status for each in streams] == [0] * 5
    client.transport.client_reads = False
    for _ in range(5):
        client.call(ECHO, b"x" * 900)
    await client.turn()
    door.passes(WRITE_S + 1)
    await client.turn()
    assert client.transport.aborted


@aio
async def test_inbound_windows_are_opened_in_large_steps_and_never_run_dry():
    door = Door()
    client = door.connect()
    client.h2.increment_flow_control_window(1 << 30)
    await client.turn()
    # The connection's window is 1 MiB: this is twice as much.
    for _ in range(2200):
        client.call(ECHO, b"x" * 995)
        await client.turn()
        door.exchange.second += 1
    assert not client.line.busy
    assert 3 <= len([1 for kind, *_ in frames(client.transport.sent) if kind == 8]) <= 6


# -- floods, and what would happen without the bound --------------------------------------------------------


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize(
    "flood",
    [
        frame(6, 0, b"12345678"),
        frame(4, 0, b"\0\3\0\0\0\x64"),
        frame(8, 0, b"\0\0\0\1"),
        frame(0, 1, b""),
        frame(0, 1, b"a"),
        frame(2, 3, b"\0\0\0\0\1"),
        frame(0x55, 0, b""),
    ],
    ids=["ping", "settings", "window update", "empty data", "tiny data", "priority", "unknown"],
)
@aio
async def test_a_flood_of_frames_is_told_to_calm_down(monkeypatch, flood, bounded):
    if not bounded:
        monkeypatch.setattr(gate, "MOST_SPENT", ENDLESS)
    client = Door(max_body=10_000).connect()
    client.begin(RUN)
    await client.turn()
    client.line.data_received(frame(0, 1, framed(b"x" * 9000)[:5]))
    for _ in range(25):
        if not client.transport.gone:
            client.line.data_received(flood * 100)
        await asyncio.sleep(0)
    assert client.transport.gone is bounded
    assert [code for code, _ in client.goaways()] == ([CALM] if bounded else [])


@aio
async def test_as_many_frames_over_a_longer_time_or_for_calls_are_no_flood():
    door = Door()
    client = door.connect()
    await client.turn()
    for _ in range(5):
        door.passes(1.0)
        client.line.data_received(frame(6, 0, b"12345678") * 1900)
    for _ in range(1500):
        client.call()
        client.h2.ping(b"12345678")
        await client.turn()
    assert not client.goaways()


@pytest.mark.parametrize("bounded", [True, False])
@aio
async def test_rapid_resets_are_told_to_calm_down(monkeypatch, bounded):
    if not bounded:
        monkeypatch.setattr(line, "RESETS", ENDLESS)
    door = Door()
    client = door.connect()
    for _ in range(1100):
        if client.transport.gone:
            break
        client.h2.reset_stream(client.call(RUN), CANCEL)
        await client.turn()
        door.exchange.second += 1
    assert (client.transport.gone, [code for code, _ in client.goaways()]) == (
        (True, [CALM]) if bounded else (False, [])
    )
    assert (len(door.later), door.exchange.count) == (0, 0 if bounded else 1)


@pytest.mark.parametrize("bounded", [True, False])
@aio
async def test_resets_that_the_server_is_made_to_send_count_too(monkeypatch, bounded):
    if not bounded:
        monkeypatch.setattr(line, "RESETS", ENDLESS)
    door = Door()
    client = door.connect()
    for _ in range(1100):
        if not client.transport.gone:
            client.begin(te=None, connection=b"close")
            await client.turn()
            door.exchange.second += 1
    assert client.transport.gone is bounded


@aio
async def test_resets_are_forgiven_with_time_and_with_answers():
    door = Door()
    client = door.connect()
    for _ in range(900):
        client.h2.reset_stream(client.call(RUN), CANCEL)
        await client.turn()
        door.exchange.second += 1
    door.passes(30.0)
    for number in range(1800):
        stream = client.call(ECHO if number % 2 else RUN)
        if number % 2 == 0:
            client.h2.reset_stream(stream, CANCEL)
        await client.turn()
        door.exchange.second += 1
    assert not client.goaways()


@pytest.mark.parametrize("bounded", [True, False])
@aio
async def test_a_head_in_endless_continuations_is_cut_off(monkeypatch, bounded):
    if not bounded:
        monkeypatch.setattr(gate, "MOST_HEAD_BYTES", ENDLESS)
    client = Door().connect()
    await client.turn()
    await client.turn()
    client.line.data_received(frame(1, 1, b"\0" * 1000))
    for _ in range(20):
        if not client.transport.gone:
            client.line.data_received(frame(9, 1, b"\0" * 1000))
        await client.turn()
    assert client.transport.gone is bounded


@pytest.mark.parametrize("bounded", [True, False])
@aio
async def test_a_head_that_grows_when_it_is_unpacked_is_cut_off(monkeypatch, bounded):
    if not bounded:
        monkeypatch.setattr(intake, "MOST_HEAD_BYTES", ENDLESS)
    client = Door().connect()
    # One field of 4000 bytes goes into the table; then it is named again and again, by one byte each.
    stream = client.begin(x=b"y" * 3900)
    client.h2.send_data(stream, framed(b""), end_stream=True)
    await client.turn()
    client.line.data_received(frame(1, 3, b"\xbe" * 100, flags=5))
    await client.turn()
    assert client.transport.gone is bounded


@pytest.mark.parametrize("bounded", [True, False])
@aio
async def test_a_frame_is_not_collected_when_its_head_says_that_it_is_too_long(monkeypatch, bounded):
    if not bounded:
        monkeypatch.setattr(gate, "MOST_FRAME_BYTES", ENDLESS)
    client = Door().connect()
    await client.turn()
    client.line.data_received(b"\xff\xff\xff\x00\x00\0\0\0\1" + b"x" * 100)
    await client.turn()
    assert client.transport.gone is bounded


@pytest.mark.parametrize("bounded", [True, False])
@aio
async def test_settings_that_nobody_knows_are_bounded(monkeypatch, bounded):
    if not bounded:
        monkeypatch.setattr(intake, "MOST_SETTINGS", ENDLESS)
    door = Door()
    client = door.connect()
    await client.turn()
    for number in range(40):
        if not client.transport.gone:
            client.line.data_received(frame(4, 0, (1000 + number).to_bytes(2, "big") + b"\0\0\0\1"))
            door.passes(1.0)
    await client.turn()
    assert client.transport.gone is bounded
    assert (len(client.line._h2.remote_settings) > 40) is not bounded


@aio
async def test_settings_of_one_frame_are_bounded():
    client = Door().connect()
    await client.turn()
    client.line.data_received(
        frame(4, 0, b"".join(n.to_bytes(2, "big") + b"\0\0\0\1" for n in range(99, 199)))
    )
    await client.turn()
    assert client.goaways()[0][0] == CALM


@pytest.mark.parametrize("bounded", [True, False])
@aio
async def test_streams_beyond_the_bound_are_refused_and_the_others_answered(monkeypatch, bounded):
    if not bounded:
        monkeypatch.setattr(intake, "MOST_STREAMS", 2000)
    door = Door()
    client = door.connect()
    client.h2.remote_settings[3] = 2000
    client.h2.remote_settings.acknowledge()
    streams = [client.call(RUN) for _ in range(256 + 20)]
    await client.turn()
    resets = [client.answers[each].reset for each in streams]
    assert resets == [None] * 256 + [REFUSED if bounded else None] * 20
    assert len(door.later) == 256 + (0 if bounded else 20)
    assert door.lost == (["shed"] * 20 if bounded else [])
    while door.later:
        door.answer()
    await client.turn()
    assert [client.answers[each].status for each in streams[:256]] == [0] * 256
    good = client.call()
    await client.turn()
    assert client.answers[good].status == 0


@aio
async def test_streams_far_beyond_the_bound_end_the_connection():
    client = Door().connect()
    client.h2.remote_settings[3] = 5000
    client.h2.remote_settings.acknowledge()
    for _ in range(4 * MOST_STREAMS + 1):
        client.call(RUN, b"")
    await client.turn()
    assert client.transport.gone


@pytest.mark.parametrize("bounded", [True, False])
@aio
async def test_messages_that_are_not_whole_are_bounded_together(bounded):
    door = Door(max_body=900_000)
    if not bounded:
        door.exchange.most_held = ENDLESS
    door.exchange.step = 1
    client = door.connect()
    await client.turn()
    streams = [client.begin(RUN) for _ in range(8)]
    for stream in streams:
        body = framed(b"x" * 900_000)[:-1]
        for start in range(0, len(body), 16_384):
            if client.answers[stream].reset is None:
                client.h2.send_data(stream, body[start : start + 16_384])
                await client.turn()
    statuses = [client.answers[each].status for each in streams]
    assert statuses == [-1] * 4 + [Status.RESOURCE_EXHAUSTED if bounded else -1] * 4
    assert (client.line._held <= door.exchange.most_held) is True
    if not bounded:
        return
    assert b"grpc-retry-pushback-ms" in client.answers[streams[-1]].head
    assert door.lost == ["shed"] * 4
    # Those that it kept are answered.
    for stream in streams[:4]:
        client.h2.send_data(stream, b"x", end_stream=True)
    await client.turn()
    assert (len(door.later), client.line._held) == (4, 0)


@aio
async def test_connections_beyond_the_bound_are_told_to_come_later():
    door = Door(most=2)
    kept = [door.connect(), door.connect()]
    extra = door.connect()
    await extra.turn()
    assert (extra.transport.gone, extra.goaways()) == (True, [(CALM, 0)])
    for each in kept:
        stream = each.call()
        await each.turn()
        assert each.answers[stream].status == 0
    kept[0].transport.close()
    await asyncio.sleep(0)
    again = door.connect()
    stream = again.call()
    await again.turn()
    assert again.answers[stream].status == 0


# -- clients that go ----------------------------------------------------------------------------------------


@aio
async def test_a_call_that_is_taken_back_takes_its_job_with_it():
    door = Door()
    client = door.connect()
    stream, kept = client.call(RUN), client.call(RUN)
    await client.turn()
    client.h2.reset_stream(stream, CANCEL)
    await client.turn()
    assert [work.gone for _, _, work in door.later] == [True, False]
    door.answer()
    door.answer()
    await client.turn()
    assert (client.answers[stream].ended, client.answers[kept].status) == (False, 0)


@aio
async def test_a_call_that_is_taken_back_in_the_same_breath_is_never_begun():
    door = Door()
    client = door.connect()
    client.h2.reset_stream(client.call(RUN), CANCEL)
    await client.turn()
    assert (door.later, door.lost) == ([], ["client_error"])


@aio
async def test_a_client_that_is_gone_takes_everything_with_it():
    door = Door()
    client = door.connect()
    client.call(RUN)
    half = client.begin(RUN)
    client.h2.send_data(half, b"\0\0")
    await client.turn()
    client.transport.close()
    await asyncio.sleep(0)
    assert [work.gone for _, _, work in door.later] == [True]
    assert (door.lost, door.exchange.count) == (["client_error"], 0)
    door.answer()


@pytest.mark.parametrize("cut", [None, 3, 9, 12])
@aio
async def test_a_client_that_says_goodbye_is_answered_first(cut):
    door = Door()
    client = door.connect()
    stream = client.call(RUN)
    await client.turn()
    goodbye = frame(7, 0, bytes(8) + b"thanks")
    for piece in [goodbye] if cut is None else [goodbye[:cut], goodbye[cut:]]:
        client.line.data_received(piece)
    await client.turn()
    # However long the answer takes.
    door.passes(HEAD_S + 2)
    await client.turn()
    assert not client.transport.gone
    door.answer()
    await client.turn()
    assert (client.answers[stream].data, client.transport.gone) == (framed(b"hello"), True)


# -- the end ------------------------------------------------------------------------------------------------


@aio
async def test_a_drain_is_told_in_two_steps_and_everybody_is_answered():
    door = Door()
    client, idle = door.connect(), door.connect()
    first = client.call(RUN)
    for each in (client, idle):
        await each.turn()
    drained = asyncio.create_task(door.exchange.drain(30.0))
    await asyncio.sleep(0)
    assert client.goaways() == [(NO_ERROR, 2**31 - 1)]
    # On its way when the server began to drain: still taken. Then the client answers the ping.
    second = client.call(RUN)
    raw = client.h2.data_to_send()
    client.line.data_received(raw + frame(6, 0, b"goodbye\0", flags=1))
    await asyncio.sleep(0)
    assert client.goaways()[1:] == [(NO_ERROR, second)]
    late = b"\x00\x00\x01\x01\x05" + (second + 2).to_bytes(4, "big") + b"\x82"
    client.line.data_received(late)
    await asyncio.sleep(0)
    idle.line.data_received(frame(6, 0, b"goodbye\0", flags=1))
    await asyncio.sleep(0)
    assert idle.transport.gone
    assert [call.stream for call, _, _ in door.later] == [first, second]
    door.answer()
    door.answer()
    await drained
    ended = {stream for kind, flags, stream, _ in frames(client.transport.sent) if kind == 1 and flags & 1}
    resets = [stream for kind, _, stream, _ in frames(client.transport.sent) if kind == 3]
    assert (ended, resets) == ({first, second}, [second + 2])
    assert client.transport.gone


@aio
async def test_a_client_that_used_the_last_stream_of_all_is_told_to_go():
    door = Door()
    client = door.connect()
    await client.turn()
    client.line.data_received(frame(1, 2**31 - 1, b"\x82", flags=5))
    await asyncio.sleep(0)
    door.passes(IDLE_S + 2)
    await asyncio.sleep(0)
    assert client.transport.gone


@aio
async def test_whoever_is_not_done_when_the_time_is_over_is_left():
    door = Door()
    client = door.connect()
    client.call(RUN)
    await client.turn()
    await door.exchange.drain(0.0)
    await asyncio.sleep(0)
    assert client.transport.aborted


# -- bytes that are no HTTP/2 -------------------------------------------------------------------------------

WRONG = {
    "another preface": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "data on no stream": frame(0, 0, b"x"),
    "data on a stream that never was": frame(0, 9, b"x"),
    "even stream": frame(1, 2, b"\x82", 5),
    "no hpack": frame(1, 1, b"\xff\xff\xff\xff\xff", 5),
    "continuation of nothing": frame(9, 1, b"x"),
    "ping of another size": frame(6, 0, b"x"),
    "window update of nothing": frame(8, 0, b"\0\0\0\0"),
    "window that overflows": frame(8, 0, b"\x7f\xff\xff\xff"),
    "half a setting": frame(4, 0, b"123"),
    "a window too large": frame(4, 0, b"\0\4\xff\xff\xff\xff"),
    "padding longer than data": frame(0, 1, b"\x09x", 8),
    "a push": frame(5, 1, b"\0\0\0\2\x82", 4),
    "goodbye on a stream": frame(7, 1, bytes(8)),
    "half a goodbye": frame(7, 0, bytes(4)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@aio
async def test_what_breaks_http2_ends_the_connection(wrong):
    door = Door()
    greet = not wrong.startswith(b"GET")
    client = door.connect(greet=greet)
    if greet:
        client.begin(RUN) if wrong[8] != 1 or wrong[3] == 0 else None
        await client.turn()
    client.line.data_received(wrong)
    await asyncio.sleep(0)
    assert client.transport.gone
    assert len(client.goaways()) == greet
    assert door.exchange.count == 0
    door.passes(LINGER_S + 1)
