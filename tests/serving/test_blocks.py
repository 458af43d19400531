"""Header blocks that are remembered say what HPACK would have said, whatever happens to its table between."""

import random

import pytest
from hpack import Decoder, Encoder, NeverIndexedHeaderTuple

from daemon.serving import blocks
from daemon.serving.blocks import MOST_BLOCKS, BlockDecoder, BlockEncoder
from daemon.serving.call import DONE, HEAD

OTHERS = [[(b":status", b"200"), (b"x-%d" % number, b"y" * 40)] for number in range(30)]
# As nghttp2 tells a path and a length: by their names, and in no table.
LENGTH = NeverIndexedHeaderTuple(b"content-length", b"9")
PLAIN = [[*HEAD, NeverIndexedHeaderTuple(b":path", b"/a/%d" % number), LENGTH] for number in range(12)]
REFUSAL = [*HEAD, (b"grpc-status", b"3"), NeverIndexedHeaderTuple(b"grpc-message", b"expected")]
SIZES = (0, 40, 100, 4096)


def tell(encoder, decoder, rng) -> bool:
    """Send a few heads through both; return whether each came out as it went in."""
    said = rng.choice(
        [HEAD, DONE, HEAD, DONE, HEAD, DONE, REFUSAL, rng.choice(OTHERS), *rng.choices(PLAIN, k=3)]
    )
    return [tuple(each) for each in decoder.decode(encoder.encode(said), raw=True)] == [
        tuple(e) for e in said
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_head_comes_out_as_it_went_in(seed):
    rng = random.Random(seed)
    ours, theirs, ours_too, theirs_too = BlockEncoder(), Decoder(), BlockDecoder(), Encoder()
    for _ in range(400):
        if rng.random() < 0.05:
            # Sometimes told twice, as a client may.
            ours.header_table_size = size = rng.choice(SIZES)
            ours.header_table_size = size
            theirs_too.header_table_size = size
        assert tell(ours, theirs, rng)
        assert tell(theirs_too, ours_too, rng)


@pytest.mark.parametrize("forgets", [True, False])
def test_the_same_bytes_say_something_else_after_the_table_has_changed(forgets):
    class Stubborn(dict):
        def clear(self) -> None:
            """Keep everything: the mutant that this catches."""

    decoder, encoder = BlockDecoder(), Encoder()
    if not forgets:
        decoder._known = Stubborn()
    for said in (OTHERS[0], OTHERS[0], OTHERS[1], OTHERS[1]):
        told = [tuple(each) for each in decoder.decode(encoder.encode(said), raw=True)]
    assert (told == OTHERS[1]) is forgets


def test_what_is_remembered_is_not_coded_again(monkeypatch):
    encoder, decoder, peer = BlockEncoder(), BlockDecoder(), Encoder()
    for _ in range(3):
        first, told = encoder.encode(DONE), decoder.decode(peer.encode(DONE), raw=True)
    monkeypatch.setattr(blocks.Encoder, "encode", None)
    monkeypatch.setattr(blocks.Decoder, "decode", None)
    assert encoder.encode(DONE) == first
    assert decoder.decode(first, raw=True) is told


def test_few_blocks_are_remembered():
    encoder, decoder, peer = BlockEncoder(), BlockDecoder(), Encoder()
    for _ in range(3):
        for said in OTHERS:
            encoder.encode(said)
            decoder.decode(peer.encode(said), raw=True)
            assert max(len(encoder._known), len(decoder._known)) <= MOST_BLOCKS
