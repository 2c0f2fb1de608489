r"""Softmax (multinomial logistic) regression, the convex head of a classifier, by damped Newton steps.

For rows ``x_i``, class probabilities ``y_i`` (one-hot or soft) and weights ``w_i``,

    min over (W, b):  sum_i w_i CE(y_i, softmax(x_i W + b)) + ridge |W|^2 + prox (|W - W0|^2 + |b - b0|^2)

with ``CE(y, p) = -sum y log p``. Convex; strictly so with ``prox > 0``, and up to a common shift of ``b``
with ``ridge > 0``. At the optimum the gradient ``X'E + 2 ridge W + 2 prox (W - W0)`` is zero,
``E = w (softmax - Y)``, and so is that in ``b``.

Each step solves the Newton system: by one Cholesky factorisation when the parameters are few, else by
conjugate gradients to a falling tolerance, preconditioned by the Cholesky factor of one weighted Gram matrix
shared by all classes (weights: mean curvature of the row). Armijo backtracking makes the descent monotone.

References
----------
Bohning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44:197-200, 1992.
Dembo, Eisenstat, Steihaug, "Inexact Newton methods", SIAM J. Numer. Anal. 19:400-408, 1982.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from .affine import AffineMap
from .linear_system import factor_checked
from .result import Callback, Measure, OnLimit, Result, conclude, iterate
from .validation import as_count, as_distributions, as_finite, as_scalar, as_weights

Array = npt.NDArray[Any]
Solve = Callable[[Array], Array]

_DENSE_PARAMETERS = 300  # up to here the exact Newton system is cheaper than conjugate gradients
_GRAM_ROWS_PER_FEATURE = 20  # rows that suffice for the preconditioner's Gram matrix
_MAX_CG = 200
_JITTER = 1e-12  # of the unit diagonal of a Newton system
_MAX_HALVINGS = 40


class _Point(NamedTuple):
    """Stacked parameters (features + 1, classes), scores, probabilities, objective and gradient there."""

    theta: Array
    scores: Array
    proba: Array
    objective: float
    gradient: Array


def solve_softmax_regression(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    ridge: float = 0.0,
    prox: float = 0.0,
    init: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    sample_weight: npt.ArrayLike | None = None,
    fit_intercept: bool = True,
    max_iter: int = 100,
    tol: float = 1e-5,
    time_limit: float = np.inf,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """Fit a softmax regression to its global optimum.

    Parameters
    ----------
    X : array-like of shape (n, features)
        Inputs; float32 stays float32 in the products, parameters and sums are float64.
    Y : array-like of shape (n, classes)
        Class probabilities: non-negative rows that sum to one.
    ridge : float
        Weight of ``|W|_F^2``; ``LogisticRegression(C)`` has ``ridge = 1 / (2 C)``. Intercepts are free.
    prox : float
        Weight of the squared distance from ``init`` (intercept included).
    init : pair of arrays (features, classes) and (classes,), optional
        Start and centre of the proximal term; zeros by default.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights of the rows (class weights enter here).
    fit_intercept : bool
        If false the intercept stays at its start.
    max_iter : int
        Largest number of Newton steps.
    tol : float
        Bound on the largest gradient entry divided by ``sum(sample_weight)`` and by the root mean square of
        its feature, hence free of the scales of the features and of the number of rows.
    time_limit : float
        Wall-clock seconds.
    callback : callable, optional
        Receives each history record; a true return value stops the solver.
    on_limit : {"warn", "raise", "ignore"}
        What to do when a budget ends before ``tol`` is met.

    Returns
    -------
    Result
        ``x``: :class:`~liftopt.solvers.AffineMap`, float64; ``residuals["stationarity"]`` as in ``tol``. With
        ``ridge = 0`` on separable data there is no minimiser: the loss tends to zero and the weights grow
        until ``tol``.

    Raises
    ------
    ValueError
        On shapes that do not fit, non-finite values, or rows of ``Y`` that are no distribution.

    Notes
    -----
    A step costs O(n (features * classes)^2) up to 300 parameters, else O(n features classes) a
    conjugate-gradient iteration and one Gram matrix of at most 20 * features rows.
    """
    problem = _Problem.build(X, Y, ridge, prox, init, sample_weight, fit_intercept)
    run = iterate(
        problem.step,
        problem.at(problem.start, problem.design.forward(problem.start)),
        measure=problem.measure,
        max_iter=as_count("max_iter", max_iter),
        tol=as_scalar("tol", tol, low=0.0),
        time_limit=time_limit,
        stall_after=2,
        callback=callback,
    )
    theta = run.state.theta
    return conclude(run.result(AffineMap(theta[:-1].copy(), theta[-1].copy())), on_limit)


class _Design(NamedTuple):
    """The rows with a constant column appended, never formed."""

    X: Array
    intercept: float

    def forward(self, theta: Array) -> Array:
        """``[X, 1] theta``."""
        scores: Array = self.X @ theta[:-1].astype(self.X.dtype)
        scores += theta[-1].astype(self.X.dtype)
        return scores

    def adjoint(self, rows: Array) -> Array:
        """``[X, 1]' rows`` in float64 (the last row is zero when the intercept is fixed)."""
        last = self.intercept * rows.sum(axis=0, dtype=np.float64)
        return np.vstack([self.X.T @ rows, last[None]])

    def gram(self, weight: Array) -> Array:
        """``[X, 1]' diag(weight) [X, 1]`` in float64."""
        d = self.X.shape[1]
        weighted = self.X * weight[:, None]
        gram = np.empty((d + 1, d + 1))
        gram[:d, :d] = self.X.T @ weighted
        gram[d, :d] = gram[:d, d] = self.intercept * weighted.sum(axis=0, dtype=np.float64)
        gram[d, d] = weight.sum(dtype=np.float64) if self.intercept else 1.0
        return gram


class _Problem(NamedTuple):
    """Data and penalties: ``strength`` (features + 1, 1) multiplies ``|theta - centre|^2``."""

    design: _Design
    Y: Array
    weight: Array
    total: float
    strength: Array
    centre: Array
    scale: Array
    start: Array

    @classmethod
    def build(
        cls,
        X: npt.ArrayLike,
        Y: npt.ArrayLike,
        ridge: float,
        prox: float,
        init: tuple[npt.ArrayLike, npt.ArrayLike] | None,
        sample_weight: npt.ArrayLike | None,
        fit_intercept: bool,
    ) -> _Problem:
        X = as_finite("X", X, ndim=2)
        Y = as_distributions("Y", Y, X.shape[0])
        n, d = X.shape
        weight = as_weights("sample_weight", sample_weight, n)
        weight = np.ones(n) if weight is None else weight
        total = float(weight.sum())
        start = _stack(init, d, Y.shape[1])
        ridge, prox = as_scalar("ridge", ridge, low=0.0), as_scalar("prox", prox, low=0.0)
        strength = np.full((d + 1, 1), ridge + prox)
        strength[-1] = prox
        # ridge |W|^2 + prox |W - W0|^2 = strength |W - centre|^2 + constant
        centre = start * np.divide(prox, strength, out=np.zeros_like(strength), where=strength > 0)
        rms = np.sqrt(np.einsum("ij,ij,i->j", X, X, weight, dtype=np.float64) / total)
        scale = np.append(np.where(rms > 0, rms, 1.0), 1.0)[:, None]
        design = _Design(X, float(fit_intercept))
        weight = weight.astype(X.dtype)
        return cls(design, Y.astype(X.dtype, copy=False), weight, total, strength, centre, scale, start)

    def loss(self, theta: Array, scores: Array) -> float:
        """Objective at ``theta`` given its scores (the constants of the penalties are left out)."""
        row = logsumexp(scores, axis=1) - np.einsum("ij,ij->i", scores, self.Y)
        penalty = np.sum(self.strength * (theta - self.centre) ** 2)
        return float(self.weight.astype(np.float64) @ row + penalty)

    def at(self, theta: Array, scores: Array) -> _Point:
        proba = np.exp(scores - logsumexp(scores, axis=1)[:, None])
        gradient = self.design.adjoint((proba - self.Y) * self.weight[:, None])
        gradient += 2 * self._penalty() * (theta - self.centre)
        return _Point(theta, scores, proba, self.loss(theta, scores), gradient)

    def measure(self, point: _Point) -> Measure:
        worst = float(np.abs(point.gradient / self.scale).max(initial=0.0)) / self.total
        return Measure(point.objective, {"stationarity": worst})

    def step(self, point: _Point) -> _Point:
        """Newton direction, then halving until Armijo's condition holds."""
        dense = point.theta.size <= _DENSE_PARAMETERS
        direction = self._newton_dense(point) if dense else self._newton_cg(point)
        slope = float(np.sum(point.gradient * direction))
        change = self.design.forward(direction)
        slack = 4 * np.finfo(np.float64).eps * abs(point.objective)
        length = 1.0
        for _ in range(_MAX_HALVINGS):
            theta, scores = point.theta + length * direction, point.scores + length * change
            if self.loss(theta, scores) <= point.objective + 1e-4 * length * slope + slack:
                return self.at(theta, scores)
            length /= 2
        return point

    def _penalty(self) -> Array:
        """Strengths, with a fixed intercept left out."""
        free = self.strength.copy()
        free[-1] *= self.design.intercept
        return free

    def _newton_dense(self, point: _Point) -> Array:
        """Exact Newton direction: blocks ``X' diag(w p_r (delta_rs - p_s)) X`` of the Hessian."""
        m, classes = point.theta.shape
        hessian = np.empty((classes, m, classes, m))
        for r in range(classes):
            for s in range(r + 1):
                curvature = point.proba[:, r] * (float(r == s) - point.proba[:, s])
                hessian[r, :, s] = hessian[s, :, r] = self.design.gram(self.weight * curvature)
        if not self.design.intercept:
            hessian[:, -1, :, -1] = np.eye(classes)
        # a shift common to all classes changes no probability: fix it where no penalty does
        gauge = np.where(self.strength > 0, 0.0, self.scale**2)[:, 0] * self.total / classes**2
        diagonal = np.arange(m)
        hessian[:, diagonal, :, diagonal] += gauge[:, None, None]
        matrix = hessian.reshape(classes * m, classes * m)
        matrix[np.diag_indices_from(matrix)] += np.tile(2 * self._penalty()[:, 0], classes)
        return -_factorised(matrix)(point.gradient.T.reshape(-1, 1)).reshape(classes, m).T

    def _newton_cg(self, point: _Point) -> Array:
        """Inexact Newton direction by conjugate gradients, one preconditioner for all classes."""
        stationarity = self.measure(point).worst
        forcing = min(0.1, float(np.sqrt(stationarity)))
        return _conjugate_gradients(
            lambda v: self._hessian_product(point, v),
            -point.gradient,
            self._preconditioner(point),
            forcing,
        )

    def _hessian_product(self, point: _Point, v: Array) -> Array:
        along = point.proba * self.design.forward(v)
        along -= point.proba * along.sum(axis=1, keepdims=True)
        along *= self.weight[:, None]
        return self.design.adjoint(along) + 2 * self._penalty() * v

    def _preconditioner(self, point: _Point) -> Solve:
        n, d = self.design.X.shape
        stride = max(1, n // (_GRAM_ROWS_PER_FEATURE * (d + 1)))
        proba = point.proba[::stride]
        # mean eigenvalue of diag(p) - p p' off the common shift
        curvature = (1 - np.einsum("ij,ij->i", proba, proba)) / max(1, proba.shape[1] - 1)
        weight = self.weight[::stride] * curvature * stride
        gram = _Design(self.design.X[::stride], self.design.intercept).gram(weight)
        gram[np.diag_indices_from(gram)] += 2 * self._penalty()[:, 0]
        return _factorised(gram)


def _factorised(matrix: Array) -> Solve:
    """Cholesky solve, equilibrated to a unit diagonal."""
    diagonal = np.diagonal(matrix)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    factor = factor_checked(matrix / scale[:, None] / scale, _JITTER)

    def solve(b: Array) -> Array:
        solution: Array = factor.solve(b / scale[:, None]) / scale[:, None]
        return solution

    return solve


def _conjugate_gradients(product: Solve, b: Array, precondition: Solve, rtol: float) -> Array:
    """Conjugate gradients from zero until the residual's preconditioned norm has fallen by ``rtol``."""
    x, residual = np.zeros_like(b), b.copy()
    z = precondition(residual)
    p = z
    energy = start = float(np.sum(residual * z))
    for _ in range(_MAX_CG):
        if energy <= rtol**2 * start or energy == 0.0:
            break
        Hp = product(p)
        curvature = float(np.sum(p * Hp))
        if curvature <= 0.0:  # flat within rounding: what is gathered so far is a descent direction
            return x if x.any() else z
        length = energy / curvature
        x += length * p
        residual -= length * Hp
        z = precondition(residual)
        energy, previous = float(np.sum(residual * z)), energy
        p = z + (energy / previous) * p
    return x


def _stack(init: tuple[npt.ArrayLike, npt.ArrayLike] | None, features: int, classes: int) -> Array:
    """Weights over intercept as one float64 array."""
    theta = np.zeros((features + 1, classes))
    if init is not None:
        weight, intercept = as_finite("init[0]", init[0]), as_finite("init[1]", init[1])
        if weight.shape != (features, classes) or intercept.shape != (classes,):
            raise ValueError(
                f"init must hold arrays of shapes {(features, classes)} and {(classes,)}, "
                f"got {weight.shape} and {intercept.shape}"
            )
        theta[:-1], theta[-1] = weight, intercept
    return theta
