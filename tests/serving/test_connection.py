"""A connection: in order, within bounds, in time, and never a word after the last one."""

import asyncio
import functools

import pytest

from daemon.serving.connection import MOST_PIPELINED, Connection
from daemon.serving.reading import MOST_HEAD_BYTES, MOST_HEADERS
from tests.serving.wire import INFER, Wire, get, post, settled, statuses

GARBAGE = b"\x00\x01 garbage\r\n\r\n"


def on_the_loop(story):
    """Run an asynchronous story."""

    @functools.wraps(story)
    def run(*args, **kinds):
        return asyncio.run(story(*args, **kinds))

    return run


@on_the_loop
async def test_a_request_in_single_bytes_is_one_request():
    wire = Wire()
    await wire.send(*(bytes([byte]) for byte in post(b"/a", b"body")))
    (asked,) = wire.desk.asked
    assert (asked.method, asked.target, asked.body) == (b"POST", b"/a", b"body")
    assert asked.headers[b"content-length"] == b"4"
    assert statuses(wire.transport.sent) == [200]


@on_the_loop
async def test_pipelined_requests_are_answered_in_order_one_at_a_time():
    wire = Wire()
    await wire.send(get(b"/later1") + get(b"/now") + get(b"/later2"))
    assert [each.target for each in wire.desk.asked] == [b"/later1"]
    assert wire.transport.sent == b""
    wire.desk.answer()
    await settled()
    assert [each.target for each in wire.desk.asked] == [b"/later1", b"/now", b"/later2"]
    wire.desk.answer()
    sent = wire.transport.sent
    assert sent.index(b"/later1") < sent.index(b"/now") < sent.index(b"/later2")
    assert statuses(sent) == [200] * 3


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (GARBAGE, 400),
        (post(b"/x", bytes(1001)), 413),
        (b"GET / HTTP/1.1\r\nx: " + b"x" * 2 * MOST_HEAD_BYTES, 431),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\nabc", 400),
    ],
    ids=["garbage", "too large", "long head", "connect"],
)
@on_the_loop
async def test_what_is_wrong_is_refused_after_what_is_owed(wrong, status):
    wire = Wire()
    await wire.send(get(b"/later") + wrong)
    assert wire.transport.sent == b"", "a refusal that comes first would be taken for the answer"
    wire.desk.answer()
    await settled()
    sent = wire.transport.sent
    assert statuses(sent)[0] == 200
    assert sent.index(b"/later") < sent.index(b"expected")
    assert statuses(sent)[1] == status
    assert wire.transport.eof
    # Nothing is said after the last word, whatever comes and however late: the transport would raise.
    await wire.send(GARBAGE, get(b"/"))
    assert len(statuses(wire.transport.sent)) == len(statuses(sent))


@on_the_loop
async def test_what_follows_a_last_request_is_not_read():
    wire = Wire()
    await wire.send(get(b"/later", b"connection: close") + get(b"/no"))
    wire.desk.answer()
    await settled()
    assert statuses(wire.transport.sent) == [200]
    assert b"connection: close" in wire.transport.sent
    assert [each.target for each in wire.desk.asked] == [b"/later"]


OFFER = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAM"


@on_the_loop
async def test_an_offer_to_upgrade_is_not_taken_up():
    """Some clients make one with their first request, and expect a plain answer."""
    wire = Wire()
    await wire.send(get(b"/a", OFFER) + get(b"/b"))
    assert statuses(wire.transport.sent) == [200, 200]
    await wire.send(get(b"/c", OFFER) * 200)
    assert statuses(wire.transport.sent) == [200] * 202


@pytest.mark.parametrize("length", [b"content-length: 26", b"transfer-encoding: chunked"])
@on_the_loop
async def test_a_body_under_an_offer_to_upgrade_is_no_request(length):
    wire = Wire()
    head = b"POST /a HTTP/1.1\r\nhost: x\r\n%b\r\n%b\r\n\r\n" % (length, OFFER)
    await wire.send(head + get(b"/smuggled"))
    assert wire.desk.asked == []
    assert statuses(wire.transport.sent) == [400]


@on_the_loop
async def test_a_client_that_closed_its_side_gets_all_its_answers():
    wire = Wire()
    await wire.send(get(b"/later1") + get(b"/b") + get(b"/later2"))
    await wire.half_close()
    assert not wire.transport.gone
    wire.desk.answer()
    await settled()
    wire.desk.answer()
    await settled()
    assert statuses(wire.transport.sent) == [200, 200, 200]
    assert wire.transport.sent.count(b"connection: close") == 1
    assert wire.transport.gone
    assert not wire.transport.aborted


@on_the_loop
async def test_a_client_that_closed_its_side_and_asked_nothing_is_left():
    wire = Wire()
    await wire.half_close()
    assert wire.transport.gone
    assert wire.reception.count == 0


@on_the_loop
async def test_a_client_that_is_gone_takes_its_work_with_it():
    wire = Wire()
    await wire.send(get(b"/later"))
    ((_, respond, work),) = wire.desk.later
    assert not work.gone
    wire.transport.close()
    await settled()
    assert work.gone
    # An answer that comes too late goes nowhere, quietly.
    respond(200, b"", ())
    assert wire.transport.sent == b""


@on_the_loop
async def test_head_has_no_body_but_its_length():
    wire = Wire()
    sent = await wire.send(b"HEAD /abcd HTTP/1.1\r\nhost: x\r\n\r\n")
    assert sent.endswith(b"content-length: 5\r\n\r\n")
    assert (await wire.send(get(b"/abcd"))).endswith(b"content-length: 5\r\n\r\n/abcd")


@on_the_loop
async def test_http_1_0_closes_unless_it_asks_to_stay():
    wire = Wire()
    sent = await wire.send(b"GET /a HTTP/1.0\r\n\r\n")
    assert b"connection: close" in sent
    assert wire.transport.eof
    wire = Wire()
    sent = await wire.send(b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    assert b"connection: keep-alive" in sent
    assert not wire.transport.eof
    assert statuses(await wire.send(get(b"/b"))) == [200, 200]


@on_the_loop
async def test_expect_is_met_once_a_body_is_wanted():
    wire = Wire()
    head, _, body = post(b"/a", b"body", b"expect: 100-continue").partition(b"\r\n\r\n")
    assert statuses(await wire.send(head + b"\r\n\r\n")) == [100]
    assert statuses(await wire.send(body)) == [100, 200]
    # Not before what is owed; and once.
    wire = Wire()
    assert await wire.send(get(b"/later") + head + b"\r\n\r\n") == b""
    wire.desk.answer()
    await settled()
    assert statuses(wire.transport.sent) == [200, 100]
    assert statuses(await wire.send(body)) == [200, 100, 200]
    # A body that would be refused is not asked for; HTTP/1.0 knows no 100.
    wire = Wire()
    assert statuses(await wire.send(post(b"/a", bytes(1001), b"expect: 100-continue")[:99])) == [413]
    wire = Wire()
    old = post(b"/a", b"body", b"expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert statuses(await wire.send(old)) == [200]


@pytest.mark.parametrize("parts", [1, 2, 50], ids=["one packet", "two packets", "many packets"])
@on_the_loop
async def test_a_head_is_bounded_in_bytes(parts):
    def whole(size):
        line = get(b"/a", b"x: ")
        return line[:-4] + b"x" * (size - len(line)) + b"\r\n\r\n"

    def cut(raw):
        size = -(-len(raw) // parts)
        return [raw[start : start + size] for start in range(0, len(raw), size)]

    wire = Wire()
    sent = await wire.send(*cut(whole(MOST_HEAD_BYTES + 200)))
    assert statuses(sent) == [431]
    assert wire.desk.asked == []
    wire = Wire()
    assert statuses(await wire.send(*cut(whole(MOST_HEAD_BYTES - 200)))) == [200]


@on_the_loop
async def test_headers_are_bounded_in_number():
    wire = Wire()
    await wire.send(get(b"/a", *(b"x%d: y" % n for n in range(MOST_HEADERS))))
    assert statuses(wire.transport.sent) == [431]
    wire = Wire()
    await wire.send(get(b"/a", *(b"x%d: y" % n for n in range(MOST_HEADERS - 1))))
    assert statuses(wire.transport.sent) == [200]


CHUNKED = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@on_the_loop
async def test_trailers_change_no_header_and_are_bounded():
    wire = Wire()
    await wire.send(CHUNKED + b"2\r\nab\r\n0\r\ncontent-encoding: gzip\r\nhost: y\r\n\r\n")
    (asked,) = wire.desk.asked
    assert asked.headers == {b"host": b"x", b"transfer-encoding": b"chunked"}
    wire = Wire()
    flood = [b"x" * 1000] * (MOST_HEAD_BYTES // 1000 + 2)
    await wire.send(CHUNKED, b"2\r\nab\r\n0\r\nx: ", *flood)
    assert statuses(wire.transport.sent) == [413]
    # Chunk extensions are no way around it either.
    wire = Wire()
    await wire.send(CHUNKED, b"2;x=", *flood)
    assert statuses(wire.transport.sent) == [413]
    wire = Wire()
    await wire.send(CHUNKED, b"2;x=", *flood[:2], b"\r\nab\r\n0\r\n\r\n")
    assert statuses(wire.transport.sent) == [200]


@on_the_loop
async def test_a_chunked_body_is_bounded():
    wire = Wire(max_body=1000)
    await wire.send(CHUNKED, *[b"64\r\n" + b"x" * 100 + b"\r\n"] * 10, b"0\r\n\r\n")
    assert len(wire.desk.asked[0].body) == 1000
    await wire.send(CHUNKED, *[b"64\r\n" + b"x" * 100 + b"\r\n"] * 11)
    assert statuses(wire.transport.sent) == [200, 413]


@on_the_loop
async def test_thousands_of_requests_in_one_packet_wait_as_bytes_and_are_answered_in_order():
    wire = Wire()
    await wire.send(get(b"/later") + b"".join(get(b"/%d" % n) for n in range(5000)))
    connection = wire.transport.protocol
    # What is parsed is bounded by one piece; the rest is still bytes.
    assert len(connection._queue) <= MOST_PIPELINED + MOST_HEAD_BYTES / len(get(b"/0"))
    assert not wire.transport.reading
    wire.desk.answer()
    while len(wire.desk.asked) < 5001:
        await asyncio.sleep(0)
    await settled()
    bodies = [part.rpartition(b"\r\n\r\n")[2] for part in wire.transport.sent.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"/later", *(b"/%d" % n for n in range(5000))]
    assert wire.transport.reading
    assert statuses(await wire.send(get(b"/more")))[-1] == 200
    assert len(wire.desk.asked) == 5002


@on_the_loop
async def test_for_a_client_that_reads_nothing_nothing_more_is_begun():
    wire = Wire()
    wire.desk.size = 30_000
    deaf = wire.connect(client_reads=False)
    await wire.send(b"".join(get(b"/%d" % n) for n in range(50)), to=deaf)
    assert len(wire.desk.asked) == 3, "as many as fill the buffer, and not one more"
    assert not deaf.reading
    deaf.read_by_client()
    for _ in range(60):
        await settled()
    assert len(wire.desk.asked) == 50
    assert deaf.reading


@on_the_loop
async def test_a_client_that_reads_nothing_is_left_after_its_time():
    wire = Wire()
    wire.desk.size = 70_000
    deaf, other = wire.connect(client_reads=False), wire.transport
    await wire.send(get(b"/a"), to=deaf)
    wire.passes(29.0)
    assert not deaf.gone
    wire.passes(2.0)
    assert deaf.aborted
    assert not other.gone


@on_the_loop
async def test_late_heads_and_bodies_are_refused_and_counted_once():
    for parts, seconds, counted in (
        ([post(INFER)[:60]], 10.5, 1),
        ([post(INFER, b"body")[:-1]], 20.5, 1),
        ([get(b"/a")[:-1]], 10.5, 0),
        ([get(b"/a") + get(b"/b")[:-1]], 10.5, 0),
    ):
        wire = Wire()
        await wire.send(*parts)
        wire.passes(seconds - 1.0)
        assert not wire.transport.eof
        wire.passes(1.0)
        assert statuses(wire.transport.sent)[-1] == 408
        wire.passes(3.0)
        await settled()
        assert wire.transport.gone
        assert wire.counted("client_error") == counted


@on_the_loop
async def test_a_byte_now_and_then_buys_no_time():
    wire = Wire()
    for byte in get(b"/a", b"x: " + b"x" * 100)[:100]:
        await wire.send(bytes([byte]))
        wire.passes(0.2)
    assert statuses(wire.transport.sent) == [408]
    # Negative control: what comes in time is answered, however many its packets.
    wire = Wire()
    for byte in get(b"/a", b"x: " + b"x" * 100):
        await wire.send(bytes([byte]))
        wire.passes(0.05)
    assert statuses(wire.transport.sent) == [200]


@on_the_loop
async def test_a_client_that_waits_for_a_long_run_is_not_late():
    wire = Wire()
    # The second request came whole, the third in part: their times begin when the first is answered.
    await wire.send(get(b"/later") + post(b"/b", b"body") + get(b"/c")[:-2])
    wire.passes(1000.0)
    assert wire.transport.sent == b""
    assert not wire.transport.gone
    wire.desk.answer()
    await settled()
    assert statuses(wire.transport.sent) == [200, 200]
    wire.passes(9.0)
    await wire.send(get(b"/c")[-2:])
    assert statuses(wire.transport.sent) == [200, 200, 200]


@on_the_loop
async def test_an_idle_client_is_left_without_a_word():
    wire = Wire()
    await wire.send(get(b"/a"))
    wire.passes(74.0)
    assert not wire.transport.gone
    wire.passes(2.0)
    assert wire.transport.gone
    assert statuses(wire.transport.sent) == [200]


@on_the_loop
async def test_white_space_around_a_value_is_no_part_of_it():
    wire = Wire()
    await wire.send(get(b"/a", b"one: \t x y \t ", b"two:x", b"three:  "))
    (asked,) = wire.desk.asked
    assert [asked.headers[name] for name in (b"one", b"two", b"three")] == [b"x y", b"x", b""]


@on_the_loop
async def test_http_1_1_needs_a_host():
    wire = Wire()
    assert statuses(await wire.send(b"GET /a HTTP/1.1\r\n\r\n")) == [400]
    assert b"expected a Host header" in wire.transport.sent


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /a HTTP/1.1\r\nhost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /a HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET /a HTTP/0.9\r\nhost: x\r\n\r\n", 505),
        (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n", 400),
    ],
    ids=["two hosts", "2.0", "0.9", "a coded transfer under 1.0"],
)
@on_the_loop
async def test_what_the_parser_lets_pass_and_http_does_not_is_refused(head, status):
    wire = Wire()
    assert statuses(await wire.send(head)) == [status]
    assert wire.transport.eof
    assert wire.desk.asked == []


REFUSED = {
    "announced": (post(INFER, bytes(1001))[:80], 413),
    "sent": (CHUNKED.replace(b"/a", INFER) + (b"64\r\n" + b"x" * 100 + b"\r\n") * 11, 413),
    "bad chunk": (CHUNKED.replace(b"/a", INFER) + b"ZZ\r\n", 400),
}


@pytest.mark.parametrize(("raw", "status"), REFUSED.values(), ids=REFUSED)
@on_the_loop
async def test_a_refused_request_to_the_model_is_counted_once(raw, status):
    wire = Wire()
    assert statuses(await wire.send(raw)) == [status]
    wire.transport.close()
    await settled()
    assert wire.counted("client_error") == 1


@on_the_loop
async def test_requests_that_a_client_leaves_behind_are_counted():
    wire = Wire()
    await wire.send(get(b"/later") + post(INFER) + post(INFER + b"?a=b", b"body")[:-1])
    wire.transport.close()
    await settled()
    assert wire.counted("client_error") == 2


@on_the_loop
async def test_our_own_error_is_not_the_clients():
    wire = Wire()
    wire.reception.handle = lambda request, respond: {}["planted"]
    with pytest.raises(Exception) as caught:
        wire.transport.protocol.data_received(get(b"/a"))
    assert isinstance(caught.value.__context__, KeyError)
    assert wire.transport.sent == b"", "not a 400"


@on_the_loop
async def test_a_client_whose_next_request_breaks_off_is_left_and_not_kept():
    wire, logged = Wire(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: logged.append(told["exception"]))
    handle = wire.reception.handle

    def broken(request, respond):
        return handle(request, respond) if request.target != b"/bad" else {}["planted"]

    wire.reception.handle = broken
    await wire.send(get(b"/later") + get(b"/bad") + get(b"/c"))
    wire.desk.answer()
    await settled()
    assert statuses(wire.transport.sent) == [200], "what was answered before is not lost"
    assert [type(each) for each in logged] == [KeyError]
    assert wire.transport.aborted
    assert wire.reception.count == 0


@on_the_loop
async def test_nothing_is_kept_of_what_comes_after_the_last_word():
    wire = Wire()
    await wire.send(get(b"/later") + get(b"/no") * 2 * MOST_PIPELINED)
    assert not wire.transport.reading
    wire.reception.draining = True
    wire.desk.answer()
    await settled()
    assert statuses(wire.transport.sent) == [200]
    connection = wire.transport.protocol
    assert (connection.closing, wire.transport.reading) == (True, True), "it lingers"
    await wire.send(*[bytes(65536)] * 5)
    assert connection._unread == b""


def test_a_mutant_that_keeps_whom_an_error_stopped_is_caught(monkeypatch):
    def trusting(self):
        self._begin(*self._queue.popleft())
        self._read_on()

    monkeypatch.setattr(Connection, "_next", trusting)
    with pytest.raises(AssertionError):
        test_a_client_whose_next_request_breaks_off_is_left_and_not_kept()


def test_a_mutant_that_hoards_while_it_lingers_is_caught(monkeypatch):
    linger = Connection._linger

    def hoarding(self):
        held = self._held
        linger(self)
        self._held = held

    monkeypatch.setattr(Connection, "_linger", hoarding)
    with pytest.raises(AssertionError):
        test_nothing_is_kept_of_what_comes_after_the_last_word()


def test_a_mutant_that_refuses_out_of_order_is_caught(monkeypatch):
    def hasty(self, status, text):
        self._refuse(status, text)

    monkeypatch.setattr(Connection, "_fail", hasty)
    with pytest.raises(AssertionError, match="taken for the answer"):
        test_what_is_wrong_is_refused_after_what_is_owed(GARBAGE, 400)
