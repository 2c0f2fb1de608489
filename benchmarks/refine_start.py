"""Refinement from structured starts against Adam at equal time: MNIST and Fashion-MNIST, 784-300-10.

Two recipes, fenchel then refine and manifold then fenchel then refine, against Adam with a one-cycle rate on
the same damped principal components. Adam gets as many epochs as fill 1.3 times the recipe's CPU time,
measured on this machine: a margin for the noise of the measurement. Refinement: Adam for four epochs under a
cosine, the average of the last epoch published. The fenchel stage regularises by noise, so the refinement may
use input noise too; Adam runs without and with the same noise. Rates, and the refinement's noise, are chosen
on rows held out of the training set; the test set is read once per run, after every stage. The record is
written after each pair.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from common import Measured, measure, median_iqr, parse_arguments, write_record
from sklearn.exceptions import ConvergenceWarning

from liftopt import BackpropClassifier, FenchelClassifier, ManifoldClassifier, Network, refine
from liftopt.data import load

HIDDEN = (300,)
VALIDATION_ROWS = 10_000
COMPONENTS = {"mnist": 80, "fashion_mnist": 150}
NOISE = 0.3  # on mapped inputs; the fenchel stage's largest
REFINEMENTS = [(rate, noise) for noise in (0.0, NOISE) for rate in (2e-4, 1e-3)]
ADAM_RATES = (5e-3, 1e-2)
RIVALS = {"adam": 0.0, "adam with noise": NOISE}
MARGIN = 1.3  # of the recipe's time, for Adam
RECIPES = ("fenchel 20", "manifold + fenchel 6")


class Rows(NamedTuple):
    """Training and test rows, and the input map's specification."""

    X: Any
    y: Any
    X_test: Any
    y_test: Any
    map: dict[str, Any]

    def score(self, network: Network) -> float:
        """Test accuracy."""
        return float(np.mean(network.scores(self.X_test).argmax(axis=1) == self.y_test))


Stages = list[tuple[str, Measured[Network]]]


def start_of(recipe: str, rows: Rows, seed: int) -> Stages:
    """Networks after every stage before the refinement, with their own times."""
    shared: dict[str, Any] = {"hidden_layer_sizes": HIDDEN, "random_state": seed}
    done: Stages = []
    start: dict[str, Any] = {}
    if recipe.startswith("manifold"):
        first = measure(lambda: ManifoldClassifier(**shared).fit(rows.X, rows.y).network_)
        done.append(("manifold", first))
        start = {"init": first.value, "step": 0.03}  # half the default: the start is good
    passes = int(recipe.rsplit(" ", 1)[1])
    fenchel = FenchelClassifier(**shared, max_iter=passes, input_map=rows.map, **start)
    done.append(("fenchel", measure(lambda: fenchel.fit(rows.X, rows.y).network_)))
    return done


def refined(done: Stages, rows: Rows, seed: int, rate: float, noise: float) -> Stages:
    """The stages with the refinement as the last one."""
    options: dict[str, Any] = {
        "learning_rate_init": rate, "max_iter": 4, "schedule": "cosine", "alpha": 0.0, "input_noise": noise,
        "batch_size": 250, "early_stopping": False, "input_map": rows.map, "random_state": seed,
    }  # fmt: skip
    network = done[-1][1].value
    return [*done, ("refine", measure(lambda: refine(network, rows.X, rows.y, **options)))]


def adam(rows: Rows, epochs: int, rate: float, seed: int, noise: float = 0.0) -> Measured[Network]:
    """The baseline on the same map."""
    model = BackpropClassifier(
        hidden_layer_sizes=HIDDEN, input_map=rows.map, batch_size=250, max_iter=epochs,
        learning_rate_init=rate, input_noise=noise, random_state=seed,
    )  # fmt: skip
    return measure(lambda: model.fit(rows.X, rows.y).network_)


def rows_of(name: str, quick: bool) -> tuple[Rows, Rows]:
    """All training rows with the test rows, and their first part with the held-out ones."""
    data = load(name)
    train, test = data.splits[0]
    X, X_test = (np.asarray(data.X[part], np.float32) for part in (train, test))
    y, y_test = data.y[train], data.y[test]
    if quick:
        X, y = X[-20_000:], y[-20_000:]
    map_ = {"n_components": COMPONENTS[name], "max_rows": 3136}
    cut = -VALIDATION_ROWS
    return Rows(X, y, X_test, y_test, map_), Rows(X[:cut], y[:cut], X[cut:], y[cut:], map_)


def study(name: str, recipe: str, seeds: tuple[int, ...], quick: bool) -> dict[str, Any]:
    """One recipe against Adam on one data set."""
    rows, judged = rows_of(name, quick)
    begun = start_of(recipe, judged, 0)
    rate, noise = max(
        REFINEMENTS[-1:] if quick else REFINEMENTS,
        key=lambda choice: judged.score(refined(begun, judged, 0, *choice)[-1][1].value),
    )
    runs = [refined(start_of(recipe, rows, seed), rows, seed, rate, noise) for seed in seeds]
    names = [stage for stage, _ in runs[0]]
    accuracy = {stage: [rows.score(dict(run)[stage].value) for run in runs] for stage in names}
    cpu = {stage: [dict(run)[stage].cpu for run in runs] for stage in names}
    total = median_iqr([sum(run[1].cpu for run in found) for found in runs])[0]
    few, more = (adam(rows, epochs, ADAM_RATES[1], 0).cpu for epochs in (2, 6))
    epochs = max(1, math.ceil(2 + 4 * (MARGIN * total - few) / (more - few)))
    found = {
        "data": name,
        "recipe": f"{recipe} + refine",
        "refine_rate": rate,
        "refine_noise": noise,
        "stages": names,
        "accuracy": accuracy,
        "cpu": cpu,
        "epochs": epochs,
        **{rival: rival_of(rows, judged, epochs, level, seeds, quick) for rival, level in RIVALS.items()},
    }
    print(row_of(found), flush=True)
    return found


def rival_of(
    rows: Rows, judged: Rows, epochs: int, noise: float, seeds: tuple[int, ...], quick: bool
) -> dict[str, Any]:
    """Adam with the better of its rates on held-out rows."""
    rates = ADAM_RATES[1:] if quick else ADAM_RATES
    best = max(rates, key=lambda rate: judged.score(adam(judged, epochs, rate, 0, noise).value))
    runs = [adam(rows, epochs, best, seed, noise) for seed in seeds]
    return {
        "rate": best,
        "accuracy": [rows.score(one.value) for one in runs],
        "cpu": [one.cpu for one in runs],
    }


def row_of(found: dict[str, Any]) -> list[Any]:
    """Row of the table."""

    def ordered(key: str) -> list[Any]:
        return [found[key][stage] for stage in found["stages"]]

    def middle(values: Any) -> float:
        return float(np.median(values))

    rivals = [found[rival] for rival in RIVALS]
    return [
        found["data"],
        found["recipe"],
        " / ".join(f"{100 * middle(values):.2f}" for values in ordered("accuracy")),
        " + ".join(f"{middle(values):.1f}" for values in ordered("cpu")),
        f"{middle(np.sum(ordered('cpu'), axis=0)):.2f}",
        f"{found['refine_rate']:g} / {found['refine_noise']:g}",
        found["epochs"],
        " / ".join(f"{100 * middle(rival['accuracy']):.2f}" for rival in rivals),
        " / ".join(f"{middle(rival['cpu']):.2f}" for rival in rivals),
        *[gain_of(found["accuracy"]["refine"], rival["accuracy"]) for rival in rivals],
    ]


def gain_of(ours: list[float], theirs: list[float]) -> str:
    """Mean gain in points, paired by seed, and its standard error."""
    gain = 100 * (np.array(ours) - theirs)
    error = f" +/- {gain.std(ddof=1) / np.sqrt(gain.size):.2f}" if gain.size > 1 else ""
    return f"{gain.mean():+.2f}{error}"


def main() -> None:
    """Run and write the record."""
    quick = parse_arguments(__doc__).quick
    warnings.simplefilter("ignore", ConvergenceWarning)  # budgets are meant to end the runs
    seeds = (0,) if quick else (0, 1, 2, 3, 4)
    adam(rows_of("mnist", True)[1], 1, 1e-2, 0)  # imports and first calls are not timed
    names = ("mnist",) if quick else ("mnist", "fashion_mnist")
    found: list[dict[str, Any]] = []
    for recipe in RECIPES[: 1 if quick else None]:
        for name in names:
            found.append(study(name, recipe, seeds, quick))
            payload = {"seeds": seeds, "results": found, "table": table(found)}
            write_record("refine_start", payload, quick=quick)


def table(found: list[dict[str, Any]]) -> dict[str, Any]:
    """One row a recipe and data set."""
    return {
        "title": "Structured starts, refined, against Adam: 784-300-10",
        "columns": ["data", "recipe", "test accuracy after each stage, median (%)", "CPU s by stage", "CPU s",
                    "refinement's rate / noise", "Adam's epochs", "Adam without / with noise: accuracy (%)",
                    "Adam: CPU s", "gain over Adam, mean and s.e.", "over Adam with noise"],
        "rows": [row_of(one) for one in found],
        "notes": [
            f"Same input map for all; Adam's epochs fill {MARGIN:g} times the recipe's time. Noise of "
            f"deviation {NOISE:g} on mapped inputs, which the fenchel stage uses too.",
        ],
    }  # fmt: skip


if __name__ == "__main__":
    main()
