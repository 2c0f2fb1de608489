"""Simplex coefficients: against cvxpy, and what the gap, the penalty and the symmetries promise."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from liftopt.solvers import Status, solve_simplex_cross_entropy, solve_simplex_least_squares
from liftopt.solvers.oracle import simplex_combination
from liftopt.solvers.simplex import minimise_on_simplex


def problem(seed, k=5, n=60, outputs=3, spread=1.0):
    """Predictions around the truth, labels one-hot, weights of the rows."""
    rng = np.random.default_rng(seed)
    Y = np.eye(outputs)[rng.integers(0, outputs, n)]
    scales = spread * rng.uniform(0.2, 2.0, (k, 1, 1))
    return 2 * Y + rng.normal(size=(n, outputs)) + scales * rng.normal(size=(k, n, outputs)), Y, rng.random(n)


SOLVERS: dict[str, Any] = {
    "squares": solve_simplex_least_squares,
    "cross-entropy": solve_simplex_cross_entropy,
}
both = pytest.mark.parametrize("loss", list(SOLVERS))


@both
@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_oracle(loss, rho, seed):
    Z, Y, weight = problem(seed, k=3 + 2 * seed)
    centre = np.random.default_rng(seed).dirichlet(np.ones(len(Z)))
    found = SOLVERS[loss](Z, Y, rho=rho, centre=centre, sample_weight=weight)
    c, value = simplex_combination(Z, Y, loss, rho, centre, weight / weight.sum())
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(value, rel=1e-7)
    np.testing.assert_allclose(found.x, c, atol=1e-4)
    assert found.gap <= 1e-10


@both
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), copies=st.integers(1, 3))
def test_certificate_and_feasibility_on_degenerate_models(loss, seed, k, copies):
    """Duplicates, models in the hull of others, fewer rows than models."""
    Z, Y, _ = problem(seed, k=k, n=4)
    Z = np.concatenate([Z] * copies + [Z.mean(axis=0, keepdims=True)])
    found = SOLVERS[loss](Z, Y)
    assert found.x.min() >= 0.0
    assert found.x.sum() == pytest.approx(1.0, abs=1e-12)
    assert 0.0 <= found.gap <= 1e-9
    singles = [SOLVERS[loss](z[None], Y).objective for z in Z]
    uniform = SOLVERS[loss](Z.mean(axis=0, keepdims=True), Y).objective
    assert found.objective <= min([*singles, uniform]) + 1e-10


@both
def test_gap_bounds_the_distance_from_the_optimum(loss):
    Z, Y, weight = problem(1)
    best = SOLVERS[loss](Z, Y, sample_weight=weight)
    for rho in (0.1, 1.0, 10.0):
        c = SOLVERS[loss](Z, Y, rho=rho, sample_weight=weight).x
        mixed = np.tensordot(c, Z, 1)
        if loss == "squares":
            gradient = np.array([2 * np.average(np.sum(z * (mixed - Y), 1), weights=weight) for z in Z])
        else:
            proba = np.exp(mixed) / np.exp(mixed).sum(1, keepdims=True)
            gradient = np.array([np.average(np.sum(z * (proba - Y), 1), weights=weight) for z in Z])
        at_c = SOLVERS[loss](mixed[None], Y, sample_weight=weight).objective
        assert at_c - best.objective <= gradient @ c - gradient.min() + 1e-12


@both
def test_permuting_models_permutes_their_weights(loss):
    Z, Y, _ = problem(2, k=6)
    order = np.random.default_rng(0).permutation(6)
    np.testing.assert_allclose(SOLVERS[loss](Z[order], Y).x, SOLVERS[loss](Z, Y).x[order], atol=1e-6)


@both
def test_the_penalty_leads_to_the_uniform_mean_and_makes_duplicates_share(loss):
    Z, Y, _ = problem(3, k=4)
    np.testing.assert_allclose(SOLVERS[loss](Z, Y, rho=1e9).x, 0.25, atol=1e-8)
    twice = np.concatenate([Z, Z[:1]])
    c = SOLVERS[loss](twice, Y, rho=1e-3).x
    assert c[0] == pytest.approx(c[-1], abs=1e-9)


@both
def test_a_row_weight_is_a_repetition(loss):
    Z, Y, _ = problem(4)
    counts = np.random.default_rng(0).integers(0, 3, Y.shape[0])
    repeated = SOLVERS[loss](np.repeat(Z, counts, axis=1), np.repeat(Y, counts, axis=0))
    weighted = SOLVERS[loss](Z, Y, sample_weight=counts)
    np.testing.assert_allclose(weighted.x, repeated.x, atol=1e-6)


def test_independent_errors_are_weighed_by_their_precision(rng):
    scales = np.array([0.5, 1.0, 2.0])
    errors = scales[:, None] * rng.normal(size=(3, 20_000))
    found = solve_simplex_least_squares(errors, np.zeros(20_000))
    np.testing.assert_allclose(found.x, scales**-2 / np.sum(scales**-2.0), atol=0.02)


def test_nearly_equal_models_keep_their_differences(rng):
    """Residuals of order one that differ by 1e-9: products of residuals themselves would lose this."""
    Z, Y, _ = problem(5, k=4)
    common = Z[0]
    small = solve_simplex_least_squares(common + 1e-9 * (Z - common), Y)
    gradient = np.array([np.mean(np.sum(z * (common - Y), 1)) for z in Z])
    assert np.argmax(small.x) == np.argmin(gradient)
    assert small.x.max() == pytest.approx(1.0)


@given(seed=st.integers(0, 10**6), k=st.integers(2, 10), rank=st.integers(1, 10))
def test_quadratic_programs_meet_their_conditions_from_any_start(seed, k, rank):
    rng = np.random.default_rng(seed)
    A, b = rng.normal(size=(rank, k)), rng.normal(size=k)
    start = rng.dirichlet(np.ones(k)) * (rng.random(k) < 0.5)
    start = start / start.sum() if start.sum() > 0 else np.eye(k)[0]
    c = minimise_on_simplex(A.T @ A, b, start)
    gradient = A.T @ (A @ c) + b
    assert c.min() >= 0.0
    assert gradient @ c - gradient.min() <= 1e-8 * max(1.0, np.abs(A.T @ A).max())


def test_budget_and_start():
    Z, Y, _ = problem(6, k=8)
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        solve_simplex_cross_entropy(Z, Y, max_iter=1)
    start = np.full(8, 1 / 8)
    found = solve_simplex_cross_entropy(Z, Y, init=start)
    uniform = solve_simplex_cross_entropy(Z.mean(axis=0, keepdims=True), Y).objective
    assert found.history[0]["objective"] == pytest.approx(uniform)
    assert found.info["support"].tolist() == np.flatnonzero(found.x > 0).tolist()
    seen: list[Any] = []

    def stop(record):
        seen.append(record)
        return True

    solve_simplex_cross_entropy(Z, Y, callback=stop)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": np.zeros(3)}, r"predictions must have shape \(k, n\) or \(k, n, outputs\)"),
        ({"predictions": np.zeros((0, 3, 2))}, "predictions must have shape"),
        ({"predictions": np.full((2, 3, 2), np.nan)}, "predictions holds 12 NaN"),
        ({"Y": np.zeros((4, 2))}, "Y has shape"),
        ({"rho": -1.0}, "rho must be a finite number >= 0"),
        ({"centre": [0.5, 0.6]}, "centre must be 2 non-negative weights that sum to one"),
        ({"sample_weight": [1.0]}, "sample_weight has 1 entries for 3 rows"),
        ({"tol": -1.0}, "tol must be"),
        ({"max_iter": 0}, "max_iter must be"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"predictions": np.ones((2, 3, 2)), "Y": np.ones((3, 2))} | change
    with pytest.raises(ValueError, match=message):
        solve_simplex_least_squares(given.pop("predictions"), given.pop("Y"), **given)


def test_labels_must_be_distributions():
    with pytest.raises(ValueError, match="rows of Y must be class probabilities"):
        solve_simplex_cross_entropy(np.ones((2, 3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="init must be 2"):
        solve_simplex_cross_entropy(np.ones((2, 3, 2)), np.eye(2)[[0, 1, 0]], init=[1.0])
