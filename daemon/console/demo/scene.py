"""The state folder of a demo: the example's files copied, a key made on the spot, the policy signed with it.

* The folder is made afresh for every run. Only a folder that a demo made is ever removed, and none that an
  ``instard`` still holds.
* The key lies beside what it guards, so it guards nothing; its principal says so: ``UnsafeDemoApprover``.
* A wish for another budget changes the copied policy before it is signed, never the example's.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from daemon.console.demo.wishes import Wishes
from daemon.store.lock import StateLock
from guards.signing import make_key, sign
from policies.document import load_task, parse
from policies.errors import PermanentError

PRINCIPAL = "UnsafeDemoApprover"
POLICY_NAMESPACE = "instar-policy@v1"
_MARK = "DEMO"
_FILES = ("task.toml", "policy.toml")
_LONGEST_SOCKET = 100
_SEARCH_TABLE = re.compile(r"(?ms)^\[modification_protocol\.search\]$.*?(?=^\[|\Z)")
_BUDGET = re.compile(r"(?m)^budget_cpu_s *= *[0-9.]+")
_DAY = re.compile(r"(?m)^budget_cpu_s_per_day *= *([0-9.]+)")


@dataclass(frozen=True)
class Scene:
    """Where everything of one demo lies."""

    state: Path
    example: Path
    task: str
    model: str

    @property
    def folder(self) -> Path:
        """What the operator gives: task, policy, signers, and the demo's key."""
        return self.state / "demo"

    @property
    def key(self) -> Path:
        """The demo's private key."""
        return self.folder / "approver"

    @property
    def logs(self) -> Path:
        """Every process's own words."""
        return self.state / "logs"

    @property
    def requests(self) -> Path:
        """The camera's record of its requests."""
        return self.logs / "requests.jsonl"

    @property
    def journal(self) -> Path:
        """The journal."""
        return self.state / "journal.db"

    @property
    def socket(self) -> Path:
        """Control's door."""
        return self.state / "run" / "control.sock"

    @property
    def oracle(self) -> Path:
        """What the oracle needs and says."""
        return self.state / "oracle"


def prepare(wishes: Wishes) -> Scene:
    """Make the folder ready to start from.

    Raises:
        PermanentError: The example is not whole, or the folder is not a demo's.
        PolicyError: The wishes make a policy that is refused.
    """
    state = wishes.state.absolute()
    missing = [
        n for n in (*_FILES, "digits.npz", "camera.py", "drift.py") if not (wishes.example / n).is_file()
    ]
    if missing:
        raise PermanentError(
            f"expected {', '.join(missing)} in {wishes.example}; "
            "run from the project's folder, or give --example"
        )
    if len(str(state)) > _LONGEST_SOCKET - len("/run/control.sock"):
        raise PermanentError(
            f"expected a shorter --state than {state}: a socket in it may have {_LONGEST_SOCKET} characters"
        )
    task = load_task(wishes.example / "task.toml")
    scene = Scene(state, wishes.example.absolute(), task.name, task.model)
    with StateLock(state / "instard.lock"):
        _clear(state, keep=wishes.keep)
    for folder in (scene.folder, scene.logs, scene.oracle):
        folder.mkdir(parents=True, exist_ok=True)
    (scene.folder / _MARK).write_text("Made by instar demo, which removes this state at its next start.\n")
    if not scene.key.is_file():
        _furnish(scene, wishes)
    return scene


def _clear(state: Path, *, keep: bool) -> None:
    """Remove what an earlier demo left.

    Raises:
        PermanentError: The folder holds something else.
    """
    left = [path for path in state.iterdir() if path.name != "instard.lock"]
    if not left or keep:
        return
    if not (state / "demo" / _MARK).is_file():
        raise PermanentError(
            f"expected {state} to be empty or left by an earlier demo, it holds {left[0].name}; "
            "give another --state, or --keep to go on with it"
        )
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _furnish(scene: Scene, wishes: Wishes) -> None:
    for name in (*_FILES, "digits.npz"):
        shutil.copyfile(scene.example / name, scene.folder / name)
    policy = scene.folder / "policy.toml"
    text = policy.read_text(encoding="utf-8")
    if wishes.budget_cpu_s is not None:
        text = with_budget(text, wishes.budget_cpu_s)
    parse(text, str(policy))
    policy.write_text(text, encoding="utf-8")
    make_key(scene.key, PRINCIPAL)
    kind, key, _ = scene.key.with_name("approver.pub").read_text(encoding="utf-8").split(maxsplit=2)
    signers = scene.folder / "allowed_signers"
    signers.write_text(f"# Made by instar demo. Anyone at this machine can sign.\n{PRINCIPAL} {kind} {key}\n")
    signature = sign(scene.key.read_bytes(), policy.read_bytes(), POLICY_NAMESPACE)
    policy.with_name("policy.toml.sig").write_text(signature, encoding="utf-8")


def with_budget(text: str, budget_cpu_s: float) -> str:
    """Return a policy's text in which one search may spend ``budget_cpu_s``, and a day at least three.

    Raises:
        PermanentError: The text has no such key where it belongs.

    >>> text = "[modification_protocol.search]\\nbudget_cpu_s = 45.0\\nbudget_cpu_s_per_day = 90.0"
    >>> print(with_budget(text, 60))
    [modification_protocol.search]
    budget_cpu_s = 60.0
    budget_cpu_s_per_day = 180.0
    """
    table = _SEARCH_TABLE.search(text)
    day = None if table is None else _DAY.search(table[0])
    if table is None or day is None or _BUDGET.search(table[0]) is None:
        raise PermanentError(
            "expected budget_cpu_s and budget_cpu_s_per_day in [modification_protocol.search] of the policy"
        )
    allowed = max(float(day[1]), 3.0 * budget_cpu_s)
    edited = _BUDGET.sub(f"budget_cpu_s = {float(budget_cpu_s)}", table[0])
    edited = _DAY.sub(f"budget_cpu_s_per_day = {allowed}", edited)
    return text[: table.start()] + edited + text[table.end() :]
