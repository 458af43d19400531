"""A real MLServer, driven by the target ``v2``: every answer right, through every swap."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from daemon.control.targets import layout
from daemon.control.targets.choice import open_target, parse
from daemon.control.targets.repository import RepositoryTarget
from daemon.control.targets.target import Target, Unreachable
from daemon.control.targets.v2 import V2Target
from daemon.store.blobs import Blobs
from policies.errors import PermanentError
from policies.terms import Deployment, Slot
from tests.serving.conftest import MODEL, Forge, Tiny
from tests.simulator.instard import forge_bundles, without_exits
from tests.simulator.mlserver import MlServer

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(1200)]

SWAPS = 12
CLIENTS = 4


class Client(threading.Thread):
    """Asks one row after the other, and checks every answer against the generation that it names."""

    def __init__(self, url: str, models: dict[int, Tiny], number: int) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._models = models
        self._rng = np.random.default_rng(number)
        self._ended = threading.Event()
        self.right: Counter[int] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._ended.is_set():
                x = self._rng.integers(0, 256, (1, 28, 28)).astype(np.uint8)
                self._ask(client, x)

    def _ask(self, client: httpx.Client, x: np.ndarray) -> None:
        try:
            answer = client.post(f"/v2/models/{MODEL}/infer", json=question(x))
        except httpx.TransportError as error:
            self.wrong.append(repr(error))
            return
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code} {answer.text[:200]}")
            return
        generation = int(answer.json()["model_version"])
        logits = np.array(answer.json()["outputs"][0]["data"], np.float32)
        if np.allclose(logits, self._models[generation].expected(x)[0][0], atol=1e-3):
            self.right[generation] += 1
        else:
            self.wrong.append(f"generation {generation} answered other numbers")

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=60)
        assert not self.is_alive()


def question(x: np.ndarray) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(x.shape), "data": x.ravel().tolist()}
    return {"inputs": [tensor], "outputs": [{"name": "logits"}]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlServer]:
    with MlServer(tmp_path / "models", MODEL) as made:
        yield made


@pytest.fixture
def target(server: MlServer, tmp_path: Path) -> Iterator[Target]:
    made = new_target(server, tmp_path)
    yield made
    made.close()


def new_target(server: MlServer, folder: Path) -> Target:
    choice = parse(f"v2:{folder / 'models'},{server.url}")
    return open_target(choice, MODEL, folder / "serve.sock", Blobs(folder / "state" / "blobs"))


@contextlib.contextmanager
def asking(server: MlServer, models: dict[int, Tiny]) -> Iterator[list[Client]]:
    clients = [Client(server.url, models, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.stop()


def slot(generation: int, tiny: Tiny) -> Slot:
    return Slot(generation=generation, bundle=tiny.digest)


def deployment(
    revision: int, stable: Slot | None, newcomer: Slot | None = None, share: float = 0.0
) -> Deployment:
    return Deployment(
        revision=revision,
        model=MODEL,
        stable=stable,
        newcomer=newcomer,
        newcomer_share=share,
        previous=None,
    )


def test_every_answer_is_right_through_swaps_a_revert_and_a_refused_bundle(
    server: MlServer, target: Target, tmp_path: Path
) -> None:
    forge = Forge(tmp_path / "state")
    models = {number: forge.tiny(seed=number, width=8 + number) for number in range(1, SWAPS + 4)}
    assert not target.observed().ready
    assert target.apply(deployment(1, slot(1, models[1]))).ready
    revision = 1
    with asking(server, models) as clients:
        for generation in range(1, SWAPS):
            old, new = slot(generation, models[generation]), slot(generation + 1, models[generation + 1])
            for wanted in (deployment(0, old, new), deployment(0, old, new, 1.0), deployment(0, new)):
                revision += 1
                seen = target.apply(wanted.model_copy(update={"revision": revision}))
                assert seen.matches(wanted), seen
        live, other = slot(SWAPS, models[SWAPS]), slot(SWAPS + 1, models[SWAPS + 1])
        assert target.apply(deployment(revision + 1, live, other, 1.0)).newcomer_share == 1.0
        assert target.apply(deployment(revision + 2, live)).stable == live  # the newcomer is taken off
        folder = tmp_path / "models" / MODEL
        assert layout.versions(folder) == [SWAPS]
        bad = slot(SWAPS + 2, forge.tiny(seed=99, spoil="golden"))
        with pytest.raises(PermanentError, match="golden"):
            target.apply(deployment(revision + 3, live, bad, 1.0))
        assert target.observed().stable == live
    assert [client.wrong for client in clients] == [[]] * CLIENTS
    right: Counter[int] = Counter()
    for client in clients:
        right += client.right
    assert set(range(2, SWAPS + 1)) <= set(right), f"every generation answered: {right}"
    print(f"{right.total()} answers over {SWAPS + 1} swaps, all right")


def test_unloading_the_old_before_loading_the_new_would_be_noticed(
    server: MlServer, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant lets go first, and MLServer answers 404 in between."""
    forge = Forge(tmp_path / "state")
    models = {number: forge.tiny(seed=number) for number in range(1, SWAPS + 1)}
    target.apply(deployment(1, slot(1, models[1])))
    load = V2Target._load

    def careless(self: V2Target, top: Slot | None) -> None:
        load(self, None)
        load(self, top)

    monkeypatch.setattr(V2Target, "_load", careless)
    with asking(server, models) as clients:
        for generation in range(2, SWAPS + 1):
            target.apply(deployment(generation, slot(generation, models[generation])))
    wrong = [sentence for client in clients for sentence in client.wrong]
    assert any(sentence.startswith("404") for sentence in wrong), wrong


def test_a_stopped_server_is_unreachable_and_a_new_start_serves_the_same(
    server: MlServer, target: Target, tmp_path: Path
) -> None:
    one = Forge(tmp_path / "state").tiny(seed=1)
    target.apply(deployment(1, slot(1, one)))
    server.stop()
    with pytest.raises(Unreachable):
        target.observed()
    server.start()
    again = new_target(server, tmp_path)
    assert again.observed().stable == slot(1, one)
    assert again.observed().ready
    again.close()


def test_control_founds_adapts_and_rolls_back_on_it_and_no_answer_is_wrong(
    tmp_path: Path, make_host: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = forge_bundles(monkeypatch, Forge(tmp_path / "forge"))
    host = make_host()
    without_exits(host)
    with MlServer(host.state / "models", MODEL) as server:
        choice = parse(f"v2:{host.state / 'models'},{server.url}")
        blobs = Blobs(host.state / "blobs")
        host.plane = open_target(choice, MODEL, tmp_path / "serve.sock", blobs)
        host.boot()
        host.found()
        models: dict[int, Tiny] = {}
        # What answers is known before it answers: every number that is given is noted as it is shown.
        show = RepositoryTarget.show

        def noted(self: RepositoryTarget, wanted: Deployment) -> None:
            for term in (wanted.stable, wanted.newcomer):
                if term is not None:
                    models[term.generation] = bundles[term.bundle]
            show(self, wanted)

        monkeypatch.setattr(RepositoryTarget, "show", noted)
        live = host.book.ledger.live
        models[live.generation] = bundles[live.bundle]
        with asking(server, models) as clients:
            host.turns(40)
            assert host.book.ledger.live.generation == 2
            host.drift = False
            host.operators.rollback("ann", "the new one reads badly", None)
            host.turns(8)
            assert host.book.ledger.live.generation == 3
        host.plane.close()
    assert [client.wrong for client in clients] == [[]] * CLIENTS
    right: Counter[int] = Counter()
    for client in clients:
        right += client.right
    assert {1, 2} <= set(right) <= {1, 2, 3}
    print(f"{right.total()} answers of generations {sorted(right)}, all right")
