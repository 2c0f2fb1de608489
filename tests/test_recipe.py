import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris

from liftopt import BackpropClassifier, FenchelClassifier, ManifoldClassifier, SplineClassifier
from liftopt.methods import METHODS, make_estimator, method_names
from liftopt.recipe import Recipe

COMMON: dict[str, Any] = {"hidden_layer_sizes": (8,), "random_state": 0, "max_iter": 8}
STARTED = [
    name
    for name in METHODS
    if name != "manifold_paper" and "init" in make_estimator(name, "regression").get_params()
]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_stages_start_from_each_other():
    X, y = load_iris(return_X_y=True)
    recipe = make_estimator("manifold+fenchel+adam", "classification", common=COMMON).fit(X, y)
    first = ManifoldClassifier(**COMMON).fit(X, y)
    second = FenchelClassifier(init=first.network_, **COMMON).fit(X, y)
    third = BackpropClassifier(init=second.network_, **COMMON).fit(X, y)
    assert [stage.name for stage in recipe.stages_] == ["manifold", "fenchel", "adam"]
    for stage, alone in zip(recipe.stages_, (first, second, third), strict=True):
        np.testing.assert_array_equal(stage.estimator.network_(X), alone.network_(X))
    np.testing.assert_array_equal(recipe.predict(X), third.predict(X))
    assert recipe.score(X, y) == third.score(X, y)
    assert recipe.network_ is recipe.stages_[-1].estimator.network_
    assert recipe.n_iter_ == first.n_iter_ + second.n_iter_ + third.n_iter_


def test_history_and_seconds_count_on():
    X, y = load_iris(return_X_y=True)
    recipe = make_estimator("manifold + adam", "classification", common=COMMON).fit(X, y)
    history, (first, second) = recipe.history_, recipe.stages_
    assert [record["iteration"] for record in history] == list(range(len(history)))
    assert {record["stage"] for record in history} == {"manifold", "adam"}
    for key in ("time", "cpu"):
        assert all(a[key] <= b[key] for a, b in pairwise(history))
    later = [record for record in history if record["stage"] == "adam"]
    assert all(first.wall <= record["time"] <= second.wall for record in later)


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("second", STARTED)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_every_method_starts_every_other(first, second, task):
    X, y = load_iris(return_X_y=True) if task == "classification" else load_diabetes(return_X_y=True)
    recipe = make_estimator(f"{first}+{second}", task, common=COMMON | {"max_iter": 30}).fit(X, y)
    assert recipe.score(X, y) > (0.6 if task == "classification" else 0.1)


def test_what_cannot_start_from_a_network_says_so():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="spline does not start from a network: it can only come first"):
        make_estimator("manifold+spline", "classification").fit(X, y)
    with pytest.raises(ValueError, match="the published cycle starts at random"):
        make_estimator("manifold+manifold_paper", "classification", common=COMMON).fit(X, y)


def test_names():
    assert method_names("spline") == ["spline"]
    assert method_names("manifold+ adam") == ["manifold", "adam"]
    for bad in ("", "manifold+", "+adam", "magic+adam"):
        with pytest.raises(ValueError, match=r"unknown method .*; choose one of spline, "):
            method_names(bad)
    with pytest.raises(ValueError, match="alpha: which method of manifold\\+adam is meant"):
        make_estimator("manifold+adam", "classification", alpha=1.0)


def test_common_parameters_go_where_they_are_known():
    recipe = make_estimator("spline+adam", "classification", common={"max_iter": 3, "random_state": 1})
    (_, spline), (_, adam) = recipe.methods
    assert isinstance(spline, SplineClassifier)
    assert (spline.random_state, adam.random_state, adam.max_iter) == (1, 1, 3)


def test_recipes_are_named_by_init_cloned_weighted_and_pickled():
    X, y = load_iris(return_X_y=True)
    model = BackpropClassifier(init="spline+fenchel", **COMMON).fit(X, y)
    assert model.score(X, y) > 0.9
    recipe = clone(make_estimator("manifold+adam", "classification", common=COMMON))
    assert isinstance(recipe, Recipe)
    weight = np.ones(len(y))
    weight[y == 2] = 0
    recipe.fit(X, y, sample_weight=weight)
    assert set(recipe.predict(X)) == {0, 1}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(recipe)).predict(X), recipe.predict(X))
