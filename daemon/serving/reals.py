"""Reals: a request's real numbers in JSON, read without a Python object for each of them.

* ``cut`` takes the array out of the text, where there is no doubt that it is the input's data: one key
  ``"data"``, nothing escaped, nothing nested. What is left is short, and checked as any request is.
* ``read`` has simdjson read the array: it takes nothing that JSON has not, and rounds as exactly.
* Whatever is unusual, or wrong, is not for here (None): ``ask.py`` then reads all of the text, number by
  number, and tells the client what was expected.

Called by ``ask.py``. Pure.
"""

import math

import numpy as np
import simdjson
from numpy.typing import NDArray

from daemon.serving.slot import NUMPY_TYPES
from policies.terms import Datatype

_KEY = b'"data"'
_SPACE = b" \t\r\n"
REAL = (Datatype.FP32, Datatype.FP64)
"""What is read here: whole numbers are read as quickly one by one."""


def cut(text: bytes) -> tuple[bytes, bytes] | None:
    """Return the text with an empty array for the data, and the array's own text; None when in doubt.

    >>> cut(b'{"inputs": [{"name": "x", "data": [1, 2.5], "shape": [2]}]}')
    (b'{"inputs": [{"name": "x", "data": [], "shape": [2]}]}', b'[1, 2.5]')
    >>> cut(b'{"data": 1, "a": [2]}') is None
    True
    """
    key = text.find(_KEY)
    begin = text.find(b"[", key + len(_KEY))
    end = text.find(b"]", begin) + 1
    if min(key, begin, end - 1) < 0 or text[key + len(_KEY) : begin].strip(_SPACE) != b":":
        return None
    rest = text[:begin] + b"[]" + text[end:]
    # Escaped, a key may be spelled in many ways, and a text may hold what looks like one.
    return None if b"\\" in rest or rest.count(_KEY) > 1 else (rest, text[begin:end])


def read(array: bytes, datatype: Datatype, shape: tuple[int, ...]) -> NDArray[np.float64 | np.float32] | None:
    """Return a tensor of a flat array's finite numbers; None when they are not that, or others in number.

    ``datatype`` is one of ``REAL``.
    """
    try:
        # A parser of its own costs a quarter of a microsecond, and is nobody else's.
        parsed = simdjson.Parser().parse(array)
        if not isinstance(parsed, simdjson.Array):
            return None
        numbers = np.frombuffer(parsed.as_buffer(of_type="d"))
    except (ValueError, TypeError, RuntimeError):
        # The last one is how it refuses whole numbers of more bits than it has.
        return None
    if numbers.size != math.prod(shape):
        return None
    with np.errstate(over="ignore"):
        tensor = numbers.astype(NUMPY_TYPES[datatype], copy=False)
    return tensor.reshape(shape) if finite(tensor) else None


def finite(array: NDArray[np.floating]) -> bool:
    """Tell whether all numbers are finite.

    >>> finite(np.array([1.0, np.nan])), finite(np.array([3e38], np.float32))
    (False, True)
    """
    # A finite sum of squares has finite parts, and is three times as quick; one that overflows says nothing.
    flat = array.reshape(-1)
    return math.isfinite(float(np.vdot(flat, flat))) or bool(np.isfinite(array).all())
