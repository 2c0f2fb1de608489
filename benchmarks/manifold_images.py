"""Manifold networks against Adam on MNIST and Fashion-MNIST: accuracy and CPU time, all rows and few rows.

Every Adam row is tuned by a quasirandom search over rate and batch size on a validation split of the training
rows, on the standardised input and on the very input map of the manifold networks; the search time is stated.
Test rows are read once per fitted model. Settings of the manifold networks are the defaults, or named.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from common import SEEDS, Tuning, measure, median_iqr, parse_arguments, tune_adam, write_record
from sklearn.exceptions import ConvergenceWarning

from liftopt import ManifoldClassifier
from liftopt.data import load
from liftopt.manifold import PAPER
from liftopt.methods import make_estimator

HIDDEN = (256,)
OURS: dict[str, dict[str, Any]] = {
    "manifold, default": {},
    "manifold, 2 sweeps, 64 components": {"max_iter": 2, "input_map": {"n_components": 64}},
    "manifold, 4 sweeps, 64 components": {"max_iter": 4, "input_map": {"n_components": 64}},
    "manifold, 512 units": {"hidden_layer_sizes": (512,)},
    "published cycle, 64-32 sigmoid": {**PAPER, "hidden_layer_sizes": (64, 32), "max_iter": 5},
}
ADAM = {"adam, standardised input": "standardise", "adam, our input map": "pca"}
EPOCHS = (4, 8)
SMALL = (1000, 5000, 20000)
TRIALS = 8
QUICK_ROWS = 2_000


def run(name: str, make: Any, sets: tuple[Any, ...], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Fit once a seed; medians of CPU time and test accuracy."""
    X, y, X_test, y_test = sets
    cpu, wall, accuracy = [], [], []
    for seed in seeds:
        fitted = measure(lambda seed=seed: make(seed).fit(X, y))
        cpu.append(fitted.cpu)
        wall.append(fitted.wall)
        accuracy.append(100 * fitted.value.score(X_test, y_test))
    print(name, len(X), np.median(accuracy), np.median(cpu), flush=True)
    return {"name": name, "rows": len(X), "cpu_s": cpu, "wall_s": wall, "accuracy": accuracy}


def on_all_rows(sets: tuple[Any, ...], seeds: tuple[int, ...], trials: int) -> list[dict[str, Any]]:
    """Our settings and both controls at several budgets, on all training rows."""
    runs = []
    for name, parameters in OURS.items():
        settings = {"hidden_layer_sizes": HIDDEN} | parameters
        runs.append(
            run(name, lambda seed, s=settings: ManifoldClassifier(random_state=seed, **s), sets, seeds)
        )
    for name, input_map in ADAM.items():
        found = search(sets, trials, input_map, EPOCHS[0])
        for epochs in EPOCHS:
            runs.append(tuned(f"{name}, {epochs} epochs", sets, seeds, found, epochs))
    return runs


def search(sets: tuple[Any, ...], trials: int, input_map: str, epochs: int) -> Tuning:
    """Rate and batch size of Adam for this map."""
    fixed = {"hidden_layer_sizes": HIDDEN, "input_map": input_map, "max_iter": epochs}
    return tune_adam(*sets[:2], task="classification", trials=trials, **fixed)


def tuned(
    name: str, sets: tuple[Any, ...], seeds: tuple[int, ...], found: Tuning, epochs: int
) -> dict[str, Any]:
    """Adam after its search."""
    parameters = found.parameters | {"max_iter": epochs}

    def make(seed: int) -> Any:
        return make_estimator("adam", "classification", random_state=seed, **parameters)

    return run(name, make, sets, seeds) | {"tuning": found.record()}


def on_few_rows(sets: tuple[Any, ...], seeds: tuple[int, ...], trials: int) -> list[dict[str, Any]]:
    """The first rows only: ours against Adam on the same map with at least our time."""
    runs = []
    for rows in SMALL:
        few = (sets[0][:rows], sets[1][:rows], *sets[2:])
        epochs = max(10, min(60, 200_000 // rows))
        runs.append(run(OURS_DEFAULT, lambda seed: ManifoldClassifier(HIDDEN, random_state=seed), few, seeds))
        found = search(few, trials, "pca", epochs)
        runs.append(tuned(f"adam, our input map, {epochs} epochs", few, seeds, found, epochs))
    return runs


OURS_DEFAULT = "manifold, default"


def row(name: str, run: dict[str, Any]) -> list[Any]:
    """One line of the table."""
    accuracy, spread = median_iqr(run["accuracy"])
    search = run.get("tuning", {}).get("cpu")
    return [
        name,
        run["rows"],
        run["name"],
        f"{accuracy:.2f} ± {spread:.2f}",
        median_iqr(run["cpu_s"])[0],
        search,
    ]


def measure_set(name: str, seeds: tuple[int, ...], quick: bool) -> dict[str, Any]:
    """All runs on one data set."""
    X, X_test, y, y_test = load(name).split()
    sets = (X.astype(np.float32), y, X_test.astype(np.float32), y_test)
    if quick:
        return {
            "all": on_all_rows((sets[0][:QUICK_ROWS], sets[1][:QUICK_ROWS], *sets[2:]), seeds, 2),
            "few": [],
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the published cycle never comes to rest
        return {"all": on_all_rows(sets, seeds, TRIALS), "few": on_few_rows(sets, seeds, TRIALS)}


def main() -> None:
    """Measure, record."""
    quick = parse_arguments(__doc__).quick
    seeds = SEEDS[:1] if quick else SEEDS
    names = ("mnist",) if quick else ("mnist", "fashion_mnist")
    with ProcessPoolExecutor(len(names), mp_context=get_context("spawn")) as pool:
        found = dict(zip(names, pool.map(partial(measure_set, seeds=seeds, quick=quick), names), strict=True))
    rows = [row(name, run) for name, runs in found.items() for run in runs["all"] + runs["few"]]
    record: dict[str, Any] = {"seeds": list(seeds), "sets": found}
    record["table"] = {
        "title": "Manifold networks and Adam on images, 784-256-10",
        "columns": ["set", "rows", "method", "test accuracy % (median ± IQR)", "fit, CPU s", "search, CPU s"],
        "rows": rows,
        "notes": [
            "fit: everything from raw pixels, input map, hold-out and fold included; ReLU units for Adam, "
            "leaky ReLU units for the manifold networks",
            f"search: {TRIALS} trials at the first budget over rate and batch size on a fifth of the "
            "training rows; the manifold ones "
            "are not tuned",
            "few rows: the first of the training set; test on all test rows",
            "both sets were measured at the same time, each in a process of its own",
        ],
    }
    write_record("manifold_images", record, quick=quick)


if __name__ == "__main__":
    main()
