import itertools
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from liftopt import FiniteArray, Network, TernaryClassifier, TernaryRegressor
from liftopt.base import initial_network
from liftopt.layers import AvgPool2d, Conv2d, Dense, Flatten, Layer
from liftopt.methods import make_estimator


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split((X / 16).astype(np.float32), y, random_state=0)


def quietly(estimator, *data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(*data)


def float_start(X, y, widths, random_state=0):
    """A float network by ridge regression on random features: weak, but no training library needed."""
    classes = np.eye(int(y.max()) + 1, dtype=X.dtype)[y]
    rng = np.random.RandomState(random_state)
    net = initial_network([X.shape[1], *widths, classes.shape[1]], "relu", "classification", X.dtype, rng)
    V = net.hidden(X)[-1]
    W = np.linalg.lstsq(np.c_[V, np.ones(len(V))], 10 * classes - 5, rcond=1e-4)[0].astype(X.dtype)
    return Network([*net.layers[:-1], Dense(W[:-1], W[-1])])


@parametrize_with_checks(
    [
        TernaryClassifier(hidden_layer_sizes=(), max_iter=30),
        TernaryClassifier(hidden_layer_sizes=(8,), init="random", max_iter=30),
        TernaryClassifier(hidden_layer_sizes=(6,), algorithm="literal", n_starts=5),
        TernaryRegressor(hidden_layer_sizes=()),
        TernaryRegressor(hidden_layer_sizes=(8,), init="random", max_iter=30),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_from_a_float_network_the_search_recovers_what_rounding_loses(digits):
    X, X_test, y, y_test = digits
    start = float_start(X, y, (60,))
    model = quietly(TernaryClassifier(init=start, max_iter=6, random_state=0), X, y)
    assert model.score(X_test, y_test) >= start(X_test).argmax(1).__eq__(y_test).mean() - 0.02
    losses = [record["loss"] for record in model.history_]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    for layer in model.network_.layers:
        assert isinstance(layer.stored, FiniteArray)
        assert set(np.unique(layer.stored.codes())) <= {0, 1, 2}


def test_softmax_regression_reaches_the_float_model(digits):
    X, X_test, y, y_test = digits
    model = quietly(TernaryClassifier(hidden_layer_sizes=(), random_state=0), X, y)
    assert model.score(X_test, y_test) > 0.88


@pytest.mark.parametrize("values", [(-1, 1), (-2, -1, 0, 1, 2), (0, 1), tuple(range(-8, 8))])
@pytest.mark.parametrize("packing", ["bits", "digits"])
def test_any_value_set(digits, values, packing, tmp_path):
    X, X_test, y, y_test = digits
    start = float_start(X, y, (30,))
    model = TernaryClassifier(init=start, values=values, packing=packing, max_iter=3, random_state=0)
    quietly(model, X, y)
    assert model.score(X_test, y_test) > 0.7
    model.network_.save(tmp_path / "net.safetensors")
    again = Network.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(again.scores(X_test), model.network_.scores(X_test))
    assert again.nbytes == model.network_.nbytes


def test_convolutions(digits):
    X, X_test, y, y_test = digits
    rng = np.random.default_rng(0)
    layers: list[Layer] = [
        Conv2d(
            rng.normal(size=(6, 1, 3, 3)).astype("f4") / 3, np.zeros(6, "f4"), relu_activation(), padding=1
        ),
        AvgPool2d(2),
        Conv2d(rng.normal(size=(8, 6, 3, 3)).astype("f4") / 6, np.zeros(8, "f4"), relu_activation()),
        Flatten(),
        Dense(np.zeros((32, 10), "f4"), np.zeros(10, "f4")),
    ]
    body = Network(layers, (1, 8, 8))
    V = body.hidden(X)[-1]
    W = np.linalg.lstsq(np.c_[V, np.ones(len(V))], 10 * np.eye(10)[y] - 5, rcond=1e-4)[0].astype("f4")
    start = Network([*layers[:-1], Dense(W[:-1], W[-1])], (1, 8, 8))
    model = quietly(TernaryClassifier(init=start, temperature=None, max_iter=4, random_state=0), X, y)
    assert model.network_.input_shape == (1, 8, 8)
    assert model.score(X_test, y_test) >= np.mean(start(X_test).argmax(1) == y_test)
    losses = [record["loss"] for record in model.history_]
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))


def relu_activation():
    from liftopt.activations import ReLU

    return ReLU()


def test_features_of_different_scales_are_standardised():
    X, y = load_breast_cancer(return_X_y=True)
    model = quietly(TernaryClassifier(hidden_layer_sizes=(), random_state=0), X, y)
    assert model.network_.layers[0].stored.input_scale is not None
    assert model.score(X, y) > 0.95
    raw = quietly(TernaryClassifier(hidden_layer_sizes=(), input_map=None, random_state=0), X, y)
    assert raw.network_.layers[0].stored.input_scale is None


def test_regression():
    X, y = make_regression(400, 10, n_informative=5, noise=1.0, random_state=0)
    fine = TernaryRegressor(hidden_layer_sizes=(), values=[k / 60 for k in range(-60, 61)], random_state=0)
    assert quietly(fine, X, y).score(X, y) > 0.99
    assert quietly(TernaryRegressor(hidden_layer_sizes=(), random_state=0), X, y).score(X, y) > 0.7


def test_literal_algorithm_keeps_weights_and_biases_in_the_set():
    X, y = load_iris(return_X_y=True)
    model = TernaryClassifier(
        hidden_layer_sizes=(8, 8),
        algorithm="literal",
        input_map=None,
        n_starts=30,
        max_iter=4,
        random_state=0,
    )
    quietly(model, X, y)
    assert model.score(X, y) > 0.95
    for layer in model.network_.layers:
        assert isinstance(layer, Dense)
        assert np.isin(layer.weight, (-1, 0, 1)).all()
        assert np.isin(layer.bias, (-1, 0, 1)).all()


def test_warm_start_continues_from_the_codes_and_fits_the_labels(digits):
    X, _, y, _ = digits
    start = float_start(X, y, [12])
    model = quietly(TernaryClassifier(init=start, max_iter=1, warm_start=True, random_state=0), X, y)
    reached = max(record["validation_score"] for record in model.history_)
    quietly(model.set_params(max_iter=3), X, y)
    assert model.history_[0]["validation_score"] == reached
    assert model.history_[-1]["loss"] < model.history_[0]["loss"]
    assert max(record["validation_score"] for record in model.history_) >= reached


def test_same_seed_same_network(digits):
    X, _, y, _ = digits
    start = float_start(X, y, (20,))
    one, two = (quietly(TernaryClassifier(init=start, max_iter=2, random_state=3), X, y) for _ in range(2))
    np.testing.assert_array_equal(one.network_.scores(X), two.network_.scores(X))


def test_exhausted_budget_warns(digits):
    X, _, y, _ = digits
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        TernaryClassifier(hidden_layer_sizes=(), max_iter=1).fit(X, y)


def test_callback_stops(digits):
    X, _, y, _ = digits
    model = TernaryClassifier(hidden_layer_sizes=(), callback=lambda record: record["iteration"] >= 2)
    assert model.fit(X, y).n_iter_ == 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"values": ()}, "at least two"),
        ({"values": (1.0,)}, "at least two"),
        ({"values": (0, 1, 1)}, "repeat"),
        ({"values": (0, np.nan)}, "finite"),
        ({"algorithm": "annealing"}, "algorithm"),
        ({"input_map": "pca"}, "input_map"),
        ({"packing": "zip"}, "packing"),
        ({"algorithm": "literal", "activation": "tanh"}, "relu"),
        ({"temperature": -1.0, "init": "NET"}, "temperature"),
    ],
)
def test_bad_parameters_are_named(digits, parameters, message):
    X, _, y, _ = digits
    if parameters.get("init") == "NET":
        parameters = parameters | {"init": float_start(X, y, (5,))}
    model = TernaryClassifier(**{"hidden_layer_sizes": (), "max_iter": 1} | parameters)
    with pytest.raises(ValueError, match=message):
        quietly(model, X, y)


def test_bad_data():
    X = np.ones((20, 3))
    with pytest.raises(ValueError, match="one class"):
        TernaryClassifier(hidden_layer_sizes=()).fit(X, np.zeros(20))
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        TernaryClassifier(hidden_layer_sizes=()).fit(X, np.arange(20) % 2)


def test_dead_inputs_keep_the_value_nearest_to_zero(digits):
    X, _, y, _ = digits
    start = float_start(X, y, (20,))
    model = quietly(TernaryClassifier(init=start, max_iter=2, random_state=0), X, y)
    dead = X.max(axis=0) == 0
    assert dead.any()
    assert not model.network_.layers[0].weight[dead].any()


def test_registered():
    assert isinstance(make_estimator("ternary", "regression"), TernaryRegressor)
