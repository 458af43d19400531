"""What the data plane says of itself is true of the table that it is asked about."""

from dataclasses import replace

import pytest

from daemon.serving import description
from daemon.serving.pace import Pace
from daemon.serving.refusals import NotReady, Unknown
from daemon.serving.slot import build
from daemon.serving.stats import Stats
from daemon.serving.table import Table

MODEL = "meter-reader"


@pytest.fixture
def one(forge):
    slot = build(forge.state / "blobs", MODEL, 1, forge.tiny().digest, 8)
    return replace(slot, pace=Pace(1e-5, 1e-6, frozenset({1, 2, 8})))


@pytest.fixture
def table(one):
    return Table(MODEL, one, one.renumbered(2), 0.25, one.renumbered(3))


def test_a_slot_is_found_by_name_and_version_or_refused(table):
    assert description.slot_of(table, MODEL, None) is table.stable
    assert description.slot_of(table, MODEL, "2") is table.newcomer
    with pytest.raises(Unknown, match="expected model 'meter-reader', got 'other'"):
        description.slot_of(table, "other", None)
    for version in ("3", "9", "01", "", "x" * 500):
        with pytest.raises(Unknown, match=r"expected a version among \['1', '2'\]"):
            description.slot_of(table, MODEL, version)
    for version in (None, "1"):
        with pytest.raises(NotReady):
            description.slot_of(Table(MODEL), MODEL, version)


def test_metadata_names_what_has_traffic(table):
    told = description.metadata(table, table.stable)
    assert told == {
        "name": MODEL,
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "embedding", "datatype": "FP32", "shape": [-1, 16]},
        ],
    }
    assert description.metadata(replace(table, share=0.0), table.stable)["versions"] == ["1"]


def test_the_configuration_says_what_may_share_a_run(table, one):
    told = description.configuration(table, table.stable, 32)
    assert told["max_batch_size"] == 32
    assert told["dynamic_batching"] == {"preferred_batch_size": [8], "max_queue_delay_microseconds": 0}
    assert told["version_policy"] == {"specific": {"versions": [1, 2]}}
    assert told["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [28, 28]}]
    assert told["parameters"]["instar.bundle"] == {"string_value": one.digest}


def states(table, ready_only=False, unloaded=False):
    index = description.index(table, ready_only, unloaded)
    assert all(set(each) == {"name", "version", "state", "reason"} for each in index)
    return [(each["version"], each["state"], each["reason"]) for each in index]


def test_the_index_tells_every_generation_and_why(table):
    assert states(table) == [
        ("1", "READY", ""),
        ("2", "READY", ""),
        ("3", "UNAVAILABLE", "kept warm for a rollback"),
    ]
    staged = replace(table, share=0.0)
    assert states(staged)[1] == ("2", "UNAVAILABLE", "staged, no traffic")
    assert states(staged, ready_only=True) == [("1", "READY", "")]
    rolled_back = replace(table, newcomer=None, previous=table.stable)
    assert states(rolled_back) == [("1", "READY", "")], "a generation stands there once"
    assert states(Table(MODEL)) == [("", "UNAVAILABLE", "no stable model")]
    assert states(Table(MODEL), unloaded=True) == [("", "UNAVAILABLE", "unloaded by a client")]
    assert states(Table(MODEL), ready_only=True) == []


def test_statistics_are_those_of_the_versions_that_were_asked_for(table):
    table.newcomer.stats.run(2, 0.0, 0.1)
    both = description.statistics(table, None)["model_stats"]
    assert [(each["version"], each["execution_count"]) for each in both] == [("1", 0), ("2", 1)]
    (pinned,) = description.statistics(table, "2")["model_stats"]
    assert pinned == both[1]
    with pytest.raises(Unknown):
        description.statistics(table, "3")


def test_the_server_says_what_it_offers():
    assert description.server("1.2")["extensions"] == list(description.EXTENSIONS)
    assert description.server("1.2")["version"] == "1.2"


def test_another_generation_counts_anew(one):
    one.stats.run(1, 0.0, 0.0)
    assert one.renumbered(2).stats.told(MODEL, "2") == Stats().told(MODEL, "2")
    assert one.stats.executions == 1
