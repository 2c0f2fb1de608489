"""No tuning: the Fenchel estimators with their defaults against Adam after a search of 20 trials.

The baseline has the same architecture and a quasirandom search over rate and batch size on held-out training
rows; both then fit all training rows and the test rows are read once. Sets of more than 5,000 training rows
are subsampled. Ratios are of CPU time: one fit of ours to the search with its final fit, and to that alone.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from common import SEEDS, measure, median_iqr, parse_arguments, tune_adam, write_record
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from liftopt.data import load
from liftopt.methods import make_estimator

NAMES = (
    "breast_cancer",
    "digits",
    "dna",
    "letter",
    "satimage",
    "segment",
    "abalone",
    "california_housing",
    "concrete",
    "kin8nm",
    "power_plant",
    "wine_quality_white",
)
ROWS = 5_000
BASE: dict[str, Any] = {"hidden_layer_sizes": (100,), "max_iter": 25}


def compare(name: str, seeds: tuple[int, ...], trials: int) -> dict[str, Any]:
    """Scores and times on one data set."""
    data = load(name)
    stratify = data.y if data.task == "classification" else None
    X, X_test, y, y_test = train_test_split(
        data.X, data.y, train_size=min(ROWS, int(0.8 * len(data.X))), random_state=0, stratify=stratify
    )
    X_test, y_test = X_test[:ROWS], y_test[:ROWS]
    tuning = tune_adam(X, y, task=data.task, trials=trials, **BASE)
    found: dict[str, Any] = {"task": data.task, "rows": len(X), "search_cpu": tuning.cpu}
    for label, make in (
        ("adam", lambda seed: make_estimator("adam", data.task, random_state=seed, **tuning.parameters)),
        ("fenchel", lambda seed: make_estimator("fenchel", data.task, random_state=seed)),
    ):
        models = [make(seed) for seed in seeds]
        fits = [measure(lambda model=model: model.fit(X, y)) for model in models]
        found[label] = {
            "score": [float(fit.value.score(X_test, y_test)) for fit in fits],
            "cpu": [fit.cpu for fit in fits],
        }
    print(
        name,
        {key: np.round(median_iqr(found[key]["score"])[0], 4) for key in ("adam", "fenchel")},
        flush=True,
    )
    return found


def row(name: str, found: dict[str, Any]) -> list[Any]:
    adam, ours = (100 * median_iqr(found[key]["score"])[0] for key in ("adam", "fenchel"))
    one, mine = (median_iqr(found[key]["cpu"])[0] for key in ("adam", "fenchel"))
    search = found["search_cpu"] + one
    return [name, found["rows"], ours, adam, ours - adam, mine, one, search, mine / one, mine / search]


def main() -> None:
    """Run and write the record."""
    quick = parse_arguments(__doc__).quick
    names, seeds, trials = (NAMES[:2], (0,), 3) if quick else (NAMES, SEEDS, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        results = {name: compare(name, seeds, trials) for name in names}
    rows = [row(name, found) for name, found in results.items()]
    gains = np.array([line[4] for line in rows])
    means = [float(np.exp(np.mean(np.log([line[k] for line in rows])))) for k in (8, 9)]
    table = {
        "title": "Fenchel defaults against tuned Adam, 100 hidden units",
        "columns": [
            "data",
            "training rows",
            "fenchel (%)",
            "adam (%)",
            "difference",
            "fenchel CPU s",
            "adam, one fit",
            "adam with search",
            "ratio to one fit",
            "ratio to search",
        ],
        "rows": rows,
        "notes": [
            "Accuracy, or R2 of the test rows, in percent; medians over seeds.",
            f"Geometric mean of the time ratios: {means[0]:.2f} to one fit, {means[1]:.3f} to the search.",
            f"Within 0.3 points or better on {int((gains >= -0.3).sum())} of {len(gains)} sets, more than "
            f"one point behind on {int((gains < -1).sum())}.",
        ],
    }
    write_record("fenchel_tabular", {"seeds": seeds, "results": results, "table": table}, quick=quick)


if __name__ == "__main__":
    main()
