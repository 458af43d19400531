"""What genomes cost: tables against sums over layers, and the profile that they are made from."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from policies.errors import PermanentError, TamperError
from policies.terms import Limits
from policies.wire import canonical
from search import profile as device
from search.bounds import Bounds, median_ceiling_ms, nearest
from search.costs import Costs
from search.pace import BATCH, pace
from search.profile import Profile, entry_key, key, measure, read_profile, refitted, sum_us
from search.space import Space
from tests.search import worlds
from tests.search.worlds import BARS, BOTH, CLOUDS, ROOMY, WAVES

_PACE = (1e-10, 1e-3, 2e-3)


@pytest.fixture(params=[BARS, WAVES, CLOUDS], ids=lambda world: world.task.modality, scope="module")
def space(request) -> Space:
    return request.param.space(BOTH)


@pytest.fixture(scope="module")
def table() -> Space:
    return CLOUDS.space(BOTH)


def test_a_population_is_priced_as_its_blueprints_are(space):
    profile = worlds.stated_profile(space)
    costs = Costs(space, profile)
    genes = space.sample(np.random.default_rng(0), 80)
    blueprints = [space.blueprint(row) for row in genes]
    np.testing.assert_array_equal(costs.params(genes), [one.params for one in blueprints])
    np.testing.assert_array_equal(costs.macs(genes), [one.macs for one in blueprints])
    full = genes.copy()
    full[:, -1] = 0
    sums = np.array([sum_us(one, profile.blocks_us, profile.entries_us) for one in blueprints])
    offset, slope = profile.line
    np.testing.assert_allclose(costs.latency_ms(full), offset + slope * sums / 1000)


def test_int8_is_priced_by_its_own_line(space):
    genes = space.sample(np.random.default_rng(0), 40)
    layers = [len(space.blueprint(row).convs) for row in genes]
    costs = Costs(space, worlds.stated_profile(space, int8_line=(0.0, 1.0, 0.0, 0.0, 0.5)))
    full, int8 = genes.copy(), genes.copy()
    full[:, -1], int8[:, -1] = 0, 1
    np.testing.assert_allclose(costs.latency_ms(int8), np.array(layers) + 0.5)
    assert (costs.latency_ms(full) < 1).all()
    assert (costs.size_bytes(int8) < costs.size_bytes(full)).mean() > 0.5
    assert (costs.memory_bytes(int8) * 4 == costs.memory_bytes(full)).all()


def test_a_device_whose_profile_knows_no_int8_prices_it_in_full_precision(space):
    costs = Costs(space, worlds.stated_profile(space, int8_line=None))
    genes = space.sample(np.random.default_rng(0), 10)
    full = genes.copy()
    full[:, -1] = 0
    np.testing.assert_array_equal(costs.latency_ms(genes), costs.latency_ms(full))


def test_energy_is_what_the_processor_draws_for_the_time(space):
    genes = space.sample(np.random.default_rng(0), 10)
    costs = Costs(space, worlds.stated_profile(space, watts=3.0))
    np.testing.assert_allclose(costs.energy_mj(genes), 3.0 * costs.latency_ms(genes))


def test_a_larger_network_costs_no_less(space):
    costs = Costs(space, worlds.stated_profile(space))
    ends = np.stack([space.smallest, space.largest])
    for price in (costs.latency_ms, costs.params, costs.macs, costs.size_bytes, costs.memory_bytes):
        cheap, dear = price(ends)
        assert cheap < dear


def _measured(space: Space, clock: Callable[[], float], told: list[int] | None = None) -> Profile:
    return measure(space, clock, _PACE, 0, lambda done, _: (told if told is not None else []).append(done))


def test_blocks_are_timed_by_the_clock_that_is_given_the_best_run_counts_and_an_empty_one_is_taken_off():
    """A clock whose n-th reading is n squared: each run takes longer than the one before."""
    reading = itertools.count()
    told: list[int] = []
    space = CLOUDS.space()
    profile = _measured(space, lambda: float(next(reading) ** 2), told)
    # The k-th run takes 4 k + 1 seconds; 100 empty ones come first, and each block has 12.
    count = len({key(block) for block in space.blocks()})
    wanted = [(4 * (100 + 12 * block) + 1 - 1) * 1e6 for block in range(count)]
    assert list(profile.blocks_us.values()) == wanted
    assert told[0] == 0
    assert (profile.seconds_per_mac, profile.seconds_per_net, profile.seconds_per_step) == _PACE
    assert profile.int8_line is None


def test_a_profile_is_measured_for_all_parts_and_both_precisions_and_survives_its_file(table):
    reading = itertools.count()
    profile = _measured(table, lambda: next(reading) ** 2 * 1e-9)
    assert set(profile.blocks_us) == {key(block) for block in table.blocks()}
    assert set(profile.entries_us) == {entry_key(entry) for entry in table.entries()}
    assert profile.line[0] >= 0
    assert profile.line[1] > 0
    assert profile.int8_line is not None
    assert len(profile.int8_line) == 5
    assert min(profile.int8_line) >= 0
    assert read_profile(canonical(profile), table) == profile


def test_lines_that_are_fitted_anew_are_those_that_there_were(table):
    """No line for int8 where none was measured: prices would rest on what the brief does not allow."""
    for before in (None, (0.4, 0.001, 0.001, 0.001, 0.01)):
        old = worlds.stated_profile(table, int8_line=before)
        reading = itertools.count()
        new = refitted(old, table, lambda reading=reading: next(reading) ** 2 * 1e-9, 0)
        assert (new.int8_line is None) is (before is None)
        assert new.line != old.line
        assert before is None or new.int8_line != before
        same = {"line": old.line, "int8_line": old.int8_line}
        assert new.model_copy(update=same) == old


def test_a_profile_of_another_space_or_lacking_a_block_is_refused(table):
    profile = worlds.stated_profile(table)
    lacking = dict(list(profile.blocks_us.items())[1:])
    for bad in (
        worlds.stated_profile(BARS.space()),
        profile.model_copy(update={"blocks_us": lacking}),
        profile.model_copy(update={"entries_us": {}}),
    ):
        with pytest.raises(TamperError, match=r"lacks \d+; take the profile away"):
            read_profile(canonical(bad), table)
    with pytest.raises(TamperError, match="format 1"):
        read_profile(b"{}", table)


class _Counter:
    """Stands in for the processor's counter of microjoules."""

    def __init__(self, *readings: int) -> None:
        self._readings = iter(readings)

    def read_text(self) -> str:
        return f"{next(self._readings)}\n"


def test_energy_falls_back_to_the_stated_model_where_nothing_counts_joules(tmp_path, monkeypatch):
    space = CLOUDS.space()
    monkeypatch.setattr(device, "_RAPL", tmp_path / "nothing")
    without = _measured(space, worlds.ticking(1e-4))
    assert (without.watts, without.energy) == (10.0, "model")
    wrapped = tmp_path / "energy_uj"
    wrapped.write_text("7\n")
    monkeypatch.setattr(device, "_RAPL", wrapped)
    assert _measured(space, worlds.ticking(1e-4)).energy == "model"


def test_energy_is_read_where_the_processor_counts_it(monkeypatch):
    monkeypatch.setattr(device, "_RAPL", _Counter(1_000_000, 1_000_000 + 4_001 * 250))
    # 2000 runs are timed between two readings of the clock: 4001 ticks.
    profile = _measured(CLOUDS.space(), worlds.ticking(1e-3))
    assert profile.energy == "rapl"
    assert profile.watts == pytest.approx(0.25)


def test_the_pace_is_a_line_through_a_small_step_one_of_three_subnets_and_a_large_one(table):
    """A clock by which these take one, two and three seconds; the first step of each takes longer."""
    times = iter([9.0, 1.0, 1.0, 1.0, 1.0, 9.0, 2.0, 2.0, 2.0, 2.0, 9.0, 3.0, 3.0, 3.0, 3.0])
    now, opened = [0.0], [False]

    def cpu() -> float:
        opened[0] = not opened[0]
        if not opened[0]:
            now[0] += next(times)
        return now[0]

    found = pace(table, CLOUDS.task.augmentation, cpu, 0)
    small, large = (table.blueprint(genes).macs * BATCH for genes in (table.smallest, table.largest))

    def step_s(subnets: int, products: int) -> float:
        return found.per_step + subnets * found.per_net + products * found.per_mac

    assert step_s(1, small) == pytest.approx(1.0)
    assert step_s(3, 3 * small) == pytest.approx(2.0)
    assert step_s(1, large) == pytest.approx(3.0)


def test_what_serving_adds_counts_against_the_absolute_limit_only():
    limits = ROOMY.model_copy(update={"max_p99_ms": 10.0})
    assert median_ceiling_ms(limits, None) == 5.0
    assert median_ceiling_ms(limits, None, overhead_ms=2.0) == 3.0
    assert median_ceiling_ms(limits, 0.5) == median_ceiling_ms(limits, 0.5, overhead_ms=2.0)
    with pytest.raises(PermanentError, match="serving alone takes 5 ms"):
        median_ceiling_ms(limits, 0.5, overhead_ms=5.0)


def _bounds(space: Space, limits: Limits, parent=None, *, int8: bool = True) -> Bounds:
    costs = Costs(space, worlds.stated_profile(space))
    return Bounds(space, limits, costs, median_ceiling_ms(limits, None), parent, int8)


def test_a_parent_beyond_the_limits_is_led_back_within_the_edit_distance(space):
    params = space.blueprint(space.largest).params
    tight = ROOMY.model_copy(update={"max_params": params // 2, "max_edit_distance": 3})
    bounds = _bounds(space, tight, space.largest)
    found = nearest(bounds)
    assert bounds.violation(found[None])[0] == 0
    assert 0 < space.distance(found[None], space.largest)[0] <= 3
    none = tight.model_copy(update={"max_edit_distance": 0})
    with pytest.raises(PermanentError, match=r"and 0 genes.*widen the limits"):
        nearest(_bounds(space, none, space.largest))


def test_each_limit_alone_makes_a_violation(space):
    genes = space.largest[None]
    assert _bounds(space, ROOMY).violation(genes)[0] == 0
    costs = Costs(space, worlds.stated_profile(space))
    for field, value in (
        ("max_params", int(costs.params(genes)[0]) - 1),
        ("max_size_bytes", int(costs.size_bytes(genes)[0])),
        ("max_p99_ms", float(costs.latency_ms(genes)[0])),
    ):
        assert _bounds(space, ROOMY.model_copy(update={field: value})).violation(genes)[0] > 0, field
    near = ROOMY.model_copy(update={"max_edit_distance": 2})
    assert _bounds(space, near, space.smallest).violation(genes)[0] > 0
    int8 = space.smallest
    int8[-1] = 1
    assert _bounds(space, ROOMY).violation(int8[None])[0] == 0
    assert _bounds(space, ROOMY, int8=False).violation(int8[None])[0] > 0


def test_a_search_takes_a_profile_that_it_is_given_and_measures_none(tabled, tmp_path):
    brief = worlds.founding_brief(CLOUDS, tmp_path)
    given = (tmp_path / "device.json").read_bytes()
    assert brief.profile == worlds.artefact(tmp_path / "device.json")
    assert Path(tabled.out / "profile.json").read_bytes() == given
    assert "profile" not in tabled.result.phases_s
