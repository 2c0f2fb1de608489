from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from liftopt import AvgPool2d, Conv2d, Dense, FiniteArray, Flatten, Network, Normalize, get_activation
from liftopt.methods import make_estimator
from liftopt.repair import as_dense, fold_row_scaling, refit_head

TANH, SOFTMAX = get_activation("tanh"), get_activation("softmax")


def classifier(rng, dtype=np.float64):
    weights = [rng.normal(size=(5, 8)), rng.normal(size=(8, 3))]
    biases = [rng.normal(size=8), rng.normal(size=3)]
    kinds = [TANH, SOFTMAX]
    return Network(
        [Dense(W.astype(dtype), b.astype(dtype), k) for W, b, k in zip(weights, biases, kinds, strict=True)]
    )


def noisy_classes(rng, X):
    return (X[:, 0] + 0.7 * rng.normal(size=len(X)) > 0).astype(int) + (X[:, 1] > 0.5)


def test_softmax_head_is_the_logistic_regression_on_the_features(rng):
    network, X = classifier(rng), rng.normal(size=(300, 5))
    y = noisy_classes(rng, X)
    refitted = refit_head(network, X, y, alpha=0.01)
    features = network.hidden(X)[-1]
    scaled = StandardScaler().fit_transform(features)
    expected = LogisticRegression(C=1 / (300 * 0.01), tol=1e-10, max_iter=5000).fit(scaled, y)
    np.testing.assert_allclose(refitted(X), expected.predict_proba(scaled), atol=1e-4)
    assert refitted.layers[0] is network.layers[0]


def test_no_other_head_has_a_lower_objective(rng):
    network, X = classifier(rng), rng.normal(size=(200, 5))
    y = noisy_classes(rng, X)
    head = refit_head(network, X, y, alpha=1e-3)

    def objective(candidate):
        deviation = network.hidden(X)[-1].std(axis=0)[:, None]
        loss = -log_softmax(candidate.scores(X), axis=1)[np.arange(200), y].mean()
        return loss + 1e-3 / 2 * np.sum((deviation * candidate.layers[-1].weight) ** 2)

    best = objective(head)
    assert best < objective(network)
    for _ in range(20):
        W, b = head.layers[-1].arrays().values()
        moved = Dense(W + 0.01 * rng.normal(size=W.shape), b, SOFTMAX)
        assert objective(Network([head.layers[0], moved])) > best


def test_indices_probabilities_and_weights_agree(rng):
    network, X = classifier(rng), rng.normal(size=(60, 5))
    y = noisy_classes(rng, X)
    by_index = refit_head(network, X, y)
    np.testing.assert_array_equal(refit_head(network, X, np.eye(3)[y])(X), by_index(X))
    twice = refit_head(network, np.r_[X, X[:20]], np.r_[y, y[:20]])
    weight = np.where(np.arange(60) < 20, 2, 1)
    np.testing.assert_allclose(refit_head(network, X, y, sample_weight=weight)(X), twice(X), atol=1e-5)


def test_linear_head_is_the_ridge_regression(rng):
    hidden = classifier(rng).layers[0]
    network = Network([hidden, Dense(np.zeros((8, 2)), np.zeros(2))])
    X = rng.normal(size=(100, 5))
    Y = np.c_[X[:, 0], X[:, 1] ** 2]
    features = network.hidden(X)[-1]
    gram = np.var(features, axis=0).sum() / 8 * 100
    expected = Ridge(alpha=0.1 * gram).fit(features, Y)
    np.testing.assert_allclose(refit_head(network, X, Y, alpha=0.1)(X), expected.predict(features), atol=1e-8)
    one = Network([hidden, Dense(np.zeros((8, 1)), np.zeros(1))])
    np.testing.assert_allclose(
        refit_head(one, X, Y[:, 0], alpha=0.1)(X)[:, 0], expected.predict(features)[:, 0]
    )


def test_heads_and_targets_that_cannot_be_refitted(rng):
    network, X = classifier(rng), rng.normal(size=(30, 5))
    with pytest.raises(ValueError, match="only a Dense layer with a linear or a softmax head"):
        refit_head(Network([Dense(np.eye(5), np.zeros(5), TANH)]), X, X)
    for y in (np.full(30, 3), np.full(30, -1), rng.normal(size=30)):
        with pytest.raises(ValueError, match="indices of the 3 outputs"):
            refit_head(network, X, y)
    with pytest.raises(ValueError, match="alpha"):
        refit_head(network, X, np.zeros(30, int), alpha=-1)
    with pytest.raises(ValueError, match="sample_weight has 3 entries for 30 rows"):
        refit_head(network, X, np.zeros(30, int), sample_weight=np.ones(3))


@given(stride=st.integers(1, 2), padding=st.integers(0, 2), pool=st.integers(1, 2), seed=st.integers(0, 99),
       dtype=st.sampled_from([np.float32, np.float64]))  # fmt: skip
def test_convolutions_become_dense_layers(stride, padding, pool, seed, dtype):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return np.asarray(rng.normal(size=shape), dtype)

    front: list[Any] = [
        AvgPool2d(pool),
        Conv2d(normal(3, 2, 3, 2), normal(3), TANH, stride=stride, padding=padding),
        Conv2d(normal(2, 3, 1, 1), normal(2)),
        AvgPool2d(1),
        Flatten(),
    ]
    width = Network(front, (2, 9, 8)).output_shape[0]
    network = Network([*front, Normalize(), Dense(normal(width, 4), normal(4), SOFTMAX)], (2, 9, 8), {"a": 1})
    dense = as_dense(network)
    assert {type(layer) for layer in dense.layers} <= {Dense, Normalize}
    X = normal(6, 2, 9, 8)
    np.testing.assert_allclose(
        dense(X.reshape(6, -1)), network(X), atol=1e-5 if dtype == np.float32 else 1e-12
    )
    assert (dense.dtype, dense.metadata) == (network.dtype, {"a": 1})


def test_packed_layers_and_endings_become_dense(rng):
    packed = FiniteArray.from_codes(rng.integers(0, 3, (4, 1, 2, 2)), np.array([-1.0, 0, 1]), rng.random(4))
    network, X = Network([Conv2d(packed, np.zeros(4), TANH), Flatten()], (1, 3, 3)), rng.normal(size=(5, 9))
    np.testing.assert_allclose(as_dense(network)(X), network(X))
    assert len(as_dense(Network([Flatten(), Dense(np.eye(9), np.zeros(9))], (1, 3, 3))).layers) == 1


def test_row_scaling_folds_exactly_where_rows_have_one_length(rng):
    X = rng.normal(size=(40, 5))
    X *= 3 / np.linalg.norm(X, axis=1, keepdims=True)
    last = Dense(rng.normal(size=(5, 3)), rng.normal(size=3), SOFTMAX)
    network = Network([Normalize(), last], (5,))
    np.testing.assert_allclose(fold_row_scaling(network, X)(X), network(X), atol=1e-12)
    with pytest.raises(ValueError, match="ends in Normalize"):
        fold_row_scaling(Network([Dense(np.eye(5), np.zeros(5)), Normalize()]), X)
    with pytest.raises(ValueError, match="into a Dense layer only, not into Flatten"):
        fold_row_scaling(Network([Normalize(), Flatten(), last], (5,)), X)
    zero = fold_row_scaling(network, np.zeros((3, 5)))
    assert np.isfinite(zero.layers[0].arrays()["weight"]).all()


@pytest.mark.parametrize("name", ["manifold", "fenchel", "ternary"])
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_networks_with_row_scaling_start_every_method(rng, name, task):
    X = rng.normal(size=(200, 5))
    y = noisy_classes(rng, X) if task == "classification" else X[:, 0] + X[:, 1]
    common: dict[str, Any] = {"hidden_layer_sizes": (6,), "random_state": 0, "max_iter": 5}
    start = make_estimator("manifold_paper", task, common=common).fit(X, y).network_
    assert any(isinstance(layer, Normalize) for layer in start.layers)
    model = make_estimator(name, task, common=common, init=start).fit(X, y)
    assert model.score(X, y) > 0.5
