"""What every benchmark script shares: pinned threads, timing, seeds, the record, the tuned baseline.

Import it first in a script: it pins the thread pools of every numerical library to ``LIFTOPT_BENCH_THREADS``
(default 1). A record holds what was run on and what was measured; the documentation's tables are generated
from it (``tables.py``). Quick runs write to ``results/quick`` and never replace a record.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

THREADS = int(os.environ.get("LIFTOPT_BENCH_THREADS", "1"))
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = str(THREADS)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout is measured, not another installed one

import numpy as np  # noqa: E402 - the thread variables are read when BLAS is loaded
from scipy.stats import qmc  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from threadpoolctl import threadpool_info, threadpool_limits  # noqa: E402

from liftopt.network import write_atomically  # noqa: E402

threadpool_limits(THREADS)  # for libraries that were loaded before this module

RESULTS = ROOT / "benchmarks" / "results"
SEEDS = (0, 1, 2, 3, 4)
PACKAGES = ("liftopt", "numpy", "scipy", "scikit-learn", "torch", "numba", "osqp", "cvxpy", "daqp")

_STARTED = time.perf_counter(), time.process_time()

Value = TypeVar("Value")


@dataclass(frozen=True)
class Measured(Generic[Value]):
    """What a call returned, with its CPU and wall seconds."""

    value: Value
    cpu: float
    wall: float


def measure(function: Callable[[], Value]) -> Measured[Value]:
    """Call ``function`` once and take its CPU time (all threads of this process) and wall time."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return Measured(value, time.process_time() - cpu, time.perf_counter() - wall)


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The command line of every script: ``--quick`` for a pass of seconds without a lasting record."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rows, sets and seeds; record in results/quick"
    )
    return parser.parse_args()


def median_iqr(values: Sequence[float]) -> tuple[float, float]:
    """Median and inter-quartile range; a target not reached is inf, and shows."""
    found = np.asarray(values, dtype=float)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(found, [0.25, 0.75])
        spread = high - low
    return float(np.median(found)), float(spread) if np.isfinite(spread) else float("inf")


def environment() -> dict[str, Any]:
    """Machine, versions and threads, without anything that identifies the machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    pools = sorted(
        {(pool["internal_api"], pool["version"] or "", pool["num_threads"]) for pool in threadpool_info()}
    )
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
        "threads": THREADS,
        "thread_pools": [{"library": name, "version": v, "threads": threads} for name, v, threads in pools],
        "commit": _commit(),
    }


def write_record(name: str, payload: Mapping[str, Any], *, quick: bool = False) -> Path:
    """Write ``results/<name>.json`` (sorted keys): the payload, the environment and the script's own time.

    Parameters
    ----------
    name : str
        Name of the claim, as of the script.
    payload : mapping
        JSON-able (numpy scalars and arrays are converted), with ``"seeds"``. A ``"table"`` (or a list of
        them) with ``title``, ``columns``, ``rows`` and ``notes`` is rendered into the documentation.
    quick : bool
        Write to ``results/quick`` instead.
    """
    if "seeds" not in payload:
        raise ValueError(f"the record {name!r} does not say which seeds were used")
    wall, cpu = _STARTED
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    record = {"claim": name, "environment": environment(), "script": spent, **payload}
    folder = RESULTS / "quick" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps(record, indent=1, sort_keys=True, default=_plain)
    write_atomically(path, (text + "\n").encode())
    print(f"record: {path.relative_to(ROOT)}")
    return path


def write_block(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of block ``name`` in a Markdown page."""
    start, end = f"<!-- {name}: written by benchmarks/{name}.py -->", f"<!-- end of {name} -->"
    before, rest = page.read_text().split(start)
    after = rest.split(end)[1]
    write_atomically(page, f"{before}{start}\n{text}\n{end}{after}".encode())
    print(page.relative_to(ROOT))


def peers_python() -> str | None:
    """Interpreter with the peers: ``PEERS_PYTHON``, or what ``benchmarks/peers.sh`` made; else None."""
    made = ROOT / ".venv-peers" / "bin" / "python"
    return os.environ.get("PEERS_PYTHON") or (str(made) if made.exists() else None)


@dataclass(frozen=True)
class Tuning:
    """Outcome of :func:`tune_adam`: the best parameters and what the search cost."""

    parameters: dict[str, Any]
    validation_score: float
    cpu: float
    wall: float
    trials: list[dict[str, Any]]

    def record(self) -> dict[str, Any]:
        """JSON-able form."""
        return dict(vars(self))


def tune_adam(
    X: Any,
    y: Any,
    *,
    task: str,
    trials: int = 20,
    seed: int = 0,
    validation_size: float = 0.2,
    learning_rates: tuple[float, float] = (5e-4, 5e-2),
    batch_sizes: Sequence[int] = (32, 64, 128, 256, 512),
    **parameters: Any,
) -> Tuning:
    """Tune the back-propagation baseline as AlgoPerf does: quasirandom search over rate and batch size.

    Parameters
    ----------
    X, y : array-like
        Training data; a validation split is taken from them, test rows are never seen.
    task : {"classification", "regression"}
        Chooses the estimator.
    trials : int
        Points of a scrambled Halton sequence; rates are log-uniform.
    seed : int
        Of the sequence, the split and the fits.
    validation_size : float
        Share of the rows that judges the trials.
    learning_rates, batch_sizes
        The published search space.
    **parameters
        Fixed parameters of the baseline (architecture, epochs, input map, ...).
    """
    from liftopt.methods import make_estimator

    labels = np.asarray(y) if task == "classification" else None
    X_fit, X_held, y_fit, y_held = train_test_split(
        X, y, test_size=validation_size, random_state=seed, stratify=labels
    )
    low, high = np.log(learning_rates)
    found: list[dict[str, Any]] = []
    wall, cpu = time.perf_counter(), time.process_time()
    for rate, place in qmc.Halton(2, scramble=True, rng=seed).random(trials):
        trial = {
            "learning_rate_init": float(np.exp(low + rate * (high - low))),
            "batch_size": int(batch_sizes[int(place * len(batch_sizes))]),
        }
        estimator = make_estimator("adam", task, random_state=seed, **(parameters | trial))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a diverged trial scores badly, that is all
            score = float(estimator.fit(X_fit, y_fit).score(X_held, y_held))
        found.append({**trial, "validation_score": score})
    best = max(found, key=lambda trial: trial["validation_score"])
    chosen = parameters | {key: best[key] for key in ("learning_rate_init", "batch_size")}
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return Tuning(chosen, best["validation_score"], *spent, found)


def _processor() -> str:
    """Model name of the processor."""
    source = Path("/proc/cpuinfo")
    if source.exists():
        for line in source.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """Commit of the checkout, marked when code differs from it (records and pages may)."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", "liftopt", "solvers", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a record cannot hold {type(value).__name__}")


if __name__ == "__main__":
    json.dump(environment(), sys.stdout, indent=1, sort_keys=True)
