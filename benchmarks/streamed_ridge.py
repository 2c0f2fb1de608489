"""Ridge regression streamed from a memory-mapped file: 1,000,000 x 512 float32 rows, 10 targets.

Claim: at least half of the machine's matrix-product rate, measured in the same process, in less than 1 GiB of
resident memory. Only the arithmetic that is needed is counted (n d^2 for the symmetric Gram matrix, 2 n d c
for the cross products, d^3 / 3 + 2 d^2 c for the solution); reading the file, shifting the rows and checking
them counts as time alone.
"""

from __future__ import annotations

import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import measure, parse_arguments, write_record  # isort: skip

import numpy as np

from liftopt.solvers import AffineMap, moments, solve_ridge_moments

FEATURES, TARGETS = 512, 10
ALPHA = 1e-3
SEED = 0
REPEATS = 3
NOTES = [
    "Memory-mapped files in the page cache; a pass includes reading, shifting, checks and the solution.",
    "The symmetric Gram matrix counts n d^2 operations, half of a general product of that shape.",
    "GEMM: the better of two measurements of 2048 x 2048 products in the same process, before and after.",
    "Resident memory is the largest of the whole process, libraries included.",
    "Error: relative to the map that made the data, whose noise limits it.",
    f"Run of median share of {REPEATS}, largest memory of all.",
]


def truth() -> AffineMap:
    """The linear map behind the targets."""
    rng = np.random.default_rng(SEED)
    return AffineMap(rng.normal(size=(FEATURES, TARGETS)), rng.normal(size=TARGETS))


def write_rows(folder: Path, rows: int) -> None:
    """Files ``X`` (mean 3, spread 1) and ``Y`` (truth plus unit noise), written in chunks."""
    rng = np.random.default_rng(SEED + 1)
    model = truth()
    with (folder / "X").open("wb") as features, (folder / "Y").open("wb") as targets:
        for start in range(0, rows, 20_000):
            count = min(20_000, rows - start)
            X = rng.standard_normal((count, FEATURES), dtype=np.float32) + np.float32(3.0)
            noise = rng.standard_normal((count, TARGETS), dtype=np.float32)
            X.tofile(features)
            (model(X) + noise).tofile(targets)


def product_rate(dtype: str) -> float:
    """Best of five products of square matrices, operations a CPU second."""
    A = np.random.default_rng(SEED).normal(size=(2048, 2048)).astype(dtype)
    return 2.0 * 2048**3 / min(measure(lambda: A @ A).cpu for _ in range(5))


def stream(folder: Path, rows: int, dtype: str) -> dict[str, Any]:
    """One pass over the files and the solution, in a process of its own."""
    before = product_rate(dtype)
    X = np.memmap(folder / "X", np.float32, mode="r", shape=(rows, FEATURES))
    Y = np.memmap(folder / "Y", np.float32, mode="r", shape=(rows, TARGETS))
    fit = measure(lambda: solve_ridge_moments(moments(X, Y, dtype=dtype), alpha=ALPHA, relative=True))
    rate = max(before, product_rate(dtype))
    d, c = FEATURES, TARGETS
    work = rows * d * (d + 2 * c) + d**3 / 3 + 2 * d**2 * c
    model = truth()
    return {
        "products": dtype,
        "cpu_s": fit.cpu,
        "wall_s": fit.wall,
        "gflops": work / fit.cpu / 1e9,
        "product_gflops": rate / 1e9,
        "share": work / fit.cpu / rate,
        "resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "status": str(fit.value.status),
        "error": float(np.linalg.norm(fit.value.x.weight - model.weight) / np.linalg.norm(model.weight)),
    }


def main() -> None:
    """Write the files, stream them in fresh processes, record."""
    quick = parse_arguments(__doc__).quick
    rows = 100_000 if quick else 1_000_000
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name), rows)
        for dtype in ("float32", "float64"):
            for _ in range(1 if quick else REPEATS):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    runs.append(pool.submit(stream, Path(name), rows, dtype).result())
    table = []
    for dtype in ("float32", "float64"):
        group = sorted((run for run in runs if run["products"] == dtype), key=lambda run: run["share"])
        middle = group[len(group) // 2]
        table.append(
            [
                dtype,
                middle["cpu_s"],
                middle["gflops"],
                middle["product_gflops"],
                f"{middle['share']:.0%}",
                round(max(run["resident_mib"] for run in group)),
                middle["error"],
            ]
        )
        print(*table[-1])
    payload = {
        "seeds": [SEED],
        "rows": rows,
        "runs": runs,
        "table": {
            "title": f"Ridge from streamed statistics, {rows:,} x {FEATURES} float32 rows, {TARGETS} targets",
            "columns": ["products", "CPU s", "GFlop/s", "GEMM GFlop/s", "share", "resident MiB", "error"],
            "rows": table,
            "notes": NOTES,
        },
    }
    write_record("streamed_ridge", payload, quick=quick)


if __name__ == "__main__":
    main()
