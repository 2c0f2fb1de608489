"""Reference backends of :func:`~liftopt.solvers.solve_box_qp`: OSQP and cvxpy, row after row."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

if TYPE_CHECKING:
    from .box_qp import BoxProblems, Solution

Array = npt.NDArray[Any]

_ACCURACY = 1e-2  # of tol, asked of solvers that measure their own scaled residuals


class Solver(Protocol):
    """Signature of a backend."""

    def __call__(
        self, problems: BoxProblems, init: Array | None, tol: float, max_iter: int, deadline: float
    ) -> Solution:
        """Solve every row, or those reached before ``deadline``."""
        ...


def solve_osqp(
    problems: BoxProblems, init: Array | None, tol: float, max_iter: int, deadline: float
) -> Solution:
    """OSQP: set up once, then ``update`` of the linear term for each row; active sets are polished."""
    import osqp

    from .box_qp import Solution

    H, C = problems.H.astype(np.float64), problems.C.astype(np.float64)
    n, d = C.shape
    X = problems.clip(np.zeros_like(C) if init is None else init.astype(np.float64))
    n_iter, unbounded = np.zeros(n, dtype=np.intp), []
    model = osqp.OSQP(algebra="builtin")
    model.setup(
        P=sparse.triu(sparse.csc_matrix(H), format="csc"),
        q=np.zeros(d),
        A=sparse.eye(d, format="csc"),
        l=_finite(problems.bounds(0)[0]),
        u=_finite(problems.bounds(0)[1]),
        **{"eps_abs": _ACCURACY * tol, "eps_rel": 0.0, "max_iter": 50 * max_iter, "polishing": True},
        **{"verbose": False, "eps_dual_inf": 1e-9},
    )
    for row in range(n):
        if time.perf_counter() > deadline:
            break
        lower, upper = problems.bounds(row)
        model.update(q=-C[row], l=_finite(lower), u=_finite(upper))
        model.warm_start(x=X[row], y=np.zeros(d) if init is None else C[row] - H @ X[row])
        answer = model.solve(raise_error=False)
        n_iter[row] = answer.info.iter
        if "dual infeasible" in answer.info.status:
            unbounded.append(row)
        elif np.isfinite(answer.x).all():
            X[row] = np.clip(answer.x, lower, upper)
    return Solution(X.astype(problems.C.dtype), n_iter, unbounded, {})


def solve_cvxpy(
    problems: BoxProblems, init: Array | None, tol: float, max_iter: int, deadline: float
) -> Solution:
    """One parametrised cvxpy problem, solved again for each row by OSQP. ``init`` is not used."""
    import cvxpy as cp

    from .box_qp import Solution

    n, d = problems.C.shape
    x, c = cp.Variable(d), cp.Parameter(d)
    low, high = cp.Parameter(d), cp.Parameter(d)
    bounds = [x >= low, x <= high]
    objective = 0.5 * cp.quad_form(x, cp.psd_wrap(problems.H.astype(np.float64))) - c @ x
    program = cp.Problem(cp.Minimize(objective), bounds)
    X = problems.clip(np.zeros_like(problems.C))
    n_iter, unbounded = np.zeros(n, dtype=np.intp), []
    for row in range(n):
        if time.perf_counter() > deadline:
            break
        lower, upper = problems.bounds(row)
        c.value, low.value, high.value = problems.C[row], _finite(lower), _finite(upper)
        with warnings.catch_warnings():  # an iteration limit shows in the residual of the row
            warnings.simplefilter("ignore", UserWarning)
            program.solve(solver=cp.OSQP, eps_abs=_ACCURACY * tol, eps_rel=0.0, max_iter=50 * max_iter)
        n_iter[row] = program.solver_stats.num_iters or 0
        if program.status == cp.UNBOUNDED:
            unbounded.append(row)
        elif x.value is not None:
            X[row] = np.clip(x.value, lower, upper)
    return Solution(X, n_iter, unbounded, {})


def _finite(bound: Array) -> Array:
    """OSQP writes infinity as 1e30."""
    return np.clip(bound.astype(np.float64), -1e30, 1e30)


SOLVERS: Mapping[str, Solver] = {"osqp": solve_osqp, "cvxpy": solve_cvxpy}
