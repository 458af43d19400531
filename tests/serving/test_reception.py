"""The reception: so many and no more, everybody's time, and a door that closes gently."""

import asyncio
import functools

import pytest

from tests.serving.wire import INFER, Wire, get, post, settled, statuses


def on_the_loop(story):
    """Run an asynchronous story."""

    @functools.wraps(story)
    def run(*args, **kinds):
        return asyncio.run(story(*args, **kinds))

    return run


async def draining(wire, seconds):
    task = asyncio.create_task(wire.reception.drain(seconds))
    await settled()
    return task


@on_the_loop
async def test_one_too_many_is_told_to_come_later():
    wire = Wire(most=2)
    second, third = wire.connect(), wire.connect()
    assert wire.reception.count == 3
    assert statuses(third.sent) == [503]
    assert b"retry-after: 1" in third.sent
    assert b"expected fewer connections" in third.sent
    assert third.eof
    # What it had sent already is not answered; the others are not disturbed.
    await wire.send(get(b"/a"), to=third)
    await wire.send(get(b"/b"), to=second)
    await wire.send(get(b"/c"))
    assert [each.target for each in wire.desk.asked] == [b"/b", b"/c"]
    third.close()
    second.close()
    await settled()
    assert wire.reception.count == 1
    assert statuses(await wire.send(get(b"/d"), to=wire.connect())) == [200]


@on_the_loop
async def test_who_was_turned_away_does_not_stay():
    wire = Wire(most=1)
    away = wire.connect()
    wire.passes(3.0)
    await settled()
    assert away.aborted
    assert wire.reception.count == 1


@on_the_loop
async def test_answers_are_dated_by_the_clock():
    wire = Wire()
    assert b"date: Fri, 15 Jan 2027 08:00:00 GMT\r\n" in await wire.send(get(b"/a"))
    wire.passes(61.0)
    assert b"date: Fri, 15 Jan 2027 08:01:01 GMT\r\n" in await wire.send(get(b"/b"))


@on_the_loop
async def test_a_drain_leaves_the_idle_at_once_and_the_busy_after_their_answer():
    wire = Wire()
    idle, busy = wire.transport, wire.connect()
    await wire.send(get(b"/a"), to=idle)
    await wire.send(get(b"/later"), to=busy)
    task = await draining(wire, 30.0)
    assert idle.gone
    assert not busy.gone
    wire.desk.answer()
    await settled()
    assert b"connection: close" in busy.sent
    assert busy.eof
    assert not busy.protocol.eof_received(), "the client closes too, and is let go"
    busy.close()
    await asyncio.wait_for(task, 30)


@on_the_loop
async def test_who_has_just_come_may_ask_while_the_server_drains():
    wire = Wire()
    fresh, asked = wire.connect(), wire.transport
    await wire.send(get(b"/a"), to=asked)
    task = await draining(wire, 30.0)
    assert asked.gone
    assert not fresh.gone
    assert b"connection: close" in await wire.send(get(b"/b"), to=fresh)
    fresh.close()
    await asyncio.wait_for(task, 30)


@on_the_loop
async def test_who_has_just_come_and_says_nothing_is_left_after_a_moment(monkeypatch):
    monkeypatch.setattr("daemon.serving.reception.FRESH_S", 0.0)
    wire = Wire()
    task = await draining(wire, 30.0)
    await asyncio.wait_for(task, 30)
    assert wire.transport.gone
    assert not wire.transport.aborted


@on_the_loop
async def test_a_drain_ends_though_somebody_never_does(monkeypatch):
    monkeypatch.setattr("daemon.serving.reception.FRESH_S", 0.0)
    wire = Wire()
    half, busy = wire.connect(), wire.transport
    await wire.send(post(INFER, b"body")[:-1], to=half)
    await wire.send(get(b"/later"), to=busy)
    await asyncio.wait_for(wire.reception.drain(0.01), 30)
    assert half.aborted
    assert busy.aborted
    await settled()
    assert wire.counted("client_error") == 1


@on_the_loop
async def test_half_a_request_may_become_whole_while_the_server_drains():
    wire = Wire()
    raw = post(b"/a", b"body")
    await wire.send(raw[:-1])
    task = await draining(wire, 30.0)
    assert not wire.transport.gone
    sent = await wire.send(raw[-1:])
    assert statuses(sent) == [200]
    assert b"connection: close" in sent
    wire.transport.close()
    await asyncio.wait_for(task, 30)


@on_the_loop
async def test_a_mutant_that_drains_the_fresh_at_once_is_caught(monkeypatch):
    wire = Wire()
    wire.transport.protocol.fresh = False
    task = await draining(wire, 30.0)
    assert wire.transport.gone
    await asyncio.wait_for(task, 30)


@pytest.mark.parametrize("method", ["expire", "drain", "close"])
@on_the_loop
async def test_whatever_is_done_twice_is_done_once(method):
    wire = Wire()
    await wire.send(get(b"/a"))
    getattr(wire.transport.protocol, method)()
    await settled()
    assert wire.transport.gone
    assert wire.reception.count == 0
