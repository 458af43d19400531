"""Canonical bytes and their digests: what is signed, chained and named.

Everything that crosses a process or a signature is RFC 8785 canonical JSON, so that one meaning has one
spelling. A reader re-serialises and compares, which refuses duplicate keys and other double meanings.
"""

import hashlib
import json
import re
from typing import Any

import rfc8785
from pydantic import BaseModel

from policies.errors import TamperError

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 bytes of a term or of plain JSON data.

    >>> canonical({"b": 1.0, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return rfc8785.dumps(value)


def digest_bytes(data: bytes) -> str:
    """Return ``sha256:<hex>`` of the bytes.

    >>> digest_bytes(b"")
    'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """Return the digest of a value's canonical bytes."""
    return digest_bytes(canonical(value))


def is_digest(text: str) -> bool:
    """Tell whether the text is a digest in our spelling."""
    return re.fullmatch(DIGEST_PATTERN, text) is not None


def parse_canonical(raw: bytes, where: str) -> Any:
    """Read canonical JSON, refusing every other spelling of it.

    Raises:
        TamperError: The bytes are not JSON or not in canonical form.
    """
    try:
        value = json.loads(raw)
        same = rfc8785.dumps(value) == raw
    except (ValueError, rfc8785.CanonicalizationError) as error:
        raise TamperError(f"expected canonical JSON in {where}, got {error}; fetch it again") from error
    if not same:
        raise TamperError(
            f"expected canonical JSON (RFC 8785) in {where}, got another spelling of it; "
            "do not edit or reformat signed files"
        )
    return value
