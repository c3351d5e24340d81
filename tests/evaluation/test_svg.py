"""Pictures as SVG: well-formed, complete, in the page's colours."""

from xml.etree import ElementTree

import pytest

from moe_adapt.evaluation.html import facts, page, table, verdict
from moe_adapt.evaluation.svg import _ticks, heat_map, line_chart


def svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])


def test_curves_have_a_line_each_and_stay_inside():
    drawn = line_chart(
        {"a < b": [(0, 1.0), (5, 3.0), (10, 2.0)], "one": [(4, 2.5)], "empty": []}, "step", "loss"
    )
    root = svg(drawn)
    (line,) = root.findall("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    assert len(points) == 3 and points[1][1] == min(y for _, y in points)
    assert all(0 <= x <= 480 and 0 <= y <= 230 for x, y in points)
    assert len(root.findall("circle")) == 1
    assert "a &lt; b" in drawn and "empty" not in drawn
    assert line_chart({}, "x", "y") == ""


@pytest.mark.parametrize(
    ("ends", "whole", "expected"),
    [
        ((0.0005, 0.0109), False, [0.002, 0.004, 0.006, 0.008, 0.01]),
        ((39.2, 103.0), False, [40, 60, 80, 100]),
        ((0.0, 26.0), True, [0, 5, 10, 15, 20, 25]),
        ((8.0, 9.0), True, [8, 9]),
        ((5.0, 5.0 + 1e-9), True, [5]),
    ],
)
def test_axes_have_round_numbers(ends, whole, expected):
    assert _ticks(*ends, whole=whole) == pytest.approx(expected)


def test_a_flat_curve_and_a_single_point_are_drawn():
    assert "NaN" not in line_chart({"flat": [(0, 2.0), (1, 2.0)]}, "x", "y")
    assert "circle" in line_chart({"point": [(0, 0.0)]}, "x", "y")


def test_marks_and_a_level_are_lines_inside_the_picture():
    root = svg(line_chart({"a": [(0, 1.0), (10, 2.0)]}, "x", "y", marks=(5, 20), level=3.0))
    upright, flat = (line for line in root.findall("line") if line.get("class") == "mark")
    assert upright.get("x1") == upright.get("x2") and 0 < float(upright.get("x1")) < 480
    assert flat.get("y1") == flat.get("y2") and 0 < float(flat.get("y1")) < 30


def test_a_heat_map_has_a_cell_for_each_value():
    root = svg(heat_map([[0.0, 0.5, 1.0], [0.2, 0.1, 0.0]], ["r1", "r2"], ["a", "b", "c"]))
    cells = root.findall("rect")
    assert len(cells) == 6
    assert float(cells[2].get("fill-opacity")) == 1.0 > float(cells[1].get("fill-opacity"))


def test_a_page_says_its_width_and_knows_the_dark():
    text = page("A & B", [verdict("x < y"), facts({"k": "<v>"})])
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert "A &amp; B" in text and "X &lt; y" in text and "&lt;v&gt;" in text


def test_the_best_value_of_a_column_is_bold():
    text = table(
        ["", "acc", "loss"], [["a", 0.5, 2.0], ["b", 0.75, 3.0], ["c", None, None]], {1: "max", 2: "min"}
    )
    assert text.count("class=best") == 2
    assert "<td class=best>0.750</td>" in text and "<td class=best>2.000</td>" in text
    assert "<td class=best>4 ± 1</td>" in table(["", "n"], [["a", "4 ± 1"], ["b", "3"]], bold={(0, 1)})


def test_options_in_a_verdict_are_not_broken_and_nothing_else_becomes_markup():
    shown = verdict("hold out more with --data.validation_fraction or --data.validation. <b> -- end")
    assert "<code>--data.validation_fraction</code> or <code>--data.validation</code>." in shown
    assert "&lt;b&gt; -- end" in shown and shown.startswith('<p class="verdict">Hold out')
