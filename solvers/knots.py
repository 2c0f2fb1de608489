"""Knots of a hinge basis by variable projection: coefficients eliminated, damped Gauss-Newton in the knots.

    min over t:  F(t) = min_c ||sqrt(omega) (Y - B(t) c)||^2

over the distinct knots t that lie inside the data. With Q an orthonormal basis of B(t) and D the derivative
of ``B(t) c`` in t at the eliminated c, the residual r has the Jacobian ``-J``, ``J = D - Q Q'D`` (Kaufman's
form), and ``grad F = -2 D'r``. F is piecewise smooth: it has kinks where a knot meets a sample. Steps that do
not lower F are rejected and damped further.

References
----------
Golub, Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
separate", SIAM J. Numer. Anal. 1973; Kaufman, "A variable projection method for solving separable nonlinear
least squares problems", BIT 1975.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve, solve_triangular

from .hinge_basis import Hinge, HingeBasis
from .result import Measure, Result, iterate
from .validation import as_count, as_finite, as_scalar, as_weights

Array = npt.NDArray[Any]

_MAX_CONDITION = 1e7


class _State(NamedTuple):
    """Knots, the fit they give (triangular factor, Q, coefficients, residual) and the damping."""

    knots: Array
    Q: Array
    factor: Array
    coefficients: Array
    residual: Array
    damping: float
    rss: float


class _Problem(NamedTuple):
    """Data, and the hinges whose knots move between ``low`` and ``high``."""

    basis: HingeBasis
    X: Array
    Y: Array
    root: Array
    hinges: tuple[Hinge, ...]
    low: Array
    high: Array


def refine_knots(
    basis: HingeBasis,
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    margin: int = 10,
    max_iter: int = 20,
    tol: float = 1e-4,
) -> Result:
    """Move the knots of ``basis`` to lower the residual sum of squares (RSS); terms stay what they are.

    Parameters
    ----------
    basis : HingeBasis
        Linear terms keep their place; a hinge shared by several terms moves once.
    X : array-like of shape (n, d)
        Raw rows.
    Y : array-like of shape (n, R)
        Targets.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights.
    margin : int
        Rows that stay beyond a knot on either side.
    max_iter : int
        Largest number of trial steps, rejected ones included.
    tol : float
        Stop after five trial steps in a row that lowered the RSS by less than ``tol`` relatively.

    Returns
    -------
    Result
        ``x`` is the new basis, ``objective`` its RSS, never above that of the old one. ``info["factor"]`` and
        ``info["projections"]`` as for :func:`select_hinges`. The problem is not convex and the iteration a
        descent with a budget: a status of ``stalled`` or ``max_iter`` is the normal end.

    Raises
    ------
    ValueError
        If shapes do not fit, entries are not finite, a setting is out of range, or the terms are linearly
        dependent on the rows.

    Notes
    -----
    O(n M^2 + n R k (M + k)) operations a step for M terms and k knots that move.
    """
    X = as_finite("X", X, ndim=2).astype(np.float64, copy=False)
    Y = as_finite("Y", Y, ndim=2).astype(np.float64, copy=False)
    omega = as_weights("sample_weight", sample_weight, X.shape[0])
    root = np.ones(X.shape[0]) if omega is None else np.sqrt(omega)
    margin = min(as_count("margin", margin), (X.shape[0] - 1) // 2)
    shared = dict.fromkeys(hinge for term in basis.terms for hinge in term if hinge.sign)
    inside = {j: np.partition(X[:, j], (margin, -1 - margin)) for j in {h.variable for h in shared}}
    low = {j: column[margin] for j, column in inside.items()}
    high = {j: column[-1 - margin] for j, column in inside.items()}
    moving = tuple(h for h in shared if low[h.variable] < h.knot < high[h.variable])
    problem = _Problem(
        basis, X, Y * root[:, None], root, moving,
        np.array([low[h.variable] for h in moving]), np.array([high[h.variable] for h in moving]),
    )  # fmt: skip
    start = _fit(problem, np.array([hinge.knot for hinge in moving]), 1e-2)
    if start is None:
        raise ValueError("the terms of the basis are linearly dependent on these rows: prune them first")
    run = iterate(
        lambda state: _step(problem, state),
        start,
        measure=lambda state: Measure(state.rss, {"gradient": _gradient(problem, state)}),
        max_iter=as_count("max_iter", max_iter, low=0) if moving else 0,
        stall_after=5,
        stall_rtol=as_scalar("tol", tol, low=0.0),
    )
    final = run.state
    return run.result(
        _moved(problem, final.knots),
        info={"factor": final.factor, "projections": final.Q.T @ problem.Y},
    )


def _moved(problem: _Problem, knots: Array) -> HingeBasis:
    """The basis with the moving hinges at ``knots``."""
    new = {hinge: hinge._replace(knot=float(knot)) for hinge, knot in zip(problem.hinges, knots, strict=True)}
    terms = tuple(tuple(new.get(hinge, hinge) for hinge in term) for term in problem.basis.terms)
    return HingeBasis(terms, problem.basis.scale, problem.basis.product)


def _fit(problem: _Problem, knots: Array, damping: float) -> _State | None:
    """Least squares at given knots; None when the terms are dependent there."""
    design = _moved(problem, knots)(problem.X) * problem.root[:, None]
    Q, factor = np.linalg.qr(design)
    diagonal = np.abs(np.diag(factor))
    if diagonal.min() * _MAX_CONDITION <= diagonal.max():
        return None
    coefficients = solve_triangular(factor, Q.T @ problem.Y)
    residual = problem.Y - design @ coefficients
    return _State(knots, Q, factor, coefficients, residual, damping, float(np.sum(residual**2)))


def _derivative(problem: _Problem, state: _State) -> Array:
    """``d (B c) / d t`` (hinges, R, n): a hinge moves a term where it is positive and the active minimum."""
    basis = _moved(problem, state.knots)
    place = {hinge: index for index, hinge in enumerate(problem.hinges)}
    out = np.zeros((len(place), problem.Y.shape[1], problem.X.shape[0]))
    for old, term, c in zip(problem.basis.terms, basis.terms, state.coefficients, strict=True):
        values = np.array([basis.hinge(problem.X, hinge) for hinge in term])
        for index, hinge in enumerate(old):
            if hinge not in place:
                continue
            slope = (values[index] > 0) * (-hinge.sign / basis.scale[hinge.variable])
            if len(term) > 1:
                rest = np.delete(values, index, axis=0)
                slope = slope * (rest.prod(0) if basis.product else values[index] < rest.min(0))
            out[place[hinge]] += np.outer(c, slope * problem.root)
    return out


def _gradient(problem: _Problem, state: _State) -> float:
    """Largest derivative of F, in units of a variable and relative to F."""
    if not problem.hinges:
        return 0.0
    slope = 2 * np.abs(np.einsum("hrn,nr->h", _derivative(problem, state), state.residual))
    scale = problem.basis.scale[[hinge.variable for hinge in problem.hinges]]
    return float(np.max(slope * scale) / max(state.rss, np.finfo(np.float64).tiny))


def _step(problem: _Problem, state: _State) -> _State:
    """One damped Gauss-Newton trial; a rejected one only raises the damping."""
    D = _derivative(problem, state)
    J = D - (D @ state.Q) @ state.Q.T
    H = np.einsum("hrn,grn->hg", J, J, optimize=True)
    slope = np.einsum("hrn,nr->h", J, state.residual)
    scale = 1.0 / np.sqrt(np.diag(H) + 1e-12 * max(np.trace(H), np.finfo(np.float64).tiny))
    damped = scale[:, None] * H * scale + state.damping * np.eye(scale.size)
    step = scale * solve(damped, scale * slope, assume_a="pos")
    knots = np.clip(state.knots + step, problem.low, problem.high)
    trial = _fit(problem, knots, state.damping / 3)
    if trial is None or trial.rss >= state.rss:
        return state._replace(damping=4 * state.damping)
    return trial
