import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftopt.solvers import (
    Status,
    factor_spd,
    moments,
    oracle,
    polar_factor,
    solve_procrustes,
    solve_reduced_rank_ridge,
    solve_ridge_moments,
    solve_stiefel_linear,
    solve_stiefel_quadratic,
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


@pytest.mark.parametrize("seed", range(3))
def test_quadratic_problem_equals_riemannian_trust_regions(seed):
    rng = np.random.default_rng(seed)
    A, B = symmetric(rng, 9), 3.0 * rng.normal(size=(9, 3))
    result = solve_stiefel_quadratic(A, B, tol=1e-9)
    assert result.objective == pytest.approx(oracle.stiefel_quadratic(A, B), abs=1e-6)
    assert result.objective == pytest.approx(np.sum(result.x * (A @ result.x - 2 * B)))
    assert result.status is Status.OPTIMAL
    assert result.gap is not None
    assert result.gap < 1e-4


@pytest.mark.parametrize("c", [1, 3])
def test_generalised_quadratic_problem_is_the_plain_one_after_whitening(c):
    rng = np.random.default_rng(3)
    A, B, S = symmetric(rng, 8), 2.0 * rng.normal(size=(8, c)), symmetric(rng, 8)
    result = solve_stiefel_quadratic(A, B, S, tol=1e-9)
    np.testing.assert_allclose(result.x.T @ S @ result.x, np.eye(c), atol=1e-11)
    root = np.linalg.cholesky(S)
    inverse = np.linalg.inv(root)
    plain = oracle.stiefel_quadratic(inverse @ A @ inverse.T, inverse @ B)
    assert result.objective == pytest.approx(plain, abs=1e-6)
    assert result.objective == pytest.approx(np.sum(result.x * (A @ result.x - 2 * B)))
    assert solve_stiefel_quadratic(A, B, factor_spd(S), start=result.x).n_iter == 0


@given(st.integers(0, 2**31), st.sampled_from(["plain", "rank", "indefinite", "multiple"]))
@settings(max_examples=25)
def test_quadratic_problem_descends_and_its_gap_is_a_bound(seed, kind):
    rng = np.random.default_rng(seed)
    A, B = symmetric(rng, 6), rng.normal(size=(6, 2)) * rng.uniform(0, 3)
    if kind == "rank":
        A, B = np.diag([1.0, 0, 0, 0, 0, 0]), np.repeat(B[:, :1], 2, axis=1)
    if kind == "indefinite":
        A = A - 2 * np.eye(6)
    if kind == "multiple":
        A = np.diag([1.0, 1, 1, 2, 2, 2])
    values = []
    start = rng.normal(size=(6, 2))
    result = solve_stiefel_quadratic(
        A,
        B,
        start=start,
        max_iter=300,
        callback=lambda record: values.append(record["objective"]),
        on_limit="ignore",
    )
    assert (np.diff(values) <= 1e-11).all()
    np.testing.assert_allclose(result.x.T @ result.x, np.eye(2), atol=1e-12)
    other = solve_stiefel_quadratic(A, B, max_iter=300, on_limit="ignore")
    assert result.gap is not None
    sampled = min(np.sum(W * (A @ W - 2 * B)) for W in random_points(rng, np.eye(6), 2, 200))
    assert result.objective - min(other.objective, sampled) <= result.gap + 1e-9


def test_quadratic_problem_limits_are_closed_forms():
    rng = np.random.default_rng(4)
    A, B = symmetric(rng, 8), rng.normal(size=(8, 3))
    eigen = solve_stiefel_quadratic(A, np.zeros((8, 3)))
    assert eigen.objective == pytest.approx(np.linalg.eigvalsh(A)[:3].sum())
    assert eigen.status is Status.OPTIMAL
    linear = solve_stiefel_quadratic(2.5 * np.eye(8), B)
    np.testing.assert_allclose(linear.x, solve_procrustes(B).x, atol=1e-10)
    assert linear.status is Status.OPTIMAL


def test_a_stationary_point_that_is_not_global_is_not_called_optimal():
    A = np.diag([1.0, 2.0, 3.0])
    result = solve_stiefel_quadratic(A, np.zeros((3, 1)), start=np.eye(3)[:, [1]])
    assert result.status is Status.LOCAL_OPTIMUM
    assert result.gap is not None
    assert result.gap >= 1.0
    assert result.info["certificate"] == pytest.approx(-1.0)


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


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least as many rows as columns"):
        solve_procrustes(np.ones((2, 3)))
    with pytest.raises(ValueError, match="B holds 1 NaN"):
        solve_procrustes([[np.nan], [1.0]])
    with pytest.raises(ValueError, match="S of order 3 does not fit C"):
        solve_stiefel_linear(np.ones((4, 1)), np.eye(3))
    with pytest.raises(ValueError, match="negative eigenvalue"):
        solve_stiefel_linear(np.ones((2, 1)), np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match="A of order 3 does not fit B"):
        solve_stiefel_quadratic(np.eye(3), np.ones((4, 1)))
    with pytest.raises(ValueError, match="A must be symmetric"):
        solve_stiefel_quadratic([[1.0, 2.0], [0.0, 1.0]], np.ones((2, 1)))
    with pytest.raises(ValueError, match="start has shape"):
        solve_stiefel_quadratic(np.eye(3), np.ones((3, 1)), start=np.ones((3, 2)))
    with pytest.raises(ValueError, match="max_iter must be"):
        solve_stiefel_quadratic(np.eye(3), np.ones((3, 1)), max_iter=-1)
    statistics = moments(np.eye(4), np.ones(4))
    with pytest.raises(ValueError, match="rank must be an integer >= 1"):
        solve_reduced_rank_ridge(statistics, 0)
    with pytest.raises(ValueError, match="alpha must be"):
        solve_reduced_rank_ridge(statistics, 1, alpha=-1.0)
