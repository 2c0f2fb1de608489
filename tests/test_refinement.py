"""Refinement of networks by gradients, through the function and through the method of that name."""

import sys
from typing import Any, get_args

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from liftopt import (
    AvgPool2d,
    BackpropClassifier,
    BackpropRegressor,
    Conv2d,
    Dense,
    FiniteArray,
    Flatten,
    ManifoldClassifier,
    Network,
    get_activation,
    refine,
)
from liftopt.layers import Normalize
from liftopt.methods import Task, make_estimator

SMALL: dict[str, Any] = {"max_iter": 5, "hidden_layer_sizes": (20,)}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [make_estimator("refine", task, **SMALL) for task in get_args(Task)], xfail_strict=True
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split((X / 16).astype(np.float32), y, test_size=0.4, random_state=0, stratify=y)


def crude_network(X, y):
    """A start with room above it."""
    return BackpropClassifier(hidden_layer_sizes=(32,), max_iter=2, random_state=0).fit(X, y).network_


def test_a_start_improves_and_its_metadata_stay():
    X, X_test, y, y_test = digits()
    crude = crude_network(X, y)
    start = Network(crude.layers, metadata={"note": "kept"})
    refined = refine(start, X, y, random_state=0, max_iter=10)
    accuracy = lambda net: np.mean(net(X_test).argmax(1) == y_test)  # noqa: E731
    assert accuracy(refined) > accuracy(start) + 0.02
    assert refined.metadata == {"note": "kept"}
    assert refined.dtype == np.float32


def test_a_start_that_cannot_be_improved_is_kept():
    X, X_test, y, _ = digits()
    start = ManifoldClassifier(hidden_layer_sizes=(32,), random_state=0).fit(X, y).network_
    kept = refine(start, X, y, learning_rate_init=30.0, max_iter=2, random_state=0, input_map=None)
    np.testing.assert_allclose(kept(X_test), start(X_test), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "schedule_free"])
@pytest.mark.filterwarnings("ignore:BackpropClassifier no plateau")
def test_every_optimiser_refines(optimizer):
    options: dict[str, Any] = {"learning_rate_init": 0.05 if optimizer in ("sgd", "momentum") else 3e-3}
    if optimizer == "schedule_free":
        pytest.importorskip("schedulefree")
        options |= {"schedule": "constant", "sampling": None}
    X, X_test, y, y_test = digits()
    start = crude_network(X, y)
    refined = refine(start, X, y, optimizer=optimizer, max_iter=8, random_state=0, **options)
    assert np.mean(refined(X_test).argmax(1) == y_test) > np.mean(start(X_test).argmax(1) == y_test)


def test_regression_starts_from_any_network_with_a_linear_head():
    X, y = load_diabetes(return_X_y=True)
    start = BackpropRegressor(hidden_layer_sizes=(8,), max_iter=2, random_state=0).fit(X, y).network_
    refined = refine(start, X, y, learning_rate_init=0.01, random_state=0)
    loss = lambda net: np.mean((net(X)[:, 0] - y) ** 2)  # noqa: E731
    assert loss(refined) < 0.9 * loss(start)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_convolution_pooling_and_normalising_layers_are_refined(rng):
    X, X_test, y, y_test = digits()
    relu, softmax = get_activation("relu"), get_activation("softmax")
    draw = lambda *shape: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)  # noqa: E731
    start = Network(
        [Conv2d(draw(8, 1, 3, 3), np.zeros(8, np.float32), relu, padding=1), AvgPool2d(2), Flatten(),
         Normalize(), Dense(8 * draw(10, 128).T.copy(), np.zeros(10, np.float32), softmax)],
        (1, 8, 8),
    )  # fmt: skip
    refined = refine(start, X, y, learning_rate_init=0.03, random_state=0)
    assert np.mean(refined(X_test).argmax(1) == y_test) > 0.9
    assert [type(layer) for layer in refined.layers] == [type(layer) for layer in start.layers]


def test_packed_weights_are_refused_with_the_remedy():
    packed = FiniteArray.from_codes(np.eye(3, dtype=np.uint8), np.array([-1.0, 0.0, 1.0]), np.ones(3))
    start = Network([Dense(packed, np.zeros(3), get_activation("softmax"))])
    with pytest.raises(ValueError, match=r"layer 0 stores codes .* refine the network first"):
        refine(start, np.eye(3), np.arange(3))


@pytest.mark.parametrize("mode", ["average", "walk", "momentum"])
@pytest.mark.parametrize("reinsert", [False, 0.5, True])
def test_sampled_weights_are_judged_and_kept(mode, reinsert):
    X, X_test, y, y_test = digits()
    sampling = {"mode": mode, "reinsert": reinsert, "periods_per_epoch": 2, "window": 3, "combine": True}
    model = BackpropClassifier(
        hidden_layer_sizes=(32,), max_iter=20, batch_size=32, early_stopping=True, sampling=sampling,
        random_state=0,
    ).fit(X, y)  # fmt: skip
    assert model.score(X_test, y_test) > 0.93


def test_divergence_keeps_the_start():
    X, X_test, y, _ = digits()
    start = crude_network(X, y)
    wild: dict[str, Any] = {"optimizer": "sgd", "learning_rate_init": 1e30, "input_map": None}
    for sampling in (None, "walk"):
        with pytest.warns(ConvergenceWarning, match="diverged in epoch 1: reduce learning_rate_init"):
            kept = refine(start, X, y, sampling=sampling, random_state=0, **wild)
        np.testing.assert_allclose(kept(X_test), start(X_test), rtol=1e-5, atol=1e-6)


def test_interruption_keeps_the_best():
    X, X_test, y, y_test = digits()
    start = crude_network(X, y)

    def interrupt(record):
        if record["iteration"] == 3:
            raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match="interrupted: the best network so far is kept"):
        refined = refine(start, X, y, random_state=0, callback=interrupt)
    assert np.mean(refined(X_test).argmax(1) == y_test) > np.mean(start(X_test).argmax(1) == y_test)


def test_the_method_starts_from_what_init_names():
    X, X_test, y, y_test = digits()
    model = make_estimator("refine", "classification", hidden_layer_sizes=(32,), max_iter=5, random_state=0)
    start = ManifoldClassifier(hidden_layer_sizes=(32,), random_state=0)
    assert model.fit(X, y).score(X_test, y_test) >= start.fit(X, y).score(X_test, y_test) - 0.01


def test_a_class_without_rows_leaves_the_named_start_out(rng):
    X, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    model = BackpropClassifier(init="manifold", max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match="left out: not every class has a row"):
        model.fit(X, y, sample_weight=(y < 2).astype(float))
    assert np.isfinite(model.predict_proba(X)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": 3}, "network must be a Network, got int"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of"),
        ({"sampling": "nightly"}, "mode must be one of average, walk, momentum"),
        ({"sampling": {"periods_per_epoch": 0}}, "periods_per_epoch must be a finite number > 0"),
        ({"sampling": {"window": 0}}, "window must be an integer >= 1"),
        ({"optimizer": "schedule_free"}, "averages by itself: use schedule='constant' and sampling=None"),
        ({"X": np.eye(5)}, "init maps 4 features to 3 outputs, the data need 5"),
    ],
)
def test_bad_input_is_named(change, message):
    X, _ = load_iris(return_X_y=True)
    head = get_activation("softmax")
    given = {"network": Network([Dense(np.zeros((4, 3)), np.zeros(3), head)]), "X": X} | change
    network, rows = given.pop("network"), given.pop("X")
    with pytest.raises(ValueError, match=message):
        refine(network, rows, np.arange(len(rows)) % 3, **given)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    X, y = load_iris(return_X_y=True)
    model = BackpropClassifier(optimizer="schedule_free", schedule="constant")
    with pytest.raises(ImportError, match=r"pip install 'liftopt\[schedule_free\]'"):
        model.fit(X, y)
