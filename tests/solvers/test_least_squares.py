import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge

from liftopt.solvers import (
    Status,
    moments,
    oracle,
    solve_reduced_rank_ridge,
    solve_ridge,
    solve_ridge_moments,
)


def make(seed=0, n=60, d=5, c=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + rng.normal(size=d)
    return X, X @ rng.normal(size=(d, c)) + rng.normal(size=(n, c)) + 1.0, rng.uniform(0.1, 2.0, size=n)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("n", "d"), [(60, 5), (6, 12)])
def test_ridge_equals_its_cvxpy_specification(n, d, fit_intercept):
    X, Y, w = make(n=n, d=d)
    expected, value = oracle.ridge(X, Y, w, 0.7, fit_intercept)
    result = solve_ridge(X, Y, alpha=0.7, sample_weight=w, fit_intercept=fit_intercept)
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(value, rel=1e-7)
    np.testing.assert_allclose(result.x.weight, expected.weight, atol=1e-5)
    np.testing.assert_allclose(result.x.intercept, expected.intercept, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(60, 5), (20, 50)])
def test_ridge_equals_scikit_learn(n, d):
    X, Y, w = make(n=n, d=d)
    other = Ridge(alpha=2.0, solver="svd").fit(X, Y, sample_weight=w)
    result = solve_ridge(X, Y, alpha=2.0, sample_weight=w)
    np.testing.assert_allclose(result.x.weight, other.coef_.T, atol=1e-10)
    np.testing.assert_allclose(result.x.intercept, other.intercept_, atol=1e-10)
    np.testing.assert_allclose(result.x(X), other.predict(X), atol=1e-10)
    assert result.info["form"] == ("gram" if n > d else "dual")


@given(
    st.integers(0, 2**31),
    st.integers(1, 30),
    st.integers(1, 12),
    st.sampled_from(["plain", "ties", "constant"]),
)
def test_without_penalty_the_solution_is_least_squares_of_least_norm(seed, n, d, kind):
    X, Y, _ = make(seed, n=n, d=d)
    if kind == "ties":
        X = np.hstack([X, X[:, :1], X])
    if kind == "constant":
        X[:, 0] = 3.0
    A, T = X - X.mean(axis=0), Y - Y.mean(axis=0)
    result = solve_ridge(X, Y, alpha=0.0)
    expected = np.linalg.lstsq(A, T, rcond=1e-11)[0]
    np.testing.assert_allclose(A @ result.x.weight, A @ expected, atol=1e-6 * (1 + np.abs(T).max()))
    np.testing.assert_allclose(result.x.weight, expected, atol=1e-5 * (1 + np.abs(expected).max()))
    assert np.isfinite(result.x.weight).all()


@given(st.integers(0, 2**31), st.floats(1e-6, 1e6), st.integers(2, 25), st.integers(1, 25))
def test_normal_equations_hold_at_the_solution(seed, alpha, n, d):
    X, Y, w = make(seed, n=n, d=d)
    X[:, -1] = X[:, 0]
    result = solve_ridge(X, Y, alpha=alpha, sample_weight=w)
    residual = X @ result.x.weight + result.x.intercept - Y
    scale = 1 + np.abs(X).max() ** 2 * np.abs(Y).max() * n
    assert np.abs((X.T * w) @ residual + alpha * result.x.weight).max() < 1e-8 * scale
    assert np.abs(w @ residual).max() < 1e-8 * scale
    assert result.objective == pytest.approx(
        w @ np.sum(residual**2, axis=1) + alpha * np.sum(result.x.weight**2), rel=1e-7, abs=1e-7
    )


def test_large_penalty_leaves_the_mean():
    X, Y, _ = make()
    result = solve_ridge(X, Y, alpha=1e14)
    np.testing.assert_allclose(result.x.weight, 0.0, atol=1e-10)
    np.testing.assert_allclose(result.x.intercept, Y.mean(axis=0), atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(60, 5), (6, 12)])
def test_relative_penalty_is_in_units_of_the_mean_eigenvalue(n, d):
    X, Y, w = make(n=n, d=d)
    scale = np.trace(moments(X, Y, sample_weight=w).gram) / d
    relative = solve_ridge(X, Y, alpha=0.1, relative=True, sample_weight=w)
    absolute = solve_ridge(X, Y, alpha=0.1 * scale, sample_weight=w)
    np.testing.assert_allclose(relative.x.weight, absolute.x.weight, rtol=1e-10)
    assert relative.info["alpha"] == pytest.approx(0.1 * scale)


def test_integer_weights_are_copies_and_order_is_irrelevant():
    X, Y, _ = make()
    copies = 1 + np.arange(60) % 3
    weighted = solve_ridge(X, Y, sample_weight=copies).x
    repeated = solve_ridge(np.repeat(X, copies, axis=0), np.repeat(Y, copies, axis=0)).x
    np.testing.assert_allclose(weighted.weight, repeated.weight, rtol=1e-10)
    shuffled = solve_ridge(X[::-1], Y[::-1, ::-1], sample_weight=copies[::-1]).x
    np.testing.assert_allclose(weighted.weight[:, ::-1], shuffled.weight, rtol=1e-10)


def test_one_dimensional_target_is_one_column():
    X, Y, _ = make()
    single, many = solve_ridge(X, Y[:, 0]).x, solve_ridge(X, Y).x
    assert single.weight.shape == (5, 1)
    np.testing.assert_allclose(single.weight[:, 0], many.weight[:, 0], rtol=1e-10)


def test_the_precision_rule_climbs_from_float32_to_float64_to_singular_values():
    X, Y, _ = make(n=400)
    rng = np.random.default_rng(1)

    def near_copies(size):
        return np.hstack([X, X + size * rng.normal(size=X.shape)])

    easy = solve_ridge(X.astype(np.float32), Y, alpha=1e-3)
    hard = solve_ridge(near_copies(1e-2).astype(np.float32), Y, alpha=1e-3)
    hardest = solve_ridge(near_copies(1e-7), Y, alpha=0.0)
    assert (easy.info["products"], easy.info["form"]) == ("float32", "gram")
    assert (hard.info["products"], hard.info["form"]) == ("float64", "gram")
    assert (hardest.info["products"], hardest.info["form"]) == ("float64", "svd")
    exact = solve_ridge(X.astype(np.float32).astype(np.float64), Y, alpha=1e-3)
    assert np.linalg.norm(easy.x.weight - exact.x.weight) < 1e-3 * np.linalg.norm(exact.x.weight)


def test_the_singular_value_route_solves_what_the_gram_matrix_cannot():
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(80, 6)))[0]
    right = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    left -= left.mean(axis=0)
    X = left * np.logspace(0, -9, 6) @ right
    truth = rng.normal(size=(6, 1))
    result = solve_ridge(X, X @ truth, alpha=0.0)
    assert result.info["form"] == "svd"
    assert np.linalg.norm(result.x.weight - truth) < 1e-4 * np.linalg.norm(truth)


def test_statistics_that_resolve_too_little_say_so():
    X, Y, _ = make(n=400)
    X = np.hstack([X, X + 1e-3 * np.random.default_rng(0).normal(size=X.shape)]).astype(np.float32)
    statistics = moments(X, Y)
    with pytest.warns(ConvergenceWarning, match="accumulate the statistics in float64 or raise alpha"):
        result = solve_ridge_moments(statistics, alpha=0.0)
    assert result.status is Status.STALLED
    assert solve_ridge_moments(statistics, alpha=1e-2, relative=True).status is Status.OPTIMAL


def test_statistics_and_rows_give_the_same_solution():
    X, Y, w = make()
    for fit_intercept in (True, False):
        rows = solve_ridge(X, Y, sample_weight=w, fit_intercept=fit_intercept)
        stats = solve_ridge_moments(moments(X, Y, sample_weight=w), fit_intercept=fit_intercept)
        np.testing.assert_allclose(rows.x.weight, stats.x.weight, rtol=1e-12)


def test_a_single_row_and_constant_targets_are_solved():
    assert solve_ridge([[1.0, 2.0]], [3.0]).x.intercept == pytest.approx(3.0)
    X, _, _ = make()
    result = solve_ridge(X, np.ones(60))
    np.testing.assert_allclose(result.x.weight, 0.0, atol=1e-12)
    assert result.objective == pytest.approx(0.0, abs=1e-12)


def test_reduced_rank_ridge_is_ridge_at_full_rank_and_the_oracle_below():
    rng = np.random.default_rng(5)
    X, Y = rng.normal(size=(40, 5)), rng.normal(size=(40, 2))
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    statistics = moments(X, Y)
    full = solve_reduced_rank_ridge(statistics, 5, alpha=2.0)
    ridge = solve_ridge_moments(statistics, alpha=2.0)
    np.testing.assert_allclose(full.x.weight, ridge.x.weight, atol=1e-12)
    assert full.objective == pytest.approx(ridge.objective)
    low = solve_reduced_rank_ridge(statistics, 1, alpha=2.0)
    assert np.linalg.matrix_rank(low.x.weight) == 1
    assert low.objective == pytest.approx(oracle.reduced_rank_ridge(X, Y, 2.0), rel=1e-8)
    assert low.objective == pytest.approx(np.sum((X @ low.x.weight - Y) ** 2) + 2.0 * np.sum(low.x.weight**2))
    assert low.residuals["stationarity"] < 1e-12


@pytest.mark.parametrize(("n", "d"), [(5, 3), (3, 5), (1, 1), (1, 4)])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("relative", [False, True])
def test_constant_features_leave_the_mean(n, d, alpha, relative):
    Y = np.arange(2.0 * n).reshape(n, 2)
    result = solve_ridge(np.full((n, d), 7.0), Y, alpha=alpha, relative=relative)
    np.testing.assert_array_equal(result.x.weight, 0.0)
    np.testing.assert_allclose(result.x.intercept, Y.mean(axis=0))


def test_bad_input_is_named():
    X, Y, _ = make()
    with pytest.raises(ValueError, match="alpha must be a finite number >= 0"):
        solve_ridge(X, Y, alpha=-1.0)
    with pytest.raises(ValueError, match="alpha must be a number"):
        solve_ridge(X, Y, alpha="big")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        solve_ridge_moments(moments(X, Y), alpha=np.nan)
    for rows in (slice(None), slice(0, 3)):
        bad = X[rows].copy()
        bad[0, 0] = np.inf
        with pytest.raises(ValueError, match="X holds 1 NaN or infinite"):
            solve_ridge(bad, Y[rows])
    with pytest.raises(ValueError, match="X must be numeric"):
        solve_ridge([["a"], ["b"]], [1.0, 2.0])
    with pytest.raises(ValueError, match="2 dimensions"):
        solve_ridge(X[0], Y[0])
    statistics = moments(np.eye(4), np.ones(4))
    with pytest.raises(ValueError, match="rank must be an integer >= 1"):
        solve_reduced_rank_ridge(statistics, 0)
    with pytest.raises(ValueError, match="alpha must be"):
        solve_reduced_rank_ridge(statistics, 1, alpha=-1.0)
