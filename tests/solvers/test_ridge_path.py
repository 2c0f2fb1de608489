import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeCV

from liftopt.solvers import (
    moments,
    ridge_path,
    ridge_path_moments,
    solve_ridge,
    solve_ridge_folds,
    solve_ridge_path,
)

ALPHAS = np.logspace(-3, 3, 9)


def make(seed=0, n=40, d=5, c=2):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + rng.normal(size=d)
    return X, X @ rng.normal(size=(d, c)) + rng.normal(size=(n, c)) + 1.0, rng.uniform(0.1, 2.0, size=n)


def refit_errors(X, Y, w, alpha, fit_intercept):
    """Squared leave-one-out errors by n fits."""
    errors = []
    for i in range(len(X)):
        keep = np.arange(len(X)) != i
        model = solve_ridge(
            X[keep], Y[keep], alpha=alpha, sample_weight=w[keep], fit_intercept=fit_intercept
        ).x
        errors.append((model(X[i : i + 1]) - Y[i]) ** 2)
    return np.concatenate(errors)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("n", "d"), [(40, 5), (8, 12)])
def test_every_point_of_the_path_is_a_ridge_solution(n, d, fit_intercept):
    X, Y, w = make(n=n, d=d)
    path = ridge_path(X, Y, sample_weight=w, fit_intercept=fit_intercept)
    for index, alpha in enumerate(ALPHAS):
        single = solve_ridge(X, Y, alpha=alpha, sample_weight=w, fit_intercept=fit_intercept)
        np.testing.assert_allclose(path.at(alpha).weight, single.x.weight, atol=1e-9)
        np.testing.assert_allclose(path.at(alpha).intercept, single.x.intercept, atol=1e-9)
        residual = path.residual_square(ALPHAS)[index].sum()
        assert residual + alpha * np.sum(single.x.weight**2) == pytest.approx(single.objective, rel=1e-8)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_degrees_of_freedom_are_the_trace_of_the_hat_matrix(fit_intercept):
    X, _, w = make()
    path = ridge_path(X, np.eye(40), sample_weight=w, fit_intercept=fit_intercept)
    for index, alpha in enumerate(ALPHAS):
        hat = path.at(alpha)(X)
        assert path.degrees_of_freedom(ALPHAS)[index] == pytest.approx(np.trace(hat))
    residual = w @ (np.eye(40) - hat) ** 2
    np.testing.assert_allclose(path.gcv(ALPHAS)[-1], residual / 40 / (1 - np.trace(hat) / 40) ** 2, rtol=1e-8)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("n", "d"), [(25, 4), (7, 10)])
def test_leave_one_out_equals_n_refits(n, d, fit_intercept):
    X, Y, w = make(n=n, d=d)
    result = solve_ridge_path(X, Y, alphas=ALPHAS, sample_weight=w, fit_intercept=fit_intercept)
    for index, alpha in enumerate(ALPHAS):
        expected = w @ refit_errors(X, Y, w, alpha, fit_intercept) / w.sum()
        np.testing.assert_allclose(result.info["scores"][index], expected, rtol=1e-6)
    assert result.info["alpha"] == ALPHAS[result.info["scores"].mean(axis=1).argmin()]
    assert result.objective == pytest.approx(result.info["scores"].mean(axis=1).min())


@given(st.integers(0, 2**31), st.integers(3, 30), st.integers(1, 20))
@settings(max_examples=25)
def test_leave_one_out_equals_scikit_learn_on_degenerate_data_too(seed, n, d):
    X, Y, _ = make(seed, n=n, d=d)
    X = np.hstack([X, X[:, :1], np.ones((n, 1))])
    scores = solve_ridge_path(X, Y, alphas=ALPHAS).info["scores"]
    other = RidgeCV(alphas=ALPHAS, store_cv_results=True).fit(X, Y)
    np.testing.assert_allclose(scores, other.cv_results_.mean(axis=0).T, rtol=1e-5, atol=1e-8)


def test_folds_are_scored_without_their_rows():
    X, Y, w = make()
    parts = [np.arange(40) % 4 == k for k in range(4)]
    folds = [moments(X[part], Y[part], sample_weight=w[part]) for part in parts]
    result = solve_ridge_folds(folds, alphas=ALPHAS)
    for index, alpha in enumerate(ALPHAS):
        errors = np.zeros(2)
        for part in parts:
            model = solve_ridge(X[~part], Y[~part], alpha=alpha, sample_weight=w[~part]).x
            errors += w[part] @ (model(X[part]) - Y[part]) ** 2
        np.testing.assert_allclose(result.info["scores"][index], errors / w.sum(), rtol=1e-8)
    final = solve_ridge(X, Y, alpha=result.info["alpha"], sample_weight=w)
    np.testing.assert_allclose(result.x.weight, final.x.weight, atol=1e-10)


def test_as_many_folds_as_rows_is_leave_one_out():
    X, Y, _ = make(n=15)
    folds = [moments(X[i : i + 1], Y[i : i + 1]) for i in range(15)]
    by_folds, by_formula = solve_ridge_folds(folds, alphas=ALPHAS), solve_ridge_path(X, Y, alphas=ALPHAS)
    np.testing.assert_allclose(by_folds.info["scores"], by_formula.info["scores"], rtol=1e-8)


def test_the_statistics_alone_give_the_same_path():
    X, Y, w = make()
    rows, stats = ridge_path(X, Y, sample_weight=w), ridge_path_moments(moments(X, Y, sample_weight=w))
    np.testing.assert_allclose(rows.gcv(ALPHAS), stats.gcv(ALPHAS))


def test_the_penalty_of_noise_is_large_and_of_exact_data_small():
    X = make(n=100)[0]
    noise = np.random.default_rng(1).normal(size=(100, 1))
    exact = X @ np.ones((5, 1))
    for criterion in ("gcv", "loo"):
        assert solve_ridge_path(X, noise, alphas=ALPHAS, criterion=criterion).info["alpha"] >= 10.0
        found = solve_ridge_path(X, exact, alphas=ALPHAS, criterion=criterion)
        assert found.info["alpha"] == ALPHAS[0]
        assert "extend alphas" in found.message


def test_bad_input_is_named():
    X, Y, _ = make()
    with pytest.raises(ValueError, match="alphas must be a list of positive penalties"):
        solve_ridge_path(X, Y, alphas=[0.0, 1.0])
    with pytest.raises(ValueError, match="alphas must be a list of positive penalties"):
        solve_ridge_path(X, Y, alphas=[])
    with pytest.raises(ValueError, match="alphas holds 1 NaN"):
        solve_ridge_path(X, Y, alphas=[np.nan])
    with pytest.raises(ValueError, match="criterion must be 'loo' or 'gcv', got 'aic'"):
        solve_ridge_path(X, Y, alphas=ALPHAS, criterion="aic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from a single row"):
        solve_ridge_path(X[:1], Y[:1], alphas=ALPHAS)
    with pytest.raises(ValueError, match="at least two folds, got 1"):
        solve_ridge_folds([moments(X, Y)], alphas=ALPHAS)
    with pytest.raises(ValueError, match="X holds 200 NaN"):
        solve_ridge_path(X * np.nan, Y, alphas=ALPHAS)


def test_only_a_grid_has_an_edge_to_warn_of(rng):
    X, Y = rng.normal(size=(40, 3)), rng.normal(size=(40, 1))
    assert solve_ridge_path(X, Y, alphas=[1.0]).message == ""
    assert "extend alphas" in solve_ridge_path(X, Y, alphas=[1e-12, 1e-11]).message
