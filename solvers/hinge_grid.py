"""Knots of a hinge search: which values of each variable may carry a knot, and the bin of every row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .hinge_kernels import Grid, cell_table, locate
from .validation import as_count, as_finite, as_weights

Array = npt.NDArray[Any]


class HingeKnots(NamedTuple):
    """Values at which hinges may bend.

    Attributes
    ----------
    raw : ndarray of shape (d, K)
        Increasing knots of each variable in its own units, the first its minimum; padding is inf.
    standard : ndarray of shape (d, K)
        Their distances from the first, in units of ``scale``.
    counts : ndarray of shape (d,)
        Knots of each variable; constant ones have none.
    tables : ndarray of shape (d, cells)
        Where to look for the bin of a value.
    scale : ndarray of shape (d,)
        Standard deviation of each variable; 1 for constant ones.
    endspan : int
        Least rows on either side of a knot.
    """

    raw: Array
    standard: Array
    counts: Array
    tables: Array
    scale: Array
    endspan: int


def choose_hinge_knots(
    X: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    max_knots: int | None = 64,
    minspan: int | None = None,
    endspan: int | None = None,
    total: float | None = None,
    limits: tuple[Array, Array] | None = None,
) -> HingeKnots:
    """Choose the knots that a hinge search tries, from all rows or from a sample of them.

    The first knot of a variable is its minimum (the linear candidate); the rest lie at evenly spaced ranks
    between the end spans, or at every distinct value but the largest where there are few.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Finite.
    sample_weight : array-like of shape (n,), optional
        Repetitions.
    max_knots, minspan, endspan : int or None
        As for :func:`~liftopt.solvers.select_hinges`.
    total : float, optional
        Sample size of all rows, by default that of ``X``.
    limits : pair of ndarray of shape (d,), optional
        Minimum and maximum over all rows, by default over ``X``.

    Returns
    -------
    HingeKnots
        Of all variables.

    Raises
    ------
    ValueError
        If a column spans more than the largest float, or a setting is out of range.

    Notes
    -----
    O(n d log n) operations.
    """
    X = as_finite("X", X, ndim=2)
    n, d = X.shape
    omega = as_weights("sample_weight", sample_weight, n)
    omega = np.ones(n) if omega is None else omega
    total = float(omega.sum()) if total is None else total
    lows, highs = (X.min(axis=0), X.max(axis=0)) if limits is None else limits
    endspan = as_count("endspan", endspan) if endspan is not None else int(7.32193 + np.log2(d))
    if minspan is None:
        minspan = max(int((2.9702 + np.log(d * max(total, 1.0))) / 1.7329), 1)
    most = max(int(total / as_count("minspan", minspan)), 2)
    most = most if max_knots is None else min(most, as_count("max_knots", max_knots))
    scale = np.ones(d)
    chosen = []
    for j in range(d):
        x, low, high = X[:, j].astype(np.float64), float(lows[j]), float(highs[j])
        scale[j] = _spread(x, omega, low, high)
        chosen.append(_choose(x, omega, most, endspan, low, high) if high > low else np.empty(0))
    counts = np.array([knots.size for knots in chosen])
    width = max(int(counts.max()), 1)
    raw, standard = np.full((2, d, width), np.inf)
    for j, knots in enumerate(chosen):
        raw[j, : knots.size] = knots
        # distances from the minimum: exact for a column far from zero
        standard[j, : knots.size] = (knots - knots[:1]) / scale[j]
    tables = np.stack([cell_table(standard[j, :count]) for j, count in enumerate(counts)])
    return HingeKnots(raw, standard, counts, tables, scale, endspan)


def bin_rows(knots: HingeKnots, X: Array) -> Grid:
    """Bins and offsets of the rows of ``X`` (n, d)."""
    n, d = X.shape
    bins = np.empty((d, n), dtype=np.uint8 if knots.raw.shape[1] < 256 else np.int32)
    offsets = np.empty((d, n))
    locate(X, knots.raw, knots.counts, knots.tables, knots.scale, bins, offsets)
    return Grid(knots.standard, knots.counts, knots.tables, bins, offsets)


def _spread(x: Array, omega: Array, low: float, high: float) -> float:
    """Weighted standard deviation, safe from overflow; 1 for a constant column."""
    if not high / 2 - low / 2 < np.finfo(np.float64).max / 2:
        raise ValueError("a column of X spans more than the largest float: rescale it")
    width = high - low
    if width <= 0.0:
        return 1.0
    z = (x - low) / width
    mean = np.average(z, weights=omega)
    return float(width * np.sqrt(np.average((z - mean) ** 2, weights=omega))) or width


def _choose(x: Array, omega: Array, most: int, endspan: int, low: float, high: float) -> Array:
    """Increasing knots of one non-constant variable between its limits ``low`` and ``high``."""
    ordered, below = _ordered(x, omega)
    first = np.concatenate([[True], ordered[1:] > ordered[:-1]])
    if np.count_nonzero(first) <= most + 1:
        inner = ordered[first]
    else:
        ranks = np.linspace(endspan, below[-1] - 1 - endspan, most - 1)
        if ranks[0] > ranks[-1]:
            return np.array([low])
        positions = np.searchsorted(below, ranks, side="right")
        inner = ordered[np.minimum(positions, ordered.size - 1)]
    knots = np.unique(np.append(inner, low))
    return knots[knots < high]


def _ordered(x: Array, omega: Array) -> tuple[Array, Array]:
    """Sorted values, and the weight up to and including each."""
    if omega.min() == omega.max():
        return np.sort(x), omega[0] * np.arange(1, x.size + 1)
    order = np.argsort(x, kind="stable")
    return x[order], np.cumsum(omega[order])
