"""Depth and convolution on MNIST: 784-6x100-10, ten hidden layers of 100, LeNet-5, beside Adam.

FenchelClassifier (stochastic mode, defaults but for the width of the map) and Adam with a one-cycle schedule
on the same input map (raw pixels for LeNet-5), at several budgets; Adam's rate is chosen on held-out rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import measure, median_iqr, parse_arguments, write_record

from liftopt import AvgPool2d, Conv2d, Dense, FenchelClassifier, Flatten, Network, get_activation
from liftopt.baseline import BackpropClassifier
from liftopt.data import load

MAP = {"n_components": 80, "max_rows": 3136}
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
PASSES = {"6x100": (6, 12), "10x100": (6, 12), "LeNet-5": (3, 5, 8)}
TARGETS = {"6x100": 0.98, "10x100": 0.975, "LeNet-5": 0.99}
DEPTHS = {"6x100": 6, "10x100": 10}


def lenet5(seed: int) -> Network:
    """LeNet-5 for 28 x 28 images with average pooling, ReLU and He weights."""
    rng = np.random.default_rng(seed)
    relu, softmax = get_activation("relu"), get_activation("softmax")

    def weights(*shape: int, fan_in: int) -> Any:
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    def zeros(width: int) -> Any:
        return np.zeros(width, dtype=np.float32)

    layers = [
        Conv2d(weights(6, 1, 5, 5, fan_in=25), zeros(6), relu, 1, 2),
        AvgPool2d(2),
        Conv2d(weights(16, 6, 5, 5, fan_in=150), zeros(16), relu),
        AvgPool2d(2),
        Flatten(),
        Dense(weights(400, 120, fan_in=400), zeros(120), relu),
        Dense(weights(120, 84, fan_in=120), zeros(84), relu),
        Dense(weights(84, 10, fan_in=168), zeros(10), softmax),
    ]
    return Network(layers, (1, 28, 28))


def estimator(kind: str, method: str, passes: int, seed: int, rate: float = 0.0) -> Any:
    """One entrant."""
    shared: dict[str, Any] = {"max_iter": passes, "random_state": seed}
    if kind == "LeNet-5":
        shared |= {"init": lenet5(seed), "input_map": None}
    else:
        shared |= {"hidden_layer_sizes": (100,) * DEPTHS[kind], "input_map": MAP}
    if method == "fenchel":
        return FenchelClassifier(**shared)
    return BackpropClassifier(**shared, batch_size=250, learning_rate_init=rate)


def curves(kind: str, data: Any, seeds: tuple[int, ...], quick: bool) -> list[dict[str, Any]]:
    """Accuracy and time of both methods at every budget."""
    (X, y), (X_test, y_test) = data
    few = slice(0, 10_000 if kind == "LeNet-5" else 50_000)

    def held_out(rate: float, passes: int) -> float:
        models = [estimator(kind, "adam", passes, seed, rate).fit(X[few], y[few]) for seed in (0, 1)]
        return min(float(model.score(X[50_000:], y[50_000:])) for model in models)

    points = []
    for method in ("fenchel", "adam"):
        for passes in (1,) if quick else PASSES[kind]:
            rate = RATES[1]
            if method == "adam" and not quick:
                rate = max(RATES, key=lambda rate, passes=passes: held_out(rate, passes))
            models = [estimator(kind, method, passes, seed, rate) for seed in seeds]
            fits = [measure(lambda model=model: model.fit(X, y)) for model in models]
            accuracy = [float(fit.value.score(X_test, y_test)) for fit in fits]
            found = {"accuracy": accuracy, "cpu": [fit.cpu for fit in fits]}
            points.append({"method": method, "passes": passes, "rate": rate, **found})
            print(kind, points[-1], flush=True)
    return points


def reached(points: list[dict[str, Any]], method: str, target: float) -> str:
    """CPU seconds of the smallest budget whose median accuracy meets the target."""
    own = [point for point in points if point["method"] == method]
    times = [median_iqr(p["cpu"])[0] for p in own if median_iqr(p["accuracy"])[0] >= target]
    return f"{method} {min(times):.1f}" if times else f"{method} not reached"


def main() -> None:
    """Run and write the record."""
    quick = parse_arguments(__doc__).quick
    seeds = (0,) if quick else (0, 1, 2)
    source = load("mnist")
    train, test = source.splits[0]
    X = np.asarray(source.X, dtype=np.float32)
    data = (X[train], source.y[train]), (X[test], source.y[test])
    results = {kind: curves(kind, data, seeds, quick) for kind in (("6x100",) if quick else PASSES)}
    rows = [
        [
            kind,
            point["method"],
            point["passes"],
            100 * median_iqr(point["accuracy"])[0],
            100 * min(point["accuracy"]),
            median_iqr(point["cpu"])[0],
        ]
        for kind, points in results.items()
        for point in points
    ]
    table = {
        "title": "Fenchel: depth and convolution on MNIST",
        "columns": ["network", "method", "passes", "test accuracy, median (%)", "worst seed (%)", "CPU s"],
        "rows": rows,
        "notes": [
            "Adam on the same input map (LeNet-5: raw pixels); peak rate chosen for every budget on held-out "
            "rows, by the worse of two seeds.",
            *(
                f"{kind}, CPU seconds to {100 * TARGETS[kind]:g} %: "
                + ", ".join(reached(points, method, TARGETS[kind]) for method in ("fenchel", "adam"))
                for kind, points in results.items()
            ),
        ],
    }
    write_record("fenchel_depth", {"seeds": seeds, "results": results, "table": table}, quick=quick)


if __name__ == "__main__":
    main()
