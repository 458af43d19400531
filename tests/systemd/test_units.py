"""The units, as systemd reads them offline: right, hardened, and true to the programs that they start."""

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.control import workers
from daemon.fleet.device import Place
from daemon.fleet.settings import DeviceSettings
from daemon.serving.settings import ServeSettings
from daemon.settings import ControlSettings

UNITS = Path(__file__).parents[2] / "systemd"
NAMES = sorted(path.name for path in UNITS.iterdir() if path.is_file())
CORES = sorted((UNITS / "cores").glob("*.d/cores.conf"))
SERVICES = [name for name in NAMES if name.endswith(".service")]

PLANES = ("instar-serve.service", "instard.service")

# What systemd may find at most, 0 to 10. instar-serve asks for a slice (sched_setattr); instard listens on
# TCP and is the parent of torch.
EXPOSURE = {
    "instar-serve.service": 0.3,
    "instar-grpc.service": 0.2,
    "instar-search@.service": 0.2,
    "instar-device.service": 1.1,
    "instard.service": 1.1,
}

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)


def options(text: str, key: str) -> list[str]:
    """Return the values of a key, in order."""
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def unit(name: str) -> str:
    return (UNITS / name).read_text()


def verify(folder: Path, mutate: tuple[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Verify copies of all units whose programs exist here."""
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in NAMES:
        text = re.sub(r"/opt/instar/bin/[a-z-]+", str(program), unit(name))
        (folder / name).write_text(text if mutate is None else text.replace(*mutate))
    for path in CORES:
        (folder / path.parent.name).mkdir()
        text = path.read_text()
        (folder / path.parent.name / path.name).write_text(text if mutate is None else text.replace(*mutate))
    command = ["systemd-analyze", "verify", "--man=no", *(str(folder / name) for name in NAMES)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    found = verify(tmp_path)
    ours = [line for line in found.stderr.splitlines() if "instar" in line]
    assert (found.returncode, ours) == (0, [])


@needs_systemd
@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("WatchdogSec=10", "WatchdogSec=often", "often"),
        ("CPUWeight=idle", "CPUWeigth=idle", "CPUWeigth"),
        ("CPUAffinity=0", "CPUAffinity=first", "first"),
        ("AllowedCPUs=1", "AllowedCpus=1", "AllowedCpus"),
    ],
    ids=["bad-value", "misspelt-key", "bad-value-in-a-drop-in", "misspelt-key-in-a-drop-in"],
)
def test_a_unit_with_a_slip_is_found(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in "".join([*map(unit, NAMES), *(path.read_text() for path in CORES)])
    assert complaint in verify(tmp_path, (old, new)).stderr


def exposure(path: Path) -> float:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=100", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    score = re.search(r"Overall exposure level for \S+: ([0-9.]+)", found.stdout)
    assert score is not None, found.stdout[-500:]
    return float(score[1])


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_as_far_as_it_can_be(name: str) -> None:
    assert exposure(UNITS / name) <= EXPOSURE[name]


@needs_systemd
def test_a_service_without_its_system_call_filter_is_found(tmp_path: Path) -> None:
    mutant = tmp_path / "instar-serve.service"
    mutant.write_text(unit(mutant.name).replace("SystemCallFilter=", "#SystemCallFilter="))
    assert exposure(mutant) > EXPOSURE[mutant.name]


def flags(name: str) -> dict[str, str]:
    """Return the flags that a unit starts its program with."""
    words = options(unit(name), "ExecStart")[0].split()[1:]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_the_programs_take_the_flags_that_the_units_give() -> None:
    serve = [
        word.replace("${INSTAR_MODEL}", "m")
        for pair in flags("instar-serve.service").items()
        for word in pair
    ]
    control = [word for pair in flags("instard.service").items() for word in pair]
    assert ServeSettings.from_args(serve, {}).model == "m"
    assert ControlSettings.from_args(control, {}).listen == "127.0.0.1:8090"


def test_a_device_writes_blobs_and_its_own_folder_and_no_spool() -> None:
    words = [
        word.replace("${INSTAR_HUB}", "https://hub:8443").replace("${INSTAR_NAME}", "pi5-1")
        for pair in flags("instar-device.service").items()
        for word in pair
    ]
    settings = DeviceSettings.from_args(words, {})
    place = Place(settings.state)
    text = unit("instar-device.service")
    writable = {Path(path) for path in " ".join(options(text, "BindPaths")).split()}
    assert writable == {place.blobs, place.own, settings.state / "run"}
    assert options(text, "BindReadOnlyPaths") == [str(place.spool)]


def test_the_units_agree_on_where_the_state_lies() -> None:
    serve, control = flags("instar-serve.service"), flags("instard.service")
    state = Path(serve["--state"])
    settings = ServeSettings(state=state, model="m")
    assert control["--state"] == str(state)
    text = unit("instar-serve.service")
    writable = {Path(path) for path in " ".join(options(text, "BindPaths")).split()}
    readable = {Path(path) for path in " ".join(options(text, "BindReadOnlyPaths")).split()}
    assert writable == {settings.spool, settings.deployment.parent, settings.admin_socket.parent}
    assert readable == {settings.blobs}
    assert settings.lock.parent in writable


def test_tmpfiles_makes_every_folder_that_a_unit_binds() -> None:
    made = {
        line.split()[1]
        for line in (UNITS / "tmpfiles.d/instar.conf").read_text().splitlines()
        if line[:1] == "d"
    }
    for name in SERVICES:
        bound = " ".join(options(unit(name), "BindPaths") + options(unit(name), "BindReadOnlyPaths")).split()
        assert {path.removesuffix("/%i") for path in bound} <= made, name


def test_sysusers_makes_every_user_that_a_service_runs_as() -> None:
    lines = (UNITS / "sysusers.d/instar.conf").read_text().splitlines()
    made = {line.split()[1] for line in lines if line.startswith("u")}
    used = {user for name in SERVICES for user in options(unit(name), "User") + options(unit(name), "Group")}
    assert used == made


def test_the_data_plane_sees_neither_journal_nor_samples_nor_network() -> None:
    text = unit("instar-serve.service")
    assert options(text, "TemporaryFileSystem") == ["/var/lib/instar:ro"]
    assert options(text, "PrivateNetwork") == ["yes"]
    assert options(text, "MemoryDenyWriteExecute") == ["yes"]


def test_torch_may_write_code_where_it_runs_and_nowhere_else() -> None:
    answers = {name: options(unit(name), "MemoryDenyWriteExecute") for name in SERVICES}
    assert answers == {
        "instar-serve.service": ["yes"],
        "instar-grpc.service": ["yes"],
        "instar-device.service": ["yes"],
        "instard.service": ["no"],
        "instar-search@.service": ["no"],
    }


def test_the_search_by_hand_is_the_command_that_control_starts() -> None:
    start = options(unit("instar-search@.service"), "ExecStart")[0]
    words = start.split()
    assert words[1:4] == ["-P", "-m", "search"]
    assert words[4] == "/var/lib/instar/jobs/%i/brief.json"
    parser = argparse.ArgumentParser()
    parser.add_argument("brief")
    parser.add_argument("out")
    assert parser.parse_args(words[4:]).out == "/var/lib/instar-search/%i"
    assert "sched_setscheduler" in Path(workers.__file__).read_text(), (
        "instard.service leaves @resources for it"
    )


def test_only_what_pets_a_watchdog_has_one() -> None:
    with_watchdog = {name for name in SERVICES if options(unit(name), "WatchdogSec")}
    assert with_watchdog == {"instar-serve.service", "instar-device.service", "instard.service"}
    root = UNITS.parent / "daemon"
    for source in ("serving/main.py", "fleet/main.py", "compose.py"):
        assert 'WATCHDOG="1"' in (root / source).read_text()


def test_idle_searches_yield_to_the_data_plane_because_they_are_its_siblings() -> None:
    assert options(unit("instar-serve.service"), "Slice") == ["instar.slice"]
    assert options(unit("instar-search@.service"), "Slice") == ["instar-search.slice"]
    assert options(unit("instar-search.slice"), "CPUWeight") == ["idle"]


def test_the_data_plane_weighs_so_much_that_a_search_is_what_is_left_over() -> None:
    serve, control = (int(options(unit(name), "CPUWeight")[0]) for name in PLANES)
    assert serve == 10_000
    assert serve >= 500 * control


def test_neither_plane_is_ever_swapped_out_and_both_have_a_ceiling() -> None:
    for name in PLANES:
        assert options(unit(name), "MemorySwapMax") == ["0"], name
        assert options(unit(name), "MemoryMax"), name


def test_memory_that_is_short_is_taken_from_a_search_first() -> None:
    scores = {name: int(*options(unit(name), "OOMScoreAdjust") or ["0"]) for name in SERVICES}
    assert scores["instar-serve.service"] < scores["instard.service"] < scores["instar-search@.service"]


def test_the_data_plane_may_ask_for_its_slice_and_for_nothing_else_of_that_kind() -> None:
    filters = options(unit("instar-serve.service"), "SystemCallFilter")
    assert filters == ["@system-service", "~@privileged @resources", "sched_setattr"]


def test_with_the_drop_ins_no_core_is_shared_between_the_data_plane_and_a_search() -> None:
    cores = {
        path.parent.name.removesuffix(".d"): (
            options(path.read_text(), "CPUAffinity"),
            options(path.read_text(), "AllowedCPUs"),
        )
        for path in CORES
    }
    assert cores == {
        "instar-serve.service": (["0"], []),
        "instard.service": ([], ["1"]),
        "instar-search.slice": ([], ["1"]),
    }
    assert {f"{name}.d" for name in cores} == {path.name for path in (UNITS / "cores").iterdir()}
    assert set(cores) <= set(NAMES)
