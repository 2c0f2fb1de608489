"""Every block written once as a general-purpose optimisation problem: its specification and its test oracle.

These functions are slow and transparent; nothing but the tests calls them. Each returns the solution and its
objective, with the same conventions as the block of the same name.
"""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
from scipy.optimize import linprog, minimize_scalar

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


def simplex_combination(
    predictions: Array, Y: Array, loss: str, rho: float, centre: Array, weight: Array
) -> tuple[Array, float]:
    """``min sum_i w_i loss(sum_j c_j Z_j[i], y_i) + rho |c - centre|^2`` over ``c >= 0, sum c = 1``."""
    c = cp.Variable(len(predictions), nonneg=True)
    mixed = sum(c[j] * part for j, part in enumerate(predictions))
    if loss == "squares":
        fit = cp.sum_squares(cp.multiply(np.sqrt(weight)[:, None], mixed - Y))
    else:
        rows = cp.log_sum_exp(mixed, axis=1) - cp.sum(cp.multiply(Y, mixed), axis=1)
        fit = weight @ rows
    objective = cp.Minimize(fit + rho * cp.sum_squares(c - centre))
    value = _solve(cp.Problem(objective, [cp.sum(c) == 1]), tol=1e-9)
    return np.asarray(c.value), value


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


def box_qp(H: Array, c: Array, lower: Array | float, upper: Array | float) -> tuple[Array, float]:
    """``min 1/2 x'Hx - c'x`` over ``lower <= x <= upper`` (finite bounds only where they bind)."""
    x = cp.Variable(c.size)
    sides = [x[i] >= b for i, b in enumerate(np.broadcast_to(lower, c.shape)) if np.isfinite(b)]
    sides += [x[i] <= b for i, b in enumerate(np.broadcast_to(upper, c.shape)) if np.isfinite(b)]
    value = _solve(cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(H)) - c @ x), sides))
    return np.asarray(x.value), value


def _relu_potential(u: Any) -> Any:
    return 0.5 * cp.sum_squares(cp.pos(u))


def relu_matching(X: Array, V: Array, ridge: float) -> tuple[AffineMap, float]:
    """Weight block of ReLU: ``min sum_i (x_i W + b)_+^2 / 2 - v_i (x_i W + b) + ridge |W|^2``."""
    coef, intercept = _affine((X.shape[1], V.shape[1]), True)
    u = X @ coef + np.ones((len(X), 1)) @ intercept
    objective = _relu_potential(u) - cp.sum(cp.multiply(V, u)) + ridge * cp.sum_squares(coef)
    value = _solve(cp.Problem(cp.Minimize(objective)))
    return _as_map(coef, intercept), value


def relu_targets(u: Array, W: Array, b: Array, y: Array, term: str, lam: float) -> tuple[Array, float]:
    """Value block of one ReLU sample below cross-entropy, squares or a hidden ReLU layer of targets ``y``."""
    v = cp.Variable(u.size, nonneg=True)
    scores = v @ W + b
    above = {
        "cross-entropy": lambda: cp.log_sum_exp(scores) - y @ scores,
        "squares": lambda: 0.5 * cp.sum_squares(scores - y),
        "hidden": lambda: _relu_potential(scores) - y @ scores,
    }[term]()
    value = _solve(cp.Problem(cp.Minimize(lam * (0.5 * cp.sum_squares(v) - u @ v) + above)), tol=1e-9)
    return np.asarray(v.value), value


def two_layer_relu(X: Array, Y: Array, beta: float) -> tuple[tuple[Array, Array], float]:
    """Global optimum of a bias-free two-layer ReLU network, width at least 2 (number of patterns).

    ``min 1/2 |relu(X W1) W2 - y|^2 + beta / 2 (|W1|^2 + |W2|^2)`` for one output y (n,), through the convex
    program over all activation patterns ``D_i = diag(Xg >= 0)``

        min 1/2 |sum_i D_i X (v_i - w_i) - y|^2 + beta sum_i |v_i| + |w_i|
        subject to (2 D_i - I) X v_i >= 0, (2 D_i - I) X w_i >= 0.

    Returns the weights (features, width), (width, 1) of a network that attains it, and the optimum. Patterns
    are enumerated by :func:`activation_patterns`: tiny data only. Pilanci and Ergen, "Neural networks are
    convex regularizers", ICML 2020, arXiv 2002.10553.
    """
    patterns = activation_patterns(X)
    plus, minus = (cp.Variable((X.shape[1], len(patterns))) for _ in range(2))
    on = patterns.T.astype(float)  # (n, patterns)
    fitted = cp.sum(cp.multiply(on, X @ (plus - minus)), axis=1)
    sign = 2.0 * on - 1.0
    cones = [cp.multiply(sign, X @ part) >= 0 for part in (plus, minus)]
    charge = cp.sum(cp.norm(plus, 2, axis=0)) + cp.sum(cp.norm(minus, 2, axis=0))
    loss = 0.5 * cp.sum_squares(fitted - Y) + beta * charge
    value = _solve(cp.Problem(cp.Minimize(loss), cones), tol=1e-9)
    columns = np.hstack([plus.value, minus.value])
    outer = np.repeat([1.0, -1.0], len(patterns))
    size = np.sqrt(np.linalg.norm(columns, axis=0))
    used = size > 1e-5
    return (columns[:, used] / size[used], (outer * size)[used][:, None]), value


def activation_patterns(X: Array) -> Array:
    """Every sign pattern ``Xg >= 0`` of the arrangement of the rows of X, as booleans (patterns, n).

    Built row by row: a pattern of the first k rows extends by a sign of row k + 1 if the linear program for
    ``g`` with strict signs is feasible. Rows in general position have 2 sum_j binom(n - 1, j), j < rank.
    """
    patterns = np.zeros((1, 0), dtype=bool)
    for k in range(X.shape[0]):
        extended = [np.append(p, s) for p in patterns for s in (False, True)]
        patterns = np.array([p for p in extended if _has_interior(X[: k + 1], p)])
    return patterns


def _has_interior(X: Array, pattern: Array) -> bool:
    """Whether some g has ``x'g > 0`` on the pattern and ``x'g < 0`` off it (zero rows count as on)."""
    rows = np.where(pattern, 1.0, -1.0)[:, None] * X
    zero = ~np.any(X, axis=1)
    if (zero & ~pattern).any():
        return False
    rows = rows[~zero]
    if not rows.size:
        return True
    found = linprog(np.zeros(X.shape[1]), A_ub=-rows, b_ub=-np.ones(len(rows)), bounds=(None, None))
    return bool(found.status == 0)
