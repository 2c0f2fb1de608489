"""Partial dependence of a spline, exact from its pieces, and its plots.

``PD_j(x) = mean_i f(x, x_i without j)``. A term without ``x_j`` contributes its mean, a term of ``x_j`` alone
itself, and an interaction ``min(h(x), r_i)`` with the rest r of its hinges, over sorted ``r``,

    mean_i min(h, r_i) = (sum_{r_i <= h} r_i + h #{r_i > h}) / n,

so one sort and prefix sums serve every grid point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.spline_model import Spline

Array = npt.NDArray[Any]


def partial_dependence(spline: Spline, X: Array, variable: int, grid: Array) -> Array:
    """Mean (points, outputs) over the rows of ``X`` (n, d) with ``variable`` set to each point of the grid.

    O(terms (n log n + points)) instead of one prediction of all rows for every point.
    """
    X = np.asarray(X, dtype=np.float64)
    points = np.zeros((grid.size, X.shape[1]))
    points[:, variable] = grid
    out = np.zeros((grid.size, spline.coefficients.shape[1]))
    basis = spline.basis
    for index, term in enumerate(basis.terms):
        own = [hinge for hinge in term if hinge.variable == variable]
        rest = [basis.hinge(X, hinge) for hinge in term if hinge.variable != variable]
        if not own:
            values = np.full(grid.size, basis.term(X, index).mean())
        elif not rest:
            values = basis.hinge(points, own[0])
        elif basis.product:
            values = basis.hinge(points, own[0]) * np.multiply.reduce(rest).mean()
        else:
            values = _mean_minimum(basis.hinge(points, own[0]), np.minimum.reduce(rest))
        out += np.outer(values, spline.coefficients[index])
    return out


def _mean_minimum(h: Array, rest: Array) -> Array:
    """``mean_i min(h_k, rest_i)`` for every k."""
    ordered = np.sort(rest)
    prefix = np.concatenate([[0.0], np.cumsum(ordered)])
    below = np.searchsorted(ordered, h, side="right")
    return (prefix[below] + h * (ordered.size - below)) / ordered.size


def breakpoints(spline: Spline, variable: int, low: float, high: float, points: int) -> Array:
    """Sorted grid of evenly spaced points and all knots of ``variable`` inside [low, high]."""
    knots = [hinge.knot for term in spline.basis.terms for hinge in term if hinge.variable == variable]
    inside = [knot for knot in knots if low < knot < high]
    return np.unique(np.concatenate([np.linspace(low, high, points), inside]))


def plot_partial(
    spline: Spline, X: Array, variables: Sequence[int], names: Sequence[str], points: int = 200
) -> Any:
    """One panel a variable: partial dependence over the range of the data, with a rug of sample values."""
    import matplotlib.pyplot as plt

    columns = min(3, len(variables))
    rows = -(-len(variables) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, sharey=True)
    for axis in axes.flat[len(variables) :]:
        axis.set_visible(False)
    for axis, variable in zip(axes.flat, variables, strict=False):
        x = np.asarray(X[:, variable], dtype=np.float64)
        grid = breakpoints(spline, variable, float(x.min()), float(x.max()), points)
        axis.plot(grid, partial_dependence(spline, X, variable, grid))
        shown = x[:: max(1, x.size // 200)]
        axis.plot(shown, np.zeros_like(shown), "|", transform=axis.get_xaxis_transform(), color="grey")
        axis.set_xlabel(names[variable])
    figure.supylabel("partial dependence")
    figure.tight_layout()
    return figure
