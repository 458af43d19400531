"""The targets beside instar-serve: what lies in a repository, and what a server is asked."""

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.control.targets import layout, repository
from daemon.control.targets.choice import open_target, parse
from daemon.control.targets.proofs import Proofs
from daemon.control.targets.repository import RepositoryTarget
from daemon.control.targets.serve import ServeTarget
from daemon.control.targets.target import Observed, Unreachable
from daemon.control.targets.v2 import V2Target
from daemon.settings import ControlSettings
from daemon.store.blobs import Blobs
from policies.document import parse as parse_policy
from policies.errors import PermanentError, PolicyError
from policies.terms import Deployment, Slot
from tests.serving.conftest import MODEL, Forge, Tiny
from tests.simulator.host import EXAMPLE
from tests.simulator.v2server import V2Server


class Killed(BaseException):
    """The control plane dies here."""


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "state")


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], RepositoryTarget]:
    blobs = Blobs(tmp_path / "state" / "blobs")
    return lambda: RepositoryTarget(tmp_path / "models", MODEL, blobs, Proofs(blobs.root, MODEL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / MODEL


@pytest.fixture
def server(tmp_path: Path) -> Iterator[V2Server]:
    (tmp_path / "models").mkdir()
    made = V2Server(tmp_path / "models", MODEL)
    yield made
    made.stop()


@pytest.fixture
def v2(server: V2Server, make: Callable[[], RepositoryTarget]) -> Iterator[V2Target]:
    made = new_v2(server, make)
    yield made
    made.close()


def new_v2(server: V2Server, make: Callable[[], RepositoryTarget]) -> V2Target:
    target = make()
    return V2Target(target, server.url, MODEL, target._proofs)


def slot(generation: int, tiny: Tiny) -> Slot:
    return Slot(generation=generation, bundle=tiny.digest)


def deployment(
    revision: int,
    stable: Slot | None,
    newcomer: Slot | None = None,
    share: float = 0.0,
    previous: Slot | None = None,
) -> Deployment:
    return Deployment(
        revision=revision,
        model=MODEL,
        stable=stable,
        newcomer=newcomer,
        newcomer_share=share,
        previous=previous,
    )


def road(old: Slot, new: Slot) -> list[Deployment]:
    """Return a swap, from one live generation to the next."""
    return [
        deployment(1, old),
        deployment(2, old, new),
        deployment(3, old, new, 1.0),
        deployment(4, new, previous=old),
    ]


class TestChoice:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "serv",
            "repository:",
            "v2:/models",
            "v2:,http://h:1",
            "v2:/m,ftp://h",
            "v2:/m,http://",
            "serve:x",
        ],
    )
    def test_another_text_is_refused_with_the_three_forms(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected serve, repository:DIR or v2:DIR,URL"):
            parse(text)

    def test_a_password_in_the_url_is_refused_before_it_comes_into_a_log(self) -> None:
        with pytest.raises(ValueError, match="without user and password"):
            parse("v2:/models,http://ann:secret@host:1")

    def test_each_kind_says_what_it_can_do(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path / "blobs")
        shares = {}
        for text in ("serve", f"repository:{tmp_path}", f"v2:{tmp_path},http://127.0.0.1:1"):
            target = open_target(parse(text), MODEL, tmp_path / "s.sock", blobs)
            shares[text.partition(":")[0]] = (target.abilities.splits, target.abilities.spool)
            target.close()
        assert shares == {"serve": (True, True), "repository": (False, False), "v2": (False, False)}

    def test_a_policy_with_early_exits_is_refused_where_nobody_can_leave_early(self) -> None:
        policy = parse_policy((EXAMPLE / "policy.toml").read_text())
        ServeTarget.abilities.check(policy)
        with pytest.raises(PolicyError, match=r'exits\.confidence \(MP-8\): expected "off", got 0\.98'):
            RepositoryTarget.abilities.check(policy)

    def test_a_wrong_setting_stops_the_start_with_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        flags = ["--state", "s", "--task", "t", "--policy", "p", "--signers", "k"]
        assert ControlSettings.from_args(flags, {}).target == "serve"
        with pytest.raises(SystemExit) as stopped:
            ControlSettings.from_args([*flags, "--target", "triton"], {})
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert "--target: expected serve, repository:DIR or v2:DIR,URL, got 'triton'" in said


class TestRepository:
    def test_a_swap_shows_the_newcomer_only_once_it_has_traffic(
        self, make: Callable[[], RepositoryTarget], folder: Path, forge: Forge
    ) -> None:
        old, new = slot(1, forge.tiny(1)), slot(2, forge.tiny(2, width=9))
        target = make()
        visible = []
        for wanted in road(old, new):
            assert target.apply(wanted).matches(wanted)
            assert make().observed().matches(wanted), "a new start sees the same"
            visible.append(layout.versions(folder))
        assert visible == [[1], [1], [1, 2], [1, 2]]
        assert (folder / "2" / "model.onnx").read_bytes() == forge.tiny(2, width=9).raw
        target.apply(deployment(5, new))
        assert layout.versions(folder) == [2], "what nobody names is removed"

    def test_a_newcomer_that_is_taken_off_leaves_the_incumbent_on_top(
        self, make: Callable[[], RepositoryTarget], folder: Path, forge: Forge
    ) -> None:
        old, new = slot(1, forge.tiny(1)), slot(2, forge.tiny(2))
        target = make()
        for wanted in road(old, new)[:3]:
            target.apply(wanted)
        assert target.apply(deployment(4, old)).matches(deployment(4, old))
        assert layout.versions(folder) == [1]
        assert not (folder / layout.HIDDEN / "2").exists()

    def test_the_configuration_is_what_triton_reads_and_stays_as_people_leave_it(
        self, make: Callable[[], RepositoryTarget], folder: Path, forge: Forge
    ) -> None:
        target = make()
        target.apply(deployment(1, slot(1, forge.tiny(1))))
        assert (folder / "config.pbtxt").read_text() == (
            'name: "meter-reader"\n'
            'platform: "onnxruntime_onnx"\n'
            "max_batch_size: 0\n"
            "input [\n"
            '  { name: "image", data_type: TYPE_UINT8, dims: [ -1, 28, 28 ] }\n'
            "]\n"
            "output [\n"
            '  { name: "logits", data_type: TYPE_FP32, dims: [ -1, 10 ] },\n'
            '  { name: "embedding", data_type: TYPE_FP32, dims: [ -1, -1 ] }\n'
            "]\n"
            "version_policy: { latest { num_versions: 1 } }\n"
        )
        (folder / "config.pbtxt").write_text("tuned")
        target.apply(deployment(2, slot(2, forge.tiny(2))))
        assert (folder / "config.pbtxt").read_text() == "tuned"

    def test_a_split_of_the_traffic_is_refused(
        self, make: Callable[[], RepositoryTarget], forge: Forge
    ) -> None:
        with pytest.raises(PermanentError, match=r"share of 0 or 1, got 0\.2"):
            make().apply(deployment(1, slot(1, forge.tiny(1)), slot(2, forge.tiny(2)), 0.2))

    def test_an_early_exit_is_refused(self, make: Callable[[], RepositoryTarget], forge: Forge) -> None:
        wish = deployment(1, slot(1, forge.tiny(1))).model_copy(update={"exit_confidence": 0.9})
        with pytest.raises(PermanentError, match=r"no exit_confidence, got 0\.9"):
            make().apply(wish)

    def test_a_foreign_version_is_refused_and_left(
        self, make: Callable[[], RepositoryTarget], folder: Path, forge: Forge
    ) -> None:
        (folder / "9").mkdir(parents=True)
        with pytest.raises(PermanentError, match=r"only generations of this instard .* got \[9\]"):
            make().apply(deployment(1, slot(1, forge.tiny(1))))
        assert layout.versions(folder) == [9]

    def test_an_older_revision_is_refused(self, make: Callable[[], RepositoryTarget], forge: Forge) -> None:
        target = make()
        target.apply(deployment(5, slot(2, forge.tiny(2))))
        with pytest.raises(PermanentError, match="revision above 5, got 4"):
            target.apply(deployment(4, slot(1, forge.tiny(1))))

    @pytest.mark.parametrize("spoil", ["golden", "missing"])
    def test_bytes_that_do_not_prove_themselves_never_become_visible(
        self, make: Callable[[], RepositoryTarget], folder: Path, forge: Forge, spoil: str
    ) -> None:
        old = slot(1, forge.tiny(1))
        target = make()
        target.apply(deployment(1, old))
        bad = slot(2, forge.tiny(2, spoil=spoil))
        if spoil == "missing":
            forge.put(bad.bundle, b"other bytes")
        with pytest.raises(PermanentError):
            target.apply(deployment(2, old, bad))
        assert layout.versions(folder) == [1]
        assert target.observed().matches(deployment(1, old))

    def test_an_altered_file_is_seen_and_mended(
        self, make: Callable[[], RepositoryTarget], folder: Path, forge: Forge
    ) -> None:
        one = slot(1, forge.tiny(1))
        target = make()
        target.apply(deployment(1, one))
        path = folder / "1" / "model.onnx"
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        seen = target.observed()
        assert not seen.ready
        assert seen.problem is not None
        assert "altered" in seen.problem
        assert target.apply(deployment(2, one)).ready
        assert path.read_bytes() == raw

    def test_a_target_that_looked_at_names_only_would_miss_an_altered_file(
        self,
        make: Callable[[], RepositoryTarget],
        folder: Path,
        forge: Forge,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        one = slot(1, forge.tiny(1))
        target = make()
        target.apply(deployment(1, one))
        (folder / "1" / "model.onnx").write_bytes(b"other")
        monkeypatch.setattr(RepositoryTarget, "_whole", lambda self, term, *places: True)
        assert target.observed().ready, "the mutant is blind, and the test above would fail with it"

    def test_files_may_be_read_by_the_server_of_another_user(
        self, make: Callable[[], RepositoryTarget], folder: Path, forge: Forge
    ) -> None:
        make().apply(deployment(1, slot(1, forge.tiny(1))))
        assert stat.S_IMODE((folder / "1" / "model.onnx").stat().st_mode) & 0o044 == 0o044


def test_killed_at_any_step_there_is_always_a_right_generation_on_top_and_the_end_is_the_same(
    tmp_path: Path, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = slot(1, forge.tiny(1)), slot(2, forge.tiny(2))
    blobs = Blobs(tmp_path / "state" / "blobs")
    proofs = Proofs(blobs.root, MODEL)
    raws = {1: blobs.read(old.bundle), 2: blobs.read(new.bundle)}
    steps: list[int] = []

    def play(root: Path, strike: int | None) -> None:
        count = 0

        def struck(real: Callable[..., object]) -> Callable[..., object]:
            def stepped(*args: object, **named: object) -> object:
                nonlocal count
                if count == strike:
                    raise Killed
                count += 1
                return real(*args, **named)

            return stepped

        with monkeypatch.context() as patch:
            patch.setattr(repository, "persist", struck(repository.persist))
            patch.setattr(repository, "_sync", struck(repository._sync))
            patch.setattr(repository.shutil, "rmtree", struck(repository.shutil.rmtree))
            patch.setattr(RepositoryTarget, "_move", staticmethod(struck(RepositoryTarget._move)))
            for wanted in [*road(old, new), deployment(5, new)]:
                RepositoryTarget(root, MODEL, blobs, proofs).apply(wanted)
        steps.append(count)

    play(tmp_path / "whole", None)
    assert steps[0] > 25
    for strike in range(steps[0]):
        root = tmp_path / f"strike-{strike}"
        with pytest.raises(Killed):
            play(root, strike)
        found = layout.versions(root / MODEL)
        record = RepositoryTarget(root, MODEL, blobs, proofs).record()
        assert found or record is None or record.former is None, "once served, never nothing"
        if found:
            top = (root / MODEL / str(found[-1]) / "model.onnx").read_bytes()
            assert top == raws[found[-1]], f"half a model is visible after step {strike}"
        fresh = RepositoryTarget(root, MODEL, blobs, proofs)
        for wanted in [*road(old, new), deployment(5, new)]:
            fresh.apply(wanted.model_copy(update={"revision": wanted.revision + 10}))
        assert layout.versions(root / MODEL) == [2]
        assert sorted(p.name for p in (root / MODEL / layout.HIDDEN).iterdir()) == ["deployment.json"]


class TestV2:
    def test_a_swap_loads_when_the_traffic_changes_and_never_unloads(
        self, v2: V2Target, server: V2Server, forge: Forge
    ) -> None:
        served = []
        for wanted in road(slot(1, forge.tiny(1)), slot(2, forge.tiny(2))):
            assert v2.apply(wanted).matches(wanted)
            assert server.loaded is not None
            served.append(server.loaded[0])
        assert served == ["1", "1", "2", "2"]
        assert sum(call.endswith("/load") for call in server.calls) == 2
        assert not any(call.endswith("/unload") for call in server.calls)

    def test_a_server_that_answers_wrongly_gets_the_former_generation_back(
        self, v2: V2Target, server: V2Server, forge: Forge
    ) -> None:
        old, new = slot(1, forge.tiny(1)), slot(2, forge.tiny(2))
        server.lies.add("2")
        v2.apply(deployment(1, old))
        v2.apply(deployment(2, old, new))
        with pytest.raises(PermanentError, match=r"expected logits of golden 0 .* a gap of 0\.5"):
            v2.apply(deployment(3, old, new, 1.0))
        assert server.loaded is not None
        assert server.loaded[0] == "1"
        assert v2.observed().stable == old
        assert v2.observed().ready

    def test_a_target_that_asked_no_golden_rows_would_believe_the_liar(
        self, v2: V2Target, server: V2Server, forge: Forge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.lies.add("1")
        monkeypatch.setattr(V2Target, "_wrong", lambda self, top, proof: None)
        assert v2.apply(deployment(1, slot(1, forge.tiny(1)))).ready, "the mutant is blind"

    def test_a_refused_load_leaves_what_was_served_and_can_be_asked_again(
        self, v2: V2Target, server: V2Server, forge: Forge
    ) -> None:
        old, new = slot(1, forge.tiny(1)), slot(2, forge.tiny(2))
        v2.apply(deployment(1, old))
        server.refuse_load.add("2")
        wish = deployment(2, old, new, 1.0)
        for _ in range(2):
            with pytest.raises(PermanentError, match="does not load here"):
                v2.apply(wish)
            assert server.versions() == [1]
            assert v2.observed().stable == old
        server.refuse_load.clear()
        assert v2.apply(wish).matches(wish)

    def test_the_first_generation_that_is_refused_leaves_nothing_visible(
        self, v2: V2Target, server: V2Server, forge: Forge
    ) -> None:
        server.refuse_load.add("1")
        with pytest.raises(PermanentError):
            v2.apply(deployment(1, slot(1, forge.tiny(1))))
        assert server.versions() == []
        assert not v2.observed().ready

    def test_killed_between_showing_and_loading_the_next_start_goes_on_and_knows_the_way_back(
        self, v2: V2Target, server: V2Server, make: Callable[[], RepositoryTarget], forge: Forge
    ) -> None:
        old, new = slot(1, forge.tiny(1)), slot(2, forge.tiny(2))
        v2.apply(deployment(1, old))
        v2._repository.prepare(deployment(2, new, previous=old))
        v2._repository.show(deployment(2, new, previous=old))
        again = new_v2(server, make)
        seen = again.observed()
        assert not seen.ready
        assert seen.problem is not None
        assert "expected generation 2" in seen.problem
        server.refuse_load.add("2")
        with pytest.raises(PermanentError):
            again.apply(deployment(3, new, previous=old))
        assert again.observed().stable == old
        server.refuse_load.clear()
        assert again.apply(deployment(4, new, previous=old)).stable == new
        again.close()

    def test_a_server_that_names_no_versions_is_asked_at_every_look(
        self, v2: V2Target, server: V2Server, forge: Forge
    ) -> None:
        server.names_versions = False
        v2.apply(deployment(1, slot(1, forge.tiny(1))))
        before = sum(call.endswith("/infer") for call in server.calls)
        server.lies.add("1")
        assert not v2.observed().ready
        assert sum(call.endswith("/infer") for call in server.calls) == before + 1

    def test_a_model_that_is_lost_behind_our_back_is_seen_and_loaded_again(
        self, v2: V2Target, server: V2Server, forge: Forge
    ) -> None:
        one = slot(1, forge.tiny(1))
        v2.apply(deployment(1, one))
        server.loaded = None
        assert not v2.observed().ready
        assert v2.apply(deployment(2, one)).ready

    @pytest.mark.parametrize("status", [503, 502])
    def test_a_server_that_is_not_there_yet_is_unreachable_and_nothing_changes(
        self, v2: V2Target, server: V2Server, forge: Forge, status: int
    ) -> None:
        one = slot(1, forge.tiny(1))
        server.status = status
        with pytest.raises(Unreachable):
            v2.apply(deployment(1, one))
        assert server.versions() == []
        server.status = None
        assert v2.apply(deployment(1, one)).ready

    def test_a_server_that_reads_another_repository_is_told(
        self, v2: V2Target, server: V2Server, forge: Forge, tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        server._repository = tmp_path / "elsewhere"
        with pytest.raises(PermanentError, match="in the index of"):
            v2.apply(deployment(1, slot(1, forge.tiny(1))))

    def test_a_deployment_of_nothing_unloads(self, v2: V2Target, server: V2Server, forge: Forge) -> None:
        v2.apply(deployment(1, slot(1, forge.tiny(1))))
        v2.apply(deployment(2, None))
        assert server.loaded is None
        assert server.versions() == []


def test_another_confidence_is_another_wish() -> None:
    wanted = Deployment(revision=1, model="m", stable=None, newcomer=None, newcomer_share=0.0, previous=None)
    observed = Observed(
        revision=1, stable=None, newcomer=None, previous=None, newcomer_share=0.0, ready=False
    )
    assert observed.matches(wanted)
    assert not observed.matches(wanted.model_copy(update={"exit_confidence": 0.9}))
