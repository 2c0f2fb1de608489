"""What the commands of the command line do: from parsed arguments to an outcome."""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from liftopt.console import fit_status, print_comparison, print_diagnosis, print_fit, progress_bar
from liftopt.network import Network, write_atomically
from liftopt.recording import interruptions
from liftopt.threads import limit_threads

if TYPE_CHECKING:
    from liftopt.data import Dataset

DONE, FAILED, INTERRUPTED = 0, 1, 130


class Outcome(NamedTuple):
    """What a command found: a JSON-able record, a function that prints it for people, an exit code."""

    record: Mapping[str, Any]
    show: Callable[[], None]
    code: int = DONE


def compare(arguments: Namespace) -> Outcome:
    """Compare methods and write the report."""
    from liftopt.compare import compare

    check_writable(arguments.report)
    data = _load(arguments)
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
    comparison.save_html(arguments.report)

    def show() -> None:
        print_comparison(comparison)
        print(f"report: {arguments.report.resolve()}")

    finished = DONE if comparison.runs else FAILED
    return Outcome(comparison.to_dict(), show, INTERRUPTED if comparison.interrupted else finished)


def fit(arguments: Namespace) -> Outcome:
    """Train one network on all rows and save it."""
    from liftopt.methods import make_estimator
    from liftopt.model import with_data_facts

    check_writable(arguments.out)
    data = _load(arguments)
    with fit_status(f"{arguments.method} on {data.X.shape[0]:,} rows") as status:
        common = {
            "hidden_layer_sizes": arguments.hidden,
            "random_state": arguments.seed,
            "callback": status.callback,
        }
        estimator = make_estimator(arguments.method, data.task, common=common)
        wall, cpu = time.perf_counter(), time.process_time()
        with interruptions() as interruption, limit_threads(arguments.threads):
            estimator.fit(data.X, data.y)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    network = with_data_facts(estimator.network_, data, arguments.target, arguments.method)
    network.save(arguments.out)
    record = {
        "model": str(arguments.out.resolve()),
        "data": data.name,
        "rows": int(data.X.shape[0]),
        "method": arguments.method,
        **_training_scores(estimator, data),
        "seconds": seconds,
        "n_parameters": network.n_parameters,
        "nbytes": network.nbytes,
        "notes": status.notes,
        "interrupted": interruption.requested,
    }
    return Outcome(
        record, lambda: print_fit(network, record), INTERRUPTED if interruption.requested else DONE
    )


def _load(arguments: Namespace) -> Dataset:
    """The data that the command line names."""
    from liftopt.data import load

    return load(
        arguments.data, target=arguments.target, task=arguments.task, fill_missing=arguments.fill_missing
    )


def _training_scores(estimator: Any, data: Dataset) -> dict[str, Any]:
    """Score on the training rows, that of every stage of a recipe too."""
    return {
        "metric": "accuracy" if data.task == "classification" else "R²",
        "training_score": float(estimator.score(data.X, data.y)),
        "stages": [
            {
                "name": stage.name,
                "training_score": float(stage.estimator.score(data.X, data.y)),
                "wall": stage.wall,
                "cpu": stage.cpu,
            }
            for stage in getattr(estimator, "stages_", ())
        ],
    }


def predict(arguments: Namespace) -> Outcome:
    """Apply a network to a table."""
    from liftopt.model import predict_table

    check_writable(arguments.out)
    predictions, ignored = predict_table(Network.load(arguments.model), arguments.table)
    if ignored:
        print(f"liftopt: note: not used: {', '.join(ignored)}", file=sys.stderr)
    text = predictions.to_csv(index=False, lineterminator="\n")
    if arguments.out is not None:
        write_atomically(arguments.out, text.encode())

    def show() -> None:
        if arguments.out is None:
            sys.stdout.write(text)
        else:
            print(f"predictions: {arguments.out.resolve()} ({len(predictions):,} rows)")

    return Outcome({"predictions": predictions.to_dict(orient="list"), "ignored_columns": ignored}, show)


def export(arguments: Namespace) -> Outcome:
    """Write a saved network in another program's format."""
    from liftopt.export import FORMATS, onnx_difference

    file_format = FORMATS[arguments.to]
    out = arguments.out or arguments.model.with_suffix(file_format.suffix)
    check_writable(out)
    network = Network.load(arguments.model)
    file_format.write(network, out)
    difference = onnx_difference(network, out) if arguments.to == "onnx" else None
    record = {
        "file": str(out.resolve()),
        "format": arguments.to,
        "bytes": out.stat().st_size,
        "largest_difference": difference,
    }

    def show() -> None:
        if difference is not None:
            print(f"checked with onnxruntime: largest difference {difference:.1e}")
        print(f"{arguments.to}: {record['file']} ({record['bytes']:,} bytes)")

    return Outcome(record, show)


def doctor(arguments: Namespace) -> Outcome:
    """Look at the installation."""
    from liftopt.doctor import diagnose, is_sound

    record = diagnose()
    return Outcome(record, lambda: print_diagnosis(record), DONE if is_sound(record) else FAILED)


def check_writable(path: Path | None) -> None:
    """Refuse an output path before the work is done, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise PermissionError(f"the folder of {path} is not writable ({error.strerror})") from None
