"""The gate: whatever the pieces, the same bytes go through, without goodbyes, and cost the same."""

import random

import pytest

from daemon.serving import gate
from daemon.serving.gate import MOST_FRAME_BYTES, MOST_SPENT, PREFACE_BYTES, RARE_COST, Flood, Gate
from daemon.serving.reading import MOST_HEAD_BYTES
from tests.serving.lines import GOAWAY, frame

PREFACE = b"P" * PREFACE_BYTES


def some(rng: random.Random) -> bytes:
    """Return a frame of any kind."""
    kind = rng.choice([0, 0, 1, 3, 4, 6, GOAWAY, 8, 99])
    fixed = {1: 30, 3: 4, 4: 12, 6: 8, 8: 4, 99: 3}
    size = fixed.get(kind) or rng.choice([0, 1, 5000] if kind == 0 else [8, 50])
    return frame(kind, 0 if kind in (4, 6, GOAWAY) else 1, bytes(size), 4)


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    found = []
    while data:
        size = rng.choice([1, 2, 7, 9, 20, 3000])
        found.append(data[:size])
        data = data[size:]
    return found


@pytest.mark.parametrize("seed", range(30))
def test_everything_goes_through_but_goodbyes_whatever_the_pieces(seed):
    rng = random.Random(seed)
    made = [some(rng) for _ in range(30)]
    whole = PREFACE + b"".join(made)
    kept = PREFACE + b"".join(each for each in made if each[3] != GOAWAY)
    at_once, cut = Gate(), Gate()
    assert b"".join(at_once.admit(whole, 0)) == kept
    assert b"".join(b"".join(cut.admit(piece, 0)) for piece in pieces(rng, whole)) == kept
    goodbyes = len([each for each in made if each[3] == GOAWAY])
    for each in (at_once, cut):
        assert each.said_goodbye == (goodbyes > 0)
        assert each._spent == len(made) + RARE_COST * len([f for f in made if f[3] in (4, GOAWAY)])
        assert not each.midway
        # Nothing is left over.
        assert each.admit(frame(6, 0, bytes(8)), 0) == [frame(6, 0, bytes(8))]


def test_goodbyes_alone_are_a_flood_too():
    admitted = Gate()
    with pytest.raises(Flood):
        admitted.admit(PREFACE + frame(GOAWAY, 0, bytes(8)) * (MOST_SPENT // RARE_COST + 1), 0)


@pytest.mark.parametrize("cut", [0, 4])
def test_any_number_of_goodbyes_in_one_piece_is_taken_out(cut):
    each = Gate()
    each.admit(PREFACE, 0)
    goodbyes = frame(GOAWAY, 0, bytes(8)) * 2000
    ping = frame(6, 0, bytes(8))
    # As somebody may who has sent long messages.
    each.credit(calls=0, size_bytes=2000 * (RARE_COST + 1) * gate.BYTES_A_CREDIT)
    admitted = each.admit(goodbyes[:cut], 0) if cut else []
    admitted += each.admit(goodbyes[cut:] + ping, 0)
    assert b"".join(admitted) == ping
    assert not each.midway


def test_what_is_spent_is_forgotten_after_a_second_and_given_back_for_calls():
    each = Gate()
    ping = frame(6, 0, bytes(8))
    each.admit(PREFACE + ping * MOST_SPENT, 0)
    each.admit(ping * MOST_SPENT, 1)
    each.credit(calls=1, size_bytes=gate.BYTES_A_CREDIT * 2)
    each.admit(ping * (gate.CALL_CREDIT + 2), 1)
    with pytest.raises(Flood, match=f"got {MOST_SPENT} other frames"):
        each.admit(ping, 1)


@pytest.mark.parametrize(("kind", "most"), [(0, MOST_FRAME_BYTES), (1, MOST_HEAD_BYTES), (4, 192)])
def test_a_frame_may_be_so_long(kind, most):
    Gate().admit(PREFACE + frame(kind, 1, bytes(most), 4), 0)
    with pytest.raises(Flood, match=f"at most {most} bytes"):
        Gate().admit(PREFACE + frame(kind, 1, bytes(most + 1), 4)[:9], 0)


def test_a_head_is_one_head_however_it_is_continued():
    each = Gate()
    each.admit(PREFACE, 0)
    assert not each.midway
    each.admit(frame(1, 1, b"x"), 0)
    first = each.head
    each.admit(frame(9, 1, b"y"), 0)
    assert (each.midway, each.head) == (True, first)
    each.admit(frame(9, 1, b"z", 4), 0)
    assert not each.midway
    each.admit(frame(0, 1, b"body")[:-1], 0)
    # A message has its own time.
    assert not each.midway
