r"""One box QP to the last digits, by an active-set method inside proximal-point steps.

    min over x:  1/2 x'Hx - c'x    subject to  lower <= x <= upper,    H positive semi-definite.

A proximal-point step replaces ``H`` by ``H + delta I`` and ``c`` by ``c + delta x_k``, so that every face has
a Cholesky factor; as the problem is polyhedral, a few steps suffice. Each step is solved by block principal
pivoting: fix the coordinates predicted at a bound, solve for the others, exchange every coordinate with a
wrong sign; should that not reduce the number of wrong signs three times in a row, exchange only the last of
them (Murty's rule), which is finite for a positive definite matrix.

The iterates of a problem that is unbounded below run off along a direction ``v`` with ``Hv = 0``, ``c'v > 0``
and no bound in the way: that is the certificate looked for.

References
----------
Judice, Pires, "A block principal pivoting algorithm for large-scale strictly monotone linear complementarity
problems", Computers and Operations Research 21:587-596, 1994.
Rockafellar, "Monotone operators and the proximal point algorithm", SIAM J. Control Optim. 14, 1976.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

Array = npt.NDArray[Any]

_DELTA = 1e-9  # of the largest diagonal entry
_MAX_PROX = 30
_MAX_PIVOTS_PER_COORDINATE = 10
_PATIENCE = 3


class Exact(NamedTuple):
    """Point inside the bounds, its natural residual, and whether the problem is unbounded below."""

    x: Array
    residual: float
    unbounded: bool


def solve_active_set(H: Array, c: Array, lower: Array, upper: Array, x: Array, *, tol: float) -> Exact:
    """Solve ``min 1/2 x'Hx - c'x, lower <= x <= upper`` from the start ``x``, all arrays of shape (d,).

    Works in float64. Each pivot costs one Cholesky factorisation of the free coordinates.
    """
    H, c, lower, upper = (np.asarray(a, dtype=np.float64) for a in (H, c, lower, upper))
    scale = 1 / np.sqrt(np.where(np.diagonal(H) > 0, np.diagonal(H), 1.0))
    S, r, low, high = H * scale[:, None] * scale, c * scale, lower / scale, upper / scale
    shifted = S + _DELTA * np.eye(c.size)
    best = Exact(np.clip(x, lower, upper), np.inf, False)
    z = best.x / scale
    for _ in range(_MAX_PROX):
        following = _pivot(shifted, r + _DELTA * z, low, high, z)
        step, z = following - z, following
        point = np.clip(z * scale, lower, upper)
        residual = float(np.abs(point - np.clip(point - (H @ point - c), lower, upper)).max())
        if residual >= 0.5 * best.residual:  # rounding, or no solution
            if _is_ray(S, r, low, high, step):
                return Exact(best.x, best.residual, True)
            break
        best = Exact(point, residual, False)
        if residual <= 0.01 * tol:
            break
    return best


def _pivot(H: Array, c: Array, lower: Array, upper: Array, x: Array) -> Array:
    """Block principal pivoting for positive definite ``H``, started from the bounds that ``x`` predicts."""
    trial = x - (H @ x - c)
    side = (trial >= upper).astype(np.int8) - (trial <= lower)
    fewest, patience = c.size + 1, _PATIENCE
    for _ in range(_MAX_PIVOTS_PER_COORDINATE * c.size):
        x, gradient = _face_minimiser(H, c, lower, upper, side)
        wanted = _wanted_sides(x, gradient, lower, upper, side)
        wrong = np.flatnonzero(wanted != side)
        if not wrong.size:
            break
        if wrong.size < fewest:
            fewest, patience = wrong.size, _PATIENCE
        elif patience:
            patience -= 1
        else:
            wrong = wrong[-1:]
        side[wrong] = wanted[wrong]
    return np.clip(x, lower, upper)


def _face_minimiser(H: Array, c: Array, lower: Array, upper: Array, side: Array) -> tuple[Array, Array]:
    """Minimiser with the coordinates of ``side`` -1 / +1 at their bounds, and the gradient there."""
    free = side == 0
    x = np.where(side > 0, upper, np.where(side < 0, lower, 0.0))
    if free.any():
        block = H[np.ix_(free, free)]
        right = c[free] - H[np.ix_(free, ~free)] @ x[~free]
        x[free] = cho_solve(cho_factor(block, lower=True), right)
    return x, H @ x - c


def _wanted_sides(x: Array, gradient: Array, lower: Array, upper: Array, side: Array) -> Array:
    """Sides after every exchange that a wrong sign asks for; signs within rounding are left alone."""
    eps = 1e-13 * max(1.0, float(np.abs(x).max()))
    free = side == 0
    wanted = side.copy()
    wanted[free & (x < lower - eps)] = -1
    wanted[free & (x > upper + eps)] = 1
    push = eps * max(1.0, float(np.abs(gradient).max()))
    fixed = lower == upper
    wanted[(side < 0) & (gradient < -push) & ~fixed] = 0
    wanted[(side > 0) & (gradient > push) & ~fixed] = 0
    return wanted


def _is_ray(H: Array, c: Array, lower: Array, upper: Array, step: Array) -> bool:
    """Whether ``step`` is a direction of unbounded descent of the problem in unit-diagonal coordinates."""
    length = float(np.abs(step).max())
    if not length > 0.0:
        return False
    ray = np.where(np.abs(step) > 1e-6 * length, step / length, 0.0)
    inside = not np.any((ray > 0) & np.isfinite(upper)) and not np.any((ray < 0) & np.isfinite(lower))
    slack = 1e-6 * max(1.0, float(np.abs(c).max()))
    return inside and float(np.abs(H @ ray).max()) <= 1e-6 and float(c @ ray) > slack
