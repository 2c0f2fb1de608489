r"""Weights of a convex combination: ``min f(sum_j c_j Z_j)`` over the simplex ``c >= 0, sum c = 1``.

``Z_1, ..., Z_k`` are predictions of k models for the same n rows, and ``f`` their mean loss, convex in the
mixed prediction: squares against targets, or cross-entropy of logits against class probabilities,

    F(c) = sum_i w_i loss(sum_j c_j Z_j[i], y_i) / sum_i w_i + rho |c - centre|^2.

For squares this is the point of least norm in a polytope (Wolfe), a quadratic program in k variables solved
exactly by an active set: minimise over the affine hull of the support, drop what turns negative, add the
most violated. Cross-entropy takes Newton steps whose quadratic models the same active set solves, with
backtracking. Predictions are centred on their mean first: it cancels on the simplex, and nearly equal models
would lose their differences in the products.

Certificate: the Frank-Wolfe gap ``<grad F(c), c> - min_j grad_j F(c) >= F(c) - min F`` at the point that is
returned.

References
----------
Wolfe, "Finding the nearest point in a polytope", Mathematical Programming 11:128-149, 1976.
Jaggi, "Revisiting Frank-Wolfe: projection-free sparse convex optimization", ICML 2013 (the gap).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from .result import Callback, Measure, OnLimit, Result, conclude, iterate
from .validation import as_count, as_distributions, as_finite, as_scalar, as_weights

Array = npt.NDArray[Any]

_JITTER = 1e-13  # relative ridge that keeps systems of equal models solvable; below the certificate
_MAX_HALVINGS = 30


def solve_simplex_least_squares(
    predictions: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    rho: float = 0.0,
    centre: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    max_iter: int = 20,
    tol: float = 1e-11,
    on_limit: OnLimit = "warn",
) -> Result:
    """Convex combination of predictions with the least mean squared error.

    Parameters
    ----------
    predictions : array-like of shape (k, n) or (k, n, outputs)
        Predictions of k models.
    Y : array-like of shape (n,) or (n, outputs)
        Targets.
    rho : float
        Weight of ``|c - centre|^2``: it leads from the plain optimum (0) towards ``centre``.
    centre : array-like of shape (k,), optional
        On the simplex; the uniform weights by default.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights of the rows.
    max_iter : int
        Largest number of active-set solves; one suffices but for rounding.
    tol : float
        Bound on the Frank-Wolfe gap divided by the largest loss of a single model plus ``rho``.
    on_limit : {"warn", "raise", "ignore"}
        What to do when a budget ends first.

    Returns
    -------
    Result
        ``x``: weights (k,), float64; ``objective``: sum of squares over outputs, weighted mean over rows,
        plus the penalty; ``gap``: the certificate; ``info["support"]``: models of positive weight.

    Raises
    ------
    ValueError
        On shapes that do not fit, non-finite values, or a centre off the simplex.

    Notes
    -----
    O(n outputs k^2) once, then O(k^3) a change of the support.
    """
    Z, Y = _as_predictions(predictions), as_finite("Y", Y)
    Y = Y[:, None] if Y.ndim == 1 else Y
    if Y.shape != Z.shape[1:]:
        raise ValueError(f"Y has shape {Y.shape}, the predictions of a model {Z.shape[1:]}")
    penalty = _Penalty.build(rho, centre, Z.shape[0])
    weight = _row_shares(sample_weight, Z.shape[1])
    problem = _Squares.build(Z, Y.astype(np.float64), weight, penalty)
    best = problem.at(np.eye(Z.shape[0])[int(np.argmin(problem.singles))])
    scale = float(problem.singles.max()) + penalty.rho
    return _solve(problem.at, best, scale, max_iter, tol, None, on_limit)


def solve_simplex_cross_entropy(
    logits: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    rho: float = 0.0,
    centre: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    init: npt.ArrayLike | None = None,
    max_iter: int = 50,
    tol: float = 1e-11,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """Convex combination of logits with the least cross-entropy.

    Parameters
    ----------
    logits : array-like of shape (k, n, classes)
        Logits of k models.
    Y : array-like of shape (n, classes)
        Class probabilities: non-negative rows that sum to one.
    rho, centre, sample_weight, on_limit
        As in :func:`solve_simplex_least_squares`.
    tol : float
        Bound on the Frank-Wolfe gap divided by the loss of the uniform mean plus ``rho``.
    init : array-like of shape (k,), optional
        Start, on the simplex; the uniform mean by default.
    max_iter : int
        Largest number of Newton steps.
    callback : callable, optional
        Receives each history record; a true return value stops the solver.

    Returns
    -------
    Result
        As :func:`solve_simplex_least_squares`, ``objective`` being the mean cross-entropy plus the penalty.

    Raises
    ------
    ValueError
        On shapes that do not fit, non-finite values, or points off the simplex.

    Notes
    -----
    A step costs O(n classes k^2).
    """
    Z = _as_predictions(logits)
    Y = as_distributions("Y", Y, Z.shape[1]).astype(np.float64)
    if Y.shape != Z.shape[1:]:
        raise ValueError(f"Y has shape {Y.shape}, the logits of a model {Z.shape[1:]}")
    penalty = _Penalty.build(rho, centre, Z.shape[0])
    weight = _row_shares(sample_weight, Z.shape[1])
    problem = _CrossEntropy.build(Z, Y, weight, penalty)
    uniform = problem.at(np.full(Z.shape[0], 1.0 / Z.shape[0]))
    start = uniform if init is None else problem.at(_as_point("init", init, Z.shape[0]))
    return _solve(problem.at, start, uniform.objective + penalty.rho, max_iter, tol, callback, on_limit)


class _Point(NamedTuple):
    """Weights with objective, gradient and, on demand, curvature there (up to multiples of ones)."""

    c: Array
    objective: float
    gradient: Array
    hessian: Callable[[], Array]


def _solve(
    at: Callable[[Array], _Point],
    start: _Point,
    scale: float,
    max_iter: int,
    tol: float,
    callback: Callback | None,
    on_limit: OnLimit,
) -> Result:
    """Newton steps with backtracking; of a quadratic objective the first one ends at the optimum.

    ``at`` evaluates the objective; gaps are measured against ``scale``.
    """
    scale = scale or 1.0

    def step(point: _Point) -> _Point:
        H = point.hessian()
        target = minimise_on_simplex(H, point.gradient - H @ point.c, point.c)
        slack = 4 * np.finfo(np.float64).eps * scale
        for halving in range(_MAX_HALVINGS):
            length = 0.5**halving
            trial = at((1.0 - length) * point.c + length * target)
            slope = float(point.gradient @ (trial.c - point.c))
            if trial.objective <= point.objective + 1e-4 * min(slope, 0.0) + slack:
                return trial
        return point

    run = iterate(
        step,
        start,
        measure=lambda point: Measure(point.objective, {"stationarity": _gap(point) / scale}),
        max_iter=as_count("max_iter", max_iter),
        tol=as_scalar("tol", tol, low=0.0),
        stall_after=3,
        callback=callback,
    )
    point = run.state
    info = {"support": np.flatnonzero(point.c > 0.0)}
    return conclude(run.result(point.c, gap=_gap(point), info=info), on_limit)


def _gap(point: _Point) -> float:
    """Frank-Wolfe gap."""
    return max(0.0, float(point.gradient @ point.c - point.gradient.min()))


def minimise_on_simplex(H: Array, b: Array, start: Array) -> Array:
    """Minimiser of ``c'Hc / 2 + b'c`` over the simplex by an active set, from a feasible start.

    ``H`` (k, k) is positive semidefinite on vectors that sum to zero. Adding a multiple of ones to ``b``
    changes nothing.
    """
    scale = max(float(np.abs(H).max()), float(np.ptp(b)), np.finfo(np.float64).tiny)
    H, b = H / scale + _JITTER * np.eye(b.size), (b - b.min()) / scale
    c, active, entering = start.copy(), start > 0.0, -1
    for _ in range(20 * b.size):  # each pass changes the support; cycles are the work of rounding only
        support = np.flatnonzero(active)
        target = np.zeros_like(c)
        target[support] = _affine_minimiser(H[support][:, support], b[support])
        if target.min() >= 0.0:
            c = target
            gradient = H @ c + b
            entering = int(np.argmin(gradient))
            if active[entering] or gradient @ c - gradient[entering] <= np.finfo(np.float64).eps:
                break
            active[entering] = True
            continue
        falling = np.flatnonzero(target < 0.0)
        lengths = c[falling] / (c[falling] - target[falling])
        first = falling[np.argmin(lengths)]
        if first == entering and lengths.min() == 0.0:
            break
        c = np.maximum(c + lengths.min() * (target - c), 0.0)
        c[first], active[first] = 0.0, False
    return c / c.sum()


def _affine_minimiser(H: Array, b: Array) -> Array:
    """Minimiser of ``c'Hc / 2 + b'c`` over ``sum c = 1``."""
    k = b.size
    system = np.ones((k + 1, k + 1))
    system[:k, :k], system[k, k] = H, 0.0
    rhs = np.ones(k + 1)
    rhs[:k] = -b
    solution: Array = lapack.dgesv(system, rhs, overwrite_a=1)[2]
    return solution[:k]


class _Penalty(NamedTuple):
    """``rho |c - centre|^2``."""

    rho: float
    centre: Array

    @classmethod
    def build(cls, rho: float, centre: npt.ArrayLike | None, k: int) -> _Penalty:
        point = np.full(k, 1.0 / k) if centre is None else _as_point("centre", centre, k)
        return cls(as_scalar("rho", rho, low=0.0), point)

    def value(self, c: Array) -> float:
        return self.rho * float(np.sum((c - self.centre) ** 2))

    def gradient(self, c: Array) -> Array:
        return 2.0 * self.rho * (c - self.centre)

    def hessian(self) -> Array:
        return 2.0 * self.rho * np.eye(self.centre.size)


class _Squares(NamedTuple):
    """``c'Qc + 2 p'c + constant``, from residuals about their uniform mean."""

    Q: Array
    p: Array
    constant: float
    penalty: _Penalty

    @classmethod
    def build(cls, Z: Array, Y: Array, weight: Array, penalty: _Penalty) -> _Squares:
        k, middle = Z.shape[0], Z.mean(axis=0)
        apart = Z - middle
        weighted = apart.reshape(k, -1) * np.repeat(weight, Z.shape[2])
        residual = (middle - Y).ravel()
        constant = float(np.sum(weight * ((middle - Y) ** 2).sum(axis=1)))
        return cls(weighted @ apart.reshape(k, -1).T, weighted @ residual, constant, penalty)

    @property
    def singles(self) -> Array:
        """Loss of every model alone."""
        return np.diagonal(self.Q) + 2.0 * self.p + self.constant

    def at(self, c: Array) -> _Point:
        along = self.Q @ c
        value = float(c @ along + 2.0 * self.p @ c) + self.constant + self.penalty.value(c)
        gradient = 2.0 * (along + self.p) + self.penalty.gradient(c)
        return _Point(c, value, gradient, lambda: 2.0 * self.Q + self.penalty.hessian())


class _CrossEntropy(NamedTuple):
    """Mean cross-entropy of ``middle + sum_j c_j apart_j``: classes first, so that rows are contiguous."""

    middle: Array
    apart: Array
    Y: Array
    weight: Array
    penalty: _Penalty

    @classmethod
    def build(cls, Z: Array, Y: Array, weight: Array, penalty: _Penalty) -> _CrossEntropy:
        used = weight > 0.0
        if not used.all():
            Z, Y, weight = Z[:, used], Y[used], weight[used]
        apart = Z.transpose(0, 2, 1).copy(order="C")
        middle = apart.mean(axis=0)
        apart -= middle
        return cls(middle, apart.reshape(len(Z), -1), Y.T.copy(order="C"), weight, penalty)

    def at(self, c: Array) -> _Point:
        scores = self.middle + (c @ self.apart).reshape(self.middle.shape)
        scores -= scores.max(axis=0)
        proba = np.exp(scores)
        total = proba.sum(axis=0)
        proba /= total
        likelihood = np.einsum("on,on->n", self.Y, scores) - np.log(total)
        gradient = self.apart @ (self.weight * (proba - self.Y)).ravel() + self.penalty.gradient(c)
        value = self.penalty.value(c) - float(self.weight @ likelihood)
        return _Point(c, value, gradient, lambda: self._hessian(proba))

    def _hessian(self, proba: Array) -> Array:
        """Mean over rows of the covariance of the models' logits under ``proba``."""
        shares = self.weight * proba
        weighted = self.apart * shares.ravel()
        means = weighted.reshape(-1, *proba.shape).sum(axis=1)  # times the weights of the rows
        curvature = weighted @ self.apart.T - means / self.weight @ means.T
        return 0.5 * (curvature + curvature.T) + self.penalty.hessian()


def _as_predictions(value: npt.ArrayLike) -> Array:
    Z = as_finite("predictions", value).astype(np.float64, copy=False)
    Z = Z[..., None] if Z.ndim == 2 else Z
    if Z.ndim != 3 or 0 in Z.shape:
        raise ValueError(f"predictions must have shape (k, n) or (k, n, outputs), got {np.shape(value)}")
    return Z


def _row_shares(sample_weight: npt.ArrayLike | None, n: int) -> Array:
    """Weights of the rows over their sum."""
    weight = as_weights("sample_weight", sample_weight, n)
    return np.full(n, 1.0 / n) if weight is None else weight / weight.sum()


def _as_point(name: str, value: npt.ArrayLike, k: int) -> Array:
    point = as_finite(name, value, ndim=1).astype(np.float64)
    if point.shape != (k,) or point.min() < 0.0 or abs(point.sum() - 1.0) > 1e-6:
        raise ValueError(f"{name} must be {k} non-negative weights that sum to one")
    return point / point.sum()
