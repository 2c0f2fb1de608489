"""Line and dot charts as inline SVG text: no plotting library, colours from the page's style sheet.

A chart is a pure function of its series. Colours are CSS classes (``s0``, ``s1``, ...), so that one picture
serves light and dark pages; every series differs in dash or marker too, not in colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 32, 46
_MAX_POINTS = 160
_HUGE = 1e100  # larger values, and smaller ones on a log axis, are divergence and not drawn
_DASHES = ("", "7 4", "2 3", "10 3 2 3")
COLOURS = 8
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


#: style sheet of the charts; a page may use its colours --ink, --soft, --rule and --card too
STYLE = """
:root { color-scheme: light dark; --card: #ffffff; --ink: #1d2126; --soft: #5b6470; --rule: #dcdfe4;
  --s0: #0b62b0; --s1: #c2410c; --s2: #0f7b4f; --s3: #9c27a5; --s4: #8a6d00; --s5: #c2185b; --s6: #0e7490;
  --s7: #57534e; }
@media (prefers-color-scheme: dark) { :root { --card: #1b1f25; --ink: #e8eaed; --soft: #a2abb7;
  --rule: #343b45; --s0: #6cb4ff; --s1: #ff9a5c; --s2: #5fd6a0; --s3: #e29bea; --s4: #e5c454; --s5: #ff8fb6;
  --s6: #62d3e8; --s7: #c3bdb6; } }
.grid { stroke: var(--rule); stroke-width: 1; fill: none; } .tick { fill: var(--soft); font-size: 13px; }
.label { fill: var(--ink); font-size: 14px; } .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.mark { stroke: var(--card); stroke-width: 1; }
""" + "\n".join(
    f".line.s{k} {{ stroke: var(--s{k}); }} .mark.s{k} {{ fill: var(--s{k}); }}" for k in range(COLOURS)
)


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined by a line or drawn as dots; points that cannot be drawn are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    label: str
    log: bool = False


@dataclass(frozen=True)
class _Scale:
    """Map from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        share = (self._inner(value) - self._inner(self.low)) / (
            self._inner(self.high) - self._inner(self.low)
        )
        return self.start + share * (self.end - self.start)

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.log else value


def chart(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """SVG text of all ``series`` on common axes; empty when no point can be drawn."""
    drawn = [_drawable(one, x, y) for one in series]
    drawn = [one for one in drawn if one.x]
    if not drawn:
        return ""
    across = _scale([v for one in drawn for v in one.x], _LEFT, WIDTH - _RIGHT, x.log)
    up = _scale([v for one in drawn for v in one.y], HEIGHT - _BOTTOM, _TOP, y.log)
    parts = [_frame(across, up), _labels(x, y)]
    parts += [_curve(one, across, up) if one.joined else _dots(one, across, up) for one in drawn]
    name = escape(f"{y.label} against {x.label}", quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        + "".join(parts)
        + "</svg>"
    )


def standalone(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """The chart as a file of its own, with legend and style."""
    lines = [
        f"<g>{_dash_line(one, 10 + 22 * k)}{_mark(one.colour, 26, 10 + 22 * k)}"
        f'<text class="label" x="52" y="{15 + 22 * k}">{escape(one.label)}</text></g>'
        for k, one in enumerate(series)
    ]
    height = HEIGHT + 22 * len(lines) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif"><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="var(--card)"/>'
        f'<svg width="{WIDTH}" height="{HEIGHT}">{chart(series, x, y)}</svg>'
        f'<svg y="{HEIGHT + 5}">{"".join(lines)}</svg></svg>'
    )


def swatch(colour: int, *, joined: bool = True) -> str:
    """SVG of a legend entry."""
    if not joined:
        return f'<svg class="swatch" viewBox="0 0 28 12">{_mark(colour, 14, 6)}</svg>'
    line = f'<path class="line s{colour % COLOURS}" stroke-dasharray="{_dash(colour)}" d="M1 6H27"/>'
    return f'<svg class="swatch" viewBox="0 0 28 12">{line}</svg>'


def ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Round values in [low, high]: powers of ten (with 2 and 5 on short ranges), or 1-2-5 steps."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        wide = math.log10(high / low) > 2.2
        every = max(1, len(decades) // 6)
        values = (
            [10.0**k for k in decades if k % every == 0]
            if wide
            else [m * 10.0**k for k in decades for m in (1, 2, 5)]
        )
        return [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) <= 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _drawable(series: Series, x: Axis, y: Axis) -> Series:
    """The points of sane size (positive ones on a log axis), thinned to what a screen can show."""
    floor = [1 / _HUGE if axis.log else -_HUGE for axis in (x, y)]
    points = [
        (float(a), float(b))
        for a, b in zip(series.x, series.y, strict=True)
        if floor[0] < a < _HUGE and floor[1] < b < _HUGE
    ]
    stride = max(1, math.ceil(len(points) / _MAX_POINTS))
    kept = points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])
    return Series(series.label, [a for a, _ in kept], [b for _, b in kept], series.colour, series.joined)


def _scale(values: Sequence[float], start: float, end: float, log: bool) -> _Scale:
    """Scale over the values with a margin of 4 % on both sides."""
    low, high = min(values), max(values)
    if log:
        low, high = (low / 1.5, high * 1.5) if high / low < 1.2 else (low, high)
        margin = (high / low) ** 0.04
        return _Scale(low / margin, high * margin, start, end, log)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        width = max(abs(high) * 0.05, 1e-6)
        low, high = low - width, high + width
    margin = 0.04 * (high - low)
    return _Scale(low - margin, high + margin, start, end, log)


def _frame(across: _Scale, up: _Scale) -> str:
    """Grid lines and tick labels."""
    parts = []
    for value in ticks(across.low, across.high, log=across.log):
        at = across(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">'
            f"{tick_text(value)}</text>"
        )
    for value in ticks(up.low, up.high, log=up.log):
        at = up(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick_text(value)}</text>'
        )
    return "".join(parts)


def _labels(x: Axis, y: Axis) -> str:
    return (
        f'<text class="label" x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">'
        f"{escape(x.label)}</text>"
        f'<text class="label" x="2" y="17">{escape(y.label)}</text>'
    )


def tick_text(value: float) -> str:
    """Short text of a tick; far from 1 as a power of ten."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    factor = f"{float(mantissa):g}"
    return power if factor == "1" else f"{factor}·{power}"


def _curve(series: Series, across: _Scale, up: _Scale) -> str:
    points = [f"{across(a):.1f} {up(b):.1f}" for a, b in zip(series.x, series.y, strict=True)]
    line = (
        f'<path class="line s{series.colour % COLOURS}" stroke-dasharray="{_dash(series.colour)}" '
        f'd="M{"L".join(points)}"/>'
    )
    end = _mark(series.colour, across(series.x[-1]), up(series.y[-1]))
    return f"<g><title>{escape(series.label)}</title>{line}{end}</g>"


def _dash_line(series: Series, y: int) -> str:
    """Piece of the curve's line for a legend; nothing for marks alone."""
    if not series.joined:
        return ""
    return (
        f'<path class="line s{series.colour % COLOURS}" stroke-dasharray="{_dash(series.colour)}" '
        f'd="M8 {y}H44"/>'
    )


def _dots(series: Series, across: _Scale, up: _Scale) -> str:
    marks = [_mark(series.colour, across(a), up(b)) for a, b in zip(series.x, series.y, strict=True)]
    return f"<g><title>{escape(series.label)}</title>{''.join(marks)}</g>"


def _dash(colour: int) -> str:
    return _DASHES[colour % len(_DASHES)]


def _mark(colour: int, x: float, y: float) -> str:
    path = _MARKS[colour % len(_MARKS)](x, y)
    return f'<path class="mark s{colour % COLOURS}" d="{path}"/>'


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float], str]:
    def path(x: float, y: float) -> str:
        return "M" + "L".join(f"{x + a:.1f} {y + b:.1f}" for a, b in corners) + "Z"

    return path


def _circle(x: float, y: float) -> str:
    return f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z"


_MARKS: tuple[Callable[[float, float], str], ...] = (
    _circle,
    _polygon((-4, -4), (4, -4), (4, 4), (-4, 4)),
    _polygon((0, -5), (5, 4), (-5, 4)),
    _polygon((0, -5), (5, 0), (0, 5), (-5, 0)),
    _polygon((-5, -4), (5, -4), (0, 5)),
)
