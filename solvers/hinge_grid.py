"""Knots of a hinge search: which values of each variable may carry a knot, and the bin of every row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .hinge_kernels import Grid, locate
from .validation import as_count

Array = npt.NDArray[Any]


class ScaledGrid(NamedTuple):
    """``grid`` of standardised variables, their ``scale`` (d,), ``raw_knots`` (d, K), and the end span."""

    grid: Grid
    scale: Array
    raw_knots: Array
    endspan: int


def make_grid(
    X: Array, omega: Array, max_knots: int | None, minspan: int | None, endspan: int | None
) -> ScaledGrid:
    """Choose knots and bin the rows of ``X`` (n, d) once; ``omega`` (n,) counts repetitions.

    The first knot of a variable is its minimum (the linear candidate); the rest lie at evenly spaced ranks
    between the end spans, or at every distinct value but the largest where there are few.
    """
    n, d = X.shape
    total = float(omega.sum())
    endspan = as_count("endspan", endspan) if endspan is not None else int(7.32193 + np.log2(d))
    if minspan is None:
        minspan = max(int((2.9702 + np.log(d * max(total, 1.0))) / 1.7329), 1)
    most = max(int(total / as_count("minspan", minspan)), 2)
    most = most if max_knots is None else min(most, as_count("max_knots", max_knots))
    scale = np.ones(d)
    knots: list[Array] = []
    for j in range(d):
        x = X[:, j].astype(np.float64)
        scale[j] = _spread(x, omega)
        knots.append(_choose(x, omega, total, most, endspan) if np.ptp(x) > 0 else np.empty(0))
    counts = np.array([chosen.size for chosen in knots])
    width = max(int(counts.max()), 1)
    raw = np.full((d, width), np.inf)
    standard = np.full((d, width), np.inf)
    bins = np.zeros((d, n), dtype=np.uint8 if width < 256 else np.int32)
    offsets = np.zeros((d, n))
    for j in range(d):
        K = int(counts[j])
        if not K:
            continue
        raw[j, :K] = knots[j]
        # distances from the minimum: exact for a column far from zero
        standard[j, :K] = (knots[j] - knots[j][0]) / scale[j]
        x = X[:, j].astype(np.float64)
        locate(x, knots[j], bins[j])
        below = np.maximum(bins[j].astype(np.intp) - 1, 0)
        offsets[j] = (x - knots[j][below]) / scale[j]
    return ScaledGrid(Grid(standard, counts, bins, offsets), scale, raw, endspan)


def _spread(x: Array, omega: Array) -> float:
    """Weighted standard deviation, safe from overflow; 1 for a constant column."""
    low, high = x.min(), x.max()
    if not high / 2 - low / 2 < np.finfo(np.float64).max / 2:
        raise ValueError("a column of X spans more than the largest float: rescale it")
    width = high - low
    if width <= 0.0:
        return 1.0
    z = (x - low) / width
    mean = np.average(z, weights=omega)
    return float(width * np.sqrt(np.average((z - mean) ** 2, weights=omega))) or 1.0


def _choose(x: Array, omega: Array, total: float, most: int, endspan: int) -> Array:
    """Increasing knots of one non-constant variable."""
    ordered, below = _ordered(x, omega)
    first = np.concatenate([[True], ordered[1:] > ordered[:-1]])
    n_distinct = np.count_nonzero(first)
    if n_distinct <= most + 1:
        return ordered[first][:-1]
    ranks = np.linspace(endspan, total - 1 - endspan, most - 1)
    if ranks[0] > ranks[-1]:
        return ordered[:1]
    positions = np.searchsorted(below, ranks, side="right")
    inner = ordered[np.minimum(positions, ordered.size - 1)]
    knots = np.unique(np.concatenate([ordered[:1], inner]))
    return knots[knots < ordered[-1]]


def _ordered(x: Array, omega: Array) -> tuple[Array, Array]:
    """Sorted values, and the weight up to and including each."""
    if omega.min() == omega.max():
        return np.sort(x), omega[0] * np.arange(1, x.size + 1)
    order = np.argsort(x, kind="stable")
    return x[order], np.cumsum(omega[order])
