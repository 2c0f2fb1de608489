import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from liftopt.solvers import AffineMap, SolverError, Status, oracle, solve_margin

METHODS = ("accelerated", "dragging", "newton")


def make(seed=0, n=80, d=4, c=3, noise=1.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + rng.normal(size=d)
    codes = np.argmax(X @ rng.normal(size=(d, c)) + noise * rng.normal(size=(n, c)), axis=1)
    return X, 2.0 * (codes[:, None] == np.arange(c)) - 1.0, rng.uniform(0.1, 2.0, size=n), codes


def objective(X, Y, w, alpha, model):
    missing = np.maximum(1 - Y * (X @ model.weight + model.intercept), 0)
    return w @ np.sum(missing**2, axis=1) + alpha * np.sum(model.weight**2)


@pytest.mark.parametrize("method", METHODS)
def test_margin_equals_its_cvxpy_specification(method):
    X, Y, w, _ = make()
    expected, value = oracle.margin(X, Y, w, 0.5)
    result = solve_margin(X, Y, alpha=0.5, sample_weight=w, method=method, tol=1e-9, max_iter=20_000)
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(value, rel=1e-7)
    assert result.objective == pytest.approx(objective(X, Y, w, 0.5, result.x), rel=1e-12)
    np.testing.assert_allclose(result.x.weight, expected.weight, atol=1e-4)
    assert result.gap is not None
    assert 0.0 <= result.gap < 1e-6


def test_uniform_weights_give_the_support_vector_machine():
    X, Y, _, codes = make(n=200)
    result = solve_margin(X, Y, alpha=0.25, method="newton", tol=1e-11)
    other = LinearSVC(
        loss="squared_hinge", dual=False, C=2.0, intercept_scaling=1e4, tol=1e-12, max_iter=10_000
    ).fit(X, codes)
    np.testing.assert_allclose(result.x.weight, other.coef_.T, atol=1e-6)
    np.testing.assert_allclose(result.x.intercept, other.intercept_, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["plain", "rank", "constant", "wide", "separable"]))
@settings(max_examples=15)
def test_every_round_descends_and_the_gap_is_a_bound(method, seed, kind):
    X, Y, w, _ = make(seed, n=30, d=40 if kind == "wide" else 4, noise=0.0 if kind == "separable" else 1.0)
    if kind == "rank":
        X = np.hstack([X, X, X[:, :1] * 2])
    if kind == "constant":
        X[:, 1] = 5.0
    values = []
    result = solve_margin(
        X,
        Y,
        alpha=1e-2,
        sample_weight=w,
        method=method,
        max_iter=60,
        callback=lambda record: values.append(record["objective"]),
        on_limit="ignore",
    )
    assert (np.diff(values) <= 1e-9 * values[0]).all()
    best = solve_margin(X, Y, alpha=1e-2, sample_weight=w, method="newton", tol=1e-11, on_limit="ignore")
    assert result.gap is not None
    assert result.objective - best.objective <= result.gap + 1e-9 * values[0]
    assert np.isfinite(result.x.weight).all()


def test_the_start_does_not_matter_but_saves_rounds():
    X, Y, _, _ = make(n=300)
    cold = solve_margin(X, Y, tol=1e-9)
    far = AffineMap(np.full((4, 3), 7.0), np.full(3, -5.0))
    from_far = solve_margin(X, Y, start=far, tol=1e-9)
    warm = solve_margin(X, Y, start=cold.x, tol=1e-9)
    np.testing.assert_allclose(cold.x.weight, from_far.x.weight, atol=1e-6)
    assert warm.n_iter == 0


def test_momentum_needs_fewer_rounds_than_plain_dragging():
    X, Y, _, _ = make(n=400, d=20)
    fast, plain = (solve_margin(X, Y, method=m, tol=1e-7, max_iter=5000) for m in ("accelerated", "dragging"))
    assert fast.n_iter < plain.n_iter


def test_integer_weights_are_copies():
    X, Y, _, _ = make()
    copies = 1 + np.arange(80) % 3
    weighted = solve_margin(X, Y, sample_weight=copies, method="newton", tol=1e-10).x
    repeated = solve_margin(
        np.repeat(X, copies, axis=0), np.repeat(Y, copies, axis=0), method="newton", tol=1e-10
    ).x
    np.testing.assert_allclose(weighted.weight, repeated.weight, atol=1e-8)


@pytest.mark.parametrize("method", ["accelerated", "newton"])
def test_float32_agrees_with_float64(method):
    X, Y, _, _ = make(n=500, d=10)
    single = solve_margin(X.astype(np.float32), Y, method=method)
    double = solve_margin(X, Y, method=method)
    assert single.info["scores"].dtype == np.float32
    np.testing.assert_allclose(single.x.weight, double.x.weight, atol=1e-3)


def test_relative_penalty_and_one_dimensional_labels():
    X, Y, _, _ = make()
    relative = solve_margin(X, Y[:, 0], alpha=0.1, relative=True)
    absolute = solve_margin(X, Y[:, :1], alpha=0.1 * np.sum((X - X.mean(axis=0)) ** 2) / 4)
    np.testing.assert_allclose(relative.x.weight, absolute.x.weight, atol=1e-8)


def test_separable_data_without_penalty_reach_zero_loss():
    X, Y, _, _ = make(noise=0.0, c=2)
    result = solve_margin(X, Y, alpha=0.0, method="newton", tol=1e-10)
    assert result.objective == pytest.approx(0.0, abs=1e-10)
    assert result.gap is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_constant_features_leave_the_intercept(method, alpha):
    Y = np.array([1.0, 1.0, 1.0, -1.0])
    result = solve_margin(np.full((4, 3), 7.0), Y, alpha=alpha, method=method)
    # min 3 (1 - b)^2 + (1 + b)^2
    assert result.objective == pytest.approx(3.0, rel=1e-6)
    np.testing.assert_allclose(result.x(np.full((1, 3), 7.0)), 0.5, atol=1e-3)


def test_budgets_speak_up():
    X, Y, _, _ = make()
    with pytest.warns(ConvergenceWarning, match="increase max_iter or loosen tol"):
        assert solve_margin(X, Y, max_iter=1, tol=1e-12).status is Status.MAX_ITER
    with pytest.raises(SolverError, match="max_iter"):
        solve_margin(X, Y, max_iter=1, tol=1e-12, on_limit="raise")
    stopped = solve_margin(X, Y, tol=1e-12, callback=lambda record: True)
    assert stopped.status is Status.INTERRUPTED
    assert stopped.n_iter == 0


def test_bad_input_is_named():
    X, Y, w, codes = make()
    with pytest.raises(ValueError, match="labels -1 and \\+1"):
        solve_margin(X, codes)
    with pytest.raises(ValueError, match="Y holds 1 NaN"):
        solve_margin(X, np.where(np.arange(80) == 0, np.nan, 1.0))
    with pytest.raises(ValueError, match="X holds 240 NaN"):
        solve_margin(np.where(np.arange(4) < 3, np.inf, X), Y)
    with pytest.raises(ValueError, match="same positive number of rows"):
        solve_margin(X[:-1], Y)
    with pytest.raises(ValueError, match="alpha must be"):
        solve_margin(X, Y, alpha=-1.0)
    with pytest.raises(ValueError, match="method must be one of accelerated, dragging, newton, got 'sgd'"):
        solve_margin(X, Y, method="sgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start has shapes"):
        solve_margin(X, Y, start=AffineMap(np.zeros((2, 3)), np.zeros(3)))
    with pytest.raises(ValueError, match="max_iter must be an integer"):
        solve_margin(X, Y, max_iter=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tol must be"):
        solve_margin(X, Y, tol=-1.0)
    with pytest.raises(ValueError, match="sample_weight must be non-negative"):
        solve_margin(X, Y, sample_weight=-w)
