r"""Hinging hyperplanes: a linear function and K oblique hinges, by damped Gauss-Newton steps on one hinge.

    min over (A, D, C):  F = sum_i w_i |y_i - z_i A - sum_k (z_i d_k)+ c_k|^2 + ridge (|A|^2 + sum_k |c_k|^2)

with ``z = (1, x)``, intercepts free and the slopes of every ``d_k`` of unit length. Along the unit vector u
of ``c_k`` the block of hinge k is Breiman's: fit ``max(z g, z q)``, or ``min`` for the opposite u, to the
partial residual, ``q`` the linear part and ``g - q = |c_k| d_k``. For a given split of the rows by the hinge
that is least squares on either side, and going there is the full Gauss-Newton step, as Pucar and Sjoberg
observed; it is halved until F falls. A and C are refitted jointly after every block, and F never rises.

A new hinge starts from the best of the coordinate axes and of the principal Hessian directions of the
residual, knots at its quartiles, once with either sign: descent cannot turn a convex hinge into a concave
one.

References
----------
Breiman, "Hinging hyperplanes for regression, classification, and function approximation", IEEE Trans. Inf.
Theory 1993; Pucar, Sjoberg, "On the hinge-finding algorithm for hinging hyperplanes", IEEE Trans. Inf. Theory
1998; Li, "On principal Hessian directions for data visualization and dimension reduction", JASA 1992.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .linear_system import factor_checked
from .result import Callback, Measure, OnLimit, Result, Status, conclude, iterate
from .validation import as_count, as_finite, as_scalar, as_weights

Array = npt.NDArray[Any]

_QUARTILES = (0.25, 0.5, 0.75)
_CURVED_DIRECTIONS = 10  # principal Hessian directions tried
_FIRST_STEPS = 10  # on a new hinge, before the others move
_SHORTEST = 1e-4


class HingingHyperplanes(NamedTuple):
    """``f(x) = intercept + x @ linear + max(x @ slopes + offsets, 0) @ outer``.

    Attributes
    ----------
    intercept : ndarray of shape (outputs,)
    linear : ndarray of shape (features, outputs)
    slopes : ndarray of shape (features, hinges)
        Columns of unit length.
    offsets : ndarray of shape (hinges,)
    outer : ndarray of shape (hinges, outputs)
    """

    intercept: Array
    linear: Array
    slopes: Array
    offsets: Array
    outer: Array

    def hinges(self, X: Array) -> Array:
        """Values (n, hinges) of the hinges."""
        return np.maximum(X @ self.slopes + self.offsets, 0.0)

    def __call__(self, X: Array) -> Array:
        """Values (n, outputs)."""
        return self.intercept + X @ self.linear + self.hinges(X) @ self.outer


class _Problem(NamedTuple):
    """Rows ``(1, x)`` and targets times the root of their weight, the weights, and what stays fixed."""

    Z: Array
    Y: Array
    mass: Array
    gram: Array
    ridge: float
    side: float
    scale: float


class _Point(NamedTuple):
    """Directions (d + 1, K), hinge values (n, K), outer coefficients (d + 1 + K, R), residual, objective."""

    directions: Array
    hinges: Array
    outer: Array
    residual: Array
    objective: float


def fit_hinging_hyperplanes(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    n_hinges: int,
    ridge: float = 0.0,
    sample_weight: npt.ArrayLike | None = None,
    max_iter: int = 100,
    tol: float = 1e-4,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """Fit a linear function and at most ``n_hinges`` oblique hinges.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Inputs of like scale: standardise them first.
    Y : array-like of shape (n, R)
        Targets of like scale. All outputs share the hinges.
    n_hinges : int
        Largest number of hinges. A hinge keeps rows of weight ``2 (d + 1)`` on either side: with fewer than
        twice that weight the fit is linear.
    ridge : float
        Weight of the squared slopes.
    sample_weight : array-like of shape (n,), optional
        Non-negative; an integer counts repetitions.
    max_iter : int
        Largest number of sweeps; each adds a hinge, where there is room, and moves all.
    tol : float
        Stop when a sweep lowers the objective by less than ``tol`` relatively.
    callback : callable, optional
        Receives each history record; a true return value stops the solver.
    on_limit : {"warn", "raise", "ignore"}
        What to do when ``max_iter`` ends the run.

    Returns
    -------
    Result
        ``x``: :class:`HingingHyperplanes`; ``status`` ``local_optimum`` at best;
        ``residuals["stationarity"]``: largest entry of the gradient in the hinges at ``x``, over
        ``2 sqrt(sum(w)) |sqrt(w) (Y - mean)|``.

    Raises
    ------
    ValueError
        On shapes that do not fit or values that are not finite.

    Notes
    -----
    A sweep over K hinges costs O(K (n d^2 + n K d + d^3)) and O(n d^2) for a new one; memory O(n (d + K)).
    """
    n_hinges = as_count("n_hinges", n_hinges, low=0)
    tol = as_scalar("tol", tol, low=0.0)
    problem = _problem(X, Y, ridge, sample_weight)
    run = iterate(
        lambda point: _sweep(problem, point, n_hinges, tol),
        _refit(problem, np.zeros((problem.Z.shape[1], 0))),
        measure=lambda point: Measure(
            point.objective,
            {"stationarity": _stationarity(problem, point)},
            {"hinges": point.hinges.shape[1]},
        ),
        max_iter=as_count("max_iter", max_iter),
        tol=-1.0,
        stall_after=1,
        stall_rtol=tol,
        callback=callback,
    )
    at_rest = run.status is Status.STALLED
    status = Status.LOCAL_OPTIMUM if at_rest else run.status
    message = f"a sweep lowered the objective by less than {tol:g}" if at_rest else run.message
    return conclude(run.result(_model(run.state), status=status, message=message), on_limit)


def _problem(
    X: npt.ArrayLike, Y: npt.ArrayLike, ridge: float, sample_weight: npt.ArrayLike | None
) -> _Problem:
    X, Y = as_finite("X", X, ndim=2), as_finite("Y", Y, ndim=2)
    if X.shape[0] != Y.shape[0] or not X.shape[0]:
        raise ValueError(
            f"X has {X.shape[0]} rows and Y has {Y.shape[0]}: they need the same number, not zero"
        )
    mass = as_weights("sample_weight", sample_weight, X.shape[0])
    mass = np.ones(X.shape[0]) if mass is None else mass
    used = mass > 0.0
    mass = mass[used]
    root = np.sqrt(mass)[:, None]
    Z = root * np.column_stack([np.ones(mass.size), X[used]])
    Y = root * Y[used]
    centred = Y - root * ((root.T @ Y) / mass.sum())
    scale = 2.0 * np.sqrt(mass.sum()) * float(np.linalg.norm(centred)) or 1.0
    ridge = as_scalar("ridge", ridge, low=0.0)
    return _Problem(Z, Y, mass, Z.T @ Z, ridge, 2.0 * Z.shape[1], scale)


def _sweep(problem: _Problem, point: _Point, n_hinges: int, tol: float) -> _Point:
    """Add a hinge if there is room and it pays, then move every hinge once."""
    if point.hinges.shape[1] < n_hinges:
        trials = [_settle(problem, point, start) for start in _starts(problem, point)]
        best = min(trials, key=lambda trial: trial.objective, default=point)
        if best.objective < (1.0 - tol) * point.objective:
            point = best
    for k in range(point.hinges.shape[1]):
        point = _improve(problem, point, k)
    return point


def _settle(problem: _Problem, point: _Point, start: Array) -> _Point:
    """``point`` with a hinge from ``start``, moved until it rests."""
    point = _refit(problem, np.column_stack([point.directions, start]))
    for _ in range(_FIRST_STEPS):
        moved = _improve(problem, point, point.hinges.shape[1] - 1)
        if moved is point:
            break
        point = moved
    return point


def _refit(problem: _Problem, directions: Array) -> _Point:
    """The linear part and the coefficients of the hinges by ridge regression."""
    p = problem.Z.shape[1]
    hinges = np.maximum(problem.Z @ directions, 0.0)
    gram = np.empty((p + hinges.shape[1],) * 2)
    gram[:p, :p] = problem.gram
    gram[:p, p:] = problem.Z.T @ hinges
    gram[p:, :p] = gram[:p, p:].T
    gram[p:, p:] = hinges.T @ hinges
    penalty = np.full(gram.shape[0], problem.ridge)
    penalty[0] = 0.0
    gram.flat[:: gram.shape[0] + 1] += penalty
    moments = np.vstack([problem.Z.T @ problem.Y, hinges.T @ problem.Y])
    outer = factor_checked(gram, 0.0).solve(moments)
    residual = problem.Y - problem.Z @ outer[:p] - hinges @ outer[p:]
    objective = float(np.sum(residual**2) + penalty @ np.sum(outer**2, axis=1))
    return _Point(directions, hinges, outer, residual, objective)


def _improve(problem: _Problem, point: _Point, k: int) -> _Point:
    """A damped Gauss-Newton step on hinge ``k`` and the linear part, then a refit; else ``point``."""
    p = problem.Z.shape[1]
    c = point.outer[p + k]
    length = float(np.linalg.norm(c))
    if length == 0.0:
        return point
    u = c / length
    q, difference = point.outer[:p] @ u, length * point.directions[:, k]
    target = point.residual @ u + problem.Z @ q + length * point.hinges[:, k]
    moved = _damped_step(problem, target, q, difference)
    if moved is None:
        return point
    directions = point.directions.copy()
    directions[:, k] = moved / np.linalg.norm(moved[1:])
    refitted = _refit(problem, directions)
    return refitted if refitted.objective < point.objective else point


def _damped_step(problem: _Problem, target: Array, q: Array, difference: Array) -> Array | None:
    """New ``g - q`` with a lower objective of the one-hinge problem, or None."""
    Z = problem.Z
    linear, inner = Z @ q, Z @ difference
    step = _gauss_newton(problem, target, inner > 0.0) - np.concatenate([q, difference])
    step_q, step_d = np.split(step, 2)
    step_linear, step_inner = Z @ step_q, Z @ step_d

    def objective(mu: float) -> float:
        misfit = target - (linear + mu * step_linear) - np.maximum(inner + mu * step_inner, 0.0)
        slopes = np.concatenate([(q + mu * step_q)[1:], (difference + mu * step_d)[1:]])
        return float(misfit @ misfit + problem.ridge * (slopes @ slopes))

    before, mu = objective(0.0), 1.0
    while mu >= _SHORTEST:
        if _is_split(problem, inner + mu * step_inner) and objective(mu) < before:
            moved: Array = difference + mu * step_d
            return moved if moved[1:].any() else None
        mu /= 2.0
    return None


def _gauss_newton(problem: _Problem, target: Array, active: Array) -> Array:
    """``(q, g - q)`` of the one-hinge problem for the rows ``active`` on the side of g."""
    Z, p = problem.Z, problem.Z.shape[1]
    side = Z[active]
    gram = np.empty((2 * p, 2 * p))
    gram[:p, :p] = problem.gram
    gram[:p, p:] = gram[p:, :p] = gram[p:, p:] = side.T @ side
    penalty = np.full(2 * p, problem.ridge)
    penalty[[0, p]] = 0.0
    gram.flat[:: 2 * p + 1] += penalty
    return factor_checked(gram, 0.0).solve(np.concatenate([Z.T @ target, side.T @ target[active]]))


def _is_split(problem: _Problem, inner: Array) -> bool:
    """Whether either side of the hinge holds enough rows."""
    above = float(problem.mass[inner > 0.0].sum())
    return min(above, float(problem.mass.sum()) - above) >= problem.side


def _starts(problem: _Problem, point: _Point) -> list[Array]:
    """The direction ``(-t, v)`` with the largest gain among the convex hinges, and among the concave."""
    if problem.mass.sum() < 2.0 * problem.side:
        return []
    outputs = np.linalg.eigh(point.residual.T @ point.residual)[1]
    error = point.residual @ outputs[:, -1]
    slopes = _candidate_slopes(problem, error)
    X = problem.Z[:, 1:] / problem.Z[:, :1]
    projected = X @ slopes
    factor = factor_checked(problem.gram, problem.ridge)
    best: dict[bool, tuple[float, Array]] = {}
    mass = np.broadcast_to(problem.mass[:, None], projected.shape)
    for knots in np.quantile(projected, _QUARTILES, axis=0, method="inverted_cdf", weights=mass):
        above = projected > knots
        weight = problem.mass @ above
        admitted = np.minimum(weight, problem.mass.sum() - weight) >= problem.side
        hinges = np.maximum(projected - knots, 0.0) * problem.Z[:, :1]
        squares = np.sum(hinges**2, axis=0)
        hinges -= problem.Z @ factor.solve(problem.Z.T @ hinges)
        left = np.sum(hinges**2, axis=0)
        admitted &= left > 1e-8 * squares
        products = hinges.T @ error
        gains = np.where(admitted, products**2 / np.where(admitted, left, 1.0), 0.0)
        for convex in (True, False):
            gain = np.where((products > 0.0) == convex, gains, 0.0)
            j = int(np.argmax(gain))
            if gain[j] > best.get(convex, (0.0, knots))[0]:
                best[convex] = (float(gain[j]), np.append(-knots[j], slopes[:, j]))
    return [start for _, start in best.values()]


def _candidate_slopes(problem: _Problem, error: Array) -> Array:
    """Coordinate axes and principal Hessian directions: eigenvectors of ``sum_i w_i e_i x_i x_i'``."""
    X = problem.Z[:, 1:]
    curvature = X.T @ (X * (error / problem.Z[:, 0])[:, None])
    values, vectors = np.linalg.eigh(curvature)
    strongest = np.argsort(-np.abs(values))[:_CURVED_DIRECTIONS]
    return np.column_stack([np.eye(X.shape[1]), vectors[:, strongest]])


def _stationarity(problem: _Problem, point: _Point) -> float:
    """Largest entry of the gradient in ``|c_k| d_k``, over the problem's scale."""
    p = problem.Z.shape[1]
    lengths = np.linalg.norm(point.outer[p:], axis=1)
    u = point.outer[p:] / np.where(lengths > 0.0, lengths, 1.0)[:, None]
    gradient = -2.0 * problem.Z.T @ ((point.hinges > 0.0) * (point.residual @ u.T))
    gradient[1:] += 2.0 * problem.ridge * lengths * point.directions[1:]
    return float(np.abs(gradient).max(initial=0.0) / problem.scale)


def _model(point: _Point) -> HingingHyperplanes:
    p = point.directions.shape[0]
    outer, directions = point.outer, point.directions
    return HingingHyperplanes(outer[0], outer[1:p], directions[1:], directions[0], outer[p:])
