"""Roles: what a group of near-duplicates may be used for, drawn from its key and a secret.

* The draw is a keyed hash, so that nobody without the secret can choose a role, and the same group draws the
  same role in every process.
* Shares are those of the policy. A group that lies in the store already keeps its role there, whatever the
  shares have become: that is the store's to see to.
"""

import hashlib
from itertools import accumulate

from policies.clauses import Data
from policies.terms import Role

_ORDER = (Role.TRAIN, Role.SEARCH, Role.GATE, Role.REFERENCE)


class Roles:
    """The draw of one task.

    Args:
        key: The secret; at least 16 bytes.
        shares: The policy's shares of the roles.

    Raises:
        ValueError: The key is too short.

    >>> half = Data(clause="MP-1", train_share=0.5, search_share=0.0, gate_share=0.5, reference_share=0.0,
    ...     min_train_rows=1, min_search_rows=1, min_gate_rows=1, max_gate_rows=1)
    >>> roles = Roles(b"0123456789abcdef", half)
    >>> [roles.draw(bytes([n] * 8)).value for n in range(4)]
    ['gate', 'train', 'gate', 'gate']
    """

    def __init__(self, key: bytes, shares: Data) -> None:
        if len(key) < 16:
            raise ValueError(f"expected a key of at least 16 bytes, got {len(key)}")
        self._key = hashlib.blake2b(key, digest_size=64).digest()
        self._ends = tuple(accumulate((shares.train_share, shares.search_share, shares.gate_share)))

    def draw(self, group: bytes) -> Role:
        """Return the role of a group that the store does not know yet."""
        hashed = hashlib.blake2b(group, key=self._key, digest_size=8).digest()
        place = int.from_bytes(hashed, "big") / 2.0**64
        for role, end in zip(_ORDER, self._ends, strict=False):
            if place < end:
                return role
        return Role.REFERENCE
