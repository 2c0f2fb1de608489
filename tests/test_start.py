"""A start that a method's name stands for: what it may see, and what Ctrl-C in it means."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning

import liftopt.base
from liftopt.base import TrainingData, holdout_split, starting_network
from liftopt.manifold_fit import SweepSearch
from liftopt.methods import make_estimator

STARTED = [
    ("fenchel", {"mode": "monotone", "max_iter": 2}),
    ("fenchel", {"mode": "stochastic", "max_iter": 2}),
    ("manifold", {"max_iter": 3}),
    ("ternary", {"max_iter": 2}),
    ("adam", {"max_iter": 3, "early_stopping": True}),
    ("refine", {"max_iter": 3}),
]
#: modules in which the methods hold out rows
MODULES = {
    "fenchel": "fenchel_training",
    "manifold": "manifold_fit",
    "ternary": "ternary_training",
    "adam": "baseline",
    "refine": "baseline",
}


@pytest.fixture
def starts(monkeypatch):
    """Rows that the fits of starts were given."""
    seen: list[Any] = []
    make = make_estimator

    def watched(*arguments, **keywords):
        estimator = make(*arguments, **keywords)
        fit = estimator.fit

        def watched_fit(X, y, sample_weight=None):
            seen.append(X)
            return fit(X, y, sample_weight)

        estimator.fit = watched_fit
        return estimator

    monkeypatch.setattr(liftopt.base, "make_estimator", watched)
    return seen


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("method", "settings"), STARTED)
def test_held_out_rows_are_new_to_a_start_given_by_name(method, settings, starts, monkeypatch):
    X, y = load_digits(return_X_y=True)
    X, y = X[:600], y[:600]
    common = {"hidden_layer_sizes": (8,), "random_state": 0, "init": "manifold"}
    if method != "adam":
        common["input_map"] = None  # so that the rows can be recognised
    held = []

    def watched_split(data, *arguments):
        found = holdout_split(data, *arguments)
        held.append(data.X[found[1]])
        return found

    monkeypatch.setattr(f"liftopt.{MODULES[method]}.holdout_split", watched_split)
    make_estimator(method, "classification", common=common | settings).fit(X, y)
    (given,) = starts
    own = held[0] if method in ("adam", "refine", "ternary") else held[-1]  # these split before the start
    assert len(own) >= 10
    rows = {row.tobytes() for row in given}
    assert len(rows) >= 500
    assert not rows & {row.tobytes() for row in own}


def test_no_row_is_withheld_from_a_start_where_none_is_held_out(starts):
    X, y = load_iris(return_X_y=True)
    settings = {"hidden_layer_sizes": (4,), "random_state": 0, "max_iter": 2, "validation_fraction": 0.0}
    make_estimator("fenchel", "classification", init="manifold", common=settings).fit(X, y)
    assert [len(given) for given in starts] == [150]


@pytest.mark.parametrize(("method", "settings"), STARTED)
def test_ctrl_c_in_the_start_ends_the_whole_fit(method, settings, monkeypatch):
    def interrupted(self, loss):
        raise KeyboardInterrupt

    X, y = load_digits(return_X_y=True)
    common = {"hidden_layer_sizes": (8,), "random_state": 0, "init": "manifold"} | settings
    steps: list[Any] = []
    model = make_estimator(method, "classification", common=common, callback=steps.append)
    if method == "manifold":
        model.set_params(init="fenchel")
        monkeypatch.setattr("liftopt.stochastic.StochasticRun.fit", lambda self: interrupted(self, 0.0))
    else:
        monkeypatch.setattr(SweepSearch, "_record", interrupted)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        model.fit(X[:600], y[:600])
    assert len(steps) <= 1  # the start itself
    assert model.network_(X[:1]).shape == (1, 10)
    monkeypatch.undo()
    with warnings.catch_warnings(record=True) as later:
        warnings.simplefilter("always")
        model.set_params(init=None, callback=None).fit(X[:600], y[:600])
    assert not any("interrupted" in str(warning.message) for warning in later)
    assert len(model.history_) > 1


def test_a_recipe_ends_at_the_interrupted_stage(monkeypatch):
    def interrupted(self, loss):
        raise KeyboardInterrupt

    monkeypatch.setattr(SweepSearch, "_record", interrupted)
    X, y = load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="the descent was interrupted"):
        recipe = make_estimator("manifold+fenchel", "classification", common={"random_state": 0}).fit(X, y)
    assert [stage.name for stage in recipe.stages_] == ["manifold"]
    assert recipe.predict(X).shape == (150,)


def test_a_named_start_fits_what_it_is_given(rng):
    y = np.arange(40) % 2
    data = TrainingData(rng.normal(size=(40, 3)), np.eye(2)[y], y, None)
    network = starting_network("spline", data, np.random.RandomState(0))
    assert network is not None
    assert network.output_shape == (2,)
