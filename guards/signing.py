"""SSH signatures: who may sign, signing, and checking a detached signature.

People already own such keys, and ``ssh-keygen -Y sign`` makes the same signatures, also with a hardware key.

* A signer is a line of an OpenSSH allowed-signers file: principals, options, key. Of its options,
  ``namespaces``, ``valid-after`` and ``valid-before`` are honoured; anything else is refused, for an option
  that is not understood might have been a restriction.
* A signature counts for the principals of the key that made it, in its namespace alone.

Source: openssh PROTOCOL.sshsig; ssh-keygen(1), ALLOWED SIGNERS.
"""

import base64
import fnmatch
import os
import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha512
from pathlib import Path

import sshsig
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from policies.errors import PermanentError, PolicyError, TamperError

_MAGIC = b"SSHSIG"
_VERSION = 1
_LINE = 70
_OPTION = re.compile(r'([a-z-]+)(?:="([^"]*)")?(?:,|$)')
_FORMATS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


@dataclass(frozen=True)
class Signer:
    """One line of an allowed-signers file."""

    principals: tuple[str, ...]
    key: sshsig.PublicKey
    namespaces: tuple[str, ...] | None
    valid_after: float | None
    valid_before: float | None

    def problem(self, namespace: str, now: float) -> str | None:
        """Return why this key does not count here and now, or None."""
        if self.namespaces is not None and not any(fnmatch.fnmatch(namespace, n) for n in self.namespaces):
            return f"its key may sign {', '.join(self.namespaces)}, not {namespace}"
        if self.valid_after is not None and now < self.valid_after:
            return "its key is not valid yet"
        if self.valid_before is not None and now >= self.valid_before:
            return "its key is no longer valid"
        return None


@dataclass(frozen=True)
class Signers:
    """All trusted signers."""

    lines: tuple[Signer, ...]

    @classmethod
    def parse(cls, text: str) -> "Signers":
        """Read an OpenSSH allowed-signers file.

        Raises:
            PolicyError: A line is not understood; it names the line.
        """
        lines = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                lines.append(_signer(line.strip(), number))
        if not lines:
            raise PolicyError("expected at least one line in the allowed-signers file, it has none")
        return cls(tuple(lines))

    def principals(self) -> tuple[str, ...]:
        """Return everybody who is named."""
        return tuple(sorted({name for signer in self.lines for name in signer.principals}))


def _signer(line: str, number: int) -> Signer:
    where = f"allowed signers, line {number}"
    words = line.split()
    if len(words) >= 3 and not _is_key_type(words[1]):
        options, key = words[1], words[2:4]
    else:
        options, key = "", words[1:3]
    if len(key) < 2:
        raise PolicyError(f"{where}: expected PRINCIPALS [OPTIONS] KEYTYPE KEY, got {len(words)} words")
    try:
        public = sshsig.PublicKey.from_openssh_str(" ".join(key))
    except (ValueError, NotImplementedError) as error:
        raise PolicyError(f"{where}: expected an Ed25519 or RSA public key, got {error}") from error
    given = _options(options, where)
    names = given.get("namespaces")
    return Signer(
        principals=tuple(words[0].split(",")),
        key=public,
        namespaces=None if names is None else tuple(names.split(",")),
        valid_after=_moment(given.get("valid-after"), where),
        valid_before=_moment(given.get("valid-before"), where),
    )


def _is_key_type(word: str) -> bool:
    return word.startswith(("ssh-", "ecdsa-", "sk-", "rsa-"))


def _options(text: str, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        match = _OPTION.match(text, place)
        if match is None or match[1] not in ("namespaces", "valid-after", "valid-before") or match[2] is None:
            raise PolicyError(
                f"{where}: expected options namespaces, valid-after or valid-before, got {text[place:]!r}"
            )
        found[match[1]] = match[2]
        place = match.end()
    return found


def _moment(text: str | None, where: str) -> float | None:
    if text is None:
        return None
    digits = text.removesuffix("Z")
    try:
        return datetime.strptime(digits, _FORMATS[len(digits)]).replace(tzinfo=UTC).timestamp()
    except (KeyError, ValueError):
        raise PolicyError(f"{where}: expected YYYYMMDD[HHMM[SS]] in UTC, got {text!r}") from None


def verify_detached(raw: bytes, signature: str, signers: Signers, namespace: str, now: float) -> str:
    """Check a detached signature; return the first principal of the key that made it.

    Raises:
        TamperError: The signature is not of these bytes, of this namespace, or of a signer who counts now.
    """
    return verify_signer(raw, signature, signers, namespace, now).principals[0]


def verify_signer(raw: bytes, signature: str, signers: Signers, namespace: str, now: float) -> Signer:
    """Check a detached signature; return the line of the key that made it.

    Raises:
        TamperError: As ``verify_detached``.
    """
    if not signature.strip():
        raise TamperError("expected an SSH signature, got nothing")
    keys = [signer.key for signer in signers.lines]
    try:
        made_by = sshsig.verify(raw, signature, keys, namespace)
    except sshsig.InvalidSignature as error:
        raise TamperError(
            f"expected a signature in namespace {namespace} by one of {', '.join(signers.principals())}, "
            f"got one that does not verify: {str(error) or 'other bytes, namespace or key'}"
        ) from error
    except (ValueError, NotImplementedError) as error:
        raise TamperError(f"expected an armoured SSH signature, got {error}") from error
    # A key may stand on several lines, each good for another namespace or time: one that counts is enough.
    lines = [signer for signer in signers.lines if signer.key == made_by]
    problems = [line.problem(namespace, now) for line in lines]
    if None in problems:
        return lines[problems.index(None)]
    raise TamperError(f"signed by {lines[0].principals[0]}, but {problems[0]}")


def make_key(path: Path, comment: str) -> None:
    """Write a new Ed25519 key pair in OpenSSH's format: ``path`` (0600, no passphrase) and ``path.pub``."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    path.with_name(path.name + ".pub").write_text(f"{public} {comment}\n")


def sign(private_key: bytes, message: bytes, namespace: str) -> str:
    """Return an armoured SSH signature, as ``ssh-keygen -Y sign -n NAMESPACE`` makes.

    Args:
        private_key: An OpenSSH Ed25519 private key without a passphrase.
        message: What is signed.
        namespace: What the signature is good for.

    Raises:
        PermanentError: The key is of another kind, or has a passphrase.
    """
    try:
        key = load_ssh_private_key(private_key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PermanentError(
            "expected an OpenSSH Ed25519 private key without a passphrase, got one that does not open: "
            f"{error}; sign with ssh-keygen -Y sign -n {namespace} instead"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PermanentError(
            f"expected an Ed25519 key, got {type(key).__name__}; use ssh-keygen -Y sign -n {namespace}"
        )
    name = b"ssh-ed25519"
    raw_public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    public = _string(name) + _string(raw_public)
    tail = _string(namespace.encode()) + _string(b"") + _string(b"sha512")
    made = key.sign(_MAGIC + tail + _string(sha512(message).digest()))
    blob = _MAGIC + struct.pack(">I", _VERSION) + _string(public) + tail
    blob += _string(_string(name) + _string(made))
    text = base64.b64encode(blob).decode()
    lines = [text[place : place + _LINE] for place in range(0, len(text), _LINE)]
    return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""])


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
