"""The command line: ``liftopt compare``, ``liftopt fit``, ``liftopt predict``.

Exit codes: 0 done, 1 the input or the outcome is at fault (one line on stderr says why), 2 wrong usage,
130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from liftopt import __version__
from liftopt.methods import METHODS

DONE, FAILED, INTERRUPTED = 0, 1, 130

_EXAMPLES = """examples:
  liftopt compare digits                              every method and tuned Adam on the digits data
  liftopt compare train.csv --target label            the same on your own table
  liftopt compare mnist --methods manifold --hidden 512 --json mnist.json
  liftopt fit train.csv --target label --method manifold --out model.safetensors
  liftopt predict model.safetensors new.csv --out predictions.csv
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default those of the process.

    Raises
    ------
    SystemExit
        From argparse: code 2 on wrong usage, 0 after ``--help`` and ``--version``.
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except KeyboardInterrupt:
        print("liftopt: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"liftopt: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="liftopt",
        description="Neural networks trained as structured optimisation problems.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"liftopt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_compare(commands)
    _add_fit(commands)
    _add_predict(commands)
    return parser


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare every method with tuned Adam on one data set",
        description="Compare every method with tuned Adam: same data, same architecture. "
        "Ctrl-C keeps the finished runs.",
    )
    _add_data(parser)
    parser.add_argument(
        "--methods",
        type=_method_names,
        metavar="NAME[,NAME]",
        help=f"methods beside the baselines, of: {', '.join(METHODS)} (default: all)",
    )
    parser.add_argument("--repeats", type=_count, default=3, metavar="N", help="splits or seeds (default: 3)")
    parser.add_argument(
        "--threads",
        type=_count,
        default=1,
        metavar="N",
        help="threads of the numerical libraries (default: 1)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("liftopt-report.html"),
        metavar="FILE",
        help="HTML report to write (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured as JSON"
    )
    parser.set_defaults(command=_compare)


def _add_fit(commands: Any) -> None:
    parser = commands.add_parser(
        "fit", help="train one network and save it", description="Train one network on all rows and save it."
    )
    _add_data(parser)
    parser.add_argument("--method", choices=list(METHODS), default="manifold", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="model file (.safetensors)")
    parser.set_defaults(command=_fit)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="apply a saved network to a table",
        description="Apply a saved network to the rows of a CSV file; columns are matched by name.",
    )
    parser.add_argument("model", type=Path, help="file written by liftopt fit")
    parser.add_argument("table", type=Path, help="CSV file with the columns of the training table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV file to write (default: print)")
    parser.set_defaults(command=_predict)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="name (digits, iris, mnist, ...), or a CSV, NPZ or IDX file")
    parser.add_argument("--target", metavar="COLUMN", help="column to predict (CSV files)")
    parser.add_argument(
        "--task", choices=["classification", "regression"], help="default: seen from the target's values"
    )
    parser.add_argument(
        "--hidden", type=_widths, default=(300,), metavar="N[,N]", help="hidden layer sizes (default: 300)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")


def _method_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"unknown method {unknown[0]!r}, choose from {', '.join(METHODS)}")
    return names


def _widths(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def _compare(arguments: argparse.Namespace) -> int:
    from liftopt.compare import compare
    from liftopt.console import print_comparison, progress_bar
    from liftopt.data import load

    for path in (arguments.report, arguments.json):
        _check_writable(path)
    data = load(arguments.data, target=arguments.target, task=arguments.task)
    with progress_bar() as progress:
        comparison = compare(
            data,
            methods=arguments.methods,
            hidden_layer_sizes=arguments.hidden,
            repeats=arguments.repeats,
            random_state=arguments.seed,
            threads=arguments.threads,
            progress=progress,
        )
    print_comparison(comparison)
    comparison.save_html(arguments.report)
    print(f"report: {arguments.report.resolve()}")
    if arguments.json is not None:
        comparison.save_json(arguments.json)
        print(f"json: {arguments.json.resolve()}")
    if comparison.interrupted:
        return INTERRUPTED
    return DONE if comparison.runs else FAILED


def _fit(arguments: argparse.Namespace) -> int:
    from liftopt.console import fit_status
    from liftopt.data import load
    from liftopt.entrants import Entrant
    from liftopt.model import with_data_facts

    _check_writable(arguments.out)
    data = load(arguments.data, target=arguments.target, task=arguments.task)
    with fit_status(f"{arguments.method} on {data.X.shape[0]:,} rows") as callback:
        common = {
            "hidden_layer_sizes": arguments.hidden,
            "random_state": arguments.seed,
            "callback": callback,
        }
        estimator = Entrant(arguments.method, arguments.method).estimator(data.task, common)
        estimator.fit(data.X, data.y)
    network = with_data_facts(estimator.network_, data, arguments.target, arguments.method)
    network.save(arguments.out)
    print(network)
    metric = "accuracy" if data.task == "classification" else "R²"
    print(f"training {metric}: {estimator.score(data.X, data.y):.4f}")
    print(f"model: {arguments.out.resolve()}")
    return DONE


def _predict(arguments: argparse.Namespace) -> int:
    from liftopt.model import predict_table
    from liftopt.network import Network, write_atomically

    _check_writable(arguments.out)
    predictions, ignored = predict_table(Network.load(arguments.model), arguments.table)
    if ignored:
        print(f"liftopt: note: not used: {', '.join(ignored)}", file=sys.stderr)
    text = predictions.to_csv(index=False, lineterminator="\n")
    if arguments.out is None:
        sys.stdout.write(text)
    else:
        write_atomically(arguments.out, text.encode())
        print(f"predictions: {arguments.out.resolve()} ({len(predictions):,} rows)")
    return DONE


def _check_writable(path: Path | None) -> None:
    """Refuse an output path before the work is done, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist")
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"the folder of {path} is not writable")
