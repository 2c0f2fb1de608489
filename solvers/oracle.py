"""Every block written once as a general-purpose optimisation problem: its specification and its test oracle.

These functions are slow and transparent; nothing but the tests calls them. Each returns the solution and its
objective, with the same conventions as the block of the same name.
"""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
from scipy.optimize import minimize_scalar

from .affine import AffineMap
from .validation import Array


def _solve(problem: Any, tol: float = 1e-11) -> float:
    """Solve to high accuracy and insist on it."""
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=tol, tol_gap_rel=tol, tol_feas=tol)
    if problem.status != "optimal":
        raise RuntimeError(f"the oracle ended with status {problem.status}")
    return float(problem.value)


def _affine(shape: tuple[int, int], fit_intercept: bool) -> tuple[Any, Any]:
    coef = cp.Variable(shape)
    return coef, cp.Variable((1, shape[1])) if fit_intercept else np.zeros((1, shape[1]))


def _as_map(coef: Any, intercept: Any) -> AffineMap:
    offset = intercept if isinstance(intercept, np.ndarray) else intercept.value
    return AffineMap(np.asarray(coef.value), np.asarray(offset)[0])


def ridge(
    X: Array, Y: Array, weight: Array, alpha: float, fit_intercept: bool = True
) -> tuple[AffineMap, float]:
    """``min sum_i w_i |x_i coef + intercept - y_i|^2 + alpha |coef|^2``."""
    coef, intercept = _affine((X.shape[1], Y.shape[1]), fit_intercept)
    errors = cp.multiply(np.sqrt(weight)[:, None], X @ coef + np.ones((len(X), 1)) @ intercept - Y)
    value = _solve(cp.Problem(cp.Minimize(cp.sum_squares(errors) + alpha * cp.sum_squares(coef))))
    return _as_map(coef, intercept), value


def margin(X: Array, Y: Array, weight: Array, alpha: float) -> tuple[AffineMap, float]:
    """``min sum w (F - Y - Y M)^2 + alpha |coef|^2`` over coef, intercept and ``M >= 0``."""
    coef, intercept = _affine((X.shape[1], Y.shape[1]), True)
    drag = cp.Variable(Y.shape, nonneg=True)
    scores = X @ coef + np.ones((len(X), 1)) @ intercept
    errors = cp.multiply(np.sqrt(weight)[:, None], scores - Y - cp.multiply(Y, drag))
    value = _solve(cp.Problem(cp.Minimize(cp.sum_squares(errors) + alpha * cp.sum_squares(coef))))
    return _as_map(coef, intercept), value


def simplex_weights(losses: Array, lam: float) -> tuple[Array, float]:
    """``min a'losses + lam |a|^2`` over ``a >= 0, sum a = 1``."""
    weights = cp.Variable(losses.size, nonneg=True)
    objective = cp.Minimize(losses @ weights + lam * cp.sum_squares(weights))
    value = _solve(cp.Problem(objective, [cp.sum(weights) == 1]))
    return np.asarray(weights.value), value


def stiefel_linear(C: Array, S: Array) -> float:
    """``max tr(W'C)`` over the convex hull ``W'SW <= I``, which attains the maximum over ``W'SW = I``."""
    W = cp.Variable(C.shape)
    root = np.linalg.cholesky(S).T
    value = _solve(cp.Problem(cp.Maximize(cp.trace(W.T @ C)), [cp.sigma_max(root @ W) <= 1]), tol=1e-8)
    return value


def stiefel_quadratic(A: Array, B: Array, seed: int = 0, starts: int = 4) -> float:
    """``min tr(W'AW) - 2 tr(W'B)`` over ``W'W = I``: Riemannian trust regions from random starts."""
    import pymanopt
    from pymanopt.manifolds import Stiefel
    from pymanopt.optimizers import TrustRegions

    manifold = Stiefel(*B.shape)
    rng = np.random.default_rng(seed)

    @pymanopt.function.numpy(manifold)
    def cost(W: Array) -> float:
        return float(np.sum(W * (A @ W - 2.0 * B)))

    @pymanopt.function.numpy(manifold)
    def gradient(W: Array) -> Array:
        return 2.0 * (A @ W - B)

    @pymanopt.function.numpy(manifold)
    def hessian(W: Array, direction: Array) -> Array:
        return 2.0 * A @ direction

    problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient, euclidean_hessian=hessian)
    optimizer = TrustRegions(verbosity=0, min_gradient_norm=1e-8)
    values = []
    for _ in range(starts):
        start = np.linalg.qr(rng.normal(size=B.shape))[0]
        values.append(float(optimizer.run(problem, initial_point=start).cost))
    return min(values)


def reduced_rank_ridge(X: Array, Y: Array, alpha: float) -> float:
    """Rank one, two targets, centred data: ``min |X u v' - Y|^2 + alpha |u|^2`` over u and unit v."""

    def value(angle: float) -> float:
        v = np.array([np.cos(angle), np.sin(angle)])
        u = np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ (Y @ v))
        return float(np.sum((X @ np.outer(u, v) - Y) ** 2) + alpha * u @ u)

    grid = np.linspace(0.0, np.pi, 181)
    best = grid[int(np.argmin([value(angle) for angle in grid]))]
    width = grid[1]
    found = minimize_scalar(
        value, bounds=(best - width, best + width), method="bounded", options={"xatol": 1e-10}
    )
    return float(found.fun)
