import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftopt.solvers import factor_spd


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 20), st.floats(1e-3, 1e3))
def test_one_factor_serves_any_right_hand_sides(seed, d, n, alpha):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, d))
    factor = factor_spd(A.T @ A, alpha)
    matrix = A.T @ A + alpha * np.eye(d)
    assert factor.jitter == 0.0
    np.testing.assert_allclose(factor.lower @ factor.lower.T, matrix, atol=1e-12 * matrix.max())
    for shape in ((d,), (d, 1), (d, 7)):
        rhs = rng.normal(size=shape)
        np.testing.assert_allclose(factor.solve(rhs), np.linalg.solve(matrix, rhs), rtol=1e-7, atol=1e-9)
    # rcond is LAPACK's estimate of the 1-norm condition: never below the truth, rarely far above
    exact = 1.0 / np.linalg.cond(matrix, 1)
    assert exact * (1 - 1e-9) <= factor.rcond <= 10 * exact


def test_halves_of_the_factor_whiten():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(20, 5))
    S = A.T @ A
    factor = factor_spd(S)
    white = factor.whiten(factor.whiten(S).T)
    np.testing.assert_allclose(white, np.eye(5), atol=1e-12)
    W = factor.unwhiten(np.eye(5))
    np.testing.assert_allclose(W.T @ S @ W, np.eye(5), atol=1e-12)


@pytest.mark.parametrize("matrix", [np.ones((4, 4)), np.zeros((3, 3)), np.diag([1.0, 1e-20, 0.0])])
def test_singular_matrices_get_a_reported_jitter(matrix):
    factor = factor_spd(matrix)
    assert 0.0 < factor.jitter <= 1e-9 * max(matrix.max(), 1.0)
    assert np.isfinite(factor.solve(np.ones(len(matrix)))).all()
    assert factor_spd(matrix, 1e-3).jitter == 0.0


def test_float32_is_factored_in_float64():
    factor = factor_spd(np.diag(np.array([1.0, 1e-12], dtype=np.float32)))
    assert factor.lower.dtype == np.float64
    assert factor.jitter == 0.0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="gram has a negative eigenvalue beyond rounding"):
        factor_spd([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="gram must be symmetric"):
        factor_spd([[1.0, 2.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="gram holds 1 NaN"):
        factor_spd([[np.nan]])
    with pytest.raises(ValueError, match="alpha must be a finite number >= 0"):
        factor_spd(np.eye(2), -1.0)
