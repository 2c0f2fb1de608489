"""What the command line shows: progress on stderr, the comparison's table on stdout.

With rich and a terminal there are bars and colours, otherwise plain lines.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from liftopt.comparison import HEADINGS, Comparison, format_row, format_seconds
from liftopt.network import Network
from liftopt.solvers.result import Callback, Record


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Progress over a known number of fits, as :func:`liftopt.compare.compare` reports it."""
    if (rich := _rich()) is None or not sys.stderr.isatty():
        yield _progress_line
        return
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.SpinnerColumn(),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


@dataclass
class FitStatus:
    """What shows the progress of a fit, and afterwards the warnings that it gave."""

    callback: Callback | None
    notes: list[str] = field(default_factory=list)


@contextmanager
def fit_status(title: str) -> Iterator[FitStatus]:
    """Progress of one fit: what the history records say, while it runs; warnings as notes afterwards."""
    status = FitStatus(None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if (rich := _rich()) is None or not sys.stderr.isatty():
            print(f"fitting {title}", file=sys.stderr)
            yield status
        else:
            console = rich.console.Console(stderr=True)
            with console.status(rich.text.Text(title)) as line:
                status.callback = _updater(line, title, rich)
                yield status
    status.notes = list(dict.fromkeys(str(warning.message) for warning in caught))
    for text in status.notes:
        print(f"liftopt: note: {text}", file=sys.stderr)


def print_comparison(comparison: Comparison) -> None:
    """Notices, table and summary."""
    if (rich := _rich()) is None or not sys.stdout.isatty():
        print(comparison)
    else:
        rich.console.Console().print(_rich_table(comparison, rich))
    for text in (*comparison.summary, *comparison.notices):
        print(text)


def print_fit(network: Network, record: Mapping[str, Any]) -> None:
    """A trained network, its score after every stage, and where it is."""
    print(network)
    metric = record["metric"]
    for stage in record["stages"]:
        score, seconds = f"{stage['training_score']:.4f}", format_seconds(stage["cpu"])
        print(f"after {stage['name']}: training {metric} {score}, {seconds} CPU seconds")
    print(f"training {metric}: {record['training_score']:.4f}")
    print(f"model: {record['model']}")


def print_diagnosis(record: Mapping[str, Any]) -> None:
    """What :func:`liftopt.doctor.diagnose` found, as lines."""
    facts = record["environment"]
    print(f"liftopt {facts['liftopt']}, Python {facts['python']}, {facts['system']}, {facts['cores']} cores")
    for kind in ("required", "optional"):
        print(f"{kind}:", ", ".join(f"{name} {number or '–'}" for name, number in record[kind].items()))
    for pool in record["blas"]:
        print(f"BLAS: {pool['library']} {pool['version'] or ''}, threads outside of fits: {pool['threads']}")
    chosen = ", ".join(f"{name}={value}" for name, value in record["chosen_threads"].items())
    print(f"threads of a fit: {chosen or '1, unless told otherwise'}")
    found = ", ".join(record["data"]["sets"]) or "nothing yet"
    print(f"data: {record['data']['folder']} ({found})")
    for hint in record["hints"]:
        print(f"hint: {hint}")


def _updater(status: Any, title: str, rich: Any) -> Callback:
    def show(record: Record) -> bool:
        parts = [f"iteration {record.get('iteration', '?')}"]
        if isinstance(score := record.get("validation_score"), float):
            parts.append(f"validation score {score:.4f}")
        status.update(rich.text.Text(f"{title}: {', '.join(parts)}"))
        return False

    return show


def _rich_table(comparison: Comparison, rich: Any) -> Any:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    for row in comparison.rows:
        style = "bold" if row.method == comparison.reference else None
        table.add_row(*map(rich.text.Text, format_row(row, comparison)), style=style)
    return table


def _progress_line(done: int, total: int, what: str) -> None:
    print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True)


def _rich() -> Any:
    """The package rich with what is used of it, or None."""
    try:
        import rich.box
        import rich.console
        import rich.progress
        import rich.table
        import rich.text
    except ImportError:
        return None
    return rich
