"""How a fleet begins: a private CA, the hub's certificate, each lane's root and release key, each device's.

* ``init`` makes a folder with all of it, once; ``enrol`` makes what one device takes along; ``renew`` signs a
  lane's next root, with the keys of the last one and with a fresh release key.
* Private keys are made here with mode 0600. The CA's key and the root keys are needed again only to enrol and
  to renew: keep them elsewhere than on the hub.
* Everything is ECDSA P-256 (TLS) or Ed25519 (releases).

For a site that has a CA of its own the certificates may come from there; a device's name is the common name.

Source: RFC 5280; The Update Framework specification 1.0, section 6.1 (root rotation).
"""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from daemon.fleet.releases import ROLES
from daemon.ops.files import persist
from policies.errors import PermanentError

CA_DAYS, LEAF_DAYS, ROOT_DAYS = 3650, 825, 365
_BACK = timedelta(minutes=10)
"""Certificates begin a little earlier: a device's clock may be behind."""

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def init(folder: Path, hub: list[str], lanes: list[str], now: float) -> None:
    """Make a fleet's CA, the hub's certificate, and roots and release keys of its lanes.

    Args:
        folder: Where to; must not have a CA yet.
        hub: Host names and addresses that devices will call, one or more.
        lanes: Device classes.
        now: Seconds since the epoch.

    Raises:
        PermanentError: The folder has a CA already.
    """
    if (folder / "ca.key").exists():
        raise PermanentError(f"expected no fleet in {folder} yet, it has a ca.key; enrol devices into it")
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("instar fleet CA")
    ca = _builder(name, name, key, now, CA_DAYS).add_extension(x509.BasicConstraints(True, 0), critical=True)
    ca = ca.add_extension(_usage(signs_certificates=True), critical=True)
    ca = ca.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    _keep_key(folder / "ca.key", key)
    persist(folder / "ca.pem", ca.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    _leaf(folder, folder / "hub", hub, server=True, now=now)
    for lane in lanes:
        found_lane(folder / lane, now)


def found_lane(folder: Path, now: float) -> None:
    """Make a lane's first root, its root key and its release key."""
    _sign_root(folder, 1, now, [])


def renew(folder: Path, now: float) -> int:
    """Sign a lane's next root with its root key, name a fresh release key in it; return its version.

    Raises:
        PermanentError: The root key is not there.
    """
    version = max(int(path.name.partition(".")[0]) for path in folder.glob("*.root.json"))
    _sign_root(folder, version + 1, now, [_read_key(folder / "root.key")])
    return version + 1


def enrol(folder: Path, lane: str, device: str, now: float) -> Path:
    """Make what a device takes along: certificate, key, the CA, and its lane's first root; return where.

    Raises:
        PermanentError: The device or the lane's root is there already, or is not.
    """
    out = folder / "devices" / device
    if out.exists():
        raise PermanentError(
            f"expected no device {device} yet, {out} is there; take it away to make a new key"
        )
    root = folder / lane / "1.root.json"
    if not root.is_file():
        raise PermanentError(f"expected a lane {lane} in {folder}, there is no {root}; run instar-fleet init")
    _leaf(folder, out / "device", [device], server=False, now=now)
    persist(out / "ca.pem", (folder / "ca.pem").read_bytes())
    persist(out / "root.json", root.read_bytes())
    return out


def _sign_root(folder: Path, version: int, now: float, former: list[Key]) -> None:
    """Write a root that names the root key and a fresh release key; signed by ``former`` keys too."""
    root_key = former[0] if former else ed25519.Ed25519PrivateKey.generate()
    release_key = ed25519.Ed25519PrivateKey.generate()
    signer = CryptoSigner(root_key)
    expires = datetime.fromtimestamp(int(now), UTC) + timedelta(days=ROOT_DAYS)
    root = Root(version=version, expires=expires, consistent_snapshot=True)
    root.add_key(signer.public_key, Root.type)
    for role in ROLES:
        root.add_key(CryptoSigner(release_key).public_key, role)
    metadata = Metadata(root)
    metadata.sign(signer)
    if not former:
        _keep_key(folder / "root.key", root_key)
    _keep_key(folder / "release.key", release_key)
    persist(folder / f"{version}.root.json", metadata.to_bytes())


def _leaf(folder: Path, path: Path, names: list[str], *, server: bool, now: float) -> None:
    ca_key, ca = (
        _read_key(folder / "ca.key"),
        x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()),
    )
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    leaf = (
        _builder(_name(names[0]), ca.subject, key, now, LEAF_DAYS)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    signed = leaf.sign(ca_key, hashes.SHA256())
    _keep_key(path.with_suffix(".key"), key)
    persist(path.with_suffix(".pem"), signed.public_bytes(Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: float, days: int
) -> x509.CertificateBuilder:
    moment = datetime.fromtimestamp(int(now), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _BACK)
        .not_valid_after(moment + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _keep_key(path: Path, key: Key) -> None:
    persist(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)


def _read_key(path: Path) -> Key:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise PermanentError(f"expected a private key (PEM) at {path}, got {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise PermanentError(f"expected an ECDSA or Ed25519 key at {path}, got {type(key).__name__}")
    return key
