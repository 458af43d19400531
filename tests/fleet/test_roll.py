"""The fleet file: what is in order, and one slip each with what is said of it. And the tool beside it."""

import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.fleet import enrol
from daemon.fleet.roll import load_fleet
from daemon.settings import ControlSettings
from policies.errors import PermanentError, PolicyError

GOOD = """
format = 1
[hub]
listen = "0.0.0.0:8443"
cert = "hub.pem"
key = "hub.key"
ca = "ca.pem"
[lanes.pi5]
policy = "pi5.toml"
roots = "pi5"
release_key = "pi5/release.key"
devices = ["pi5-1", "pi5-2"]
inherit = true
fresh_s = 600
converged = 0.8
offline_s = 300.0
timed_by = 1
telemetry_bytes = 67108864
device_bytes_per_s = 262144
"""


def test_a_fleet_file_says_who_is_in_which_lane_with_paths_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(GOOD)
    fleet = load_fleet(tmp_path / "fleet.toml")
    assert fleet.lane_of == {"pi5-1": "pi5", "pi5-2": "pi5"}
    assert fleet.hub.key == tmp_path / "hub.key"
    assert fleet.lanes["pi5"].release_key == tmp_path / "pi5" / "release.key"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("converged = 0.8\n", "", "lanes.pi5.converged: missing; there is no default"),
        ("offline_s = 300.0\n", "", "lanes.pi5.offline_s: missing"),
        ("converged = 0.8", "converged = 0.0", "expected converged above 0"),
        ("timed_by = 1", "timed_by = 3", "expected timed_by of at most 2"),
        ("fresh_s = 600", "fresh_s = 1", "lanes.pi5.fresh_s: Input should be greater"),
        ("inherit", "inherits", "lanes.pi5.inherits: unknown key"),
        ('"pi5-2"', '"pi5-1"', "expected each device once, pi5-1 is in pi5"),
        ('"pi5-2"', '"../x"', "lanes.pi5.devices.1"),
        ("0.0.0.0:8443", "8443", "hub.listen"),
        ("format = 1", "format = 2", "format"),
        ("[hub]", "[hub", "expected a fleet file (TOML)"),
    ],
)
def test_a_slip_in_it_is_told_with_its_key(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    (tmp_path / "fleet.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(PolicyError) as refusal:
        load_fleet(tmp_path / "fleet.toml")
    assert complaint in str(refusal.value)


def test_a_device_in_two_lanes_is_refused(tmp_path: Path) -> None:
    lane = GOOD[GOOD.index("[lanes.pi5]") :].replace("[lanes.pi5]", "[lanes.nano]")
    (tmp_path / "fleet.toml").write_text(GOOD + lane)
    with pytest.raises(PolicyError, match="pi5-1 is in pi5 and nano"):
        load_fleet(tmp_path / "fleet.toml")


def test_instard_takes_a_fleet_file_or_none() -> None:
    flags = ["--state", "/s", "--task", "/t", "--policy", "/p", "--signers", "/a"]
    assert ControlSettings.from_args(flags, {}).fleet is None
    assert ControlSettings.from_args([*flags, "--fleet", "/f"], {}).fleet == Path("/f")
    assert ControlSettings.from_args(flags, {"INSTAR_FLEET": "/f"}).fleet == Path("/f")


def test_private_keys_are_readable_by_their_owner_alone(papers: Path) -> None:
    keys = [*papers.rglob("*.key")]
    assert len(keys) == 2 + 2 * 2 + 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def test_certificates_chain_to_the_ca_and_name_their_device(papers: Path) -> None:
    from cryptography import x509

    ca = x509.load_pem_x509_certificate((papers / "ca.pem").read_bytes())
    own = x509.load_pem_x509_certificate((papers / "devices" / "pi5-1" / "device.pem").read_bytes())
    own.verify_directly_issued_by(ca)
    assert own.subject.rfc4514_string() == "CN=pi5-1"
    context = ssl.create_default_context(cafile=str(papers / "ca.pem"))
    context.load_cert_chain(papers / "hub.pem", papers / "hub.key")


def test_a_fleet_is_not_begun_twice_and_a_device_not_enrolled_twice(papers: Path) -> None:
    with pytest.raises(PermanentError, match="expected no fleet"):
        enrol.init(papers, ["h"], ["x"], 0.0)
    with pytest.raises(PermanentError, match="expected no device pi5-1 yet"):
        enrol.enrol(papers, "pi5", "pi5-1", 0.0)
    with pytest.raises(PermanentError, match="expected a lane tablet"):
        enrol.enrol(papers, "tablet", "t-1", 0.0)


def test_the_tool_makes_a_fleet_that_the_file_can_name(tmp_path: Path) -> None:
    def tool(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("instar-fleet")), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    folder = str(tmp_path / "papers")
    assert tool("init", folder, "--hub", "hub.example", "--lane", "pi5").returncode == 0
    assert "name pi5-1 in the fleet file" in tool("enrol", folder, "pi5-1", "--lane", "pi5").stdout
    assert "Root 2 of lane pi5" in tool("renew", folder, "--lane", "pi5").stdout
    again = tool("init", folder, "--hub", "hub.example", "--lane", "pi5")
    assert (again.returncode, "expected no fleet" in again.stderr) == (1, True)
    lost = tool("devices", "--state", str(tmp_path))
    assert (lost.returncode, "is instard running?" in lost.stderr) == (1, True)
