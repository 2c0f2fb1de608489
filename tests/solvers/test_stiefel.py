import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftopt.solvers import (
    Status,
    factor_spd,
    oracle,
    polar_factor,
    solve_procrustes,
    solve_stiefel_linear,
)


def symmetric(rng, d, spread=1.0):
    H = rng.normal(size=(d, d))
    return H @ H.T * spread / d + 0.1 * np.eye(d)


def random_points(rng, S, c, count):
    """Feasible points of ``W'SW = I``."""
    root = np.linalg.cholesky(S)
    for _ in range(count):
        yield np.linalg.solve(root.T, np.linalg.qr(rng.normal(size=(len(S), c)))[0])


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 8), st.floats(0, 9))
def test_polar_factor_is_orthonormal_and_nearest_at_any_condition(seed, d, c, decades):
    rng = np.random.default_rng(seed)
    k = min(d, c)
    U, V = np.linalg.qr(rng.normal(size=(d, k)))[0], np.linalg.qr(rng.normal(size=(c, k)))[0]
    M = U * np.logspace(0, -decades, k) @ V.T
    W = polar_factor(M)
    gram = W.T @ W if d >= c else W @ W.T
    np.testing.assert_allclose(gram, np.eye(k), atol=1e-13)
    np.testing.assert_allclose(W, U @ V.T, atol=1e-13 * 10**decades + 1e-11)


@pytest.mark.parametrize("matrix", [np.zeros((5, 2)), np.ones((5, 3)), np.eye(4)[:, :2], np.zeros((2, 5))])
def test_polar_factor_of_degenerate_matrices_is_orthonormal(matrix):
    W = polar_factor(matrix)
    gram = W.T @ W if W.shape[0] >= W.shape[1] else W @ W.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 4))
@settings(max_examples=20)
def test_procrustes_beats_every_random_point(seed, c):
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(6, c))
    result = solve_procrustes(B)
    assert result.status is Status.OPTIMAL
    assert max(result.residuals.values()) < 1e-12
    assert result.objective == pytest.approx(np.linalg.svd(B, compute_uv=False).sum())
    assert all(np.sum(W * B) <= result.objective + 1e-12 for W in random_points(rng, np.eye(6), c, 100))


def test_orthogonal_regression_is_procrustes():
    rng = np.random.default_rng(0)
    A, R = rng.normal(size=(20, 4)), np.linalg.qr(rng.normal(size=(4, 4)))[0]
    np.testing.assert_allclose(solve_procrustes(A.T @ (A @ R)).x, R, atol=1e-12)


@pytest.mark.parametrize("rank_deficient", [False, True])
def test_linear_problem_attains_its_bound_feasibly(rank_deficient):
    rng = np.random.default_rng(1)
    S, C = symmetric(rng, 8), rng.normal(size=(8, 3))
    if rank_deficient:
        C -= C.mean(axis=1, keepdims=True)
    result = solve_stiefel_linear(C, S)
    product = result.x.T @ S @ result.x
    np.testing.assert_allclose(product @ product, product, atol=1e-11)
    assert np.trace(product) == pytest.approx(3 - rank_deficient)
    assert result.info["rank"] == 3 - rank_deficient == np.linalg.matrix_rank(result.x)
    assert result.objective == pytest.approx(np.sum(result.x * C))
    assert result.objective == pytest.approx(oracle.stiefel_linear(C, S), rel=1e-6)
    best = max(np.sum(W * C) for W in random_points(rng, S, 3, 2000))
    assert best <= result.objective + 1e-12
    assert max(result.residuals.values()) < 1e-12
    np.testing.assert_allclose(solve_stiefel_linear(C, factor_spd(S)).x, result.x)


def test_linear_problem_closed_forms_agree():
    rng = np.random.default_rng(2)
    S, C = symmetric(rng, 7), rng.normal(size=(7, 3))
    values, vectors = np.linalg.eigh(S)
    inverse_root = vectors / np.sqrt(values) @ vectors.T
    np.testing.assert_allclose(
        solve_stiefel_linear(C, S).x, inverse_root @ polar_factor(inverse_root @ C), atol=1e-11
    )
    np.testing.assert_allclose(solve_stiefel_linear(C, np.eye(7)).x, solve_procrustes(C).x, atol=1e-12)


def test_linear_problem_survives_a_zero_term_and_a_singular_metric():
    zero = solve_stiefel_linear(np.zeros((4, 2)), np.eye(4))
    assert (zero.info["rank"], zero.objective) == (0, 0.0)
    assert not zero.x.any()
    singular = solve_stiefel_linear(np.eye(4)[:, :2], np.diag([1.0, 1.0, 1.0, 0.0]))
    assert singular.info["jitter"] > 0.0
    np.testing.assert_allclose(singular.x, np.eye(4)[:, :2], atol=1e-9)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least as many rows as columns"):
        solve_procrustes(np.ones((2, 3)))
    with pytest.raises(ValueError, match="B holds 1 NaN"):
        solve_procrustes([[np.nan], [1.0]])
    with pytest.raises(ValueError, match="S of order 3 does not fit C"):
        solve_stiefel_linear(np.ones((4, 1)), np.eye(3))
    with pytest.raises(ValueError, match="negative eigenvalue"):
        solve_stiefel_linear(np.ones((2, 1)), np.diag([1.0, -1.0]))
