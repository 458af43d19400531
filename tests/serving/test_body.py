"""Bodies: without their coding, within bounds, or refused."""

import gzip
import tracemalloc
import zlib

import pytest

from daemon.serving.body import decompress, plain
from daemon.serving.refusals import Malformed, TooLarge

TEXT = b"0123456789"
CODINGS = {b"gzip": gzip.compress, b"deflate": zlib.compress, b" GZip ": gzip.compress}


@pytest.mark.parametrize("coding", CODINGS)
def test_a_coded_body_comes_out_as_it_was_up_to_the_limit(coding):
    assert plain(CODINGS[coding](TEXT), coding, 10) == TEXT
    with pytest.raises(TooLarge, match="at most 9 bytes after decompression"):
        plain(CODINGS[coding](TEXT), coding, 9)
    assert plain(CODINGS[coding](b""), coding, 10) == b""


def test_identity_is_no_coding():
    assert plain(TEXT, b"identity", 1) is TEXT


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"", b"x" * 5000])
def test_other_codings_are_refused(coding):
    with pytest.raises(Malformed, match="expected Content-Encoding gzip, deflate or none"):
        plain(TEXT, coding, 10)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_a_stream_that_is_broken_cut_or_followed_is_refused(coding):
    whole = CODINGS[coding](TEXT)
    for bad in (b"", TEXT, whole[:-1], whole[:4], whole + b"x", whole + whole):
        with pytest.raises(Malformed):
            plain(bad, coding, 100)
    assert plain(whole, coding, 100) == TEXT


def test_a_raw_deflate_stream_is_not_what_http_calls_deflate():
    raw = zlib.compressobj(wbits=-15)
    with pytest.raises(Malformed):
        plain(raw.compress(TEXT) + raw.flush(), b"deflate", 100)


def test_a_bomb_costs_at_most_the_bound():
    bomb = gzip.compress(bytes(40 << 20))

    def peak(limit):
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge):
                decompress(bomb, b"gzip", limit)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(1 << 20) < 3 << 20
    # Negative control: a bound that is no bound is seen.
    assert peak(30 << 20) > 20 << 20
