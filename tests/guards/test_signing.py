"""Signatures: ours against OpenSSH's own, both ways; allowed signers and their limits."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from guards.signing import Signers, make_key, sign, verify_detached
from policies.errors import PermanentError, PolicyError, TamperError

NOW = 1_800_000_000.0
POLICY, APPROVE = "instar-policy@v1", "instar-approve@v1"
MESSAGE = b"the message"

openssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "key", "alice")
    return tmp_path / "key"


def public(key: Path) -> str:
    return " ".join(key.with_name(key.name + ".pub").read_text().split()[:2])


def trusted(key: Path, options: str = "", name: str = "alice") -> Signers:
    return Signers.parse(f"{name} {options} {public(key)}\n")


def test_a_signature_verifies(key: Path) -> None:
    made = sign(key.read_bytes(), MESSAGE, POLICY)
    assert verify_detached(MESSAGE, made, trusted(key), POLICY, NOW) == "alice"


def test_a_key_is_private_and_never_overwritten(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        make_key(key, "again")


@pytest.mark.parametrize("place", [0, 5, 10])
def test_one_changed_byte_is_refused(key: Path, place: int) -> None:
    made = sign(key.read_bytes(), MESSAGE, POLICY)
    changed = bytearray(MESSAGE)
    changed[place] ^= 1
    with pytest.raises(TamperError, match="does not verify"):
        verify_detached(bytes(changed), made, trusted(key), POLICY, NOW)


def test_a_signature_of_another_namespace_is_refused(key: Path) -> None:
    made = sign(key.read_bytes(), MESSAGE, "git")
    with pytest.raises(TamperError, match=r"namespace instar-policy@v1"):
        verify_detached(MESSAGE, made, trusted(key), POLICY, NOW)


def test_an_unknown_key_is_refused(key: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger", "alice")
    made = sign((tmp_path / "stranger").read_bytes(), MESSAGE, POLICY)
    with pytest.raises(TamperError, match="by one of alice"):
        verify_detached(MESSAGE, made, trusted(key), POLICY, NOW)


@pytest.mark.parametrize("text", ["", "  \n", "not armoured", "-----BEGIN SSH SIGNATURE-----\nAAAA\n"])
def test_what_is_no_signature_is_refused(key: Path, text: str) -> None:
    with pytest.raises(TamperError, match="expected"):
        verify_detached(MESSAGE, text, trusted(key), POLICY, NOW)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (f'namespaces="{APPROVE},git"', "may sign instar-approve@v1, git"),
        ('valid-after="20270301"', "not valid yet"),
        ('valid-before="20260101Z"', "no longer valid"),
    ],
)
def test_a_key_counts_where_and_while_its_line_says(key: Path, options: str, problem: str) -> None:
    made = sign(key.read_bytes(), MESSAGE, POLICY)
    with pytest.raises(TamperError, match=problem):
        verify_detached(MESSAGE, made, trusted(key, options), POLICY, NOW)


@pytest.mark.parametrize(
    "options",
    ['namespaces="instar-*"', 'valid-after="202601010000",valid-before="20280101"', f'namespaces="{POLICY}"'],
)
def test_options_that_are_met_do_no_harm(key: Path, options: str) -> None:
    made = sign(key.read_bytes(), MESSAGE, POLICY)
    assert verify_detached(MESSAGE, made, trusted(key, options), POLICY, NOW) == "alice"


def test_a_key_on_two_lines_counts_by_the_line_that_fits(key: Path) -> None:
    lines = f'alice namespaces="{APPROVE}" {public(key)}\nalice namespaces="{POLICY}" {public(key)}\n'
    for namespace in (APPROVE, POLICY):
        made = sign(key.read_bytes(), MESSAGE, namespace)
        assert verify_detached(MESSAGE, made, Signers.parse(lines), namespace, NOW) == "alice"
    made = sign(key.read_bytes(), MESSAGE, "git")
    with pytest.raises(TamperError, match="not git"):
        verify_detached(MESSAGE, made, Signers.parse(lines), "git", NOW)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("alice", "expected PRINCIPALS"),
        ("alice ssh-ed25519 AAAA", "expected an Ed25519"),
        ("alice cert-authority KEY", "expected options"),
        ('alice from="10.0.0.1" KEY', "expected options"),
        ('alice valid-before="soon" KEY', "YYYYMMDD"),
        ("# only a comment", "at least one line"),
    ],
)
def test_a_line_that_is_not_understood_is_refused(key: Path, line: str, problem: str) -> None:
    with pytest.raises(PolicyError, match=problem):
        Signers.parse(line.replace("KEY", public(key)))


@openssh
def test_a_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "a secret", "-f", str(tmp_path / "locked")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with pytest.raises(PermanentError, match="passphrase"):
        sign((tmp_path / "locked").read_bytes(), MESSAGE, POLICY)


def test_bytes_that_are_no_key_are_refused() -> None:
    with pytest.raises(PermanentError, match="ssh-keygen -Y sign"):
        sign(b"no key", MESSAGE, POLICY)


@openssh
def test_openssh_verifies_what_we_sign(key: Path, tmp_path: Path) -> None:
    (tmp_path / "signers").write_text(f"alice {public(key)}\n")
    (tmp_path / "m.sig").write_text(sign(key.read_bytes(), MESSAGE, POLICY))
    command = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "signers"), "-I", "alice", "-n", POLICY]
    command += ["-s", str(tmp_path / "m.sig")]
    good = subprocess.run(command, input=MESSAGE, capture_output=True, timeout=30)
    assert good.returncode == 0, good.stderr
    bad = subprocess.run(command, input=MESSAGE + b"!", capture_output=True, timeout=30)
    assert bad.returncode != 0


@openssh
@pytest.mark.parametrize("kind", [["ed25519"], ["rsa", "-b", "2048"]])
def test_we_verify_what_openssh_signs(kind: list[str], tmp_path: Path) -> None:
    key, message = tmp_path / "key", tmp_path / "message"
    message.write_bytes(MESSAGE)
    for command in (
        ["ssh-keygen", "-q", "-t", *kind, "-N", "", "-C", "bob", "-f", str(key)],
        ["ssh-keygen", "-q", "-Y", "sign", "-n", POLICY, "-f", str(key), str(message)],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    made = (tmp_path / "message.sig").read_text()
    assert verify_detached(MESSAGE, made, trusted(key, name="bob"), POLICY, NOW) == "bob"
    with pytest.raises(TamperError):
        verify_detached(MESSAGE + b"!", made, trusted(key, name="bob"), POLICY, NOW)
