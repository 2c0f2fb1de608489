"""The comparison as one HTML page: no script, no network, readable on a phone and in the dark.

Pure functions from a :class:`~liftopt.comparison.Comparison` to text. Everything that stems from the data is
escaped where it enters the page; the figures are inline SVG (:mod:`liftopt.svg`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from string import Template
from typing import NamedTuple

from liftopt.comparison import HEADINGS, Comparison, Run, format_row
from liftopt.solvers.result import Record
from liftopt.svg import STYLE, Axis, Series, chart, swatch

_RESIDUALS = ("stationarity", "primal", "dual", "gap", "residual", "change")
_SHOWN_BELOW = 0.15
_SECONDS = Axis("CPU seconds of the fit", log=True)


def render(comparison: Comparison) -> str:
    """The whole page."""
    return _PAGE.substitute(
        style=_STYLE,
        title=escape(f"{comparison.data}: liftopt comparison"),
        heading=escape(comparison.data),
        facts=escape(_facts(comparison)),
        notices="".join(f'<p class="notice">{escape(notice)}</p>' for notice in comparison.notices),
        summary="".join(f"<p>{escape(sentence)}</p>" for sentence in comparison.summary),
        table=_table(comparison),
        figures="".join(_figures(comparison)),
        protocol=_protocol(comparison),
        details=_details(comparison),
    )


def _facts(comparison: Comparison) -> str:
    s = comparison.settings
    classes = f", {s['n_classes']} classes" if s.get("n_classes") else ""
    hidden = " and ".join(str(width) for width in s["hidden_layer_sizes"])
    return (
        f"{s['n_train']:,} training and {s['n_test']:,} test rows, {s['n_features']:,} features{classes}; "
        f"hidden units: {hidden}; repeats: {s['repeats']}"
    )


def _table(comparison: Comparison) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in HEADINGS)
    body = []
    for row in comparison.rows:
        name, *cells = format_row(row, comparison)
        colour = swatch(comparison.methods.index(row.method), joined=False)
        numbers = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        kind = "reference" if row.method == comparison.reference else "stage" if row.stage else ""
        label = escape(name).replace("+", "+<wbr>")
        body.append(f'<tr class="{kind}"><th scope="row">{colour}&nbsp;{label}</th>{numbers}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def score_series(comparison: Comparison) -> list[Series]:
    """Test score against CPU seconds, one mark a run."""
    scale = _unit(comparison).scale
    return [
        Series(name, [r.cpu for r in runs], [scale * r.score for r in runs], colour, joined=False)
        for colour, name in enumerate(comparison.methods)
        if (runs := comparison.runs_of(name))
    ]


def score_axes(comparison: Comparison) -> tuple[Axis, Axis]:
    """The axes that belong to :func:`score_series`."""
    return _SECONDS, Axis(f"test {comparison.metric}{_unit(comparison).suffix}")


def _figures(comparison: Comparison) -> Iterable[str]:
    metric, unit = comparison.metric, _unit(comparison)
    colour = {name: index for index, name in enumerate(comparison.methods)}
    first = [runs[0] for name in comparison.methods if (runs := comparison.runs_of(name))]

    def curves(value: Callable[[Run], Sequence[float]]) -> list[Series]:
        return [Series(r.method, _times(r), value(r), colour[r.method]) for r in first]

    yield _figure(
        f"Test {metric} against fit time",
        "Every finished run is one mark. Up and to the left is better.",
        score_series(comparison),
        score_axes(comparison)[1],
    )
    yield _figure(
        f"Validation {metric} against time",
        "First repeat; each method on the rows it held out itself. The mark is where the fit ended. Scores "
        f"more than {_SHOWN_BELOW * unit.scale:g} below the best one are left out.",
        _near_the_best(curves(lambda run: [unit.scale * score for score in _validation_scores(run)]), unit),
        Axis(f"validation {metric}{unit.suffix}"),
    )
    yield _figure(
        "Convergence of the training objective",
        "First repeat. Methods minimise different objectives, so each is shown as the distance to its own "
        "lowest value, relative to the start. Recipes, which change the objective, are left out.",
        curves(_relative_objective),
        Axis("relative excess", log=True),
    )
    yield _figure(
        "Residuals",
        "First repeat. Largest optimality or feasibility residual that the method reports.",
        curves(lambda run: [_residual(record) for record in run.history]),
        Axis("largest residual", log=True),
    )


class _Unit(NamedTuple):
    """How scores are shown on an axis."""

    scale: float
    suffix: str


def _unit(comparison: Comparison) -> _Unit:
    return _Unit(100.0, ", %") if comparison.task == "classification" else _Unit(1.0, "")


def _figure(title: str, caption: str, series: Sequence[Series], y: Axis) -> str:
    picture = chart(series, _SECONDS, y)
    if not picture:
        return ""
    legend = "".join(
        f"<li>{swatch(one.colour, joined=one.joined)} {escape(one.label)}</li>"
        for one in series
        if any(math.isfinite(value) for value in one.y)
    )
    return (
        f"<figure><h3>{escape(title)}</h3>{picture}<ul class='legend'>{legend}</ul>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _near_the_best(series: Sequence[Series], unit: _Unit) -> list[Series]:
    """Low starts are blanked out: they would squeeze the part of the axis that matters."""
    floor = (
        max((y for one in series for y in one.y if math.isfinite(y)), default=0.0) - _SHOWN_BELOW * unit.scale
    )
    return [replace(one, y=[y if y >= floor else math.nan for y in one.y]) for one in series]


def _validation_scores(run: Run) -> list[float]:
    return [_number(record, "validation_score") for record in run.history]


def _times(run: Run) -> list[float]:
    return [_number(record, "cpu") for record in run.history]


def _relative_objective(run: Run) -> list[float]:
    """(f - min f) / (f_0 - min f), NaN where a record has no objective or stages have one each."""
    if len({record.get("stage") for record in run.history}) > 1:
        return [math.nan] * len(run.history)
    values = [_number(record, "objective", "loss") for record in run.history]
    known = [value for value in values if math.isfinite(value)]
    if not known or known[0] <= min(known):
        return [math.nan] * len(values)
    return [(value - min(known)) / (known[0] - min(known)) for value in values]


def _residual(record: Record) -> float:
    """Largest residual of a history record, NaN without one."""
    found = [_number(record, key) for key in record if key in _RESIDUALS or key.endswith("_residual")]
    return max(found, default=math.nan)


def _number(record: Record, *keys: str) -> float:
    """The first of ``keys`` that the record has, NaN without one."""
    value = next((record[key] for key in keys if key in record), math.nan)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _protocol(comparison: Comparison) -> str:
    s, e = comparison.settings, comparison.environment
    versions = ", ".join(f"{name} {number}" for name, number in e["versions"].items())
    lines = [
        "Every method had the same training rows and, where it has hidden layers, the same architecture. The "
        f"baselines were tuned: each candidate was fitted without {100 * s['validation_share']:.0f} % of the "
        "training rows and judged on those; the best one was fitted again on all of them. “Fit” is that last "
        "fit, “search” the tuning. The other methods ran with their defaults. Test rows were used once, for "
        "the score. The curves of the baselines stem from one more fit that held out rows, as the other "
        "methods do.",
        "Scores are means ± standard deviations over the repeats; times and sizes are medians. A small "
        "untimed fit loaded libraries and compiled kernels first.",
        f"{e['system']}, {e['cores']} cores, threads used: {e['threads']}; Python {e['python']}; {versions}.",
    ]
    if comparison.target is not None:
        lines.insert(
            2,
            f"“s to baseline”: CPU seconds until the validation {comparison.metric} first reached "
            f"{comparison.target:.4g}, the median over the repeats of the best of {comparison.reference}; a "
            "dash stands for methods that do not record it.",
        )
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _details(comparison: Comparison) -> str:
    """Collapsed lists: chosen parameters, and what the methods had to say."""
    chosen = [
        f"{run.method}, repeat {run.repeat + 1}: {_words(run.parameters)}"
        for run in comparison.runs
        if run.parameters
    ]
    grids = [
        f"{name}: {'; '.join(_words(candidate) for candidate in grid)}"
        for name, grid in comparison.settings["grids"].items()
    ]
    notes = dict.fromkeys(f"{run.method}: {note}" for run in comparison.runs for note in run.notes)
    return (
        _collapsed("Candidates of the baselines", grids)
        + _collapsed("Chosen by validation", chosen)
        + _collapsed("Warnings of the fits", list(notes))
    )


def _collapsed(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<details><summary>{escape(title)} ({len(items)})</summary><ul>{lines}</ul></details>"


def _words(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{key} = {json.dumps(value, default=str)}" for key, value in parameters.items())


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header><p class="over">liftopt comparison</p><h1>$heading</h1><p class="facts">$facts</p></header>
$notices
<section class="summary">$summary</section>
$table
<section class="figures">$figures</section>
<section class="protocol"><h2>How it was measured</h2>$protocol$details</section>
</main>
</body>
</html>
""")

_STYLE = (
    STYLE
    + """
:root { --page: #fbfaf8; --tint: #f1f3f6; --notice: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --tint: #242a32; --notice: #40351a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; } h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .4rem 0; } .over { margin: 0; color: var(--soft); font-size: .9rem; }
.facts { color: var(--soft); }
.notice { background: var(--notice); border-radius: 6px; padding: .5rem .75rem; overflow-wrap: anywhere;
}
.summary { margin: 1rem 0; max-width: 46rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--rule); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); font-weight: 600; }
tr.stage td, tr.stage th:first-child { border-top: 0; padding-top: 0; color: var(--soft); font-weight: 400; }
tr.stage th:first-child { padding-left: 3.1rem; } tr.stage .swatch { display: none; }
tr.reference td, tr.reference th:first-child { background: var(--tint); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1rem;
  margin: 1.25rem 0; }
figure { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
figcaption { color: var(--soft); font-size: .88rem; }
.chart { display: block; width: 100%; height: auto; }
.swatch { width: 28px; height: 12px; vertical-align: baseline; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; margin: .5rem 0;
  font-size: .88rem; }
details { margin: .5rem 0; } summary { cursor: pointer; } li { overflow-wrap: anywhere; }
.protocol { max-width: 46rem; font-size: .95rem; }
@media (max-width: 34rem) { .tick { font-size: 20px; } .label { font-size: 20px; } figure { padding: .75rem; }
  th, td { padding: .5rem; } th:first-child { min-width: 8.75rem; white-space: normal; }
  tr.stage th:first-child { padding-left: 1.75rem; } table .swatch { width: 14px; } }
"""
)
