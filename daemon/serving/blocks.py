"""Header blocks: what was coded once is not coded again, as long as HPACK's table stands still.

* A block that adds nothing to the table and does not resize it says the same for as long as the table does
  not change. Any other block changes it: then everything is forgotten, on that side.
* At most ``MOST_BLOCKS`` are kept a side; a block's size is bounded before it comes here.

Called by h2, as its encoder and decoder. A client repeats its head in every call, and so does the answer:
without this, HPACK is a quarter of what HTTP/2 costs.

Source: RFC 7541, 2.3.2 and 6.
"""

from collections.abc import Iterable
from typing import Any

from hpack import Decoder, Encoder, HeaderTuple

MOST_BLOCKS = 8


def changes_nothing(block: bytes) -> bool:
    """Tell whether a block leaves the table as it is; False for what is broken, or longer than usual.

    >>> changes_nothing(bytes([0x82, 0x04, 0x01, 0x2F])), changes_nothing(bytes([0x82, 0x44, 0x01, 0x2F]))
    (True, False)
    """
    at, size = 0, len(block)
    while at < size:
        first = block[at]
        at += 1
        if first >= 0x80:
            if first == 0xFF:
                return False
            continue
        if first >= 0x20:
            # It goes into the table, or is a new size of it.
            return False
        named = first & 0x0F
        if named == 0x0F:
            # The name's number goes on in a byte.
            if at >= size or block[at] >= 0x80:
                return False
            at += 1
        for _ in range(1 if named else 2):
            if at >= size or block[at] & 0x7F == 0x7F:
                return False
            at += 1 + (block[at] & 0x7F)
    return at == size > 0


class BlockDecoder(Decoder):
    """HPACK's decoder, with a memory."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, Iterable[HeaderTuple]] = {}

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """Return the fields of a block, as bytes (``raw``); nobody changes what is returned."""
        known = self._known.get(data)
        if known is not None:
            return known
        if not raw or not changes_nothing(data):
            self._known.clear()
            return super().decode(data, raw)
        told = super().decode(data, raw)
        if len(self._known) >= MOST_BLOCKS:
            self._known.clear()
        self._known[bytes(data)] = told
        return told


class BlockEncoder(Encoder):
    """HPACK's encoder, with a memory."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[Any, ...], bytes] = {}

    @property
    def header_table_size(self) -> int:
        """Bytes of the table; who shrinks it takes fields out of it."""
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        self._known.clear()
        # Told twice, ``resized`` would forget that it was told at all.
        if value != self.header_table.maxsize:
            self.header_table.maxsize = value
            self.table_size_changes.append(value)

    def encode(self, headers: Any, huffman: bool = True) -> bytes:
        """Return the block of some fields."""
        fields = tuple(headers)
        if not self.header_table.resized:
            known = self._known.get(fields)
            if known is not None:
                return known
        block = super().encode(fields, huffman)
        if not changes_nothing(block) or len(self._known) >= MOST_BLOCKS:
            self._known.clear()
        if changes_nothing(block):
            self._known[fields] = block
        return block
