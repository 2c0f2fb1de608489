import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftopt.solvers import Status, factor_spd, oracle, solve_procrustes, solve_stiefel_quadratic


def symmetric(rng, d, spread=1.0):
    H = rng.normal(size=(d, d))
    return H @ H.T * spread / d + 0.1 * np.eye(d)


def random_points(rng, S, c, count):
    """Feasible points of ``W'SW = I``."""
    root = np.linalg.cholesky(S)
    for _ in range(count):
        yield np.linalg.solve(root.T, np.linalg.qr(rng.normal(size=(len(S), c)))[0])


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


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="A of order 3 does not fit B"):
        solve_stiefel_quadratic(np.eye(3), np.ones((4, 1)))
    with pytest.raises(ValueError, match="A must be symmetric"):
        solve_stiefel_quadratic([[1.0, 2.0], [0.0, 1.0]], np.ones((2, 1)))
    with pytest.raises(ValueError, match="start has shape"):
        solve_stiefel_quadratic(np.eye(3), np.ones((3, 1)), start=np.ones((3, 2)))
    with pytest.raises(ValueError, match="max_iter must be"):
        solve_stiefel_quadratic(np.eye(3), np.ones((3, 1)), max_iter=-1)
