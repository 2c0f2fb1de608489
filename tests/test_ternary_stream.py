"""Ternary networks from streams beyond memory, against those from arrays."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from liftopt import ChunkError, ManifoldClassifier, TernaryClassifier, TernaryRegressor, stream
from liftopt.activations import get_activation
from liftopt.discrete_stages import quantise_stages
from liftopt.executor import JoblibExecutor
from liftopt.input_map import standardise
from liftopt.layers import Conv2d, Dense, Flatten
from liftopt.network import Network, dense_network
from liftopt.solvers.value_sets import TERNARY
from liftopt.ternary_stream import quantise_streamed

N, D, LIMIT = 6000, 12, 2_000_000


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(N, D)) + 1.0
    f = np.abs(X[:, 0]) + X[:, 1] * X[:, 2] - X[:, 3]
    return X, f + 0.1 * rng.normal(size=N), np.where(f > 2.0, "high", "low")


def rows_of(X, y, weight=None, executor="serial"):
    rows = stream(X, y, sample_weight=weight, memory_limit=LIMIT, executor=executor)
    assert not rows.fits_in_memory
    return rows


def quietly(estimator, *data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(*data)


def same(first, second):
    return all(
        np.array_equal(a.weight, b.weight) and a.bias.tobytes() == b.bias.tobytes()
        for a, b in zip(first.layers, second.layers, strict=True)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_layers_are_those_of_all_rows(data, weighted):
    X, y, _ = data
    weight = np.arange(N) % 3 if weighted else None
    rng = np.random.default_rng(0)
    sizes = [D, 20, 10, 2]
    network = dense_network(
        [rng.normal(size=pair) / 3 for pair in itertools.pairwise(sizes)],
        [rng.normal(size=width) for width in sizes[1:]],
        activation="relu",
    )
    mapped = standardise(X, None)
    values = np.array(TERNARY)
    lead, stages = quantise_streamed(network, values, rows_of(X, y, weight), mapped)
    expected = quantise_stages(network, mapped.transform(X), values, weight)[1]
    assert not lead
    for found, other in zip(stages, expected, strict=True):
        np.testing.assert_array_equal(found.weights.codes, other.weights.codes)
        np.testing.assert_allclose(found.weights.scale, other.weights.scale, rtol=1e-9)
        np.testing.assert_allclose(found.bias, other.bias, rtol=1e-7, atol=1e-9)


def test_rows_left_out_teach_nothing(data):
    X, y, _ = data
    index = np.arange(0, N, 2)
    for weight in (None, np.arange(N) % 3 + 1.0):
        masked = rows_of(X, np.where(np.arange(N) % 2, y, 1e3), weight).without(index)
        kept = slice(1, None, 2)
        expected = stream(X[kept], y[kept], sample_weight=None if weight is None else weight[kept]).moments()
        np.testing.assert_allclose(masked.moments().gram, expected.gram, rtol=1e-9)
        np.testing.assert_allclose(masked.moments().cross, expected.cross, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_fits_are_as_good_as_in_memory(data, kind):
    X, y, labels = data
    make, target = (TernaryRegressor, y) if kind == "numbers" else (TernaryClassifier, labels)
    settings: dict[str, Any] = {"hidden_layer_sizes": (32,), "random_state": 0, "max_iter": 4}
    streamed = quietly(make(**settings), rows_of(X, target))
    whole = quietly(make(**settings), X, target)
    assert streamed.score(X, target) > whole.score(X, target) - 0.05
    assert streamed.n_features_in_ == D
    assert len(streamed.history_) == streamed.n_iter_ + 1


def test_linear_models_and_starts(data):
    X, _, labels = data
    linear = quietly(TernaryClassifier(hidden_layer_sizes=(), random_state=0), rows_of(X, labels))
    assert linear.score(X, labels) > 0.7
    start = ManifoldClassifier((16,), activation="relu", random_state=0).fit(X, labels).network_
    model = quietly(TernaryClassifier(init=start, random_state=0, max_iter=2), rows_of(X, labels))
    assert model.score(X, labels) > 0.7


def test_executors_give_the_same_bits(data):
    X, y, _ = data
    networks = [
        quietly(
            TernaryRegressor(hidden_layer_sizes=(8,), random_state=0, max_iter=2),
            rows_of(X, y, None, executor),
        ).network_
        for executor in ("serial", JoblibExecutor(2))
    ]
    assert same(*networks)


def test_a_resumed_fit_is_the_same(data, tmp_path, monkeypatch):
    X, y, _ = data
    monkeypatch.setattr("liftopt.checkpoint._SHARE", 0.0)
    settings: dict[str, Any] = {"hidden_layer_sizes": (8,), "random_state": 4, "max_iter": 4}
    expected = quietly(TernaryRegressor(**settings), rows_of(X, y)).network_

    def crash(record):
        if record["iteration"] == 2:
            raise RuntimeError("power failure")

    path = tmp_path / "c"
    with pytest.raises(RuntimeError, match="power failure"):
        quietly(TernaryRegressor(**settings, checkpoint=path, callback=crash), rows_of(X, y))
    assert same(quietly(TernaryRegressor(**settings, checkpoint=path), rows_of(X, y)).network_, expected)
    assert not path.exists()


def test_images_keep_their_shape():
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    start = Network(
        [
            Conv2d(rng.normal(size=(3, 1, 3, 3)), np.zeros(3), get_activation("relu")),
            Flatten(),
            Dense(rng.normal(size=(108, 10)) / 10, np.zeros(10)),
        ],
        (1, 8, 8),
    )
    rows = stream(X / 16, y, memory_limit=1_500_000, executor="serial")
    assert not rows.fits_in_memory
    stages = quantise_streamed(start, np.array(TERNARY), rows, None)[1]
    expected = quantise_stages(start, (X / 16).reshape(-1, 1, 8, 8), np.array(TERNARY), None)[1]
    for found, other in zip(stages, expected, strict=True):
        np.testing.assert_array_equal(found.weights.codes, other.weights.codes)


def test_bad_streams(data):
    X, y, labels = data
    with pytest.raises(ValueError, match="algorithm='literal' works on all rows"):
        TernaryRegressor(algorithm="literal").fit(rows_of(X, y))
    with pytest.raises(ValueError, match="init='random' works on all rows"):
        TernaryRegressor(init="random").fit(rows_of(X, y))
    with pytest.raises(ValueError, match="fit needs targets"):
        TernaryRegressor().fit(stream(X, memory_limit=LIMIT))
    with pytest.raises(ValueError, match="at least two classes"):
        TernaryClassifier().fit(rows_of(X, np.full(N, "a")))
    with pytest.raises(ChunkError, match="sample_weight must be non-negative"):
        TernaryClassifier(hidden_layer_sizes=(4,)).fit(rows_of(X, labels, np.full(N, -1.0)))
    bad = X.copy()
    bad[5000, 1] = np.nan
    with pytest.raises(ChunkError, match="first in row 5000"):
        TernaryRegressor(hidden_layer_sizes=(4,)).fit(rows_of(bad, y))
