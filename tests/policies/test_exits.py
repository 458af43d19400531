"""What policy and bundle say of leaving early."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from policies.bundle import BundleMeta, Exit, Golden, check_task
from policies.clauses import Exits
from policies.document import parse
from policies.errors import PolicyError
from policies.terms import Augmentation, Datatype, Genome, Modality, Task, TensorSpec

ROOT = Path(__file__).parents[2]
PROFILE = (ROOT / "policies" / "profiles" / "default.toml").read_text()


def spec(name: str, *shape: int, datatype: Datatype = Datatype.FP32) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(-1, *shape))


def golden(kind: Any, exits: str | None = "") -> Golden:
    return Golden(kind=kind, rows=1, input_b64="", logits_b64="", embedding_b64="", exit_logits_b64=exits)


def bundle(**changes: Any) -> BundleMeta:
    facts: dict[str, Any] = {
        "format": 1,
        "task": "toy",
        "model": "toy",
        "genome": Genome(space="image", genes=(1,)),
        "input": spec("image", 4, 4, datatype=Datatype.UINT8),
        "outputs": (spec("logits", 2), spec("embedding", 3), spec("exit_logits", 2)),
        "classes": ("a", "b"),
        "brief": "b1",
        "seed": 1,
        "params": 1,
        "macs": 1,
        "goldens": (golden("clean"), golden("probe")),
        "exit": Exit(output="exit_logits", trunk=spec("middle", 8, 2, 2)),
    }
    return BundleMeta(**(facts | changes))


@pytest.fixture
def task() -> Task:
    return Task(
        name="toy",
        modality=Modality.IMAGE,
        model="toy",
        input=spec("image", 4, 4, datatype=Datatype.UINT8),
        classes=("a", "b"),
        group_parameter="group",
        sources=(),
        augmentation=Augmentation(),
    )


# -- the policy ----------------------------------------------------------------------------------------------


def test_a_policy_says_when_a_row_may_leave() -> None:
    assert parse(PROFILE).modification_protocol.exits.threshold == 0.98


def test_off_is_a_word_and_not_a_number() -> None:
    text = PROFILE.replace("confidence = 0.98", 'confidence = "off"')
    assert parse(text).modification_protocol.exits.threshold is None


@pytest.mark.parametrize("said", ["0.0", "1.01", "-0.5", '"on"', "true", '"0.98"', "[0.9]"])
def test_any_other_confidence_is_refused_in_one_sentence(said: str) -> None:
    text = PROFILE.replace("confidence = 0.98", f"confidence = {said}")
    line = text.splitlines().index(f"confidence = {said}") + 1
    with pytest.raises(PolicyError) as refused:
        parse(text, "law")
    told = str(refused.value)
    assert told.startswith(f"law, line {line}: modification_protocol.exits.confidence (MP-8): ")
    assert 'expected a number in (0, 1], or the word "off"' in told
    assert "\n" not in told


def test_a_policy_that_says_nothing_of_exits_is_refused() -> None:
    text = PROFILE.replace('[modification_protocol.exits]\nclause = "MP-8"\nconfidence = 0.98\n', "")
    with pytest.raises(PolicyError, match=r"exits .*missing; a policy must say it, there is no default"):
        parse(text)


def test_a_whole_number_is_a_number() -> None:
    assert Exits(clause="MP-8", confidence=1).threshold == 1.0


# -- the bundle ----------------------------------------------------------------------------------------------


def test_a_bundle_with_an_exit_meets_its_task(task: Task) -> None:
    assert check_task(bundle(), task) is None


def test_a_bundle_of_before_there_were_exits_is_one_without(task: Task) -> None:
    text = bundle(
        outputs=(spec("logits", 2), spec("embedding", 3)),
        goldens=(golden("clean", None), golden("probe", None)),
        exit=None,
    ).model_dump(mode="json")
    del text["exit"]
    for one in text["goldens"]:
        del one["exit_logits_b64"]
    meta = BundleMeta.model_validate(text, strict=False)
    assert meta.exit is None
    assert check_task(meta, task) is None


@pytest.mark.parametrize(
    ("outputs", "wrong"),
    [
        ((spec("logits", 2), spec("embedding", 3)), "expected outputs logits, embedding, exit_logits"),
        (
            (spec("logits", 2), spec("exit_logits", 2), spec("embedding", 3)),
            "expected outputs logits, embedding, exit_logits",
        ),
        (
            (spec("logits", 2), spec("embedding", 3), spec("exit_logits", 3)),
            r"expected an exit of FP32 \(-1, 2\)",
        ),
    ],
)
def test_an_exit_that_is_not_among_the_outputs_is_told(
    task: Task, outputs: tuple[TensorSpec, ...], wrong: str
) -> None:
    told = check_task(bundle(outputs=outputs), task)
    assert told is not None
    assert re.match(wrong, told)


def test_an_exit_that_nobody_declares_is_told(task: Task) -> None:
    told = check_task(bundle(exit=None, goldens=(golden("clean", None), golden("probe", None))), task)
    assert told is not None
    assert told.startswith("expected outputs logits, embedding, the bundle has logits, embedding, exit")


@pytest.mark.parametrize("changes", [{"exit": None}, {"goldens": (golden("clean"), golden("probe", None))}])
def test_goldens_and_bundle_agree_about_the_exit(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exit in every golden"):
        bundle(**changes)


@pytest.mark.parametrize(
    "trunk",
    [
        spec("middle", 8, datatype=Datatype.INT64),
        TensorSpec(name="middle", datatype=Datatype.FP32, shape=(1, 8)),
        TensorSpec(name="middle", datatype=Datatype.FP32, shape=(-1,)),
        spec("middle", 8, -1),
    ],
)
def test_a_trunk_is_a_batch_of_known_shape(trunk: TensorSpec) -> None:
    with pytest.raises(ValidationError, match="expected a trunk of FP32 or UINT8"):
        Exit(output="exit_logits", trunk=trunk)
