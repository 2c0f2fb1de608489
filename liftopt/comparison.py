"""What a comparison measured, as a value: the runs, the table made from them, and the JSON record.

:func:`liftopt.compare.compare` makes it; everything shown to a reader (text table, HTML report, JSON) is
computed from it and from nothing else.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from liftopt.methods import Task
from liftopt.network import write_atomically
from liftopt.solvers.result import Record


@dataclass(frozen=True)
class StageRun:
    """A recipe after one of its methods: the test score, and the seconds since the recipe began."""

    name: str
    score: float
    wall: float
    cpu: float
    n_parameters: int | None = None
    nbytes: int | None = None


@dataclass(frozen=True)
class Run:
    """One fit of one method on one split, judged on rows it has not seen.

    Attributes
    ----------
    method : str
        Name of the entrant.
    repeat : int
        Which split, or seed.
    score : float
        Test accuracy or R2.
    wall, cpu : float
        Seconds of the fit.
    search_wall, search_cpu : float
        Seconds of the selection.
    validation_score : float or None
        What ``parameters`` were chosen by; None: nothing to choose.
    parameters : mapping
        The chosen ones.
    n_parameters, nbytes : int or None
        Size of the trained network.
    n_iter : int or None
        Iterations of the fit.
    history : sequence of mapping
        Its records.
    notes : sequence of str
        The warnings it gave.
    stages : sequence of StageRun
        Those of a recipe.
    """

    method: str
    repeat: int
    score: float
    wall: float
    cpu: float
    search_wall: float = 0.0
    search_cpu: float = 0.0
    validation_score: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    n_parameters: int | None = None
    nbytes: int | None = None
    n_iter: int | None = None
    history: Sequence[Record] = ()
    notes: Sequence[str] = ()
    stages: Sequence[StageRun] = ()

    def seconds_to(self, target: float) -> float:
        """CPU seconds until the history's ``validation_score`` first reached ``target``; inf if never."""
        for record in self.history:
            if record.get("validation_score", -math.inf) >= target:
                return float(record["cpu"])
        return math.inf

    @property
    def best_validation_score(self) -> float:
        """Highest ``validation_score`` of the history; -inf without one."""
        return max((record.get("validation_score", -math.inf) for record in self.history), default=-math.inf)


@dataclass(frozen=True)
class Row:
    """One line of the table: a method over its finished repeats (times and sizes are medians).

    ``stage``: the line shows a recipe after that method; recipes have one such line a method but the last.
    """

    method: str
    runs: int
    score: float
    spread: float
    cpu: float
    wall: float
    search_cpu: float
    n_parameters: float | None
    nbytes: float | None
    seconds_to_target: float | None = None
    stage: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Outcome of :func:`liftopt.compare.compare`.

    Attributes
    ----------
    data : str
        Name of the data.
    task : {"classification", "regression"}
        What is scored: accuracy, or R2.
    methods : tuple of str
        All entrants in the order of the table.
    baselines : tuple of str
        Those of them that are tuned back-propagation.
    runs : tuple of Run
        The finished ones.
    skipped, failed : mapping of str to str
        Method to reason: an extra is missing, or the fit raised.
    interrupted : bool
        Whether Ctrl-C ended the comparison before all planned runs were done.
    settings, environment : mapping
        Protocol and sizes; machine, versions and threads.
    """

    data: str
    task: Task
    methods: tuple[str, ...]
    baselines: tuple[str, ...]
    runs: tuple[Run, ...]
    skipped: Mapping[str, str]
    failed: Mapping[str, str]
    interrupted: bool
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """What ``score`` is."""
        return "accuracy" if self.task == "classification" else "R²"

    def runs_of(self, method: str) -> list[Run]:
        """Finished runs of ``method``."""
        return [run for run in self.runs if run.method == method]

    @property
    def reference(self) -> str | None:
        """The baseline with the best mean validation score (never chosen by the test score)."""
        scores = {
            name: fmean(seen)
            for name in self.baselines
            if (seen := [r.validation_score for r in self.runs_of(name) if r.validation_score is not None])
        }
        return max(scores, key=scores.__getitem__, default=None)

    @property
    def target(self) -> float | None:
        """Median over repeats of the best validation score in the reference's histories."""
        if self.reference is None:
            return None
        best = [run.best_validation_score for run in self.runs_of(self.reference)]
        middle = median(best)
        return middle if math.isfinite(middle) else None

    @property
    def rows(self) -> tuple[Row, ...]:
        """The table: a row for every method that finished a run, after it those of a recipe's stages."""
        target = self.target
        found = [(name, self.runs_of(name)) for name in self.methods]
        return tuple(row for name, runs in found if runs for row in _summaries(name, runs, target))

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader must know before reading the table: what is missing from it, and why."""
        found = []
        if self.interrupted:
            planned = self.settings["repeats"] * len(self.methods)
            found.append(
                f"Interrupted. Finished runs: {len(self.runs)} of {planned}; the table is made from these."
            )
        found += [f"{name} was skipped: {reason}" for name, reason in self.skipped.items()]
        found += [f"{name} failed: {reason}" for name, reason in self.failed.items()]
        return tuple(found)

    @property
    def summary(self) -> tuple[str, ...]:
        """The outcome in sentences, losses against the tuned baseline included."""
        rows = {row.method: row for row in self.rows if row.stage is None}
        if not rows:
            return ("No run was finished.",)
        best = max(rows.values(), key=lambda row: row.score)
        sentences = [
            f"Highest mean test {self.metric}: {best.method}, {self._words(best)} in "
            f"{format_seconds(best.cpu)} CPU seconds."
        ]
        if (name := self.reference) is None:
            return tuple(sentences)
        base = rows[name]
        sentences.append(
            f"Best tuned baseline on validation: {name}, {self._words(base)} in {format_seconds(base.cpu)} "
            f"CPU seconds, after {format_seconds(base.search_cpu)} of tuning."
        )
        others = [row for row in rows.values() if row.method not in self.baselines]
        strongest = max((rows[name] for name in self.baselines if name in rows), key=lambda row: row.score)
        if behind := [row for row in others if row.score < strongest.score]:
            losses = ", ".join(f"{row.method} (by {self._difference(strongest, row)})" for row in behind)
            sentences.append(f"Behind {strongest.method} on the test rows: {losses}.")
        return tuple(sentences)

    def _words(self, row: Row) -> str:
        return format_score(row.score, row.spread, self)

    def _difference(self, better: Row, worse: Row) -> str:
        gap = better.score - worse.score
        return f"{100 * gap:.2f} points" if self.task == "classification" else f"{gap:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record of everything; non-finite numbers are the strings inf, -inf and nan."""
        computed = {"metric": self.metric, "reference": self.reference, "target": self.target}
        table = [asdict(row) for row in self.rows]
        plain: dict[str, Any] = _jsonable({**asdict(self), **computed, "table": table})
        return plain

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` to ``path``, atomically."""
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1).encode())

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report (one file, no network needed) to ``path``, atomically."""
        from liftopt.report import render

        write_atomically(Path(path), render(self).encode())

    def __str__(self) -> str:
        cells = [HEADINGS, *(format_row(row, self) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


HEADINGS = (
    "method", "test score", "fit CPU s", "fit wall s", "search CPU s", "parameters", "size", "s to baseline"
)  # fmt: skip


def format_row(row: Row, comparison: Comparison) -> tuple[str, ...]:
    """The cells of one row as text, in the order of ``HEADINGS``."""
    return (
        row.method if row.stage is None else f"  after {row.stage}",
        format_score(row.score, row.spread, comparison),
        format_seconds(row.cpu),
        format_seconds(row.wall),
        format_seconds(row.search_cpu) if row.search_cpu else "–",
        "–" if row.n_parameters is None else f"{row.n_parameters:,.0f}",
        "–" if row.nbytes is None else format_bytes(row.nbytes),
        "–" if row.seconds_to_target is None else format_seconds(row.seconds_to_target),
    )


def format_score(score: float, spread: float, comparison: Comparison) -> str:
    """Mean and spread: per cent for accuracy, three decimals for R2; no spread for a single run."""
    if comparison.task == "classification":
        return f"{100 * score:.2f} %" if math.isnan(spread) else f"{100 * score:.2f} ± {100 * spread:.2f} %"
    return f"{score:.4f}" if math.isnan(spread) else f"{score:.4f} ± {spread:.4f}"


def format_seconds(seconds: float) -> str:
    """Seconds to three digits; a target never reached says so."""
    if math.isinf(seconds):
        return "not reached"
    if seconds >= 100:
        return f"{seconds:.0f}"
    return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3f}"


def format_bytes(size: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _summaries(method: str, runs: Sequence[Run], target: float | None) -> list[Row]:
    """The row of a method, and for a recipe one after each of its methods but the last."""
    followed = target is not None and any(math.isfinite(run.best_validation_score) for run in runs)
    whole = replace(
        _summary(method, runs),
        search_cpu=median(run.search_cpu for run in runs),
        seconds_to_target=median(run.seconds_to(target) for run in runs)
        if target is not None and followed
        else None,
    )
    stages = zip(*(run.stages[:-1] for run in runs), strict=True)
    return [whole, *(replace(_summary(method, stage), stage=stage[0].name) for stage in stages)]


def _summary(method: str, runs: Sequence[Run] | Sequence[StageRun]) -> Row:
    scores = [run.score for run in runs]
    return Row(
        method,
        len(runs),
        fmean(scores),
        stdev(scores) if len(scores) > 1 else math.nan,
        median(run.cpu for run in runs),
        median(run.wall for run in runs),
        0.0,
        _median_known([run.n_parameters for run in runs]),
        _median_known([run.nbytes for run in runs]),
    )


def _median_known(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def _jsonable(value: Any) -> Any:
    """Plain JSON types; NaN and infinities, which JSON does not have, become strings."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return repr(value)
