"""What the command line shows: progress on stderr, the comparison's table on stdout.

With rich and a terminal there are bars and colours, otherwise plain lines.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from liftopt.comparison import HEADINGS, Comparison, format_row
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


@contextmanager
def fit_status(title: str) -> Iterator[Callback | None]:
    """Progress of one fit: what the history records say, while it runs; warnings as notes afterwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if (rich := _rich()) is None or not sys.stderr.isatty():
            print(f"fitting {title}", file=sys.stderr)
            yield None
        else:
            console = rich.console.Console(stderr=True)
            with console.status(rich.text.Text(title)) as status:
                yield _updater(status, title, rich)
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"liftopt: note: {text}", file=sys.stderr)


def print_comparison(comparison: Comparison) -> None:
    """Notices, table and summary."""
    if (rich := _rich()) is None or not sys.stdout.isatty():
        print(comparison)
    else:
        rich.console.Console().print(_rich_table(comparison, rich))
    for text in (*comparison.summary, *comparison.notices):
        print(text)


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
