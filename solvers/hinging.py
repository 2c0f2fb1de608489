r"""Hinging hyperplanes: a linear function and K oblique hinges, by Gauss-Newton steps on all of them at once.

    min over (A, D, C):  F = sum_i w_i |y_i - z_i A - sum_k (z_i d_k)+ c_k|^2 + ridge (|A|^2 + sum_k |c_k|^2)

with ``z = (1, x)``, intercepts free and the slopes of every ``d_k`` of unit length. With ``c_k = |c_k| u_k``
the unknowns of hinge k are ``v_k = |c_k| d_k``; on the rows where it is active its derivative is ``z u_k'``.
The linear part is eliminated exactly, so that the Gauss-Newton matrix is

    H_kl = <u_k, u_l> M_k' P M_l + ridge,    M_k the active rows of Z,    P the projection off Z.

A sweep is a Levenberg-Marquardt step on all ``v_k`` at once, by a few conjugate gradient iterations that only
multiply with Z, preconditioned by the diagonal blocks; then A and C are refitted jointly by ridge regression.
The step counts only if F falls. For one hinge, undamped, it is Breiman's: least squares on either side of the
split, as Pucar and Sjoberg observed.

Hinges join in pairs, one convex and one concave because descent cannot turn one into the other, along the
best of the coordinate axes and of the principal Hessian directions of the residual.

References
----------
Breiman, "Hinging hyperplanes for regression, classification, and function approximation", IEEE Trans. Inf.
Theory 1993; Pucar, Sjoberg, "On the hinge-finding algorithm for hinging hyperplanes", IEEE Trans. Inf. Theory
1998; Li, "On principal Hessian directions for data visualization and dimension reduction", JASA 1992.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .linear_system import factor_checked
from .result import Callback, Measure, OnLimit, Result, Status, conclude, iterate
from .validation import as_count, as_finite, as_scalar, as_weights

Array = npt.NDArray[Any]

_KNOTS = (-2 / 3, 0.0, 2 / 3)  # of new hinges, in standard deviations from the mean
_CURVED_DIRECTIONS = 10  # principal Hessian directions tried
_CG_ITERATIONS = 8  # the direction need not be exact
_TRIALS = 4  # dampings tried in a sweep
_PATIENCE = 3  # sweeps in a row without progress


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
        """Values (n, hinges) of the hinges on rows ``X`` (n, features)."""
        return np.maximum(X @ self.slopes + self.offsets, 0.0)

    def __call__(self, X: Array) -> Array:
        """Values (n, outputs)."""
        return self.intercept + X @ self.linear + self.hinges(X) @ self.outer


class _Problem(NamedTuple):
    """Rows ``(1, x)`` and targets times the root of their weight, the weights, and what stays fixed.

    ``penalty`` (d + 1,) is the ridge of a direction, whose offset is free; ``span @ span.T`` is the hat
    matrix of the linear part.
    """

    Z: Array
    Y: Array
    mass: Array
    gram: Array
    span: Array
    penalty: Array
    side: float
    scale: float


class _Point(NamedTuple):
    """Directions (d + 1, K), hinge values (n, K), outer coefficients (d + 1 + K, R), residual, objective."""

    directions: Array
    hinges: Array
    outer: Array
    residual: Array
    objective: float
    damping: float


def fit_hinging_hyperplanes(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    n_hinges: int,
    ridge: float = 0.0,
    sample_weight: npt.ArrayLike | None = None,
    max_iter: int = 100,
    tol: float = 1e-3,
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
        Largest number of hinges. A pair joins only if generalised cross-validation falls with it. A hinge
        keeps rows of weight ``2 (d + 1)`` on either side: with fewer than
        twice that weight the fit is linear.
    ridge : float
        Weight of the squared slopes.
    sample_weight : array-like of shape (n,), optional
        Non-negative; an integer counts repetitions.
    max_iter : int
        Largest number of sweeps; each adds two hinges, where there is room, and moves all.
    tol : float
        Stop when three sweeps in a row lower the objective by less than ``tol`` relatively.
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
    A sweep over K hinges costs O(n K d (d + 32) + K d^3), and O(n d^2) for new ones; memory is
    O(n (d + K) + K d^2).
    """
    n_hinges = as_count("n_hinges", n_hinges, low=0)
    tol = as_scalar("tol", tol, low=0.0)
    problem = _problem(X, Y, ridge, sample_weight)
    run = iterate(
        lambda point: _sweep(problem, point, n_hinges),
        _refit(problem, np.zeros((problem.Z.shape[1], 0)), 1e-2),
        measure=lambda point: Measure(
            point.objective,
            {"stationarity": _stationarity(problem, point)},
            {"hinges": point.hinges.shape[1]},
        ),
        max_iter=as_count("max_iter", max_iter),
        tol=-1.0,
        stall_after=_PATIENCE,
        stall_rtol=tol,
        callback=callback,
    )
    at_rest = run.status is Status.STALLED
    status = Status.LOCAL_OPTIMUM if at_rest else run.status
    message = (
        f"{_PATIENCE} sweeps in a row lowered the objective by less than {tol:g}" if at_rest else run.message
    )
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
    gram = Z.T @ Z
    penalty = np.append(0.0, np.full(X.shape[1], ridge))
    span = factor_checked(gram + np.diag(penalty), 0.0).whiten(Z.T).T
    return _Problem(Z, Y, mass, gram, span, penalty, 2.0 * Z.shape[1], scale)


def _sweep(problem: _Problem, point: _Point, n_hinges: int) -> _Point:
    """Add a convex and a concave hinge if there is room and they pay, else move those there are."""
    room = n_hinges - point.hinges.shape[1]
    starts = _starts(problem, point)[:room] if room else []
    if starts:
        directions = np.column_stack([point.directions, *starts])
        grown = _move(problem, _refit(problem, directions, point.damping))
        if _gcv(problem, grown) < _gcv(problem, point):
            return grown
    return _move(problem, point) if point.hinges.shape[1] else point


def _gcv(problem: _Problem, point: _Point) -> float:
    """Generalised cross-validation of F: every parameter of a hinge counts, spread over the outputs."""
    (p, K), R = point.directions.shape, point.residual.shape[1]
    n = float(problem.mass.sum())
    left = 1.0 - (p + K * (p + R - 1) / R) / n
    return point.objective / left**2 if left > 0.0 else np.inf


def _refit(problem: _Problem, directions: Array, damping: float) -> _Point:
    """The linear part and the coefficients of the hinges by ridge regression."""
    p = problem.Z.shape[1]
    hinges = np.maximum(problem.Z @ directions, 0.0)
    gram = np.empty((p + hinges.shape[1],) * 2)
    gram[:p, :p] = problem.gram
    gram[:p, p:] = problem.Z.T @ hinges
    gram[p:, :p] = gram[:p, p:].T
    gram[p:, p:] = hinges.T @ hinges
    penalty = np.append(problem.penalty, np.full(hinges.shape[1], problem.penalty[-1]))
    gram.flat[:: gram.shape[0] + 1] += penalty
    moments = np.vstack([problem.Z.T @ problem.Y, hinges.T @ problem.Y])
    outer = factor_checked(gram, 0.0).solve(moments)
    residual = problem.Y - problem.Z @ outer[:p] - hinges @ outer[p:]
    objective = float(np.sum(residual**2) + penalty @ np.sum(outer**2, axis=1))
    return _Point(directions, hinges, outer, residual, objective, damping)


def _move(problem: _Problem, point: _Point) -> _Point:
    """A Levenberg-Marquardt step on all hinges and a refit; else ``point``, more strongly damped."""
    system = _gauss_newton(problem, point)
    scaled = _scaled_directions(problem, point)
    damping = point.damping
    step = _damped_step(system, damping, _CG_ITERATIONS)
    for _ in range(_TRIALS):
        moved = scaled + step
        lengths = np.linalg.norm(moved[1:], axis=0)
        if lengths.all() and _are_split(problem, problem.Z @ moved):
            trial = _refit(problem, moved / lengths, damping / 4.0)
            if trial.objective < point.objective:
                return trial
        damping = 4.0 * max(damping, 1e-5)
        step /= 4.0
    return point._replace(damping=damping)


class _System(NamedTuple):
    """Product with H, its diagonal blocks (K, d + 1, d + 1), and half the negative gradient (d + 1, K)."""

    product: Callable[[Array], Array]
    blocks: Array
    slope: Array


def _gauss_newton(problem: _Problem, point: _Point) -> _System:
    """The Gauss-Newton equations in all ``v_k``, the linear part eliminated."""
    Z, span, penalty = problem.Z, problem.span, problem.penalty[:, None]
    u = _output_directions(problem, point)
    active = (point.hinges > 0.0).astype(Z.dtype)

    def product(V: Array) -> Array:
        change = (active * (Z @ V)) @ u
        change -= span @ (span.T @ change)
        out: Array = Z.T @ (active * (change @ u.T)) + penalty * V
        return out

    blocks = np.empty((u.shape[0], Z.shape[1], Z.shape[1]))
    for block, rows in zip(blocks, active.T > 0.0, strict=True):
        side = Z[rows]
        eliminated = span[rows].T @ side
        block[...] = side.T @ side - eliminated.T @ eliminated
        block.flat[:: Z.shape[1] + 1] += problem.penalty
    slope = Z.T @ (active * (point.residual @ u.T)) - penalty * _scaled_directions(problem, point)
    return _System(product, blocks, slope)


def _damped_step(system: _System, damping: float, iterations: int) -> Array:
    """Conjugate gradients from 0 on ``(H + damping diag H) V = slope``, block-diagonally preconditioned."""
    diagonal = np.einsum("kpp->kp", system.blocks)
    weights = damping * (diagonal + 1e-12 * diagonal.sum())
    inverse = np.linalg.inv(system.blocks + weights[:, :, None] * np.eye(weights.shape[1]))
    step, residual = np.zeros_like(system.slope), system.slope.copy()
    direction, before = 0.0, 1.0
    for _ in range(iterations):
        preconditioned = np.einsum("kpq,qk->pk", inverse, residual)
        now = float(np.vdot(residual, preconditioned))
        if now <= 0.0:
            break
        direction = preconditioned + now / before * direction
        image = system.product(direction) + weights.T * direction
        length = now / float(np.vdot(direction, image))
        step += length * direction
        residual -= length * image
        before = now
    return step


def _scaled_directions(problem: _Problem, point: _Point) -> Array:
    """``v_k = |c_k| d_k`` (d + 1, K)."""
    return point.directions * np.linalg.norm(point.outer[problem.Z.shape[1] :], axis=1)


def _output_directions(problem: _Problem, point: _Point) -> Array:
    """``u_k = c_k / |c_k|`` (K, R), 0 where ``c_k`` is."""
    outer = point.outer[problem.Z.shape[1] :]
    lengths = np.linalg.norm(outer, axis=1, keepdims=True)
    return outer / np.where(lengths > 0.0, lengths, 1.0)


def _are_split(problem: _Problem, inner: Array) -> bool:
    """Whether either side of every hinge holds enough rows."""
    return bool(_lighter_side(problem, inner).min() >= problem.side)


def _lighter_side(problem: _Problem, inner: Array) -> Array:
    """Weight of the rows on the lighter side of every hinge."""
    above = problem.mass @ (inner > 0.0)
    lighter: Array = np.minimum(above, problem.mass.sum() - above)
    return lighter


def _starts(problem: _Problem, point: _Point) -> list[Array]:
    """The direction ``(-t, v)`` with the largest gain among the convex hinges, and among the concave."""
    if problem.mass.sum() < 2.0 * problem.side:
        return []
    outputs = np.linalg.eigh(point.residual.T @ point.residual)[1]
    error = point.residual @ outputs[:, -1]
    slopes = _candidate_slopes(problem, error)
    root = problem.Z[:, :1]
    projected = problem.Z[:, 1:] @ slopes
    mean = problem.gram[0, 1:] @ slopes / problem.mass.sum()
    spread = np.sqrt(np.sum((projected - root * mean) ** 2, axis=0) / problem.mass.sum())
    best: dict[bool, tuple[float, Array]] = {}
    for knots in mean + np.outer(_KNOTS, spread):
        inner = projected - root * knots
        hinges = np.maximum(inner, 0.0)
        squares = np.einsum("nk,nk->k", hinges, hinges)
        left = squares - np.sum((problem.span.T @ hinges) ** 2, axis=0)
        admitted = (_lighter_side(problem, inner) >= problem.side) & (left > 1e-8 * squares)
        products = error @ hinges
        gains = np.where(admitted, products**2 / np.where(admitted, left, 1.0), 0.0)
        for convex in (True, False):
            gain = np.where((products > 0.0) == convex, gains, 0.0)
            j = int(np.argmax(gain))
            if gain[j] > best.get(convex, (0.0, knots))[0]:
                best[convex] = (float(gain[j]), np.append(-knots[j], slopes[:, j]))
    return [start for _, start in sorted(best.values(), key=lambda found: -found[0])]


def _candidate_slopes(problem: _Problem, error: Array) -> Array:
    """Coordinate axes and principal Hessian directions: eigenvectors of ``sum_i w_i e_i x_i x_i'``."""
    X = problem.Z[:, 1:]
    curvature = X.T @ (X * (error / problem.Z[:, 0])[:, None])
    values, vectors = np.linalg.eigh(curvature)
    strongest = np.argsort(-np.abs(values))[:_CURVED_DIRECTIONS]
    return np.column_stack([np.eye(X.shape[1]), vectors[:, strongest]])


def _stationarity(problem: _Problem, point: _Point) -> float:
    """Largest entry of the gradient in ``|c_k| d_k``, over the problem's scale."""
    u = _output_directions(problem, point)
    gradient = -2.0 * problem.Z.T @ ((point.hinges > 0.0) * (point.residual @ u.T))
    gradient += 2.0 * problem.penalty[:, None] * _scaled_directions(problem, point)
    return float(np.abs(gradient).max(initial=0.0) / problem.scale)


def _model(point: _Point) -> HingingHyperplanes:
    p = point.directions.shape[0]
    outer, directions = point.outer, point.directions
    return HingingHyperplanes(outer[0], outer[1:p], directions[1:], directions[0], outer[p:])
