"""Splines against R earth and py-earth2: time, error to the truth, scaling, exactness of the network.

Friedman's function with noise of standard deviation 1: its additive form ``10 sin(pi x0) +
20 (x2 - 0.5)^2 + 10 x3 + 5 x4`` for degree 1, the original with ``sin(pi x0 x1)`` for degree 2; ten
variables, 61 forward terms, no early stop. Peers are run where they are found: ``Rscript`` with the package
earth (Debian: r-cran-earth), and py-earth2, on one seed because it is slow,
in the interpreter of the peers. CPU seconds of the fit, one thread, the same data, alternating.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import SEEDS, measure, median_iqr, parse_arguments, peers_python, write_record

from liftopt import SplineRegressor

TERMS = 61
R_CODE = """
suppressMessages(library(earth)); a <- commandArgs(TRUE); folder <- a[1]
read <- function(name, rows, cols) matrix(readBin(file.path(folder, name), "double", rows * cols), rows)
n <- as.integer(a[2]); d <- as.integer(a[3]); degree <- as.integer(a[4]); m <- as.integer(a[6])
X <- read("X", n, d); y <- read("y", n, 1)[, 1]; T <- read("T", m, d)
time <- system.time(fit <- earth(X, y, degree = degree, nk = 61, thresh = 0, penalty = as.numeric(a[5])))
writeBin(as.double(predict(fit, T)), file.path(folder, "out")); cat(time[1] + time[2])
"""
PYTHON_CODE = """
import sys, time, numpy as np
from pyearth import Earth
folder, n, d, degree, penalty, m = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5]), int(sys.argv[6])
read = lambda name, rows, cols: np.fromfile(f"{folder}/{name}").reshape(cols, rows).T.copy()
X, y, T = read("X", n, d), read("y", n, 1)[:, 0], read("T", m, d)
start = time.process_time()
fit = Earth(max_terms=61, max_degree=degree, penalty=penalty, thresh=0.0).fit(X, y)
spent = time.process_time() - start
fit.predict(T).astype(float).tofile(f"{folder}/out"); print(spent)
"""


def truth(X: Any, degree: int) -> Any:
    inner = X[:, 0] * X[:, 1] if degree == 2 else X[:, 0]
    return 10 * np.sin(np.pi * inner) + 20 * (X[:, 2] - 0.5) ** 2 + 10 * X[:, 3] + 5 * X[:, 4]


def peer(command: list[str], code: str, suffix: str, penalty: float) -> Callable[..., tuple[float, Any]]:
    """A fit in another process: CPU seconds of the fit itself, and its predictions."""

    def fit(X: Any, y: Any, fresh: Any, degree: int) -> tuple[float, Any]:
        with tempfile.TemporaryDirectory() as folder:
            for name, array in (("X", X), ("y", y), ("T", fresh)):
                np.asfortranarray(array).ravel(order="F").tofile(Path(folder) / name)
            script = Path(folder) / f"fit{suffix}"
            script.write_text(code)
            sizes = (len(X), X.shape[1], degree, penalty, len(fresh))
            done = subprocess.run(
                [*command, str(script), folder, *map(str, sizes)], capture_output=True, text=True, check=True
            )
            return float(done.stdout.split()[-1]), np.fromfile(Path(folder) / "out")

    return fit


def ours(interaction: Any, gaps: list[float], **parameters: Any) -> Callable[..., tuple[float, Any]]:
    def fit(X: Any, y: Any, fresh: Any, degree: int) -> tuple[float, Any]:
        model = SplineRegressor(max_terms=TERMS, max_degree=degree, interaction=interaction, tol=0)
        model.set_params(**parameters)
        model.fit(X[:300], y[:300])  # compiles
        spent = measure(lambda: model.fit(X, y)).cpu
        if hasattr(model, "network_"):
            rows = np.vstack([X, fresh, 10 * fresh - 5])
            gaps.append(float(np.abs(model.network_(rows) - model.spline_(rows)).max()))
        return spent, model.predict(fresh)

    return fit


def contestants(degree: int, seed: int, gaps: list[float]) -> dict[str, Callable[..., tuple[float, Any]]]:
    found = {"liftopt, min": ours("min", gaps)}
    if degree == 2:
        found["liftopt, min, 32 knots"] = ours("min", gaps, max_knots=32)
        found["liftopt, product"] = ours("product", gaps)
    if shutil.which("Rscript"):
        for penalty in (degree + 1, 6):
            found[f"earth, penalty {penalty}"] = peer(["Rscript"], R_CODE, ".R", penalty)
    interpreter = peers_python()
    if interpreter and seed == 0:
        found["py-earth2"] = peer([interpreter], PYTHON_CODE, ".py", degree + 1)
    return found


def friedman(n: int, degree: int, seeds: tuple[int, ...], gaps: list[float]) -> dict[str, Any]:
    runs: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        X, fresh = rng.random((n, 10)), rng.random((5000, 10))
        y = truth(X, degree) + rng.normal(size=n)
        for name, fit in contestants(degree, seed, gaps).items():
            spent, predicted = fit(X, y, fresh, degree)
            error = float(np.sqrt(np.mean((predicted - truth(fresh, degree)) ** 2)))
            run = runs.setdefault(name, {"cpu": [], "rmse": []})
            run["cpu"].append(spent)
            run["rmse"].append(error)
            print(f"degree {degree} seed {seed} {name:<20} {spent:8.3f} s  rmse {error:.4f}", flush=True)
    return runs


def table(runs: dict[str, Any], n: int, degree: int) -> dict[str, Any]:
    fastest = min(
        (np.median(r["cpu"]) for name, r in runs.items() if name.startswith("earth")), default=np.nan
    )
    rows = []
    for name, run in runs.items():
        (cpu, spread), (error, error_spread) = median_iqr(run["cpu"]), median_iqr(run["rmse"])
        ratio = f"{fastest / cpu:.1f}" if np.isfinite(fastest) else "-"
        rows.append([name, f"{cpu:.3f} ({spread:.3f})", ratio, f"{error:.4f} ({error_spread:.4f})"])
    kind = "additive" if degree == 1 else "original"
    return {
        "title": f"Spline: Friedman's function, {kind}, n = {n:,}, d = 10, degree {degree}, {TERMS} terms",
        "columns": ["fit", "CPU s, median (IQR)", "times faster than earth", "RMSE to the truth"],
        "rows": rows,
        "notes": "Medians over seeds 0 to 4, 5000 fresh rows. GCV penalty 6 for liftopt, as given or "
        "customary for the others; py-earth2 on seed 0 only.",
    }


def large(n: int, d: int) -> dict[str, float]:
    """One fit of n rows in a process of its own, for its peak memory."""
    done = subprocess.run(
        [sys.executable, __file__, "--large", str(n), str(d)], capture_output=True, text=True, check=True
    )
    cpu, peak, error, terms = map(float, done.stdout.split()[-4:])
    print(f"n {n:,} d {d}: {cpu:.2f} s, {peak:.2f} GiB", flush=True)
    return {"n": n, "d": d, "cpu": cpu, "peak_gib": peak, "rmse": error, "terms": terms}


def fit_large(n: int, d: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.random((n, d))
    clean = truth(X, 1)
    y = clean + rng.normal(size=n)
    model = SplineRegressor(max_terms=TERMS, max_degree=1, tol=0)
    model.fit(X[:500], y[:500])
    spent = measure(lambda: model.fit(X, y)).cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    error = float(np.sqrt(np.mean((model.predict(X[:100_000]) - clean[:100_000]) ** 2)))
    print(spent, peak, error, len(model.result_.x))


def main() -> None:
    if "--large" in sys.argv:
        fit_large(*map(int, sys.argv[-2:]))
        return
    quick = parse_arguments(__doc__).quick
    seeds, n = (SEEDS[:1], 2000) if quick else (SEEDS, 10_000)
    gaps: list[float] = []
    runs = {degree: friedman(n, degree, seeds, gaps) for degree in (1, 2)}
    sizes = [(20_000, 50)] if quick else [(100_000, 50), (300_000, 50), (1_000_000, 50)]
    scaling = [large(*size) for size in sizes]
    scaling_table = {
        "title": f"Spline: large data, degree 1, {TERMS} terms",
        "columns": ["rows", "variables", "CPU s", "CPU s / 1e6 rows", "peak memory, GiB", "RMSE to truth"],
        "rows": [
            [f"{r['n']:,}", r["d"], f"{r['cpu']:.2f}", f"{r['cpu'] / r['n'] * 1e6:.1f}",
             f"{r['peak_gib']:.2f}", f"{r['rmse']:.4f}"] for r in scaling
        ],
        "notes": f"Memory includes the data (8 bytes a value). Largest difference between spline and network "
        f"over all fits above, inside and outside the range of the data: {max(gaps):.1e}.",
    }  # fmt: skip
    write_record(
        "spline_speed",
        {
            "seeds": seeds,
            "friedman": {str(degree): run for degree, run in runs.items()},
            "scaling": scaling,
            "network_gap": max(gaps),
            "table": [*(table(run, n, degree) for degree, run in runs.items()), scaling_table],
        },
        quick=quick,
    )


if __name__ == "__main__":
    main()
