"""The command line: ``liftopt compare``, ``fit``, ``predict``, ``export``, ``doctor``.

Exit codes: 0 done, 1 the input or the outcome is at fault (one line on stderr says why), 2 wrong usage,
130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from liftopt import __version__
from liftopt.methods import METHODS, method_names

FAILED, INTERRUPTED = 1, 130
STDOUT = Path("-")

_EXAMPLES = {
    "compare": """
  liftopt compare digits                              every method and tuned Adam on the digits data
  liftopt compare train.csv --target label            the same on your own table
  liftopt compare mnist --methods manifold,manifold+fenchel --hidden 512 --json mnist.json""",
    "fit": """
  liftopt fit train.csv --target label --out model.safetensors
  liftopt fit train.csv --target label --method manifold+fenchel+refine --out model.safetensors
  liftopt fit houses.csv --target price --method spline --fill-missing --out model.safetensors""",
    "predict": """
  liftopt predict model.safetensors new.csv           CSV on stdout
  liftopt predict model.safetensors new.csv --out predictions.csv""",
    "export": """
  liftopt export model.safetensors --to onnx          model.onnx, checked with onnxruntime if installed
  liftopt export model.safetensors --to torch --out net.pt""",
    "doctor": """
  liftopt doctor                                      versions, threads, optional parts, data
  liftopt doctor --json - | jq .hints""",
}
_EXIT_CODES = """exit codes:
  0 done; 1 the data, the model or the outcome is at fault, and one line on stderr says why; 2 wrong usage;
  130 interrupted by Ctrl-C (what was finished, or the best network so far, is still written)"""


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
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("liftopt: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"liftopt: error: {_message(error)}", file=sys.stderr)
        return FAILED


def _message(error: Exception) -> str:
    """One line; of errors of the system what a shell would say."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _run(arguments: argparse.Namespace) -> int:
    """The command, and its outcome as text or as JSON."""
    commands = import_module("liftopt.commands")
    target: Path | None = arguments.json
    if target not in (None, STDOUT):
        commands.check_writable(target)
    outcome = getattr(commands, arguments.command)(arguments)
    if target == STDOUT:
        print(json.dumps(outcome.record, indent=1))
        return int(outcome.code)
    outcome.show()
    if target is not None:
        commands.write_atomically(target, json.dumps(outcome.record, indent=1).encode())
        print(f"json: {target.resolve()}")
    return int(outcome.code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="liftopt",
        description="Neural networks trained as structured optimisation problems.",
        epilog="examples:" + "".join(_EXAMPLES.values()) + "\n\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"liftopt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    _add_compare(commands)
    _add_fit(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_command(commands, "doctor", "show versions, BLAS and its threads, optional parts and data")
    return parser


def _add_command(commands: Any, name: str, summary: str, description: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog="examples:" + _EXAMPLES[name] + "\n\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the outcome as JSON; - prints it instead of the text"
    )
    return parser


def _add_compare(commands: Any) -> None:
    parser = _add_command(
        commands,
        "compare",
        "compare every method with tuned Adam on one data set",
        "Compare every method with tuned Adam: same data, same architecture. Ctrl-C keeps the finished runs.",
    )
    _add_data(parser)
    parser.add_argument(
        "--methods",
        type=_method_list,
        metavar="NAME[,NAME]",
        help=f"methods beside the baselines, of: {', '.join(METHODS)}; or recipes such as manifold+fenchel "
        "(default: all methods)",
    )
    parser.add_argument("--repeats", type=_count, default=3, metavar="N", help="splits or seeds (default: 3)")
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("liftopt-report.html"),
        metavar="FILE",
        help="HTML report to write (default: %(default)s)",
    )


def _add_fit(commands: Any) -> None:
    parser = _add_command(
        commands, "fit", "train one network and save it", "Train one network on all rows and save it."
    )
    _add_data(parser)
    parser.add_argument(
        "--method",
        type=_method,
        default="manifold",
        metavar="NAME[+NAME]",
        help=f"of: {', '.join(METHODS)}; several joined by + start from each other (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="model file (.safetensors)")


def _add_predict(commands: Any) -> None:
    parser = _add_command(
        commands,
        "predict",
        "apply a saved network to a table",
        "Apply a saved network to the rows of a CSV file; columns are matched by name.",
    )
    parser.add_argument("model", type=Path, help="file written by liftopt fit")
    parser.add_argument("table", type=Path, help="CSV file with the columns of the training table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV file to write (default: print)")


def _add_export(commands: Any) -> None:
    parser = _add_command(
        commands,
        "export",
        "write a saved network for onnxruntime or torch",
        "Write a saved network as an ONNX model, or as a torch checkpoint that loads without executing code.",
    )
    parser.add_argument("model", type=Path, help="file written by liftopt fit or Network.save")
    parser.add_argument("--to", choices=["onnx", "torch"], required=True, help="format")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: the model's name with .onnx or .pt)"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="name (digits, iris, mnist, ...), or a CSV, NPZ or IDX file")
    parser.add_argument("--target", metavar="COLUMN", help="column to predict (CSV files)")
    parser.add_argument(
        "--task", choices=["classification", "regression"], help="default: seen from the target's values"
    )
    parser.add_argument(
        "--fill-missing",
        action="store_true",
        help="fill missing values of a CSV file: numbers by the median, text as a category (default: refuse)",
    )
    parser.add_argument(
        "--hidden", type=_widths, default=(300,), metavar="N[,N]", help="hidden layer sizes (default: 300)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument(
        "--threads",
        type=_count,
        default=1,
        metavar="N",
        help="threads of the numerical libraries (default: 1)",
    )


def _method(text: str) -> str:
    try:
        return "+".join(method_names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _method_list(text: str) -> list[str]:
    return [_method(name) for name in text.split(",") if name.strip()]


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
