"""Accuracy against time on MNIST and Fashion-MNIST, 784-300-10, with two controls.

FenchelClassifier (stochastic mode) against Adam with a one-cycle schedule on standardised raw input and on
the same input map. Every method runs at several budgets; time is that of the whole ``fit``, map and
validation included. Peak rates of Adam (per budget) and the width of the map (shared by both) are chosen on
rows held out of the training set; the test set is read once per run. Also: step scales around the default,
the step without second order (a very large multiplier), the cross-entropy head, and the run without noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import SEEDS, measure, median_iqr, parse_arguments, write_record

from liftopt import FenchelClassifier
from liftopt.baseline import BackpropClassifier
from liftopt.data import load

HIDDEN = (300,)
VALIDATION_ROWS = 10_000
QUICK_ROWS = 20_000
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)
MAPS: dict[str, tuple[int, ...]] = {"mnist": (60, 80, 120), "fashion_mnist": (100, 150, 200)}
TARGETS = {"mnist": 0.98, "fashion_mnist": 0.89}
VARIANTS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("without second order", 6, {"multiplier": 1e6}),
    ("without second order", 12, {"multiplier": 1e6}),
    ("cross-entropy head", 6, {"loss": "cross_entropy"}),
    ("cross-entropy head", 12, {"loss": "cross_entropy"}),
    ("without noise", 12, {"dropout": 0.0, "input_noise": 0.0}),
)
BUDGETS = {"fenchel": (2, 3, 4, 6, 12, 25, 50), "adam mapped": (2, 3, 6, 10, 20), "adam raw": (3, 6, 10)}


def estimator(method: str, passes: int, width: int, seed: int, **parameters: Any) -> Any:
    """One entrant."""
    map_ = {"n_components": width, "max_rows": 3136}
    shared = {"hidden_layer_sizes": HIDDEN, "max_iter": passes, "random_state": seed}
    if method == "fenchel":
        return FenchelClassifier(**shared, input_map=map_, **parameters)
    used = map_ if method == "adam mapped" else "standardise"
    return BackpropClassifier(**shared, input_map=used, batch_size=250, **parameters)


def as_float(X: Any) -> Any:
    return np.asarray(X, dtype=np.float32)


def choose(name: str, X: Any, y: Any, quick: bool) -> tuple[int, dict[tuple[str, int], float]]:
    """Width of the map and peak rates, on held-out training rows."""
    rows, held = slice(0, -VALIDATION_ROWS), slice(-VALIDATION_ROWS, None)

    def score(model: Any) -> float:
        return float(model.fit(X[rows], y[rows]).score(X[held], y[held]))

    widths = MAPS[name][1:2] if quick else MAPS[name]
    width = max(widths, key=lambda k: score(estimator("fenchel", 6, k, 0)))
    found = {}
    for method in ("adam mapped", "adam raw"):
        rates = RATES[2:3] if quick else RATES if method == "adam mapped" else RATES[:3]
        for passes in budgets(method, quick):
            found[method, passes] = max(
                rates, key=lambda r: score(estimator(method, passes, width, 0, learning_rate_init=r))
            )
    return width, found


def budgets(method: str, quick: bool) -> tuple[int, ...]:
    return BUDGETS[method][:2] if quick else BUDGETS[method]


def runs(name: str, seeds: tuple[int, ...], quick: bool) -> dict[str, Any]:
    """All curves of one data set."""
    data = load(name)
    train, test = data.splits[0]
    X, y, X_test, y_test = as_float(data.X[train]), data.y[train], as_float(data.X[test]), data.y[test]
    if quick:
        X, y = X[:QUICK_ROWS], y[:QUICK_ROWS]
    width, rates = choose(name, X, y, quick)
    print(name, "width", width, {f"{m} {p}": r for (m, p), r in rates.items()}, flush=True)
    curves: dict[str, list[dict[str, Any]]] = {}

    def record(label: str, passes: int, models: list[Any]) -> None:
        found = [measure(lambda model=model: model.fit(X, y)) for model in models]
        accuracy = [float(one.value.score(X_test, y_test)) for one in found]
        cpu = [one.cpu for one in found]
        curves.setdefault(label, []).append({"passes": passes, "accuracy": accuracy, "cpu": cpu})
        print(
            name, label, passes, round(median_iqr(accuracy)[0], 4), round(median_iqr(cpu)[0], 2), flush=True
        )

    for method in BUDGETS:
        for passes in budgets(method, quick):
            extra = {} if method == "fenchel" else {"learning_rate_init": rates[method, passes]}
            record(method, passes, [estimator(method, passes, width, seed, **extra) for seed in seeds])
    if not quick:
        few = seeds[:3]
        for scale in (1 / 16, 1 / 4, 4, 16):
            step = scale * FenchelClassifier().step
            record(f"step x{scale:g}", 6, [estimator("fenchel", 6, width, s, step=step) for s in few])
        for label, passes, parameters in VARIANTS:
            record(label, passes, [estimator("fenchel", passes, width, s, **parameters) for s in few])
    named = {f"{m} {p}": rate for (m, p), rate in rates.items()}
    return {"width": width, "rates": named, "curves": curves}


def reached(curve: list[dict[str, Any]], target: float) -> float | None:
    """CPU seconds of the smallest budget whose median accuracy meets the target."""
    times = [median_iqr(p["cpu"])[0] for p in curve if median_iqr(p["accuracy"])[0] >= target]
    return min(times, default=None)


def table(name: str, found: dict[str, Any]) -> dict[str, Any]:
    rows = [
        [
            label,
            point["passes"],
            100 * median_iqr(point["accuracy"])[0],
            100 * min(point["accuracy"]),
            median_iqr(point["cpu"])[0],
        ]
        for label, curve in found["curves"].items()
        for point in curve
    ]
    goal = TARGETS[name]
    times = {method: reached(found["curves"][method], goal) for method in BUDGETS}
    notes = [f"CPU seconds to {100 * goal:g} %: " + ", ".join(f"{m} {_text(t)}" for m, t in times.items())]
    return {
        "title": f"Fenchel against Adam: {name}, 784-300-10, {found['width']} components",
        "columns": ["method", "passes", "test accuracy, median (%)", "worst seed (%)", "CPU s"],
        "rows": rows,
        "notes": notes,
    }


def _text(seconds: float | None) -> str:
    return "not reached" if seconds is None else f"{seconds:.2f}"


def main() -> None:
    """Run and write the record."""
    quick = parse_arguments(__doc__).quick
    seeds = (0,) if quick else SEEDS
    names = ("mnist",) if quick else ("mnist", "fashion_mnist")
    found = {name: runs(name, seeds, quick) for name in names}
    tables = [table(name, result) for name, result in found.items()]
    write_record("fenchel_mnist", {"seeds": seeds, "results": found, "table": tables}, quick=quick)


if __name__ == "__main__":
    main()
