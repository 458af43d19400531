"""Bodies: in time, in bounds, or refused."""

import asyncio

import pytest

from daemon.serving.body import Gone, read_body
from daemon.serving.refusals import Malformed, TooLarge


def read(messages, headers=None, limit=10, timeout_s=30.0):
    """Read a body from scripted messages; after the last one nothing ever comes."""
    rest = list(messages)

    async def receive():
        if not rest:
            await asyncio.Event().wait()
        return rest.pop(0)

    return asyncio.run(read_body(headers or {}, receive, limit, timeout_s))


def part(body: bytes, more: bool) -> dict:
    return {"type": "http.request", "body": body, "more_body": more}


def test_parts_are_joined_up_to_the_limit():
    assert read([part(b"12345", True), part(b"67890", False)]) == b"1234567890"
    with pytest.raises(TooLarge, match="at most 10 bytes, got more"):
        read([part(b"12345", True), part(b"678901", True)])


def test_an_announcement_is_enough_to_refuse():
    with pytest.raises(TooLarge, match="11 announced"):
        read([], {b"content-length": b"11"})


def test_a_body_that_never_ends_is_refused():
    with pytest.raises(Malformed, match=r"within 0\.01 s"):
        read([part(b"1", True)], timeout_s=0.01)


def test_a_client_that_leaves_is_not_answered():
    with pytest.raises(Gone):
        read([part(b"1", True), {"type": "http.disconnect"}])
