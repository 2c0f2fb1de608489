import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftopt.svg import HEIGHT, WIDTH, Axis, Series, chart, standalone, swatch, tick_text, ticks

POSITIVE = st.floats(1e-12, 1e12)
ANY = st.floats(allow_nan=True, allow_infinity=True)


def numbers(svg):
    """All coordinates of the marks and lines."""
    root = ET.fromstring(svg)
    paths = [p.get("d", "") for p in root.iter("path") if "line" in p.get("class", "")]
    return [float(x) for d in paths for pair in d[1:].split("L") for x in pair.split()]


@given(st.lists(st.tuples(ANY, ANY), max_size=30), st.booleans(), st.booleans())
def test_any_data_gives_well_formed_svg_inside_its_box(points, log_x, log_y):
    x, y = [p[0] for p in points], [p[1] for p in points]
    text = chart([Series("s", x, y, 0)], Axis("x", log_x), Axis("y", log_y))
    if text:
        assert all(0 <= value <= max(WIDTH, HEIGHT) for value in numbers(text))


def test_points_that_cannot_be_drawn_are_left_out():
    assert chart([Series("s", [0.0, -1.0], [1.0, 2.0], 0)], Axis("x", log=True), Axis("y")) == ""
    assert chart([Series("s", [math.nan], [1.0], 0)], Axis("x"), Axis("y")) == ""
    assert chart([], Axis("x"), Axis("y")) == ""


def test_long_curves_are_thinned_and_keep_their_end():
    n = 10_001
    text = chart([Series("s", range(n), range(n), 0)], Axis("x"), Axis("y"))
    drawn = numbers(text)
    assert len(drawn) < 2 * 200
    assert max(drawn[::2]) == pytest.approx(drawn[-2])


def test_labels_are_escaped():
    text = chart([Series("<i>&", [1], [1], 0)], Axis("a<b"), Axis('"q"'))
    ET.fromstring(text)
    assert "<i>" not in text


def test_series_differ_without_colour():
    marks = {swatch(k, joined=False).split("d=")[1] for k in range(5)}
    assert len(marks) == 5
    assert swatch(0) != swatch(1)


@given(POSITIVE, st.floats(1.2, 1e15))
def test_log_ticks_are_inside_and_few(low, ratio):
    values = ticks(low, low * ratio, log=True)
    assert all(low * 0.999 <= v <= low * ratio * 1.001 for v in values)
    assert len(values) <= 10


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_linear_ticks_are_inside_and_few(low, width):
    values = ticks(low, low + width)
    assert 2 <= len(values) <= 7
    slack = 1e-6 * width
    assert all(low - slack <= v <= low + width + slack for v in values)


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (0, "0"), (1e-5, "10⁻⁵"), (2e6, "2·10⁶"), (1000.0, "1000")]
)
def test_tick_text(value, text):
    assert tick_text(value) == text


def test_standalone_picture_has_its_legend_and_style():
    text = standalone([Series("one", [1.0, 2.0], [1.0, 3.0], 0)], Axis("x"), Axis("y"))
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme" in text
    assert [t.text for t in root.iter() if t.text == "one" and t.tag.endswith("}text")] == ["one"]
