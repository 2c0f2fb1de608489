import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear, nnls
from sklearn.exceptions import ConvergenceWarning

from liftopt.solvers import SolverError, Status, natural_residual, solve_box_qp
from liftopt.solvers.box_qp_exact import solve_active_set


def hessian(rng, d, condition):
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    H = Q * np.geomspace(1.0, 1.0 / condition, d) @ Q.T
    return (H + H.T) / 2


def certificate(H, c, x, lower, upper):
    """Largest KKT violation of one problem, by sign cases rather than by projection."""
    g = H @ x - c
    at_lower, at_upper = x <= lower, x >= upper
    worst = max(np.max(lower - x, initial=0.0), np.max(x - upper, initial=0.0))
    worst = max(worst, np.max(np.abs(g[~at_lower & ~at_upper]), initial=0.0))
    worst = max(worst, np.max(-g[at_lower & ~at_upper], initial=0.0))
    return max(worst, np.max(g[at_upper & ~at_lower], initial=0.0))


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_nonnegative_least_squares_agrees_with_nnls(rng, condition):
    d = 25
    H, C = hessian(rng, d, condition), rng.normal(size=(60, d))
    factor = np.linalg.cholesky(H)
    result = solve_box_qp(H, C, tol=1e-9)
    assert result.status == Status.OPTIMAL
    for x, c in zip(result.x, C, strict=True):
        reference, _ = nnls(factor.T, np.linalg.solve(factor, c), maxiter=1000)
        np.testing.assert_allclose(x, reference, atol=1e-6, rtol=1e-6)


def test_boxes_agree_with_lsq_linear(rng):
    A, b = rng.normal(size=(40, 12)), rng.normal(size=(10, 40))
    lower, upper = -rng.uniform(size=12) / 20, rng.uniform(size=12) / 20
    result = solve_box_qp(A.T @ A, b @ A, lower, upper, tol=1e-9)
    for x, rhs in zip(result.x, b, strict=True):
        reference = lsq_linear(A, rhs, (lower, upper), method="bvls", tol=1e-14)
        np.testing.assert_allclose(x, reference.x, atol=1e-8)


@pytest.mark.parametrize("backend", ["osqp", "cvxpy"])
@pytest.mark.parametrize("per_row", [False, True])
def test_backends_agree(rng, backend, per_row):
    H, C = hessian(rng, 10, 50.0), rng.normal(size=(12, 10))
    shape = (12, 10) if per_row else (10,)
    lower, upper = -rng.uniform(size=shape), rng.uniform(size=shape)
    lower[..., 0], upper[..., 1] = -np.inf, np.inf
    own = solve_box_qp(H, C, lower, upper, tol=1e-8)
    other = solve_box_qp(H, C, lower, upper, tol=1e-8, backend=backend)
    assert own.success
    assert other.success
    np.testing.assert_allclose(own.x, other.x, atol=1e-6)
    np.testing.assert_allclose(own.objective, other.objective, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_more_rows_than_the_working_set(rng, dtype):
    H, C = hessian(rng, 16, 30.0).astype(dtype), rng.normal(size=(1500, 16)).astype(dtype)
    tol = 1e-4 if dtype == np.float32 else 1e-9
    result = solve_box_qp(H, C, tol=tol)
    assert result.x.dtype == dtype
    assert result.success
    assert natural_residual(result.x, result.x @ H - C).max() <= tol
    alone = solve_box_qp(H, C[700:701], tol=tol)
    np.testing.assert_allclose(result.x[700], alone.x[0], atol=100 * tol)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    d=st.integers(1, 8),
    rank=st.integers(0, 8),
    n=st.integers(1, 6),
    exponent=st.integers(-4, 4),
    ridge=st.sampled_from([0.0, 1e-10, 1e-4, 1.0]),
    kind=st.sampled_from(["nonnegative", "box", "fixed", "free above zero"]),
)
def test_kkt_certificate_on_degenerate_problems(seed, d, rank, n, exponent, ridge, kind):
    rng = np.random.default_rng(seed)
    A = rng.integers(-2, 3, size=(rank, d)).astype(float)
    A[:, -1] = A[:, 0]  # duplicate coordinate: ties
    scale = 10.0**exponent
    H = scale * (A.T @ A + ridge * np.eye(d))
    C = scale * rng.integers(-2, 3, size=(n, rank)) @ A  # in the range of A': bounded below
    boxes: dict[str, tuple[npt.ArrayLike, npt.ArrayLike]] = {
        "nonnegative": (0.0, np.inf),
        "box": (-0.5, 0.5),
        "fixed": (np.linspace(0, 1, d), np.linspace(0, 1, d)),
        "free above zero": (np.where(np.arange(d) % 2, -np.inf, 0.0), np.inf),
    }
    lower, upper = boxes[kind]
    result = solve_box_qp(H, C, lower, upper, tol=1e-7 * scale)
    assert result.status == Status.OPTIMAL
    low, high = np.broadcast_to(lower, d), np.broadcast_to(upper, d)
    for c, x in zip(C, result.x, strict=True):
        margin = np.abs(x - np.clip(x - (H @ x - c), low, high)).max()
        assert margin <= 1.01e-7 * scale
        assert (x >= low).all()
        assert (x <= high).all()


def test_sign_certificate_at_tight_tolerance(rng):
    H, C = hessian(rng, 20, 1e3), rng.normal(size=(30, 20))
    result = solve_box_qp(H, C, -0.1, 0.3, tol=1e-12)
    worst = max(certificate(H, c, x, -0.1, 0.3) for c, x in zip(C, result.x, strict=True))
    assert worst <= 1e-11


def test_diagonal_scaling_costs_no_accuracy(rng):
    scale = np.geomspace(1e-4, 1e4, 12)
    H = hessian(rng, 12, 20.0)
    X = np.maximum(rng.normal(size=(40, 12)), 0.0)
    C = X @ H - np.where(X > 0, 0.0, rng.uniform(size=X.shape))  # X is optimal: multipliers on the zeros
    scaled = solve_box_qp(H * scale[:, None] * scale, C * scale, tol=1e-9)
    np.testing.assert_allclose(scaled.x * scale, X, atol=1e-5)
    assert scaled.n_iter <= 100


def test_active_set_method_is_exact(rng):
    H, C = hessian(rng, 30, 1e8), rng.normal(size=(10, 30))
    for c in C:
        exact = solve_active_set(H, c, np.zeros(30), np.full(30, 1.0), np.zeros(30), tol=1e-10)
        assert exact.residual <= 1e-10
        assert not exact.unbounded


def test_rows_out_of_iterations_are_finished_by_the_active_set(rng):
    H, C = hessian(rng, 15, 1e5), rng.normal(size=(20, 15))
    result = solve_box_qp(H, C, tol=1e-10, max_iter=1)
    assert result.status == Status.OPTIMAL
    assert result.residuals["stationarity"] <= 1e-10


def test_result_states_objective_and_rows(rng):
    H, C = hessian(rng, 6, 10.0), rng.normal(size=(9, 6))
    result = solve_box_qp(H, C, tol=1e-10)
    values = [0.5 * x @ H @ x - c @ x for x, c in zip(result.x, C, strict=True)]
    np.testing.assert_allclose(result.info["row_objective"], values, atol=1e-12)
    np.testing.assert_allclose(result.objective, np.sum(values))
    assert result.info["row_residual"].max() == result.residuals["stationarity"]
    assert result.info["unsolved"].size == 0


@pytest.mark.parametrize("backend", ["batched", "osqp"])
def test_warm_start_at_the_solution(rng, backend):
    H, C = hessian(rng, 20, 100.0), rng.normal(size=(30, 20))
    cold = solve_box_qp(H, C, tol=1e-9, backend=backend)
    warm = solve_box_qp(H, C, tol=1e-8, backend=backend, init=cold.x)
    assert warm.n_iter < cold.n_iter
    if backend == "batched":
        assert warm.n_iter == 0


@pytest.mark.parametrize("backend", ["batched", "osqp", "cvxpy"])
def test_unbounded_problems_are_named(backend):
    with pytest.raises(
        SolverError, match=r"1 of 2 problems are unbounded below \(first in row 0\)"
    ) as caught:
        solve_box_qp(np.diag([1.0, 0.0]), [[1.0, 1.0], [1.0, -1.0]], backend=backend)
    assert caught.value.result.status == Status.UNBOUNDED


def test_singular_hessian_with_a_solution(rng):
    A = rng.normal(size=(5, 12))
    result = solve_box_qp(A.T @ A, rng.normal(size=(8, 5)) @ A, tol=1e-8)
    assert result.status == Status.OPTIMAL


def test_zero_hessian_in_a_box_is_solved_at_the_corners():
    result = solve_box_qp(np.zeros((2, 2)), [[1.0, -1.0]], -1.0, 2.0)
    np.testing.assert_allclose(result.x, [[2.0, -1.0]])


@pytest.mark.parametrize(("given", "used"), [("f2", "f8"), ("i8", "f8"), ("longdouble", "f8")])
def test_other_dtypes(given, used):
    result = solve_box_qp(np.eye(2, dtype=given), np.ones((1, 2), dtype=given), tol=1e-3)
    assert result.x.dtype == used
    np.testing.assert_allclose(result.x, 1.0, atol=1e-3)


def test_no_rows():
    assert solve_box_qp(np.eye(3), np.empty((0, 3))).x.shape == (0, 3)


def test_time_limit_returns_what_there_is(rng):
    H, C = hessian(rng, 30, 1e6), rng.normal(size=(50, 30))
    with pytest.warns(ConvergenceWarning, match="increase time_limit"):
        result = solve_box_qp(H, C, time_limit=0.0)
    assert result.status == Status.TIME_LIMIT
    assert np.isfinite(result.x).all()
    assert result.info["unsolved"].size > 0


def test_tolerance_below_rounding_is_said(rng):
    H = 1e6 * hessian(rng, 8, 100.0)
    with pytest.warns(ConvergenceWarning, match="8 of 8 problems above tol.*below what the arithmetic"):
        solve_box_qp(H, 1e8 * rng.normal(size=(8, 8)), tol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"H": np.ones((2, 3))}, "H must be square"),
        ({"H": np.array([[1.0, 0.5], [0.0, 1.0]])}, "H must be symmetric"),
        ({"H": np.array([[1.0, 2.0], [2.0, 1.0]])}, "not positive semi-definite"),
        ({"H": np.diag([1.0, -1.0])}, "not positive semi-definite"),
        ({"C": np.ones((4, 3))}, "does not hold rows for H"),
        ({"C": np.array([[np.nan, 0.0]])}, "C holds 1 NaN"),
        ({"lower": np.nan}, "lower holds NaN"),
        ({"lower": 1.0, "upper": 0.0}, "the box is empty"),
        ({"lower": np.inf}, "the box is empty"),
        ({"upper": np.ones(3)}, "upper of shape"),
        ({"backend": "simplex"}, "backend must be"),
        ({"tol": -1.0}, "tol must be"),
        ({"init": np.zeros(2)}, "init has shape"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"H": np.eye(2), "C": np.ones((1, 2))} | change
    with pytest.raises(ValueError, match=message):
        solve_box_qp(arguments.pop("H"), arguments.pop("C"), **arguments)


def test_importing_the_solvers_loads_neither_numba_nor_osqp():
    code = "import sys, liftopt.solvers; print({'numba', 'osqp', 'cvxpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
