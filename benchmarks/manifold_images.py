"""Manifold networks against Adam on MNIST and Fashion-MNIST: accuracy and CPU time, all rows and few rows.

Every Adam row is tuned by a quasirandom search over rate and batch size on a validation split of the training
rows, on the standardised input and on the very input map of the manifold networks; the search time is stated.
Test rows are read once per fitted model. Settings of the manifold networks are the defaults, or named.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import SEEDS, measure, median_iqr, parse_arguments, tune_adam, write_record

from liftopt import ManifoldClassifier
from liftopt.data import load
from liftopt.manifold import PAPER
from liftopt.methods import make_estimator

HIDDEN = (256,)
OURS: dict[str, dict[str, Any]] = {
    "manifold, default": {},
    "manifold, 4 sweeps, 64 components": {"max_iter": 4, "input_map": {"n_components": 64}},
    "manifold, 512 units": {"hidden_layer_sizes": (512,)},
    "published cycle, 64-32 sigmoid": {**PAPER, "hidden_layer_sizes": (64, 32), "max_iter": 10},
}
ADAM = {"adam, standardised input": "standardise", "adam, our input map": "pca"}
EPOCHS = (4, 8)
SMALL = (1000, 5000, 20000)


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
        for epochs in EPOCHS:
            runs.append(tuned(f"{name}, {epochs} epochs", sets, seeds, trials, input_map, epochs))
    return runs


def tuned(
    name: str, sets: tuple[Any, ...], seeds: tuple[int, ...], trials: int, input_map: str, epochs: int
) -> dict[str, Any]:
    """Adam after its search."""
    fixed = {"hidden_layer_sizes": HIDDEN, "input_map": input_map, "max_iter": epochs}
    found = tune_adam(*sets[:2], task="classification", trials=trials, **fixed)

    def make(seed: int) -> Any:
        return make_estimator("adam", "classification", random_state=seed, **found.parameters)

    return run(name, make, sets, seeds) | {"tuning": found.record()}


def on_few_rows(sets: tuple[Any, ...], seeds: tuple[int, ...], trials: int) -> list[dict[str, Any]]:
    """The first rows only: ours against Adam on the same map with at least our time."""
    runs = []
    for rows in SMALL:
        few = (sets[0][:rows], sets[1][:rows], *sets[2:])
        epochs = max(10, min(60, 200_000 // rows))
        runs.append(run(OURS_DEFAULT, lambda seed: ManifoldClassifier(HIDDEN, random_state=seed), few, seeds))
        runs.append(tuned(f"adam, our input map, {epochs} epochs", few, seeds, trials, "pca", epochs))
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


def main() -> None:
    """Measure, record."""
    quick = parse_arguments(__doc__).quick
    seeds = SEEDS[:1] if quick else SEEDS
    rows: list[list[Any]] = []
    record: dict[str, Any] = {"seeds": list(seeds), "sets": {}}
    for name in ("mnist",) if quick else ("mnist", "fashion_mnist"):
        data = load(name)
        X, X_test, y, y_test = data.split()
        sets = (X.astype(np.float32), y, X_test.astype(np.float32), y_test)
        if quick:
            sets = (sets[0][:5000], sets[1][:5000], *sets[2:])
        everything = on_all_rows(sets, seeds, 2 if quick else 10)
        few = [] if quick else on_few_rows(sets, seeds, 10)
        record["sets"][name] = {"all": everything, "few": few}
        rows += [row(name, run) for run in everything + few]
    record["table"] = {
        "title": "Manifold networks and Adam on images, 784-256-10",
        "columns": ["set", "rows", "method", "test accuracy % (median ± IQR)", "fit, CPU s", "search, CPU s"],
        "rows": rows,
        "notes": [
            "fit: everything from raw pixels, input map, hold-out and fold included; ReLU units for Adam, "
            "leaky ReLU units for the manifold networks",
            "search: ten trials over rate and batch size on a fifth of the training rows; the manifold ones "
            "are not tuned",
            "few rows: the first of the training set; test on all test rows",
        ],
    }
    write_record("manifold_images", record, quick=quick)


if __name__ == "__main__":
    main()
