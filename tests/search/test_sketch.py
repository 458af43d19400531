"""The picture of a search: what it shows, and that what it shows is so."""

import re
from xml.etree import ElementTree

import pytest

from policies.terms import Artefact, Genome, Point, Precision, SearchResult
from policies.wire import digest_bytes
from search.sketch import Axis, Mark, front, pareto_svg

SVG = "{http://www.w3.org/2000/svg}"
Place = tuple[float, float]

# Latency and accuracy; a later gene of 1 is int8. The third is beaten by the second, the fifth by the fourth.
PLACES: tuple[tuple[float, float, int], ...] = (
    (0.10, 0.80, 1),
    (0.20, 0.90, 0),
    (0.25, 0.85, 0),
    (0.40, 0.95, 1),
    (0.50, 0.95, 0),
)


def _result(places: tuple[tuple[float, float, int], ...], winner: int = 3) -> SearchResult:
    points = tuple(
        Point(
            genome=Genome(space="s", genes=(number, int8)),
            accuracy=accuracy,
            latency_ms=latency_ms,
            params=10,
            measured=True,
        )
        for number, (latency_ms, accuracy, int8) in enumerate(places)
    )
    file = Artefact(path="a", digest=digest_bytes(b""))
    return SearchResult(
        brief="b",
        seed=0,
        winner=points[winner].genome,
        bundle=file,
        state=file,
        archive=file,
        evidence=(),
        points=points,
        cpu_s=1.0,
        wall_s=1.0,
        architectures=77,
        versions={},
        phases_s={},
    )


def _precision(genome: Genome) -> Precision:
    return Precision.INT8 if genome.genes[-1] else Precision.FP32


def _drawn(result: SearchResult, incumbent: Mark | None = None, title: str = "t") -> str:
    return pareto_svg(result, _precision, incumbent, title)


def _dots(svg: str, radius: str = "4.5") -> tuple[list[Place], list[Place]]:
    """Return the middles of the round and the square dots, without those of the legend."""
    tree = ElementTree.fromstring(svg)
    round_ = [
        (float(one.attrib["cx"]), float(one.attrib["cy"]))
        for one in tree.iter(f"{SVG}circle")
        if one.attrib["r"] == radius
    ]
    square = [
        (float(one.attrib["x"]) + 4, float(one.attrib["y"]) + 4)
        for one in tree.iter(f"{SVG}rect")
        if one.attrib["width"] == "8"
    ]
    return [dot for dot in round_ if dot[1] > 60], [dot for dot in square if dot[1] > 60]


def _texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_point_is_a_dot_round_in_fp32_and_square_in_int8() -> None:
    round_, square = _dots(_drawn(_result(PLACES)))
    assert (len(round_), len(square)) == (3, 2)
    same = tuple((latency, accuracy, 0) for latency, accuracy, _ in PLACES)
    assert [len(dots) for dots in _dots(_drawn(_result(same)))] == [5, 0]


def test_faster_is_further_left_and_better_is_higher_up() -> None:
    round_, _ = _dots(_drawn(_result(PLACES)))
    second, third, fifth = round_
    assert second[0] < third[0] < fifth[0]
    assert fifth[1] < second[1] < third[1]


def test_the_front_holds_what_nothing_beats_and_a_tie_goes_to_the_faster() -> None:
    points = _result(PLACES).points
    assert front(points) == [points[0], points[1], points[3]]
    assert front(points[::-1]) == front(points)


def test_the_front_is_a_line_of_steps_that_never_falls() -> None:
    svg = _drawn(_result(PLACES))
    path = next(match for match in re.findall(r'd="(M[\d.]+ [\d.]+V[^"]*)"', svg) if match.count("V") == 3)
    heights = [float(height) for height in re.findall(r"V([\d.]+)", path)]
    assert heights == sorted(heights, reverse=True)
    assert len(heights) == 3


def test_winner_and_incumbent_are_pointed_out_and_without_an_incumbent_there_is_one_ring() -> None:
    svg = _drawn(_result(PLACES), Mark("incumbent", 0.82, 0.4))
    assert "winner: 0.9500 at 0.4 ms" in _texts(svg)
    assert "incumbent: 0.8200 at 0.4 ms" in _texts(svg)
    assert len(_dots(svg, "9")[0]) == 2
    alone = _drawn(_result(PLACES))
    assert not any("incumbent" in text for text in _texts(alone))
    assert len(_dots(alone, "9")[0]) == 1


def test_all_that_is_drawn_lies_within_the_frame_also_an_incumbent_that_is_far_off() -> None:
    for incumbent in (None, Mark("incumbent", 0.05, 90.0), Mark("incumbent", 1.0, 0.001)):
        for radius in ("4.5", "9"):
            for x, y in [dot for dots in _dots(_drawn(_result(PLACES), incumbent), radius) for dot in dots]:
                assert 78 <= x <= 736
                assert 78 <= y <= 418


def test_labels_of_two_that_are_close_do_not_cover_each_other() -> None:
    svg = _drawn(_result(PLACES), Mark("incumbent", 0.949, 0.401))
    heights = [
        float(one.attrib["y"])
        for one in ElementTree.fromstring(svg).iter(f"{SVG}text")
        if (one.text or "").startswith(("winner", "incumbent"))
    ]
    assert abs(heights[0] - heights[1]) >= 17


def test_a_wide_range_of_latency_is_drawn_by_its_logarithm_and_says_so() -> None:
    wide = (*PLACES, (5.0, 0.96, 0))
    assert any("logarithmic" in text for text in _texts(_drawn(_result(wide))))
    assert not any("logarithmic" in text for text in _texts(_drawn(_result(PLACES))))


def test_one_point_alone_can_be_drawn_and_none_is_refused() -> None:
    assert "winner: 0.8000 at 0.1 ms" in _texts(_drawn(_result(PLACES[:1], winner=0)))
    result = _result(PLACES)
    guessed = tuple(point.model_copy(update={"measured": False}) for point in result.points)
    with pytest.raises(ValueError, match="measured point in the result of b"):
        _drawn(result.model_copy(update={"points": guessed}))


def test_the_same_result_gives_the_same_text_and_a_title_is_never_read_as_markup() -> None:
    svg = _drawn(_result(PLACES), title="<b>a & b</b>")
    assert svg == _drawn(_result(PLACES), title="<b>a & b</b>")
    assert svg != _drawn(_result(PLACES[::-1], winner=1), title="<b>a & b</b>")
    assert "<b>a & b</b>" in _texts(svg)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("width", [1.001, 1.3, 7.0, 900.0])
def test_ticks_are_few_round_and_within(scale: float, width: float) -> None:
    for log in (False, True) if width > 5 else (False,):
        ticks = Axis(scale, scale * width, 0, 1, log=log).ticks()
        assert 2 <= len(ticks) <= 10
        assert all(scale * (1 - 1e-9) <= tick <= scale * width * (1 + 1e-9) for tick in ticks)
        assert all(len(f"{tick:.6g}".replace(".", "").strip("0")) <= 5 for tick in ticks)
