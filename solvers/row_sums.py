"""Passes over rows that need not fit in memory: sums of pure functions of rows, a few thousand at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Pure function of features (m, d), targets (m, R) and weights (m,) or None of some rows, picklable for
#: workers. Its arrays are added over all rows.
RowSums = Callable[[Array, Array, "Array | None"], list[Array]]

#: Makes a pass: sums such a function over all rows.
SumRows = Callable[[RowSums], list[Array]]

_BLOCK_ROWS = 4096


def row_blocks(X: Array, Y: Array, weight: Array | None) -> Iterator[tuple[Array, Array, Array]]:
    """Some thousand rows, targets and weights at a time; rows without weight are left out."""
    for start in range(0, X.shape[0], _BLOCK_ROWS):
        x, y = X[start : start + _BLOCK_ROWS], Y[start : start + _BLOCK_ROWS]
        omega = np.ones(x.shape[0])
        if weight is not None:
            omega = weight[start : start + _BLOCK_ROWS].astype(np.float64)
            used = omega > 0
            x, y, omega = x[used], y[used], omega[used]
        yield np.array(x), y.astype(np.float64), omega


def target_sums(X: Array, Y: Array, weight: Array | None) -> list[Array]:
    """Sum of the weights, weighted sums (R,) of the targets and of their squares."""
    parts = [[omega.sum(), omega @ y, omega @ y**2] for _, y, omega in row_blocks(X, Y, weight)]
    return [np.sum(values, axis=0) for values in zip(*parts, strict=True)]


def gram_sums(features: Callable[[Array], Array], X: Array, Y: Array, weight: Array | None) -> list[Array]:
    """Weighted products of ``features`` of rows with each other and with the targets."""
    gram, cross = np.zeros(()), np.zeros(())
    for x, y, omega in row_blocks(X, Y, weight):
        B = features(x)
        weighted = (B * omega[:, None]).T
        gram, cross = gram + weighted @ B, cross + weighted @ y
    return [gram, cross]


def add_row_sums(first: list[Array], second: list[Array]) -> list[Array]:
    """Add the sums of two sets of rows.

    Parameters
    ----------
    first, second : list of ndarray
        Arrays of the same shapes.

    Returns
    -------
    list of ndarray
        Array by array.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    return [a + b for a, b in zip(first, second, strict=True)]
