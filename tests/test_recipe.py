import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris

from liftopt import BackpropClassifier, FenchelClassifier, ManifoldClassifier, SplineClassifier, stream
from liftopt.base import TrainingData, _held_rows, holding_out, holdout_split
from liftopt.methods import METHODS, make_estimator, method_names
from liftopt.recipe import Recipe

COMMON: dict[str, Any] = {"hidden_layer_sizes": (8,), "random_state": 0, "max_iter": 8}
STARTED = [
    name
    for name in METHODS
    if name != "manifold_paper" and "init" in make_estimator(name, "regression").get_params()
]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_stages_start_from_each_other(monkeypatch):
    X, y = load_iris(return_X_y=True)
    seen = []

    def fit(self, X, y, sample_weight=None):
        seen.append((type(self).__name__, X, self.init, _held_rows.get()))
        return original[type(self)](self, X, y, sample_weight)

    kinds = (ManifoldClassifier, FenchelClassifier, BackpropClassifier)
    original = {kind: kind.fit for kind in kinds}
    for kind in kinds:
        monkeypatch.setattr(kind, "fit", fit)
    recipe = make_estimator("manifold+fenchel+adam", "classification", common=COMMON).fit(X, y)
    assert [stage.name for stage in recipe.stages_] == ["manifold", "fenchel", "adam"]
    assert [name for name, *_ in seen] == [kind.__name__ for kind in kinds]
    networks = [stage.estimator.network_ for stage in recipe.stages_]
    assert [init for _, _, init, _ in seen] == [None, *networks[:-1]]
    np.testing.assert_array_equal(recipe.predict(X), recipe.stages_[-1].estimator.predict(X))
    assert recipe.score(X, y) > 0.8
    assert recipe.network_ is networks[-1]
    assert recipe.n_iter_ == sum(stage.estimator.n_iter_ for stage in recipe.stages_)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_no_stage_is_judged_on_rows_that_its_start_has_seen(task, rng):
    X = np.arange(200.0)[:, None]
    recipe = make_estimator("manifold+fenchel+adam", task, common={"random_state": 0})
    splits = recipe._splits(X, np.arange(200) % 3, None)
    (first, none), *later = splits
    assert none is None
    for (before, _), (rows, held) in zip(splits, later, strict=False):
        assert len(held) == len(rows) // 10 or task == "classification"
        assert set(before) == set(rows) - set(rows[held])
    assert len(later[-1][0]) == 200
    assert len(first) > 150
    weight = np.ones(200)
    weight[3] = 0
    assert all(
        held is None and len(rows) == 200 for rows, held in recipe._splits(X, np.arange(200) % 3, weight)
    )


def test_methods_hold_out_what_they_are_told_to(rng):
    X, y = rng.normal(size=(50, 2)), np.arange(50) % 2
    data = TrainingData(X, np.eye(2)[y], y, None)
    held = np.array([3, 4, 30])
    with holding_out(held):
        train, found = holdout_split(data, 0.2, np.random.RandomState(0))
        assert holdout_split(data, 0.0, np.random.RandomState(0))[1].size == 0
    np.testing.assert_array_equal(found, held)
    np.testing.assert_array_equal(np.sort(np.r_[train, held]), np.arange(50))
    assert len(holdout_split(data, 0.2, np.random.RandomState(0))[1]) == 10


def test_streams_are_refused_with_the_remedy():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="a recipe needs rows in memory"):
        make_estimator("manifold+adam", "classification").fit(stream(X, y), None)


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
