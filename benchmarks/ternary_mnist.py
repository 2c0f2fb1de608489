"""Ternary networks on MNIST: four metrics against float, rounding alone and straight-through training.

Claims: ternary softmax regression with at least 91.5 % test accuracy in at most 4 CPU seconds; 784-128-10
with at least 97.5 % in at most 60 CPU seconds, float start included; 784-300-10 within 0.2 points of the
float network and not below straight-through training of equal time; files 28 times smaller than float64
weights, 14 times smaller than float32.

Every row is one trained network: training and validation error, test error, stored bytes (the file, header
included) and CPU seconds (float start included where there is one). Straight-through training (torch, TWN
quantiser, Adam with a cosine) starts from the same float network, gets the time of our search, and the
better of two learning rates by validation.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

from common import measure, parse_arguments, write_record  # isort: skip

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from ternary_rivals import rounded, straight_through

from liftopt import Network, TernaryClassifier, data
from liftopt.methods import make_estimator
from liftopt.solvers.softmax_search import SoftmaxSearch

SEEDS = (0, 1, 2)
SWEEPS = {(): 5, (128,): 3, (300,): 1}
NOTES = [
    "Median of the seeds; errors in percent; bytes of the saved file; CPU seconds of one thread.",
    "Times of rounding and of the searches include the float start; the start alone is the first row.",
    "Straight-through networks are saved as floats here; packed they take the bytes of the search.",
    "Straight-through training gets the CPU time of our search after the same start, per learning rate.",
]


def file_bytes(network: Network) -> int:
    """Size of the saved file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        network.save(path)
        return path.stat().st_size


def errors(network: Network, parts: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """Percentage of wrong rows of each part."""
    return {
        name: 100 * float(np.mean(network.scores(X).argmax(axis=1) != y)) for name, (X, y) in parts.items()
    }


def one_seed(hidden: tuple[int, ...], parts: dict[str, tuple[Any, Any]], seed: int) -> dict[str, Any]:
    """All rows of one architecture and seed."""
    X, y = parts["train"]
    rows: dict[str, Any] = {}

    def record(name: str, network: Network, cpu: float) -> None:
        rows[name] = {**errors(network, parts), "bytes": file_bytes(network), "cpu_s": cpu}
        print(hidden, seed, name, rows[name], flush=True)

    start = None
    spent = 0.0
    if hidden:
        fit = measure(
            lambda: make_estimator(
                "manifold", "classification", hidden_layer_sizes=hidden, random_state=seed
            ).fit(X, y)
        )
        start, spent = fit.value.network_, fit.cpu
        record("float start (manifold)", start, spent)
        record("exact ternarisation alone", rounded(start), spent)
    search = TernaryClassifier(
        hidden_layer_sizes=hidden, init=start, max_iter=SWEEPS[hidden], random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = measure(lambda: search.fit(X, y))
    record("ternary search", found.value.network_, spent + found.cpu)
    if start is not None:
        trained = straight_through(start, parts, budget=found.cpu, seed=seed)
        record("straight-through", trained.network, spent + trained.cpu)
    return rows


def sweep_speed(X: Any, y: Any) -> dict[str, float]:
    """CPU seconds of one sweep against the same sweep by full evaluations (timed on 20 of them)."""
    Y = np.eye(10)[y]
    search = SoftmaxSearch(X, Y)
    start = search.at(search.origin())
    search.sweep(start)
    ours = measure(lambda: search.sweep(start)).cpu
    weight = start.x.weights.dense().astype(np.float32)

    def naive() -> None:
        for _ in range(20):
            z = X @ weight
            top = z.max(axis=1)
            float((np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(y)), y]).sum())

    trial = measure(naive).cpu / 20
    trials = 2 * X.shape[1] * 10
    return {
        "sweep_s": ours,
        "naive_trial_s": trial,
        "naive_sweep_s": trial * trials,
        "ratio": trial * trials / ours,
    }


def main() -> None:
    """Fit all, record."""
    quick = parse_arguments(__doc__).quick
    split = data.load("mnist").split()
    seeds, sizes = (SEEDS[:1], [(), (128,)]) if quick else (SEEDS, list(SWEEPS))
    runs: list[dict[str, Any]] = []
    TernaryClassifier(hidden_layer_sizes=(8,), max_iter=1, random_state=0, callback=lambda _: True).fit(
        split.X_train[:500], split.y_train[:500]
    )  # compiles
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(split.y_train))
        held, kept = order[:5000], order[5000 : 10000 if quick else None]
        parts = {
            "train": (split.X_train[kept], split.y_train[kept]),
            "validation": (split.X_train[held], split.y_train[held]),
            "test": (split.X_test, split.y_test),
        }
        for hidden in sizes:
            runs.append({"hidden": hidden, "seed": seed, "rows": one_seed(hidden, parts, seed)})
    X, y = split.X_train[: 5000 if quick else None], split.y_train[: 5000 if quick else None]
    speed = sweep_speed(X, y)
    print(speed)
    table = []
    for hidden in sizes:
        group = [run["rows"] for run in runs if run["hidden"] == hidden]
        for name in group[0]:
            cells = [
                float(np.median([rows[name][key] for rows in group]))
                for key in ("train", "validation", "test", "bytes", "cpu_s")
            ]
            shape = "-".join(map(str, (784, *hidden, 10)))
            table.append([shape, name, *cells[:3], int(cells[3]), cells[4]])
    note = (
        f"One sweep of softmax regression: {speed['sweep_s']:.2f} s; by full evaluations "
        f"{speed['naive_sweep_s']:.0f} s "
        f"({speed['ratio']:.0f} times longer, extrapolated from 20 evaluations)."
    )
    payload = {
        "seeds": list(seeds),
        "runs": runs,
        "sweep": speed,
        "table": {
            "title": "Ternary networks on MNIST",
            "columns": [
                "network",
                "method",
                "train error %",
                "validation error %",
                "test error %",
                "bytes",
                "CPU s",
            ],
            "rows": table,
            "notes": [*NOTES, note],
        },
    }
    write_record("ternary_mnist", payload, quick=quick)


if __name__ == "__main__":
    main()
