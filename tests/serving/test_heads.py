"""Heads that were read before: whatever is remembered, a client gets what it would get without."""

import asyncio

import pytest

from daemon.serving import heads as module
from daemon.serving.heads import LONGEST, MOST_HEADS, Head, Heads
from tests.serving.wire import Wire, get, post

BODY = b"body"
LINES = b"\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
OLD = b"POST /a HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 4\r\n\r\nbody"
BARE = b"POST /a HTTP/1.1\nhost: x\ncontent-length: 4\n\n"

STORIES = {
    "again": [post(b"/a", BODY), post(b"/a", b"more"), post(b"/a", BODY)],
    "without a body": [get(b"/a"), get(b"/b"), get(b"/a")],
    "in two pieces": [post(b"/a", BODY), post(b"/a", BODY)[:-2], BODY[-2:], post(b"/a", BODY)],
    "two at once": [post(b"/a", BODY), post(b"/a", BODY) * 2, post(b"/a", BODY)],
    "empty lines behind": [post(b"/a", LINES) + LINES, post(b"/a", LINES) + b"1234", get(b"/b")],
    "empty lines behind it, and in it": [post(b"/a", LINES * 2) + b"\r\n"] * 2 + [get(b"/b")],
    "empty lines before": [LINES + post(b"/a", BODY), post(b"/a", BODY), LINES + post(b"/a", BODY)],
    "empty lines before, then a few bytes": [LINES + post(b"/a", BODY), LINES + b"GET ", get(b"/b")],
    "chunks": [CHUNKED, CHUNKED, CHUNKED.replace(b"body", b"more")],
    "HTTP/1.0": [OLD, post(b"/a", BODY), OLD, post(b"/a", BODY)],
    "the last one": [post(b"/a", BODY, b"connection: close")] * 2,
    "one that waits to be asked": [post(b"/a", BODY, b"expect: 100-continue")] * 2,
    "an offer to upgrade": [get(b"/a", b"upgrade: h2c", b"connection: upgrade")] * 2,
    "bare line feeds": [BARE + LINES, BARE + LINES, BARE + BODY],
    "bare line feeds, and empty lines": [BARE + LINES * 2, BARE + LINES + b"1234"],
    "a half one": [get(b"/a"), b"GET /a HT", b"TP/1.1\r\nhost: x\r\n\r\n", get(b"/a")],
    "one of two hosts": [get(b"/a", b"host: y")] * 2,
    "more than it says": [post(b"/a", BODY), post(b"/a", BODY) + b"GET", b" /b HTTP/1.1\r\nhost: x\r\n\r\n"],
}


class Nothing(Heads):
    """Never remembers."""

    def recall(self, data: bytes) -> None:
        """Know nothing."""


def outcome(pieces: list[bytes], heads: Heads) -> tuple[list[tuple], bytes, bool]:
    """Return what was asked, answered, and whether the client was left; each piece to one connection."""

    async def story() -> tuple[list[tuple], bytes, bool]:
        wire = Wire()
        wire.reception.heads = heads
        for piece in pieces:
            await wire.send(piece)
        asked = [(each.method, each.target, each.headers, each.body) for each in wire.desk.asked]
        return asked, wire.transport.sent, wire.transport.eof

    return asyncio.run(story())


def differs(pieces: list[bytes], heads: Heads) -> bool:
    """Tell whether what is remembered, from one client to the next, changes anything."""
    wanted = outcome(pieces, Nothing())
    return any(outcome(pieces, heads) != wanted for _ in range(2))


@pytest.mark.parametrize("pieces", STORIES.values(), ids=STORIES)
def test_a_head_that_is_known_changes_nothing(pieces):
    assert not differs(pieces, Heads())


class Greedy(Heads):
    """Takes whatever ends with the first empty line for the head."""

    def learn(self, head: Head, data: bytes) -> None:
        """Look no closer."""
        self._known[data[: data.find(LINES) + len(LINES)]] = head


class Loose(Heads):
    """Forgets how long the body was to be."""

    def recall(self, data: bytes):
        """Take all that follows."""
        end = data.find(b"\r\n\r\n") + 4
        head = self._known.get(data[:end])
        return None if head is None else (head, data[end:])


def test_a_memory_that_looks_less_closely_is_caught():
    assert differs(STORIES["two at once"], Loose())
    assert differs(STORIES["in two pieces"], Loose())
    assert differs(STORIES["empty lines before, then a few bytes"], Greedy())


def known(heads: Heads, data: bytes) -> bool:
    return heads.recall(data) is not None


@pytest.mark.parametrize(
    ("pieces", "remembered"),
    [(STORIES["again"], True), (STORIES["without a body"], True), (STORIES["chunks"], False)],
)
def test_only_a_head_that_says_where_the_body_ends_is_remembered(pieces, remembered):
    heads = Heads()
    outcome(pieces[:1], heads)
    assert known(heads, pieces[0]) is remembered


def test_what_is_remembered_is_bounded():
    heads = Heads()
    for n in range(3 * MOST_HEADS):
        outcome([get(b"/%d" % n)], heads)
    assert len(heads._known) <= MOST_HEADS
    long = get(b"/" + b"x" * LONGEST)
    outcome([long], heads)
    assert not known(heads, long)
    assert known(heads, get(b"/%d" % n)), "the newest stay"
    assert module.LONGEST * MOST_HEADS <= 1 << 16
