r"""Box-constrained quadratic programs that share one Hessian, one problem a row.

For every row ``c`` of ``C``,

    min over x:  1/2 x'Hx - c'x    subject to  lower <= x <= upper,

``H`` symmetric positive semi-definite. Optimality: the natural residual ``max |x - clip(x - (Hx - c))|`` is
zero. Non-negative least squares ``min |Ax - b|^2, x >= 0`` is the case ``H = A'A``, ``c = A'b``.

The batched backend runs a splitting method on all rows at once (:mod:`.box_qp_batched`); rows that it has
not solved within ``max_iter`` iterations are finished one by one by an active-set method
(:mod:`.box_qp_exact`), which also recognises problems that are unbounded below.

References
----------
Gu, Askari, El Ghaoui, "Fenchel Lifted Networks", AISTATS 2020, arXiv 1811.08039 (the blocks).
Stellato, Banjac, Goulart, Bemporad, Boyd, "OSQP: an operator splitting solver for quadratic programs",
Math. Prog. Comp. 12:637-672, 2020.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from .result import OnLimit, Result, Status, conclude
from .validation import as_count, as_finite, as_scalar, as_square

if TYPE_CHECKING:
    from .box_qp_batched import Batch

Array = npt.NDArray[Any]
Backend = Literal["batched", "osqp", "cvxpy"]

# share of tol asked for in scaled coordinates: leaves room for the rounding of residuals
_SHARE = {np.dtype(np.float32): 0.8, np.dtype(np.float64): 0.98}


class BoxProblems(NamedTuple):
    """Checked input: ``H`` (d, d), ``C`` (n, d), bounds (1, d) shared or (n, d), of one float dtype."""

    H: Array
    C: Array
    lower: Array
    upper: Array

    def clip(self, X: Array) -> Array:
        """Projection onto the boxes."""
        return np.clip(X, self.lower, self.upper)

    def bounds(self, row: int) -> tuple[Array, Array]:
        """Bounds (d,) of one row."""
        lower = self.lower[row if self.lower.shape[0] > 1 else 0]
        upper = self.upper[row if self.upper.shape[0] > 1 else 0]
        return lower, upper


def natural_residual(
    X: Array, gradient: Array, lower: npt.ArrayLike = 0.0, upper: npt.ArrayLike = np.inf
) -> Array:
    """``max |x - clip(x - gradient)|`` of each row: zero exactly at the solution of a convex box problem.

    Parameters
    ----------
    X, gradient : ndarray of shape (n, d)
        Points, one a row, and the gradients of the objective there.
    lower, upper : array-like broadcastable to (n, d)
        Bounds.

    Returns
    -------
    ndarray of shape (n,)
        In the units of ``X``.
    """
    residual: Array = np.abs(X - np.clip(X - gradient, lower, upper)).max(axis=1, initial=0.0)
    return residual


def solve_box_qp(
    H: npt.ArrayLike,
    C: npt.ArrayLike,
    lower: npt.ArrayLike = 0.0,
    upper: npt.ArrayLike = np.inf,
    *,
    tol: float = 1e-6,
    backend: Backend = "batched",
    init: npt.ArrayLike | None = None,
    max_iter: int = 2000,
    time_limit: float = np.inf,
    on_limit: OnLimit = "warn",
) -> Result:
    """Solve one box QP for every row of ``C``.

    Parameters
    ----------
    H : array-like of shape (d, d)
        Symmetric positive semi-definite, shared by all problems.
    C : array-like of shape (n, d)
        Linear terms, one problem a row. If ``H`` and ``C`` are float32 all arithmetic is, and ``tol`` below
        about 1e-5 times the scale of the data cannot be met; else float64.
    lower, upper : array-like broadcastable to (n, d)
        Bounds; infinite entries are allowed. Scalars and rows of shape (d,) cost nothing.
    tol : float
        Bound on the natural residual ``max |x - clip(x - (Hx - c))|`` of every row (absolute).
    backend : {"batched", "osqp", "cvxpy"}
        ``"osqp"`` and ``"cvxpy"`` solve row after row and serve as references.
    init : array-like of shape (n, d), optional
        Warm start (batched and osqp).
    max_iter : int
        Splitting iterations a row before the batched backend turns to its active-set method; the reference
        backends, whose iterations are cheap, may use 50 times as many.
    time_limit : float
        Wall-clock seconds; rows unsolved by then are returned as they stand.
    on_limit : {"warn", "raise", "ignore"}
        What to do when rows are left above ``tol``.

    Returns
    -------
    Result
        ``x``: (n, d), inside the bounds. ``objective``: sum over rows. ``residuals["stationarity"]``: the
        largest natural residual, recomputed at ``x``. ``info``: ``row_residual``, ``row_objective``,
        ``row_iterations`` (n,), ``rho`` (batched), ``unsolved``: indices of the rows above ``tol``.

    Raises
    ------
    ValueError
        If shapes do not fit, entries are not finite, ``lower > upper`` somewhere, or ``H`` is not positive
        semi-definite; the message says which and what to do.
    SolverError
        If a problem is unbounded below (singular ``H`` and a direction without bound that lowers the
        objective for ever); the message names the rows.

    Notes
    -----
    Batched: one eigendecomposition O(d^3), then 2 n d^2 flops an iteration, some 20 to 60 iterations for
    condition numbers up to 1e4 (diagonal scaling is undone first); memory O(n d).
    """
    start = time.perf_counter()
    problems = _checked(H, C, lower, upper)
    tol, max_iter = as_scalar("tol", tol, low=0.0), as_count("max_iter", max_iter)
    first = None if init is None else _start(init, problems)
    deadline = start + time_limit
    if backend == "batched":
        solution = _solve_batched(problems, first, tol, max_iter, deadline)
    elif backend in ("osqp", "cvxpy"):
        from . import box_qp_reference

        solution = box_qp_reference.SOLVERS[backend](problems, first, tol, max_iter, deadline)
    else:
        raise ValueError(f"backend must be 'batched', 'osqp' or 'cvxpy', got {backend!r}")
    return conclude(_result(problems, solution, tol, start, deadline), on_limit)


class Solution(NamedTuple):
    """Points (n, d), iterations of each row, rows found unbounded below, and further facts."""

    X: Array
    n_iter: Array
    unbounded: list[int]
    info: dict[str, Any]


def _solve_batched(
    problems: BoxProblems, init: Array | None, tol: float, max_iter: int, deadline: float
) -> Solution:
    """Splitting on all rows in coordinates with a unit diagonal; the active set finishes the rest."""
    from .box_qp_batched import Batch, solve_batched
    from .box_qp_exact import solve_active_set

    if not problems.C.shape[0]:
        return Solution(np.empty_like(problems.C), np.zeros(0, dtype=np.intp), [], {})
    diagonal = np.diagonal(problems.H)
    scale = (1 / np.sqrt(np.where(diagonal > 0, diagonal, 1))).astype(problems.H.dtype)
    scaled = problems.H * scale[:, None] * scale
    spectrum = _spectrum(scaled)
    batch = Batch(scaled, problems.C * scale, problems.lower / scale, problems.upper / scale, scale)
    init = None if init is None else init / scale
    aim = _SHARE[scaled.dtype] * tol
    outcome = solve_batched(batch, spectrum, init, tol=aim, max_iter=max_iter, deadline=deadline)
    X = _unscaled(outcome.z, batch, problems)
    unbounded = []
    for row in np.flatnonzero(outcome.residual > tol).tolist():
        if time.perf_counter() > deadline:
            break
        box = problems.bounds(row)
        exact = solve_active_set(problems.H, problems.C[row], *box, X[row], tol=tol)
        if exact.unbounded:
            unbounded.append(row)
        elif exact.residual < outcome.residual[row]:
            X[row] = exact.x
    return Solution(X, outcome.n_iter, unbounded, {"rho": outcome.rho})


def _unscaled(z: Array, batch: Batch, problems: BoxProblems) -> Array:
    """Original coordinates, in place, with exact bounds where ``z`` is at its bounds."""
    low, high = z <= batch.lower, z >= batch.upper
    z *= batch.scale
    np.clip(z, problems.lower, problems.upper, out=z)
    np.copyto(z, problems.lower, where=low)
    np.copyto(z, problems.upper, where=high)
    return z


def _result(problems: BoxProblems, solution: Solution, tol: float, start: float, deadline: float) -> Result:
    """Judge the points by residuals computed here, in blocks of rows."""
    X, n = solution.X, solution.X.shape[0]
    residual, objective = np.zeros((2, n))
    for block in (slice(k, k + 2048) for k in range(0, n, 2048)):
        lower, upper = (b[block] if b.shape[0] > 1 else b for b in (problems.lower, problems.upper))
        gradient = X[block] @ problems.H - problems.C[block]
        residual[block] = natural_residual(X[block], gradient, lower, upper)
        half = 0.5 * (gradient - problems.C[block])
        objective[block] = np.einsum("ij,ij->i", X[block], half, dtype=np.float64)
    unsolved = np.flatnonzero(~(residual <= tol))
    status, message = Status.OPTIMAL, f"{n} problems solved"
    if solution.unbounded:
        status = Status.UNBOUNDED
        message = (
            f"{len(solution.unbounded)} of {n} problems are unbounded below (first in row "
            f"{solution.unbounded[0]}): H is singular there; add a ridge to H or finite bounds"
        )
    elif unsolved.size:
        status = Status.TIME_LIMIT if time.perf_counter() > deadline else Status.STALLED
        worst = f"largest residual {residual.max():.2e}"
        message = f"{unsolved.size} of {n} problems above tol, {worst}; {status.advice}"
    return Result(
        X,
        float(objective.sum()),
        status,
        n_iter=int(solution.n_iter.max(initial=0)),
        time=time.perf_counter() - start,
        residuals={"stationarity": float(residual.max(initial=0.0))},
        message=message,
        info={
            "row_residual": residual,
            "row_objective": objective,
            "row_iterations": solution.n_iter,
            "unsolved": unsolved,
            **solution.info,
        },
    )


def _checked(H: npt.ArrayLike, C: npt.ArrayLike, lower: npt.ArrayLike, upper: npt.ArrayLike) -> BoxProblems:
    H, C = as_square("H", H), as_finite("C", C, ndim=2)
    dtype = np.dtype(np.float32 if np.result_type(H, C).itemsize <= 4 else np.float64)
    if C.shape[1] != H.shape[0] or not H.size:
        raise ValueError(f"C of shape {C.shape} does not hold rows for H of shape {H.shape}")
    low = _bound("lower", lower, C.shape, dtype)
    high = _bound("upper", upper, C.shape, dtype)
    empty = (low > high) | (low == np.inf) | (high == -np.inf)
    if empty.any():
        row, column = np.argwhere(empty)[0]
        raise ValueError(
            f"the box is empty: lower exceeds upper in {int(empty.sum())} entries, "
            f"first in row {row}, coordinate {column}"
        )
    H = (H + H.T) / 2
    return BoxProblems(H.astype(dtype, copy=False), np.ascontiguousarray(C, dtype=dtype), low, high)


def _bound(name: str, bound: npt.ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The bound as (1, d), or (n, d) if it varies over rows."""
    array = np.asarray(bound, dtype=dtype)
    if np.isnan(array).any():
        raise ValueError(f"{name} holds NaN entries: use -inf or inf where there is no bound")
    rows = shape[0] if array.ndim == 2 and array.shape[0] != 1 else 1
    try:
        return np.ascontiguousarray(np.broadcast_to(array, (rows, shape[1])))
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape} does not broadcast to {shape}") from None


def _start(init: npt.ArrayLike, problems: BoxProblems) -> Array:
    array = as_finite("init", init).astype(problems.C.dtype, copy=False)
    if array.shape != problems.C.shape:
        raise ValueError(f"init has shape {array.shape}, C has {problems.C.shape}")
    return array


def _spectrum(H: Array) -> tuple[Array, Array]:
    """Eigendecomposition in float64; negative curvature beyond rounding is refused."""
    values, vectors = eigh(H.astype(np.float64))
    slack = 1e2 * float(np.finfo(H.dtype).eps) * values.size * max(values[-1], 0.0)
    if values[0] < -slack:
        raise ValueError(
            f"H is not positive semi-definite (its diagonally scaled eigenvalues reach {values[0]:.2e}): "
            "add a ridge to its diagonal"
        )
    return np.maximum(values, 0.0), vectors
