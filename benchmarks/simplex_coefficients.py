"""Simplex coefficients of k predictions: time, certificate, and distance from cvxpy's optimum.

Predictions of 1,000 rows and 10 classes around the truth with errors of different size, so that part of the
models carries no weight. Squares and cross-entropy; objective differences from cvxpy (Clarabel at 1e-9) on
smaller problems of the same kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import measure, parse_arguments, write_record

from liftopt.solvers import solve_simplex_cross_entropy, solve_simplex_least_squares
from liftopt.solvers.oracle import simplex_combination

SOLVERS = {"squares": solve_simplex_least_squares, "cross-entropy": solve_simplex_cross_entropy}


def problem(seed: int, k: int, n: int, classes: int) -> tuple[Any, Any]:
    """Predictions (k, n, classes) and one-hot labels."""
    rng = np.random.default_rng(seed)
    Y = np.eye(classes)[rng.integers(0, classes, n)]
    common = 2 * Y + rng.normal(size=(n, classes))
    scales = rng.uniform(0.2, 3.0, (k, 1, 1))
    return common + scales * (rng.normal(size=(k, n, classes)) + 0.5 * rng.normal(size=(k, 1, classes))), Y


def study(loss: str, k: int, repeats: int) -> dict[str, Any]:
    """Median times, largest gap and largest difference from the oracle."""
    cpu, gaps, support = [], [], []
    for seed in range(repeats):
        Z, Y = problem(seed, k, 1000, 10)
        done = measure(lambda Z=Z, Y=Y: SOLVERS[loss](Z, Y))
        cpu.append(done.cpu)
        gaps.append(done.value.gap)
        support.append(int(done.value.info["support"].size))
    differences = []
    for seed in range(min(5, repeats)):
        Z, Y = problem(seed, k, 60, 3)
        _, best = simplex_combination(Z, Y, loss, 0.0, np.full(k, 1 / k), np.full(60, 1 / 60))
        differences.append(SOLVERS[loss](Z, Y).objective - best)
    found = {
        "loss": loss,
        "k": k,
        "cpu": float(np.median(cpu)),
        "gap": max(gaps),
        "support": float(np.median(support)),
        "above_oracle": max(differences),
    }
    print(found, flush=True)
    return found


def main() -> None:
    """Run and write the record."""
    quick = parse_arguments(__doc__).quick
    study("squares", 3, 3)  # first calls are not timed
    sizes, repeats = ((10,), 5) if quick else ((10, 20, 30), 60)
    found = [study(loss, k, repeats) for loss in SOLVERS for k in sizes]
    rows = [
        [one["loss"], one["k"], 1e3 * one["cpu"], one["gap"], one["above_oracle"], one["support"]]
        for one in found
    ]
    table = {
        "title": "Simplex coefficients of k models: 1,000 rows, 10 outputs",
        "columns": ["loss", "k", "CPU ms, median", "largest gap", "largest excess over cvxpy", "support"],
        "rows": rows,
        "notes": [f"{repeats} problems each; the products of the predictions are part of the time."],
    }
    write_record(
        "simplex_coefficients", {"seeds": list(range(repeats)), "results": found, "table": table}, quick=quick
    )


if __name__ == "__main__":
    main()
