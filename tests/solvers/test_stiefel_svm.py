import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning

from liftopt.solvers import Status, moments, oracle, solve_simplex_weights, solve_stiefel_svm

LOSSES = st.lists(st.floats(0, 10), min_size=3, max_size=12)


@pytest.fixture
def iris():
    X, y = load_iris(return_X_y=True)
    return X, 2.0 * (y[:, None] == np.arange(3)) - 1.0, y


@given(st.integers(0, 2**31), st.integers(2, 12), st.data())
def test_weights_solve_the_quadratic_programme_with_exactly_k_positive(seed, n, data):
    k = data.draw(st.integers(1, n - 1))
    losses = np.random.default_rng(seed).exponential(size=n)
    result = solve_simplex_weights(losses, k)
    assert result.info["n_active"] == k
    assert set(np.argsort(losses)[:k]) == set(np.flatnonzero(result.x))
    expected, value = oracle.simplex_weights(losses, result.info["lam"])
    assert result.objective == pytest.approx(value, abs=1e-7)
    # the objective is strongly convex with modulus 2 lam, which is tiny for near ties
    assert result.info["lam"] * np.sum((result.x - expected) ** 2) < 1e-7


@given(LOSSES, st.data())
def test_weights_are_on_the_simplex_and_favour_small_losses_whatever_the_ties(losses, data):
    k = data.draw(st.integers(1, len(losses) - 1))
    weights = solve_simplex_weights(losses, k).x
    assert weights.min() >= 0.0
    assert weights.sum() == pytest.approx(1.0)
    order = np.argsort(losses, kind="stable")
    assert (np.diff(weights[order]) <= 1e-12).all()


def test_weights_do_not_change_with_a_constant_and_share_ties():
    losses = np.array([3.0, 1.0, 2.0, 5.0])
    np.testing.assert_allclose(solve_simplex_weights(losses, 2).x, solve_simplex_weights(losses + 7, 2).x)
    np.testing.assert_array_equal(solve_simplex_weights([0.0, 0.0, 0.0, 4.0], 2).x, [1 / 3] * 3 + [0.0])
    tied = solve_simplex_weights(np.full(5, 0.3), 4)
    np.testing.assert_allclose(tied.x, 0.2)
    assert tied.info == {"lam": 0.0, "n_active": 5}


@pytest.mark.parametrize("n_active", [None, 140])
def test_outputs_are_whitened_at_the_fixed_point(iris, n_active):
    X, Y, y = iris
    result = solve_stiefel_svm(X, Y, n_active=n_active, max_iter=1000)
    assert result.status is Status.LOCAL_OPTIMUM
    weights, coef = result.info["weights"], result.x.weight
    S = moments(X, Y, sample_weight=weights).gram + result.info["alpha"] * np.eye(4)
    product = coef.T @ S @ coef
    np.testing.assert_allclose(product @ product, product, atol=1e-9)
    assert np.trace(product) == pytest.approx(result.info["rank"])
    np.testing.assert_allclose(result.info["scores"], result.x(X))
    assert np.mean(result.x(X).argmax(axis=1) == y) > 0.8


def test_uniform_weights_descend_in_every_pass(iris):
    X, Y, _ = iris
    result = solve_stiefel_svm(X, Y, max_iter=50, on_limit="ignore")
    # the first pass, without dragged targets, has rank c - 1: a smaller constraint set than the others
    values = [record["objective"] for record in result.history[2:]]
    assert (np.diff(values) <= 1e-12).all()
    missing = np.maximum(1 - Y * result.x(X), 0)
    penalty = result.info["alpha"] * np.sum(result.x.weight**2)
    assert result.objective == pytest.approx(np.sum(missing**2) / 150 + penalty)


def test_undragged_one_vs_all_labels_give_rank_one_less(iris):
    X, Y, _ = iris
    first = solve_stiefel_svm(X, Y, max_iter=1, on_limit="ignore")
    assert first.info["rank"] == 2


def test_free_scale_lowers_the_objective_of_the_first_pass(iris):
    X, Y, _ = iris

    def first_loss(free_scale):
        result = solve_stiefel_svm(X, Y, max_iter=1, free_scale=free_scale, on_limit="ignore")
        penalty = result.info["alpha"] * np.sum(result.x.weight**2)
        return np.mean(np.sum((result.x(X) - Y) ** 2, axis=1)) + penalty

    assert first_loss(True) < first_loss(False)


@pytest.mark.parametrize("n_active", [None, 100])
def test_rows_of_weight_zero_do_not_count(iris, n_active):
    X, Y, _ = iris
    kept = np.arange(150) % 10 != 0
    weighted = solve_stiefel_svm(X, Y, sample_weight=kept, n_active=n_active, max_iter=20, on_limit="ignore")
    dropped = solve_stiefel_svm(X[kept], Y[kept], n_active=n_active, max_iter=20, on_limit="ignore")
    np.testing.assert_allclose(weighted.x.weight, dropped.x.weight, atol=1e-8)


def test_samples_all_beyond_the_margin_are_weighted_equally():
    X = np.vstack([np.eye(2) * 50, np.eye(2) * 51, -np.eye(2) * 50])
    Y = np.array([[1.0], [-1], [1], [-1], [-1], [1]])
    result = solve_stiefel_svm(X, Y, n_active=3, max_iter=30, on_limit="ignore")
    assert np.isfinite(result.x.weight).all()
    assert result.info["weights"].sum() == pytest.approx(1.0)


def test_bad_input_is_named(iris):
    X, Y, y = iris
    with pytest.raises(ValueError, match="labels -1 and"):
        solve_stiefel_svm(X, y)
    with pytest.raises(ValueError, match="at least as many features"):
        solve_stiefel_svm(X[:, :2], Y)
    with pytest.raises(ValueError, match="n_active must be below"):
        solve_stiefel_svm(X, Y, n_active=150)
    with pytest.raises(ValueError, match="n_active must be an integer"):
        solve_stiefel_svm(X, Y, n_active=0)
    with pytest.raises(ValueError, match="losses holds 1 NaN"):
        solve_simplex_weights([0.0, np.nan], 1)
    with pytest.raises(ValueError, match="alpha must be"):
        solve_stiefel_svm(X, Y, alpha=-0.1)
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        solve_stiefel_svm(X, Y, max_iter=1)


def test_weights_are_a_projection_on_the_simplex():
    losses = np.random.default_rng(0).exponential(size=9)
    result = solve_simplex_weights(losses, 5)
    point = -losses / (2 * result.info["lam"])
    thresholds = np.linspace(point.min() - 1, point.max(), 100_001)
    totals = np.maximum(point - thresholds[:, None], 0).sum(axis=1)
    projected = np.maximum(point - thresholds[np.argmin(np.abs(totals - 1))], 0)
    np.testing.assert_allclose(result.x, projected, atol=1e-4)


def test_the_objective_of_a_pass_is_the_linear_one_up_to_a_constant(iris):
    X, Y, _ = iris
    result = solve_stiefel_svm(X, Y, max_iter=1, on_limit="ignore")
    A, T = X - X.mean(axis=0), Y - Y.mean(axis=0)
    W, alpha = result.x.weight, result.info["alpha"]
    loss = np.sum((X @ W + result.x.intercept - Y) ** 2) / 150 + alpha * np.sum(W**2)
    identity = result.info["rank"] - 2 * np.trace(W.T @ A.T @ T) / 150 + np.sum(T**2) / 150
    assert loss == pytest.approx(identity)


@pytest.mark.parametrize("n_active", [None, 140])
def test_float32_agrees_with_float64(iris, n_active):
    X, Y, _ = iris
    settings = {"n_active": n_active, "max_iter": 4, "on_limit": "ignore"}
    single, double = (solve_stiefel_svm(X.astype(t), Y, **settings) for t in (np.float32, np.float64))
    np.testing.assert_allclose(single.x.weight, double.x.weight, atol=2e-3)
