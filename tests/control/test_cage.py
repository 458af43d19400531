"""The cage of a search: what is in it cannot reach gate, policy or journal; without it the same code can."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daemon.compose import assemble
from daemon.control import cage, workers
from daemon.control.cage import Grants
from daemon.control.workers import Allowance, Worker
from daemon.settings import ControlSettings
from policies.clock import StandingClock, SystemClock
from policies.document import load_task
from policies.terms import Artefact, Brief, Limits, Precision, TriggerKind
from policies.wire import canonical, digest_bytes
from tests.simulator.site import EXAMPLE, Site

ALLOWANCE = Allowance(cpu_s=60.0, memory_bytes=3_000_000_000, wall_s=120.0, threads=1)

needs_cage = pytest.mark.skipif(
    cage.shortcoming() is not None, reason=f"no whole cage on this machine: {cage.shortcoming()}"
)

PROBE = """
import json, os, signal, socket, sys
from pathlib import Path

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as knock:
        knock.connect(address)

def send(path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as letter:
        letter.sendto(b"secret", ("127.0.0.1", int(path)))

DEEDS = {
    "read": lambda path: open(path, "rb").read(1),
    "list": lambda path: os.listdir(path),
    "edit": lambda path: open(path, "r+b").close(),
    "make": lambda path: open(path, "xb").close(),
    "link": lambda path: os.symlink(__file__, path),
    "fifo": lambda path: os.mkfifo(path),
    "remove": lambda path: os.remove(path),
    "chmod": lambda path: os.chmod(path, 0o600),
    "truncate": lambda path: os.truncate(path, 0),
    "touch": lambda path: os.utime(path),
    "tcp": lambda path: connect(socket.AF_INET, ("127.0.0.1", int(path))),
    "udp": send,
    "unix": lambda path: connect(socket.AF_UNIX, path),
    "abstract": lambda path: connect(socket.AF_UNIX, chr(0) + path),
    "signal": lambda path: os.kill(int(path), 0),
    "hurry": lambda path: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)),
    "slow": lambda path: os.setpriority(os.PRIO_PROCESS, int(path), 0),
    "pin": lambda path: os.sched_setaffinity(int(path), os.sched_getaffinity(int(path))),
    "pin-self": lambda path: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "look-into": lambda path: open(f"/proc/{path}/environ", "rb").read(1),
}
case, out = Path(sys.argv[1]), Path(sys.argv[2])
told = {}
for name, (deed, path) in json.loads((case.parent / "deeds.json").read_text()).items():
    try:
        DEEDS[deed](path)
        told[name] = "done"
    except OSError as error:
        told[name] = type(error).__name__
(out / "result.json").write_text(json.dumps(told))
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A state folder that a real control plane made and left, with rows in every role and two jobs."""
    made = Site(tmp_path)
    control = assemble(
        ControlSettings(
            state=made.state,
            task=made.law / "task.toml",
            policy=made.law / "policy.toml",
            signers=made.law / "allowed_signers",
        ),
        StandingClock(),
    )
    control.book.write("control.started", pid=1, version="test")
    control.samples.export_gate(control.samples.vault / "c1.npz", since=0.0, max_rows=10, seed=1)
    control.samples.close()
    control.book.journal.close()
    for path in (made.state / "spool" / "0001.spool", made.state / "jobs" / "search-1" / "brief.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"somebody else's")
    return made


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a probe in the place of the search room."""
    package = tmp_path / "elsewhere" / "search"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(PROBE)
    # In the cage the package is found by its spec, without it by the working folder.
    monkeypatch.chdir(package.parent)
    monkeypatch.syspath_prepend(str(package.parent))
    for name in [name for name in sys.modules if name.partition(".")[0] == "search"]:
        monkeypatch.delitem(sys.modules, name)


def named(site: Site, content: bytes) -> Artefact:
    """Return a blob that a brief may name."""
    digest = digest_bytes(content)
    path = site.state / "blobs" / "sha256" / digest[7:9] / digest[9:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Artefact(path=str(path), digest=digest)


def make_job(site: Site, *, classes: int = 2, state: Artefact | None = None) -> Path:
    """Write the brief of an adaptation into the folder of a job; return the folder."""
    folder = site.state / "jobs" / "search-2"
    folder.mkdir(parents=True)
    y = np.arange(600) % classes
    np.savez(
        folder / "data.npz",
        x=np.zeros((600, 28, 28), np.uint8),
        y=y.astype(np.int64),
        role=(np.arange(600) % 4 == 0).astype(np.uint8),
        regime=np.ones(600, np.uint8),
    )
    data = Artefact(path="data.npz", digest=digest_bytes((folder / "data.npz").read_bytes()))
    brief = Brief(
        id="search-2",
        kind=TriggerKind.FOUNDING,
        task=load_task(EXAMPLE / "task.toml"),
        seed=1,
        budget_cpu_s=5.0,
        max_memory_bytes=ALLOWANCE.memory_bytes,
        threads=1,
        limits=Limits(max_params=400_000, max_size_bytes=2_000_000, max_p99_ms=25.0, max_edit_distance=12),
        data=data,
        parent_generation=0,
        parent_genome=None,
        parent_state=state,
        parent_archive=None,
        precisions=(Precision.FP32,),
    )
    (folder / "brief.json").write_bytes(canonical(brief))
    return folder


def run(folder: Path) -> Worker:
    """Start the search of a folder as control does, and wait for its end."""
    clock = SystemClock()
    worker = workers.start("search", folder / "brief.json", folder, "result.json", ALLOWANCE, clock)
    assert worker.process is not None
    worker.process.wait(timeout=100)
    worker.poll(clock.monotonic())
    return worker


def told(folder: Path, deeds: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Have the probe do deeds; return what came of each."""
    (folder / "deeds.json").write_text(json.dumps(deeds))
    worker = run(folder)
    assert worker.ended == "done", (folder / "log").read_text()
    found: dict[str, str] = json.loads((folder / "out" / "result.json").read_bytes())
    return found


def secrets(site: Site) -> dict[str, tuple[str, str]]:
    """Return a look at everything that a search must not see."""
    state, law = site.state, site.law
    files = {
        "gate": state / "samples" / "vault" / "gate.db",
        "gate of a panel": state / "samples" / "vault" / "c1.npz",
        "samples": state / "samples" / "samples.db",
        "journal": state / "journal.db",
        "head of the journal": state / "journal.db.head",
        "policy": law / "policy.toml",
        "signature": law / "policy.toml.sig",
        "signers": law / "allowed_signers",
        "key of an approver": law / "approver",
        "key of the roles": state / "role.key",
        "spool": state / "spool" / "0001.spool",
        "job of another": state / "jobs" / "search-1" / "brief.json",
        "blob that nobody named": Path(named(site, b"not for you").path),
    }
    folders = {f"folder {name}": state / name for name in ("", "jobs", "samples/vault", "blobs", "spool")}
    reads = {name: ("read", str(path)) for name, path in files.items()}
    return reads | {name: ("list", str(path)) for name, path in folders.items()}


@needs_cage
def test_a_search_cannot_read_gate_labels_policy_or_journal(site: Site, probe: None) -> None:
    deeds = secrets(site)
    assert told(make_job(site), deeds) == dict.fromkeys(deeds, "PermissionError")


def test_the_same_search_without_a_cage_could_read_them_all_and_it_is_said(
    site: Site, probe: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cage, "shortcoming", lambda: "no Landlock in this kernel")
    deeds, folder = secrets(site), make_job(site)
    with caplog.at_level(logging.WARNING):
        assert told(folder, deeds) == dict.fromkeys(deeds, "done")
    assert "runs without a cage" in caplog.text
    assert "no Landlock in this kernel" in caplog.text
    found = workers.find(folder, "result.json", ALLOWANCE, 0.0)
    assert found is not None
    assert not found.caged


@needs_cage
def test_a_search_may_read_its_brief_its_data_and_what_the_brief_names_and_write_its_output(
    site: Site, probe: None
) -> None:
    state = named(site, b"weights of the parent")
    folder = make_job(site, state=state)
    deeds = {
        "brief": ("read", str(folder / "brief.json")),
        "data": ("read", str(folder / "data.npz")),
        "state": ("read", state.path),
        "output": ("make", str(folder / "out" / "bundle.onnx")),
        "scratch": ("make", str(folder / "tmp" / "part")),
        "memory": ("read", "/proc/meminfo"),
        "own cores": ("pin-self", ""),
    }
    assert told(folder, deeds) == dict.fromkeys(deeds, "done")
    found = workers.find(folder, "result.json", ALLOWANCE, 0.0)
    assert found is not None
    assert found.caged


def harm(site: Site, folder: Path, blob: Artefact, victim: int) -> dict[str, tuple[str, str]]:
    """Return attempts to change something that is not the search's own."""
    journal, policy = str(site.state / "journal.db"), str(site.law / "policy.toml")
    return {
        "edit the journal": ("edit", journal),
        "chmod the journal": ("chmod", journal),
        "touch the journal": ("touch", journal),
        "edit the policy": ("edit", policy),
        "edit a named blob": ("edit", blob.path),
        "edit its brief": ("edit", str(folder / "brief.json")),
        "make a file in its folder": ("make", str(folder / "panel.json")),
        "make a file in the state": ("make", str(site.state / "mine")),
        "make a link in its output": ("link", str(folder / "out" / "refusal.json")),
        "make a pipe in its output": ("fifo", str(folder / "out" / "pipe")),
        "look into a neighbour": ("look-into", str(victim)),
        "slow a neighbour": ("slow", str(victim)),
        "pin a neighbour": ("pin", str(victim)),
        # Last: these change what the others look at.
        "truncate the policy": ("truncate", policy),
        "remove the journal": ("remove", journal),
    }


@pytest.fixture
def neighbour() -> Iterator[int]:
    """A process outside that waits for its input to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


@needs_cage
def test_a_search_can_change_nothing_but_its_output(site: Site, probe: None, neighbour: int) -> None:
    blob = named(site, b"weights of the parent")
    folder = make_job(site, state=blob)
    deeds = harm(site, folder, blob, neighbour)
    before = (site.state / "journal.db").read_bytes()
    assert told(folder, deeds) == dict.fromkeys(deeds, "PermissionError")
    assert (site.state / "journal.db").read_bytes() == before


def test_the_same_search_without_a_cage_could_change_them_all(
    site: Site, probe: None, neighbour: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cage, "shortcoming", lambda: "no Landlock in this kernel")
    blob = named(site, b"weights of the parent")
    folder = make_job(site, state=blob)
    deeds = harm(site, folder, blob, neighbour)
    assert told(folder, deeds) == dict.fromkeys(deeds, "done")


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[dict[str, tuple[str, str]]]:
    """Doors of every kind that stand open, a process to signal, and how to knock at each."""
    short = f"instar-test-{os.getpid()}"
    kinds: tuple[tuple[str, int, int, object], ...] = (
        ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        ("unix", socket.AF_UNIX, socket.SOCK_STREAM, str(tmp_path / "s")),
        ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + short),
    )
    opened, knocks = [], {}
    for name, family, kind, address in kinds:
        door = socket.socket(family, kind)
        opened.append(door)
        door.bind(address)
        if kind == socket.SOCK_STREAM:
            door.listen()
        own = door.getsockname()
        where = str(own[1]) if family == socket.AF_INET else str(tmp_path / "s")
        knocks[name] = (name, short if name == "abstract" else where)
    yield knocks | {"signal": ("signal", str(os.getpid()))}
    for door in opened:
        door.close()


@needs_cage
def test_a_search_can_knock_at_no_door_not_even_controls_socket(
    site: Site, probe: None, doors: dict[str, tuple[str, str]]
) -> None:
    assert told(make_job(site), doors) == dict.fromkeys(doors, "PermissionError")


def test_the_same_search_without_a_cage_could_knock_at_them_all(
    site: Site, probe: None, doors: dict[str, tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cage, "shortcoming", lambda: "no Landlock in this kernel")
    assert told(make_job(site), doors) == dict.fromkeys(doors, "done")


@needs_cage
def test_a_search_cannot_leave_its_idle_scheduling(site: Site, probe: None) -> None:
    assert told(make_job(site), {"hurry": ("hurry", "")}) == {"hurry": "PermissionError"}


@needs_cage
def test_a_state_inside_what_a_search_must_read_is_no_cage_and_it_is_said(
    site: Site, probe: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_LIBRARIES", (*workers._LIBRARIES, str(site.state.parent)))
    folder = make_job(site)
    with caplog.at_level(logging.WARNING):
        assert not run_probe(folder).caged
    assert f"the state lies inside {site.state.parent}" in caplog.text


def run_probe(folder: Path) -> Worker:
    (folder / "deeds.json").write_text("{}")
    return run(folder)


@needs_cage
def test_a_cage_that_cannot_be_locked_starts_nothing(site: Site, probe: None, tmp_path: Path) -> None:
    spec = tmp_path / "cage.json"
    # Landlock refuses a rule without a right; here because the file cannot have those of a folder.
    spec.write_bytes(Grants(execute=(), read=(), write=("/proc/self/ns/user",)).to_json())
    command = [sys.executable, "-I", "-S", cage.__file__, str(spec), "--", sys.executable, "-c", "print(1)"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stdout) == (cage.NOT_LOCKED, "")
    assert "not started: " in answer.stderr


@needs_cage
def test_the_worker_is_found_again_by_its_folder_as_without_a_cage(site: Site, probe: None) -> None:
    folder = make_job(site)
    deeds = folder / "deeds.json"
    os.mkfifo(deeds)
    worker = workers.start("search", folder / "brief.json", folder, "result.json", ALLOWANCE, SystemClock())
    with deeds.open("w"):  # opens once the probe reads, which then waits
        assert workers.is_ours(worker.pid, folder)
        found = workers.find(folder, "result.json", ALLOWANCE, 0.0)
        assert found is not None
        assert (found.pid, found.caged) == (worker.pid, True)
        worker.stop()
    assert not workers.is_ours(worker.pid, folder)


def test_a_search_that_is_tried_again_finds_its_checkpoint(site: Site, probe: None) -> None:
    folder = make_job(site)
    kept = folder / "out" / "checkpoint" / "state"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"half way")
    assert told(folder, {"checkpoint": ("read", str(kept))}) == {"checkpoint": "done"}


def test_the_panel_needs_the_gate_and_has_no_cage(tmp_path: Path) -> None:
    case = tmp_path / "case.json"
    case.write_text("{}")
    worker = workers.start("guards", case, tmp_path, "panel.json", ALLOWANCE, SystemClock())
    assert worker.process is not None
    worker.process.wait(timeout=60)
    assert not worker.caged
    assert not (tmp_path / "cage.json").exists()


@needs_cage
def test_the_real_search_starts_in_its_cage_and_refuses_a_single_class(site: Site) -> None:
    folder = make_job(site, classes=1)
    worker = run(folder)
    assert worker.caged
    assert worker.process is not None
    assert worker.process.returncode == 3, (folder / "log").read_text()
    assert worker.ended is not None
    assert "at least two classes" in worker.ended
