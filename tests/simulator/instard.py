"""The real application of ``instard`` behind its TCP listener, over a state that has a live generation.

Workers are simulated until the first generation is live; what is served is a model repository. From then on
everything is real: settings, journal, samples, monitors, spool, routes. Turns are run by the test.
"""

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from starlette.applications import Starlette

from daemon import compose
from daemon.console.events import Bell
from daemon.control import workers
from daemon.control.targets.choice import open_target, parse
from daemon.ops.doors import bind, door, opened
from daemon.settings import ControlSettings
from daemon.store.blobs import Blobs
from policies.clock import SystemClock
from tests.serving.conftest import MODEL, Forge, Tiny
from tests.simulator import host as simulator
from tests.simulator.host import EXAMPLE, Host


def forge_bundles(monkeypatch: pytest.MonkeyPatch, forge: Forge) -> dict[str, Tiny]:
    """Have simulated searches find bundles that really run; return them by digest as they are made."""
    made: dict[str, Tiny] = {}
    search = simulator._search

    def forged(path: Path, out: Path, accuracy: float | None) -> None:
        search(path, out, accuracy)
        seed = sum((out / "bundle.onnx").read_bytes())
        tiny = forge.tiny(seed=seed)
        made[tiny.digest] = tiny
        (out / "bundle.onnx").write_bytes(tiny.raw)
        result = simulator.SearchResult.model_validate_json((out / "result.json").read_bytes())
        bundle = simulator.Artefact(path="bundle.onnx", digest=tiny.digest)
        (out / "result.json").write_bytes(simulator.canonical(result.model_copy(update={"bundle": bundle})))

    monkeypatch.setattr(simulator, "_search", forged)
    return made


def without_exits(host: Host) -> None:
    """Sign a policy that lets no row leave early, as another server needs it."""
    text = (host.law / "policy.toml").read_text()
    assert "confidence = 0.98" in text
    host.write_policy(text.replace("confidence = 0.98", 'confidence = "off"'))


class Instard:
    """A context manager: the application on a free port, in a thread."""

    def __init__(self, host: Host, target: str, bundles: dict[str, Tiny]) -> None:
        shutil.copy(EXAMPLE / "digits.npz", host.law / "digits.npz")
        without_exits(host)
        plane: Any = open_target(parse(target), MODEL, host.state / "none.sock", Blobs(host.state / "blobs"))
        host.plane = plane
        host.boot()
        host.found()
        live = host.book.ledger.live
        assert live is not None
        self.tiny = bundles[live.bundle]
        host.book.journal.close()
        plane.close()
        self.settings = ControlSettings(
            state=host.state,
            task=host.law / "task.toml",
            policy=host.law / "policy.toml",
            signers=host.law / "allowed_signers",
            target=target,
        )
        self.control = compose.assemble(self.settings, SystemClock())
        self.control.turn.verify()
        self.url = ""
        self.bell: Bell | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], None] = lambda: None
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def turn(self) -> None:
        """Run one turn as the schedule would."""
        compose._turn(self.control)

    async def _serve(self) -> None:
        self._loop, ended = asyncio.get_running_loop(), asyncio.Event()
        bell = self.bell = Bell()
        self.control.book.listeners.append(lambda _kind, _body: bell.ring())
        listener = bind("127.0.0.1:0")
        opening = door(Starlette(routes=compose.routes(self.control, bell)), 2.0)
        task = asyncio.create_task(opening.serve([listener]))
        await opened([opening], [task])
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._stop = lambda: self._loop.call_soon_threadsafe(ended.set)  # type: ignore[union-attr]
        self._up.set()
        await ended.wait()
        bell.close()
        opening.should_exit = True
        await task

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(30), "the listener did not open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._thread.join(timeout=30)
        compose._stop(self.control)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Instard]:
    """Run the application over a model repository below ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        bundles = forge_bundles(patch, Forge(folder / "forge"))
        host = Host(folder / "host")
        patch.setattr(workers, "start", host.run_worker)
        patch.setattr(workers, "find", host.find_worker)
        with Instard(host, f"repository:{folder / 'models'}", bundles) as made:
            yield made
