"""Real numbers in JSON: read at once or one by one, a request means the same, and a wrong one is as wrong."""

import json
from itertools import count

import numpy as np
import pytest

from daemon.serving import reals
from daemon.serving.ask import Ask, parse
from daemon.serving.refusals import Malformed
from policies.terms import Datatype, TensorSpec

ROWS, WIDTH = 2, 3
ORDINARY = "[1, 2.5, -3e-2, 0.1, 1e30, -0.0]"
LARGEST = float(np.finfo(np.float32).max)


def text(data: str, **more: str) -> bytes:
    """Return a request with its data, and other parts of the input, spelled as they are given."""
    own = {"name": '"x"', "shape": f"[{ROWS}, {WIDTH}]", "datatype": '"FP32"', "data": data} | more
    return ('{"inputs": [{' + ", ".join(f'"{name}": {said}' for name, said in own.items()) + "}]}").encode()


def swapped(old: str, new: str) -> bytes:
    return text(ORDINARY).replace(old.encode(), new.encode())


CASES = {
    "ordinary": text(ORDINARY),
    "packed": text(ORDINARY).replace(b" ", b""),
    "spread": text(ORDINARY).replace(b",", b"\n ,\t").replace(b":", b" : "),
    "data first": b'{"inputs": [{"data": [1,2,3,4,5,6], "name": "x", "datatype": "FP32", "shape": [2, 3]}]}',
    "whole numbers": text("[1, 2, 3, 9007199254740993, 18446744073709551615, -9223372036854775808]"),
    "larger than any integer": text("[1, 2, 3, 4, 5, 18446744073709551616]"),
    "smaller than any integer": text("[1, 2, 3, 4, 5, -9223372036854775809]"),
    "a very long whole number": text("[1, 2, 3, 4, 5, 123456789012345678901]"),
    "a very long negative one": text("[1, 2, 3, 4, 5, -12345678901234567890123456789]"),
    "longer than a float": text(f"[1, 2, 3, 4, 5, {'9' * 400}]"),
    "halfway": text("[1.00000005960464477540, 16777217, 1e-45, 7e-46, 3.4028235677973366e38, 0]"),
    "nested": text("[[1, 2, 3], [4, 5, 6]]"),
    "ragged": text("[[1, 2, 3, 4], [5, 6]]"),
    "half nested": text("[1, 2, 3, [4, 5, 6]]"),
    "too few": text("[1, 2, 3]"),
    "too many": text("[1, 2, 3, 4, 5, 6, 7]"),
    "none": text("[]"),
    "no array": text("7"),
    "null": text("null"),
    "a truth": text("[1, 2, 3, 4, 5, true]"),
    "a text": text('[1, 2, 3, 4, 5, "6"]'),
    "a bracket in a text": text('[1, 2, 3, 4, 5, "]"]'),
    "not a number": text("[1, 2, 3, 4, 5, NaN]"),
    "too large for float32": text(f"[1, 2, 3, 4, 5, {2 * LARGEST}]"),
    "too large for any": text("[1, 2, 3, 4, 5, 1e400]"),
    "a hole": text("[1, 2, , 4, 5, 6]"),
    "a comma too many": text("[1, 2, 3, 4, 5, 6,]"),
    "never closed": text("[1, 2, 3, 4, 5, 6")[:-4],
    "more behind it": text(ORDINARY) + b"x",
    "a leading nought": text("[01, 2, 3, 4, 5, 6]"),
    "a plus": text("[+1, 2, 3, 4, 5, 6]"),
    "data twice": text(ORDINARY, more="0").replace(b'"more": 0', b'"data": [6, 5, 4, 3, 2, 1]'),
    "data twice, the last without any": text(ORDINARY, more="0").replace(b'"more": 0', b'"data": []'),
    "data elsewhere too": swapped('{"inputs"', '{"data": [1], "inputs"'),
    "data only elsewhere": swapped('"data"', '"date"').replace(b'{"inputs"', b'{"data": [1, 2], "inputs"'),
    "data in a text": swapped('"x"', '"\\"data\\": [1]"'),
    "data spelled otherwise": swapped('"data"', '"d\\u0061ta"'),
    "data spelled both ways": text(ORDINARY, more="0").replace(b'"more": 0', b'"d\\u0061ta": []'),
    "data as an id": swapped('{"inputs"', '{"id": "data", "inputs"'),
    "another shape": text(ORDINARY, shape="[3, 2]"),
    "another name": text(ORDINARY, name='"y"'),
    "another datatype": text(ORDINARY, datatype='"FP64"'),
    "bytes that do not come": text(ORDINARY, parameters='{"binary_data_size": 24}'),
    "no UTF-8": text(ORDINARY).replace(b'"x"', b'"\xff"'),
}


def told(body: bytes, datatype: Datatype) -> tuple | str:
    """Return what a request means, or how it is refused."""
    ids = count()
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, WIDTH))
    try:
        ask = parse(body, None, spec, 4, lambda: f"new-{next(ids)}")
    except Malformed as error:
        return str(error)
    return tuple(
        (part.dtype.str, part.shape, part.tobytes()) if isinstance(part, np.ndarray) else part
        for part in (getattr(ask, name) for name in Ask.__struct_fields__)
    )


def slowly(body: bytes, datatype: Datatype) -> tuple | str:
    """Return the same, with every number read for itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reals, "cut", lambda _text: None)
        return told(body, datatype)


@pytest.mark.parametrize("datatype", [Datatype.FP32, Datatype.FP64])
@pytest.mark.parametrize("body", CASES.values(), ids=CASES)
def test_it_means_the_same_as_read_one_by_one(body, datatype):
    body = body if datatype is Datatype.FP32 else body.replace(b'"FP32"', b'"FP64"')
    assert told(body, datatype) == slowly(body, datatype)


@pytest.mark.parametrize("datatype", [Datatype.FP32, Datatype.FP64])
def test_numbers_of_all_sizes_are_rounded_as_exactly(datatype):
    rng = np.random.default_rng(3)
    for _ in range(300):
        drawn = rng.integers(0, 1 << 64, ROWS * WIDTH, np.uint64).view(np.float64)
        drawn = np.where(np.isfinite(drawn) & (np.abs(drawn) < LARGEST), drawn, rng.random(drawn.size))
        body = text(json.dumps(drawn.tolist()), datatype=f'"{datatype.value}"')
        got = told(body, datatype)
        assert got == slowly(body, datatype)
        assert got[2][2] == drawn.astype(got[2][0]).tobytes()


def fast(body: bytes) -> bool:
    parts = reals.cut(body)
    return parts is not None and reals.read(parts[1], Datatype.FP32, (ROWS, WIDTH)) is not None


def test_the_usual_is_read_at_once_and_the_unusual_is_not():
    assert all(fast(CASES[name]) for name in ("ordinary", "packed", "spread", "data first", "whole numbers"))
    assert not any(fast(CASES[name]) for name in ("nested", "a truth", "data twice", "too large for float32"))


def careless(body: bytes) -> tuple[bytes, bytes]:
    """Cut out the first array that is called data, whatever else there is."""
    begin = body.find(b"[", body.find(b'"data"'))
    end = body.find(b"]", begin) + 1
    return body[:begin] + b"[]" + body[end:], body[begin:end]


def test_a_cut_that_looks_less_closely_is_caught(monkeypatch):
    wanted = {name: slowly(body, Datatype.FP32) for name, body in CASES.items()}
    monkeypatch.setattr(reals, "cut", careless)
    differ = {name for name, body in CASES.items() if told(body, Datatype.FP32) != wanted[name]}
    assert {"data twice, the last without any", "data spelled both ways"} <= differ
