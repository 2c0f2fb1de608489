"""Ridge path, manifold network and spline on 10,000,000 x 128 float32 rows in files, memory limit 1 GiB.

Claims: resident memory of at most 1.5 GiB, libraries included; statistics passes at half of the
matrix-product rate of the same process or more; time linear in the rows. Only the arithmetic that is
needed is counted (n d^2 for a symmetric Gram matrix, 2 n d c for cross products, 2 n d h for a hidden layer);
reading, shifting, activations and checks count as time alone. The spline, whose sums are no matrix products,
is held to memory and linearity only.
"""

from __future__ import annotations

import re
import resource
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import measure, parse_arguments, write_record  # isort: skip

import numpy as np

from liftopt import Dense, ManifoldRegressor, SplineRegressor, stream
from liftopt.input_map import InputMap
from liftopt.manifold_stream import Features, Frame
from liftopt.solvers import Moments, solve_ridge_folds
from liftopt.streams import Stream

FEATURES, WIDTH, TERMS = 128, 256, 41
PARTS = 4
LIMIT, QUICK_LIMIT = "1 GiB", "64 MiB"
SEED = 0
NOTES = [
    "Four files of float32 rows; fits take the first one, two, or all of them. One process and thread each.",
    "Ridge path: 5 folds of chunks, one pass, penalty by K-fold error over 30 values, solution on all rows.",
    f"Manifold: ManifoldRegressor(({WIDTH},)), all defaults; survey, sweeps over a million rows each, head "
    "from one pass over all rows. R2 on 100,000 new rows; the noise allows 0.9.",
    f"Spline: SplineRegressor(max_degree=1, max_terms={TERMS}), all else default; R2 of an additive model, "
    "which the interaction in the target bounds. Nanoseconds a number of X and pass.",
    "Share: of the rate of 2048 x 2048 float32 products (better of before and after), for the statistics "
    "pass alone: moments of the features, or of the hidden activations.",
    "Resident memory: largest of the whole process (VmHWM), mapped pages and libraries included. A chunk is "
    "mapped when it is read and unmapped after.",
]


def target(X: np.ndarray) -> np.ndarray:
    """Smooth function of eight features, standard deviation about 1."""
    waves = np.sin(2.0 * X[:, 0]) + X[:, 1] * X[:, 2] + np.abs(X[:, 3]) + 0.5 * X[:, 4:8].sum(axis=1)
    return (waves / 1.8).astype(np.float32)


def rows(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of mean 1 and spread 1, and noisy targets."""
    X = rng.standard_normal((count, FEATURES), dtype=np.float32)
    y = target(X) + np.float32(1 / 3) * rng.standard_normal(count, dtype=np.float32)
    X += np.float32(1.0)
    return X, y


def write_rows(folder: Path, count: int) -> None:
    """Parts of ``count`` rows, written a block at a time."""
    rng = np.random.default_rng(SEED)
    for part in range(PARTS):
        with (folder / f"X{part}.npy").open("wb") as X, (folder / f"y{part}.npy").open("wb") as y:
            for file, shape in ((X, (count, FEATURES)), (y, (count,))):
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, count, 50_000):
                for file, values in zip((X, y), rows(rng, min(50_000, count - start)), strict=True):
                    values.tofile(file)


def product_rate() -> float:
    """Best of five products of square float32 matrices, operations a CPU second."""
    A = np.random.default_rng(SEED).normal(size=(2048, 2048)).astype(np.float32)
    return 2.0 * 2048**3 / min(measure(lambda: A @ A).cpu for _ in range(5))


def open_stream(folder: Path, parts: int, limit: str) -> Stream:
    """The first ``parts`` files."""
    files = [[folder / f"{name}{part}.npy" for part in range(parts)] for name in "Xy"]
    return stream(*files, memory_limit=limit, executor="serial")


def ridge_path(data: Stream) -> dict[str, Any]:
    """Penalty and solution from one pass."""
    before = product_rate()
    statistics = measure(lambda: data.fold_moments(5))
    solved = measure(lambda: solve_ridge_folds(statistics.value, alphas=np.logspace(-2, 6, 30)))
    work = data.n_rows * FEATURES * (FEATURES + 2)
    return {"score": None, **_outcome(data, work, statistics, statistics.cpu + solved.cpu, before)}


def manifold(data: Stream) -> dict[str, Any]:
    """Fit, then its statistics pass once more, alone."""
    before = product_rate()
    fit = measure(lambda: ManifoldRegressor((WIDTH,), random_state=SEED).fit(data))
    model = fit.value
    layers = tuple(layer for layer in model.network_.layers[:-1] if isinstance(layer, Dense))
    frame = Frame(InputMap.identity(FEATURES), None, np.zeros(1), np.ones(1))
    statistics = measure(lambda: data.reduce(Features(frame, layers).moments, Moments.__add__))
    work = data.n_rows * (2 * FEATURES * WIDTH + WIDTH * (WIDTH + 2))
    score = model.score(*rows(np.random.default_rng(SEED + 1), 100_000))
    return {"score": score, "sweeps": model.n_iter_, **_outcome(data, work, statistics, fit.cpu, before)}


def spline(data: Stream) -> dict[str, Any]:
    """Fit by passes, and its score."""
    fit = measure(lambda: SplineRegressor(max_degree=1, max_terms=TERMS, random_state=SEED).fit(data))
    passes = fit.value.result_.info["passes"] + 1
    return {
        "score": fit.value.score(*rows(np.random.default_rng(SEED + 1), 100_000)),
        "terms": len(fit.value.result_.x),
        "passes": passes,
        "ns_a_number": 1e9 * fit.cpu / passes / data.n_rows / FEATURES,
        "rows": data.n_rows,
        "gigabytes": data.nbytes / 1e9,
        "cpu_s": fit.cpu,
        "resident_mib": peak_resident() / 2**20,
    }


def peak_resident() -> int:
    """Largest resident memory of this process in bytes (what getrusage says counts the parent's, too)."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _outcome(data: Stream, work: float, statistics: Any, cpu: float, before: float) -> dict[str, Any]:
    rate = max(before, product_rate())
    return {
        "rows": data.n_rows,
        "gigabytes": data.nbytes / 1e9,
        "cpu_s": cpu,
        "statistics_cpu_s": statistics.cpu,
        "statistics_wall_s": statistics.wall,
        "share": work / statistics.cpu / rate,
        "product_gflops": rate / 1e9,
        "resident_mib": peak_resident() / 2**20,
    }


def run(task: Callable[[Stream], dict[str, Any]], *where: Any) -> dict[str, Any]:
    """A task on the files of :func:`open_stream`, in this process."""
    return {"task": task.__name__, **task(open_stream(*where))}


def main() -> None:
    """Write the files, fit in fresh processes, record."""
    quick = parse_arguments(__doc__).quick
    limit = QUICK_LIMIT if quick else LIMIT
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, 50_000 if quick else 2_500_000)
        for task in (ridge_path, manifold, spline):
            for parts in (1,) if quick else (1, 2, 4):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    runs.append(pool.submit(run, task, folder, parts, limit).result())
                print(runs[-1], flush=True)
    table = [
        [
            found["task"].replace("_", " "),
            f"{found['rows']:,}",
            round(found["gigabytes"], 2),
            found["cpu_s"],
            1e6 * found["cpu_s"] / found["rows"],
            found.get("statistics_cpu_s"),
            f"{found['share']:.0%}" if "share" in found else None,
            found.get("passes"),
            found.get("ns_a_number"),
            round(found["resident_mib"]),
            found["score"],
        ]
        for found in runs
    ]
    columns = ["fit", "rows", "GB", "CPU s", "us a row", "statistics CPU s", "share of GEMM"]
    columns += ["passes", "ns a number", "MiB", "R2"]
    title = f"Rows in files: {FEATURES} float32 features, memory_limit {limit}"
    payload = {
        "seeds": [SEED],
        "runs": runs,
        "table": {"title": title, "columns": columns, "rows": table, "notes": NOTES},
    }
    write_record("out_of_memory", payload, quick=quick)


if __name__ == "__main__":
    main()
