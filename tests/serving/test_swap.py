"""Deployments: applied whole or not at all, kept over a restart, and swapped under load without a loss."""

import errno
import threading
from dataclasses import replace

import httpx
import numpy as np
import pytest

from daemon.serving import keeper
from daemon.serving.table import Table
from policies.wire import canonical


def state_of(plane):
    """What must not change when a deployment is refused."""
    path = plane.settings.deployment
    return plane.admin.observed(), path.read_bytes() if path.exists() else None


def assert_refused(plane, wanted, reason):
    before = state_of(plane)
    answer = plane.admin.apply(wanted)
    assert answer.status_code == 409, answer.text
    assert reason in answer.json()["error"]
    assert state_of(plane) == before


def test_a_confidence_alone_is_applied_and_told(forge, thread, kit):
    plane, tiny = thread(), forge.tiny()
    plane.admin.apply(kit.deployment(1, stable=(1, tiny))).raise_for_status()
    assert plane.admin.observed()["exit_confidence"] is None
    surer = kit.deployment(2, stable=(1, tiny)).model_copy(update={"exit_confidence": 0.9})
    assert plane.admin.apply(surer).json()["exit_confidence"] == 0.9


def test_apply_tells_what_is_observed(forge, thread, kit):
    plane = thread()
    first = plane.admin.observed()
    assert first == {
        "revision": 0,
        "stable": None,
        "newcomer": None,
        "previous": None,
        "newcomer_share": 0.0,
        "exit_confidence": None,
        "ready": False,
        "problem": "no deployment yet",
    }
    one, two = forge.tiny(seed=1), forge.tiny(seed=2, width=8)
    wanted = kit.deployment(5, stable=(1, one), newcomer=(2, two), share=0.25)
    observed = plane.admin.apply(wanted).json()
    assert observed == {
        "revision": 5,
        "stable": {"generation": 1, "bundle": one.digest},
        "newcomer": {"generation": 2, "bundle": two.digest},
        "previous": None,
        "newcomer_share": 0.25,
        "exit_confidence": None,
        "ready": True,
        "problem": None,
    }
    assert plane.admin.observed() == observed
    assert plane.settings.deployment.read_bytes() == canonical(wanted)
    metrics = plane.metrics()
    assert metrics['instar_serve_canary_traffic_ratio{model="meter-reader"}'] == 0.25
    assert metrics['instar_serve_swaps_total{model="meter-reader",outcome="ok"}'] == 1
    info = f'instar_serve_model_info{{digest="{one.digest}",model="meter-reader",version="1"}}'
    assert metrics[info] == 1


def test_applying_twice_is_applying_once(forge, served, kit):
    plane, tiny = served
    table = plane.plane.keeper.table
    assert plane.admin.apply(kit.deployment(1, stable=(1, tiny))).status_code == 200
    assert plane.plane.keeper.table is table
    assert plane.metrics()['instar_serve_swaps_total{model="meter-reader",outcome="ok"}'] == 1


def test_a_promoted_newcomer_keeps_its_session(forge, served, kit):
    plane, one = served
    two = forge.tiny(seed=2)
    plane.admin.apply(kit.deployment(2, stable=(1, one), newcomer=(2, two), share=0.5))
    table = plane.plane.keeper.table
    answer = plane.admin.apply(kit.deployment(3, stable=(2, two), previous=(1, one)))
    assert answer.json()["stable"]["generation"] == 2
    assert plane.plane.keeper.table.stable.session is table.newcomer.session
    # A rollback names old bytes under a new number, and loads nothing.
    plane.admin.apply(kit.deployment(4, stable=(3, one)))
    assert plane.plane.keeper.table.stable.session is table.stable.session
    assert plane.infer(kit.digits(1)).json()["model_version"] == "3"


def test_a_slot_that_keeps_its_number_counts_on(forge, served, kit):
    plane, one = served
    two = forge.tiny(seed=2)

    def counted() -> dict[str, int]:
        told = plane.http.get(f"/v2/models/{kit.model}/stats").json()["model_stats"]
        return {each["version"]: each["inference_count"] for each in told}

    plane.infer(kit.digits(1))
    plane.admin.apply(kit.deployment(2, stable=(1, one), newcomer=(2, two), share=0.01)).raise_for_status()
    plane.infer(kit.digits(1), version=2)
    assert counted() == {"1": 1, "2": 1}
    plane.admin.apply(kit.deployment(3, stable=(1, one), newcomer=(2, two), share=1.0)).raise_for_status()
    assert counted() == {"1": 1, "2": 1}
    # The same bytes under several numbers: each has its own counts.
    back = kit.deployment(4, stable=(2, two), newcomer=(3, one), share=0.01, previous=(1, one))
    plane.admin.apply(back).raise_for_status()
    assert counted() == {"2": 1, "3": 0}
    plane.infer(kit.digits(1), version=3)
    plane.admin.apply(kit.deployment(5, stable=(3, one), previous=(2, two))).raise_for_status()
    assert counted() == {"3": 1}


def test_what_cannot_be_proven_is_refused_and_nothing_changes(forge, served, kit):
    plane, one = served
    spoiled, foreign = forge.tiny(seed=3, spoil="golden"), forge.tiny(seed=4, model="other")
    corrupt, missing = forge.tiny(seed=5), forge.tiny(seed=6)
    forge.put(corrupt.digest, corrupt.raw + b"x")
    forge.put(missing.digest, b"").unlink()
    cases = [(spoiled, "gap of"), (foreign, "'other'"), (corrupt, "altered"), (missing, "stage it again")]
    for tiny, reason in cases:
        assert_refused(plane, kit.deployment(2, stable=(2, tiny)), reason)
        assert_refused(plane, kit.deployment(2, stable=(1, one), newcomer=(2, tiny), share=0.1), reason)
    assert plane.metrics()['instar_serve_swaps_total{model="meter-reader",outcome="refused"}'] == 8
    assert plane.infer(kit.digits(1)).json()["model_version"] == "1"
    # Negative control: sound bytes in the same place are taken.
    assert plane.admin.apply(kit.deployment(2, stable=(2, forge.tiny(seed=7)))).status_code == 200


def test_orders_out_of_order_or_malformed_are_refused(forge, served, kit):
    plane, one = served
    two = forge.tiny(seed=2)
    plane.admin.apply(kit.deployment(5, stable=(1, one)))
    assert_refused(plane, kit.deployment(4, stable=(1, one)), "expected a revision above 5, got 4")
    assert_refused(plane, kit.deployment(5, stable=(2, two)), "expected a revision above 5, got 5")
    assert_refused(plane, kit.deployment(6, stable=(1, two)), "never names other bytes")
    assert_refused(plane, kit.deployment(6, stable=(1, one), newcomer=(1, one)), "another generation")
    assert_refused(plane, kit.deployment(6, stable=(1, one), model="other"), "expected model 'meter-reader'")
    assert_refused(plane, b"{", "expected a deployment")
    assert_refused(plane, b"{}", "expected a deployment")
    assert_refused(plane, b"x" * (1 << 17), "at most 65536 bytes")
    assert plane.admin.client.get("/").status_code == 404


def test_another_contract_needs_another_model_name(forge, served, kit):
    plane, one = served
    for other in (forge.tiny(seed=2, side=14), forge.tiny(seed=2, datatype="FP32")):
        assert_refused(plane, kit.deployment(2, stable=(2, other)), "another model name")
        assert_refused(plane, kit.deployment(2, stable=(1, one), newcomer=(2, other)), "another model name")


def test_a_staged_newcomer_without_traffic_may_be_replaced_under_its_number(forge, served, kit):
    plane, one = served
    two, three = forge.tiny(seed=2), forge.tiny(seed=3)
    plane.admin.apply(kit.deployment(2, stable=(1, one), newcomer=(2, two), share=0.0))
    assert plane.infer(kit.digits(1), version=2).status_code == 404
    assert (
        plane.admin.apply(kit.deployment(3, stable=(1, one), newcomer=(2, three), share=0.5)).status_code
        == 200
    )
    assert plane.infer(kit.digits(1), version=2).status_code == 200
    assert_refused(plane, kit.deployment(4, stable=(1, one), newcomer=(2, two)), "never names other bytes")


def test_a_disk_that_refuses_the_record_keeps_the_old_model(forge, served, kit, monkeypatch):
    plane, _ = served
    two = forge.tiny(seed=2)

    def full(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(keeper, "persist", full)
        assert_refused(plane, kit.deployment(2, stable=(2, two)), "No space left")
    assert plane.admin.apply(kit.deployment(2, stable=(2, two))).status_code == 200


def test_a_previous_model_that_is_lost_does_not_stop_a_deployment(forge, served, kit):
    plane, one = served
    lost = forge.tiny(seed=9)
    forge.put(lost.digest, b"")
    observed = plane.admin.apply(kit.deployment(2, stable=(1, one), previous=(8, lost))).json()
    assert (observed["ready"], observed["previous"]) == (True, None)
    assert "altered" in observed["problem"]
    forge.put(lost.digest, lost.raw)
    healed = plane.admin.apply(kit.deployment(2, stable=(1, one), previous=(8, lost))).json()
    assert (healed["problem"], healed["previous"]["generation"]) == (None, 8)


def test_a_restart_restores_the_deployment(forge, thread, kit):
    one, two = forge.tiny(seed=1), forge.tiny(seed=2)
    plane = thread()
    before = plane.admin.apply(kit.deployment(3, (2, two), (3, one), 0.5, (1, one))).json()
    plane.stop()
    again = thread()
    assert again.admin.observed() == before
    assert again.infer(kit.digits(1), version=2).json()["model_version"] == "2"


@pytest.mark.parametrize("harm", ["stable", "newcomer", "file"])
def test_a_restart_never_serves_what_was_harmed(forge, thread, kit, harm):
    one, two = forge.tiny(seed=1), forge.tiny(seed=2)
    plane = thread()
    plane.admin.apply(kit.deployment(3, (1, one), (2, two), 0.5))
    plane.stop()
    if harm == "file":
        plane.settings.deployment.write_bytes(b'{"revision": 3')
    else:
        tiny = one if harm == "stable" else two
        forge.put(tiny.digest, tiny.raw[:-1])
    again = thread()
    observed = again.admin.observed()
    assert observed["problem"]
    assert observed["newcomer"] is None
    assert observed["ready"] is (harm == "newcomer")
    assert again.http.get("/v2/health/ready").status_code == (200 if harm == "newcomer" else 503)
    assert again.infer(kit.digits(1)).status_code == (200 if harm == "newcomer" else 503)
    # Control's remedy: put the bytes back and apply the same again.
    forge.put(one.digest, one.raw)
    forge.put(two.digest, two.raw)
    healed = again.admin.apply(kit.deployment(3, (1, one), (2, two), 0.5)).json()
    assert (healed["ready"], healed["problem"]) == (True, None)


def test_a_restart_without_memory_for_a_bundle_says_so_and_lives(forge, thread, kit, monkeypatch):
    plane = thread()
    plane.admin.apply(kit.deployment(3, (1, forge.tiny(seed=1)))).raise_for_status()
    plane.stop()

    def refuse(_name, _flags):
        raise OSError(errno.EMFILE, "planted")

    with monkeypatch.context() as patch:
        patch.setattr("daemon.serving.loading.os.memfd_create", refuse)
        again = thread()
    assert "planted" in again.admin.observed()["problem"]
    assert again.infer(kit.digits(1)).status_code == 503
    # Control's remedy: apply the same again.
    assert again.admin.apply(kit.deployment(3, (1, forge.tiny(seed=1)))).json()["ready"]


def mixed(answers, models) -> list[dict]:
    """Return the answers whose numbers are not those of the version that they name."""
    found = []
    for x, answer in answers:
        wanted = models[int(answer["model_version"]) % len(models)].expected(x)[0]
        logits = np.array(answer["outputs"][0]["data"]).reshape(wanted.shape)
        if not np.allclose(logits, wanted, atol=1e-3):
            found.append(answer)
    return found


def test_swaps_under_load_lose_nothing_and_mix_nothing(forge, thread, kit):
    models = [forge.tiny(seed=seed, width=8 + seed) for seed in range(3)]
    plane = thread()
    assert plane.admin.apply(kit.deployment(1, stable=(1, models[1]))).status_code == 200
    done = threading.Event()
    answers: list[list] = [[] for _ in range(4)]
    failures: list = []

    def client(number: int) -> None:
        with httpx.Client(base_url=plane.base, timeout=30.0) as http:
            while not done.is_set():
                x = kit.digits(1, seed=1000 * number + len(answers[number]))
                tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": x.tolist()}
                body = {"inputs": [tensor], "id": f"{number}/{len(answers[number])}"}
                try:
                    came = http.post("/v2/models/meter-reader/infer", json=body)
                    came.raise_for_status()
                    answers[number].append((x, came.json()))
                except httpx.HTTPError as error:
                    failures.append(error)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for each in clients:
        each.start()
    for generation in range(2, 24):
        # Every second step stages, and the next promotes: both kinds of swap.
        stable, newcomer = (
            (generation - 1, models[(generation - 1) % 3]),
            (generation, models[generation % 3]),
        )
        staged = kit.deployment(2 * generation, stable, newcomer, share=0.5)
        promoted = kit.deployment(2 * generation + 1, newcomer, previous=stable)
        assert [plane.admin.apply(step).status_code for step in (staged, promoted)] == [200, 200]
    done.set()
    for each in clients:
        each.join()
    assert not failures
    everything = [answer for part in answers for answer in part]
    assert len({answer["model_version"] for _, answer in everything}) >= 5
    assert not mixed(everything, models)
    ok = plane.metrics()['instar_serve_requests_total{model="meter-reader",outcome="ok"}']
    assert ok == len(everything)


def test_a_table_that_mixes_is_caught(forge, served, kit):
    """Negative control of the test above: a slot whose number and session disagree."""
    plane, one = served
    two = forge.tiny(seed=2)
    plane.admin.apply(kit.deployment(2, stable=(1, one), newcomer=(2, two), share=0.5))
    table = plane.plane.keeper.table
    x = kit.digits(1)
    models = [two, one]
    assert not mixed([(x, plane.infer(x, version=2).json())], models)
    torn = replace(table.newcomer, session=table.stable.session)
    plane.plane.keeper.table = Table("meter-reader", table.stable, torn, 1.0)
    assert mixed([(x, plane.infer(x, version=2).json())], models)
