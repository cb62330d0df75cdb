"""The small pictures: where numbers land, and what is left out."""

from __future__ import annotations

import math
import re

import pytest

from xreasoner.reporting import svg


def test_bars_stand_where_their_numbers_say() -> None:
    picture = svg.bars("image/general", [svg.Bar("a", 0.5, 0.4, 0.6, 0.25, 2), svg.Bar("b", 1.0, 0.9, 1.0, None, 3)])
    half, whole = re.findall(r'<rect class="bar t\d" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', picture)
    assert [float(n) for n in whole] == [22.0, 130.0]
    assert [float(n) for n in half] == [87.0, 65.0]
    (blind,) = re.findall(r'class="blind"[^>]* y1="([\d.]+)"', picture)
    assert float(blind) == 152 - 130 / 4
    assert "a 50.0 % (40.0 to 60.0), blind floor 25.0 %; b 100.0 % (90.0 to 100.0)" in picture


def test_names_are_escaped() -> None:
    bar = svg.Bar("<b>&", 0.5, 0.4, 0.6, None, 0)
    line = svg.Line("<i>", 0, [(1, 1.0), (2, 2.0)])
    for picture in (svg.bars('"><script>', [bar]), svg.curves("<x>", [line]), svg.stacked("<x>", [line])):
        assert not re.search(r"<(b|i|x|script)>", picture)


def test_a_strip_is_hollow_where_it_is_not_distinguishable() -> None:
    sure, unsure = (svg.strip(0.1, 0.2, 0.3, (0.0, 0.4), sure, 3) for sure in (True, False))
    assert 'cx="50.00%"' in sure
    assert 'x1="25.00%" x2="75.00%"' in sure
    assert "hollow" in unsure
    assert "hollow" not in sure


def test_ticks_are_round() -> None:
    assert svg.ticks(0, 1, 3) == [0, 0.5, 1]
    assert svg.ticks(-7, 93, 5) == [0, 20, 40, 60, 80]
    assert svg.ticks(0, 4e-4, 3) == [0, 2e-4, 4e-4]
    assert svg.ticks(2, 2, 3) == [2]


def test_numbers_are_short() -> None:
    assert [svg.number(n) for n in (0, -5, 0.25, 2e-4, 6500.0, 1e-6)] == ["0", "−5", "0.25", "2e−4", "6500", "1e−6"]


def test_thinning_keeps_means_and_drops_what_is_no_number() -> None:
    points = [(float(step), 2.0 * step) for step in range(1, 1001)] + [(1001.0, math.nan), (1002.0, math.inf)]
    thin = svg.thin(points, 100)
    assert len(thin) == 100
    assert thin[0] == (5.5, 11.0)
    assert math.isclose(sum(y for _, y in thin) / 100, 1001.0)


def test_smoothing_keeps_a_straight_line() -> None:
    points = [(float(step), 3.0 * step) for step in range(101)]
    assert all(math.isclose(y, 3 * x) for x, y in svg.smooth(points)[10:-10])


def test_curves_survive_odd_series() -> None:
    assert svg.curves("none", [svg.Line("a", 0, [])]) == ""
    for points in ([(1, 0.0)], [(1, 5.0), (2, 5.0)], [(1, -1.0), (2, -3.0)], [(3, 1.0), (3, 1.0)]):
        numbers = re.findall(r'points="([^"]+)"', svg.curves("odd", [svg.Line("a", 0, points)]))
        assert numbers
        assert all(0 <= float(n) <= svg.WIDTH for pair in numbers for n in re.split("[ ,]", pair))


def test_stacked_shares_fill_the_panel() -> None:
    lines = [svg.Line("natural", 2, [(1, 0.75), (2, 0.5)]), svg.Line("forced", 4, [(1, 0.25), (2, 0.5)])]
    outlines = re.findall(r'<polygon class="area t\d" points="([^"]+)"', svg.stacked("Exits", lines))
    heights = [[float(point.split(",")[1]) for point in outline.split()] for outline in outlines]
    assert heights[1][:2] == [10.0, 10.0]
    assert heights[0][:2] == heights[1][:1:-1] == [33.5, 57.0]


def test_a_budget_curve_puts_budgets_on_a_logarithmic_axis() -> None:
    points = [
        {"budget": b, "accuracy": a, "low": a - 0.1, "high": a + 0.1, "without_exit": a / 2}
        for b, a in ((16, 0.2), (64, 0.5), (256, 0.5))
    ]
    picture = svg.budget_curve("cell", [("sft", 2, points)])
    whole, cut = re.findall(r'polyline class="mean( cut)? t2" points="([^"]+)"', picture)
    xs = [float(point.split(",")[0]) for point in whole[1].split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    heights = [104 - float(point.split(",")[1]) for point in whole[1].split()]
    assert heights == pytest.approx([94 * 0.2, 94 * 0.5, 94 * 0.5], abs=0.06)
    assert [104 - float(point.split(",")[1]) for point in cut[1].split()] == pytest.approx(
        [h / 2 for h in heights], abs=0.06
    )
    assert picture.count('class="whisker t2"') == 3
    assert "sft: 16 tokens 20.0 %, 64 tokens 50.0 %" in picture
    assert svg.budget_curve("cell", [("sft", 2, points[:1])])  # one budget does not divide by nothing


def test_the_rules_picture_marks_guesses_and_empty_replies() -> None:
    rules = [
        {"rule": "ours", "score": 0.5, "guessed": 0.0, "read": 0.5, "empty": 0.0},
        {"rule": "a <b>", "score": 0.75, "guessed": 0.5, "read": 0.25, "empty": 0.25},
    ]
    picture = svg.rules("choice", {"error": 0.1, "rules": rules})
    (band,) = re.findall(r'class="band" x="([\d.]+)" y="2" width="([\d.]+)"', picture)
    assert [float(number) for number in band] == pytest.approx([92 + 158 * 0.4, 158 * 0.2], abs=0.06)
    assert re.findall(r'class="dot t(\d)( hollow)?" cx="([\d.]+)"', picture) == [
        ("2", "", "171.0"), ("1", " hollow", "131.5"), ("3", "", "210.5")
    ]  # fmt: skip
    assert picture.count('class="empty"') == 1
    assert "a &lt;b&gt;" in picture
    assert "<b>" not in picture
