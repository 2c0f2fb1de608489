"""Accuracy on regression sets: splits as published (uci_bnn) or random fifths, errors relative to the spread.

liftopt's spline of degree 1 and 2 (min and product) and its hinging hyperplanes (defaults), py-earth2 where
there is an interpreter with the peers (``benchmarks/peers.sh``), scikit-learn's MLPRegressor (standardised
inputs and targets, early stopping off, otherwise defaults) and boosted trees (HistGradientBoostingRegressor,
defaults). Nothing is tuned on test rows.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import measure, parse_arguments, peers_python, write_record
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from liftopt import HingingHyperplaneRegressor, SplineRegressor

FILES = {
    "Boston": "uci_bnn/bostonHousing", "Concrete": "uci_bnn/concrete", "Energy": "uci_bnn/energy",
    "Kin8nm": "uci_bnn/kin8nm", "Power plant": "uci_bnn/power-plant", "Wine red": "uci_bnn/wine-quality-red",
    "Yacht": "uci_bnn/yacht", "California": "california_housing/california_housing",
    "Abalone": "abalone/abalone", "Wine white": "wine_quality_white/wine_quality_white",
}  # fmt: skip
SPLITS = 2
MOST_ROWS = 2500  # training and test rows together: the slowest contestants set the pace
PYTHON_CODE = """
import sys, time, numpy as np
from pyearth import Earth
data = np.load(sys.argv[1])
start = time.process_time()
fit = Earth(max_degree=2, max_terms=61).fit(data["X"], data["y"])
spent = time.process_time() - start
np.savez(sys.argv[2], out=fit.predict(data["T"]).ravel(), spent=spent)
"""


def splits(name: str) -> list[tuple[Any, Any, Any]]:
    """(X, y, test mask) of each split, of at most ``MOST_ROWS`` rows."""
    if name == "diabetes":
        X, y = load_diabetes(return_X_y=True)
        stored: dict[str, Any] = {}
    else:
        stored = dict(np.load(Path(os.environ["LIFTOPT_DATA"]) / f"{FILES[name]}.npz"))
        X, y = stored["X"].astype(float), stored["y"].ravel().astype(float)
    found = []
    for seed in range(SPLITS):
        rows = np.random.default_rng(seed).permutation(len(y))[:MOST_ROWS]
        fifth = np.arange(len(rows)) % 5 == 0
        test = stored["test_mask"][seed].astype(bool)[rows] if "test_mask" in stored else fifth
        found.append((X[rows], y[rows], test))
    return found


def py_earth(X: Any, y: Any, fresh: Any) -> tuple[float, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target, script = (Path(folder) / name for name in ("in.npz", "out.npz", "fit.py"))
        np.savez(source, X=X, y=y, T=fresh)
        script.write_text(PYTHON_CODE)
        subprocess.run([str(peers_python()), str(script), str(source), str(target)], check=True)
        done = np.load(target)
        return float(done["spent"]), done["out"]


def here(model: Any) -> Callable[[Any, Any, Any], tuple[float, Any]]:
    def fit(X: Any, y: Any, fresh: Any) -> tuple[float, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            spent = measure(lambda: model.fit(X, y)).cpu
        return spent, model.predict(fresh)

    return fit


def contestants() -> dict[str, Callable[[Any, Any, Any], tuple[float, Any]]]:
    mlp = make_pipeline(StandardScaler(), MLPRegressor(random_state=0))
    found = {
        "spline, degree 1": here(SplineRegressor(max_degree=1)),
        "spline, degree 2, min": here(SplineRegressor()),
        "spline, degree 2, product": here(SplineRegressor(interaction="product")),
        "hinging hyperplanes": here(HingingHyperplaneRegressor()),
        "MLPRegressor": here(TransformedTargetRegressor(mlp, transformer=StandardScaler())),
        "boosted trees": here(HistGradientBoostingRegressor(random_state=0)),
    }
    return found | ({"py-earth2, degree 2": py_earth} if peers_python() else {})


def main() -> None:
    quick = parse_arguments(__doc__).quick
    names = ["diabetes"] if quick or not os.environ.get("LIFTOPT_DATA") else list(FILES)
    warm = np.random.default_rng(0).random((300, 3))
    SplineRegressor(max_degree=2).fit(warm, warm[:, 0])  # compiles
    errors: dict[str, dict[str, float]] = {name: {} for name in names}
    cpu: dict[str, float] = {}
    for name in names:
        for label, fit in contestants().items():
            relative = []
            for X, y, test in splits(name):
                spent, predicted = fit(X[~test], y[~test], X[test])
                relative.append(float(np.sqrt(np.mean((predicted - y[test]) ** 2)) / y[~test].std()))
                cpu[label] = cpu.get(label, 0.0) + spent
            errors[name][label] = float(np.mean(relative))
        print(name, {label: round(error, 4) for label, error in errors[name].items()}, flush=True)
    labels = list(cpu)
    mean = {label: float(np.mean([errors[name][label] for name in names])) for label in labels}
    winners = [min(found, key=found.__getitem__) for found in errors.values()]
    table = {
        "title": "Spline: test error on regression sets, relative to the spread of the target",
        "columns": ["set", *labels],
        "rows": [
            *([name, *(f"{errors[name][label]:.3f}" for label in labels)] for name in names),
            ["mean", *(f"{mean[label]:.3f}" for label in labels)],
            ["sets won", *(winners.count(label) for label in labels)],
            ["CPU s, all fits", *(f"{cpu[label]:.1f}" for label in labels)],
        ],
        "notes": "Root mean squared error on test rows over the standard deviation of the training target, "
        f"mean of {SPLITS} splits; at most {MOST_ROWS} rows of each set.",
    }
    payload = {"seeds": list(range(SPLITS)), "errors": errors, "mean": mean, "cpu": cpu, "table": table}
    write_record("spline_accuracy", payload, quick=quick)


if __name__ == "__main__":
    main()
