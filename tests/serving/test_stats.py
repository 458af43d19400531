"""Statistics: counted as the extension has it, and added up right."""

from daemon.serving.stats import Stats


def test_a_fresh_slot_has_counted_nothing():
    told = Stats().told("m", "1")
    assert (told["name"], told["version"]) == ("m", "1")
    assert (told["inference_count"], told["execution_count"], told["last_inference"]) == (0, 0, 0)
    assert told["batch_stats"] == []
    assert {entry["count"] for entry in told["inference_stats"].values()} == {0}
    assert {entry["ns"] for entry in told["inference_stats"].values()} == {0}


def test_runs_and_requests_add_up():
    stats = Stats()
    stats.run(3, 0.25, 1.0)
    stats.request(True, 2, 2.0, 0.5, 1000.25)
    stats.request(True, 1, 3.0, 0.5, 1000.5)
    stats.run(1, 0.25, 0.5)
    stats.request(False, 1, 1.0, 0.25, 2000.0)
    told = stats.told("m", "7")
    assert told["inference_count"] == 3, "rows, not requests, and only those that were answered"
    assert told["execution_count"] == 2
    assert told["last_inference"] == 1_000_500, "a failure is no inference"
    times = told["inference_stats"]
    assert times["success"] == {"count": 2, "ns": 5_000_000_000}
    assert times["fail"] == {"count": 1, "ns": 1_000_000_000}
    assert times["queue"] == {"count": 3, "ns": 1_250_000_000}
    assert times["compute_input"] == {"count": 2, "ns": 500_000_000}
    assert times["compute_infer"] == {"count": 2, "ns": 1_500_000_000}
    assert times["cache_hit"] == times["cache_miss"] == {"count": 0, "ns": 0}
    assert [batch["batch_size"] for batch in told["batch_stats"]] == [1, 3]
    assert told["batch_stats"][1]["compute_infer"] == {"count": 1, "ns": 1_000_000_000}


def test_every_number_is_whole():
    stats = Stats()
    stats.run(1, 1e-7 / 3, 1e-5 / 7)
    stats.request(True, 1, 1e-5 / 3, 1e-6 / 3, 1.0009)

    def leaves(value):
        if isinstance(value, dict):
            return [leaf for each in value.values() for leaf in leaves(each)]
        if isinstance(value, list):
            return [leaf for each in value for leaf in leaves(each)]
        return [value]

    assert all(type(leaf) in (int, str) for leaf in leaves(stats.told("m", "1")))
