import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from liftopt.solvers import softmax as module
from liftopt.solvers import solve_softmax_regression


def objective(X, Y, x, ridge):
    return -np.sum(Y * log_softmax(X @ x.weight + x.intercept, axis=1)) + ridge * np.sum(x.weight**2)


def gradient_norm(X, Y, x, ridge):
    """Certificate: largest entry of the gradient, written out here on its own."""
    E = softmax(X @ x.weight + x.intercept, axis=1) - Y
    return max(np.abs(X.T @ E + 2 * ridge * x.weight).max(), np.abs(E.sum(axis=0)).max())


@pytest.fixture(params=["cholesky", "conjugate gradients"])
def path(request, monkeypatch):
    if request.param == "conjugate gradients":
        monkeypatch.setattr(module, "_DENSE_PARAMETERS", 0)
    return request.param


@pytest.mark.parametrize("load", [load_iris, load_wine])
def test_agrees_with_scikit_learn(load, path):
    X, y = load(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    Y = np.eye(3)[y]
    ridge = 0.05
    result = solve_softmax_regression(X, Y, ridge=ridge, tol=1e-11)
    reference = LogisticRegression(C=1 / (2 * ridge), solver="newton-cg", tol=1e-12, max_iter=1000).fit(X, y)
    assert result.status == "optimal"
    np.testing.assert_allclose(result.x.weight, reference.coef_.T, atol=1e-6)
    np.testing.assert_allclose(np.ptp(result.x.intercept - reference.intercept_), 0.0, atol=1e-6)
    assert gradient_norm(X, Y, result.x, ridge) <= 1e-8
    np.testing.assert_allclose(result.objective, objective(X, Y, result.x, ridge), rtol=1e-12)


def test_binary_agrees_with_logistic_regression(rng):
    X = rng.normal(size=(80, 3))
    y = (X[:, 0] + rng.normal(size=80) > 0).astype(int)
    result = solve_softmax_regression(X, np.eye(2)[y], ridge=0.5, tol=1e-11)
    # the two columns are opposite, so that 2 |w|^2 / 4 of the binary parametrisation is charged
    binary = LogisticRegression(C=2.0, solver="newton-cholesky", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(result.x.weight[:, 1] - result.x.weight[:, 0], binary.coef_[0], atol=1e-7)


def test_weights_are_repetitions(rng, path):
    X, Y = rng.normal(size=(30, 4)), rng.dirichlet(np.ones(3), size=30)
    repeats = rng.integers(0, 4, size=30)
    weighted = solve_softmax_regression(X, Y, ridge=0.1, sample_weight=repeats, tol=1e-10)
    repeated = solve_softmax_regression(
        np.repeat(X, repeats, 0), np.repeat(Y, repeats, 0), ridge=0.1, tol=1e-10
    )
    np.testing.assert_allclose(weighted.x.weight, repeated.x.weight, atol=1e-7)


def test_prox_is_a_ridge_around_the_start(rng, path):
    X, Y = rng.normal(size=(40, 5)), rng.dirichlet(np.ones(3), size=40)
    W0, b0 = rng.normal(size=(5, 3)), rng.normal(size=3)
    result = solve_softmax_regression(X, Y, ridge=0.3, prox=2.0, init=(W0, b0), tol=1e-11)
    W, b = result.x
    E = softmax(X @ W + b, axis=1) - Y
    np.testing.assert_allclose(X.T @ E + 0.6 * W + 4.0 * (W - W0), 0.0, atol=1e-8)
    np.testing.assert_allclose(E.sum(axis=0) + 4.0 * (b - b0), 0.0, atol=1e-8)
    far = solve_softmax_regression(X, Y, prox=1e6, init=(W0, b0), tol=1e-8)
    np.testing.assert_allclose(far.x.weight, W0, atol=1e-4)


def test_fixed_intercept(rng, path):
    X, Y = rng.normal(size=(40, 5)) + 1.0, rng.dirichlet(np.ones(3), size=40)
    start = (np.zeros((5, 3)), np.array([0.5, 0.0, -1.0]))
    result = solve_softmax_regression(X, Y, ridge=0.2, init=start, fit_intercept=False, tol=1e-11)
    np.testing.assert_array_equal(result.x.intercept, start[1])
    E = softmax(X @ result.x.weight + start[1], axis=1) - Y
    np.testing.assert_allclose(X.T @ E + 0.4 * result.x.weight, 0.0, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    d=st.integers(1, 6),
    classes=st.integers(2, 4),
    exponent=st.integers(-8, 8),
    dense=st.booleans(),
)
def test_descends_and_converges_on_degenerate_data(seed, n, d, classes, exponent, dense):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * 10.0**exponent
    X[:, 0] = X[:, -1]  # duplicate feature
    X = X[rng.integers(0, n, size=n)]  # duplicate rows
    Y = np.eye(classes)[rng.integers(0, classes, size=n)]
    ridge = 0.1 * np.mean(X**2)
    before = module._DENSE_PARAMETERS
    module._DENSE_PARAMETERS = before if dense else 0
    try:
        result = solve_softmax_regression(X, Y, ridge=ridge, prox=1e-3 * np.mean(X**2), tol=1e-7)
    finally:
        module._DENSE_PARAMETERS = before
    values = np.array([record["objective"] for record in result.history])
    assert result.status == "optimal"
    assert (np.diff(values) <= 1e-9 * np.abs(values[:-1])).all()


def test_separable_data_without_ridge_end_finite(path):
    X = np.array([[-1.0], [-2.0], [1.0], [3.0]])
    result = solve_softmax_regression(X, np.eye(2)[[0, 0, 1, 1]], tol=1e-6)
    assert result.success
    assert result.objective < 1e-4
    assert np.isfinite(result.x.weight).all()


def test_constant_and_zero_features_are_harmless(rng, path):
    X = np.hstack([rng.normal(size=(50, 2)), np.ones((50, 1)), np.zeros((50, 1))])
    Y = np.eye(2)[rng.integers(0, 2, size=50)]
    result = solve_softmax_regression(X, Y, ridge=1e-3, tol=1e-8)
    assert result.success
    np.testing.assert_allclose(result.x.weight[3], 0.0, atol=1e-8)


def test_float32_is_computed_in_float32_and_agrees(rng):
    X, Y = rng.normal(size=(200, 10)), np.eye(4)[rng.integers(0, 4, size=200)]
    single = solve_softmax_regression(X.astype(np.float32), Y, ridge=0.5, tol=1e-5)
    double = solve_softmax_regression(X, Y, ridge=0.5, tol=1e-10)
    np.testing.assert_allclose(single.x.weight, double.x.weight, atol=1e-3)


def test_warm_start_at_the_optimum_needs_no_step(rng):
    X, Y = rng.normal(size=(60, 4)), np.eye(3)[rng.integers(0, 3, size=60)]
    first = solve_softmax_regression(X, Y, ridge=0.1, tol=1e-9)
    again = solve_softmax_regression(X, Y, ridge=0.1, tol=1e-9, init=first.x)
    assert again.n_iter == 0


def test_budget_warns(rng):
    X, Y = rng.normal(size=(60, 4)), np.eye(3)[rng.integers(0, 3, size=60)]
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        solve_softmax_regression(X, Y, ridge=1e-3, max_iter=1, tol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Y": np.ones((4, 1))}, "two classes"),
        ({"Y": np.ones((4, 2))}, "class probabilities"),
        ({"Y": np.eye(2)}, "Y has 2 rows, X has 4"),
        ({"X": np.full((4, 2), np.nan)}, "X holds 8 NaN"),
        ({"ridge": -1.0}, "ridge must be"),
        ({"prox": float("nan")}, "prox must be"),
        ({"init": (np.zeros((1, 2)), np.zeros(2))}, "init must hold arrays of shapes"),
        ({"sample_weight": np.zeros(4)}, "positive sum"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"X": np.arange(8.0).reshape(4, 2), "Y": np.eye(2)[[0, 1, 0, 1]]} | change
    with pytest.raises(ValueError, match=message):
        solve_softmax_regression(given.pop("X"), given.pop("Y"), **given)
