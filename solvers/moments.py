"""Mergeable sufficient statistics of weighted least squares.

For rows ``(x_i, y_i)`` with weights ``w_i`` everything that ridge regression needs is

    n,  sum w,  mean_x,  mean_y,
    gram = sum w (x - mean_x)(x - mean_x)',  cross = sum w (x - mean_x)(y - mean_y)',
    target_square = sum w (y - mean_y)^2   (per target).

The values add and subtract (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances", 1979), so that chunks, threads and machines accumulate independently and
cross-validation folds are removed again. Rows are shifted by the first block's mean before any product is
taken, so that a large mean costs no digits; products run in the dtype of the data, block by block, and are
accumulated in float64.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .validation import Array, as_finite, as_weights

Value = TypeVar("Value")

# Error of a block's product relative to the largest eigenvalue of the Gram matrix.
ROUNDING = {np.dtype(np.float32): 2e-7, np.dtype(np.float64): 4e-16}
_BLOCK_ROWS = 2048
_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Moments:
    """Sufficient statistics of weighted rows ``(x, y)``; ``a + b`` and ``a - b`` merge and remove rows.

    Attributes
    ----------
    n_rows : int
        Number of rows.
    weight : float
        Sum of the sample weights.
    mean_x, mean_y : ndarray of shape (d,), (c,)
        Weighted means.
    gram : ndarray of shape (d, d)
        Weighted scatter of the centred features.
    cross : ndarray of shape (d, c)
        Weighted products of centred features and centred targets.
    target_square : ndarray of shape (c,)
        Weighted sum of squares of the centred targets.
    rounding : float
        Error of ``gram`` relative to its largest eigenvalue: 2e-7 for float32 products, 4e-16 for float64.
    """

    n_rows: int
    weight: float
    mean_x: Array
    mean_y: Array
    gram: Array
    cross: Array
    target_square: Array
    rounding: float

    @property
    def shape(self) -> tuple[int, int]:
        """Number of features and of targets."""
        return self.cross.shape

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        self._check_same_shape(other)
        weight = self.weight + other.weight
        share = other.weight / weight if weight > 0.0 else 0.0
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        mean_x, mean_y = self.mean_x + share * dx, self.mean_y + share * dy
        return self._combine(other, 1, weight, (mean_x, mean_y), (dx, dy), self.weight * share)

    def __sub__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        self._check_same_shape(other)
        weight = self.weight - other.weight
        if other.n_rows >= self.n_rows or weight <= 0.0:
            raise ValueError("only part of the rows can be subtracted: nothing would be left")
        dx = (other.mean_x - self.mean_x) * (self.weight / weight)
        dy = (other.mean_y - self.mean_y) * (self.weight / weight)
        share = other.weight / self.weight
        mean_x, mean_y = other.mean_x - dx, other.mean_y - dy
        return self._combine(other, -1, weight, (mean_x, mean_y), (dx, dy), weight * share)

    def uncentred(self) -> Moments:
        """The same statistics about the origin: means 0, scatters with the means put back."""
        root = np.sqrt(self.weight)
        x, y = root * self.mean_x, root * self.mean_y
        return Moments(
            self.n_rows,
            self.weight,
            np.zeros_like(x),
            np.zeros_like(y),
            self.gram + np.outer(x, x),
            self.cross + np.outer(x, y),
            self.target_square + y**2,
            self.rounding,
        )

    def _combine(
        self,
        other: Moments,
        sign: int,
        weight: float,
        means: tuple[Array, Array],
        distances: tuple[Array, Array],
        factor: float,
    ) -> Moments:
        """Add (``sign`` 1) or remove (-1) ``other`` and the scatter between the two means."""
        dx, dy = distances
        gram = np.outer(factor * dx, dx)  # a large matrix: the sums are taken in place
        gram += other.gram
        gram *= sign
        gram += self.gram
        _clip_diagonal(gram)
        return Moments(
            self.n_rows + sign * other.n_rows,
            weight,
            *means,
            gram,
            self.cross + sign * (other.cross + np.outer(factor * dx, dy)),
            np.maximum(self.target_square + sign * (other.target_square + factor * dy**2), 0.0),
            max(self.rounding, other.rounding),
        )

    def _check_same_shape(self, other: Moments) -> None:
        if self.shape != other.shape:
            raise ValueError(f"moments of {self.shape} and {other.shape} features and targets do not mix")


def moments(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    dtype: npt.DTypeLike | None = None,
) -> Moments:
    """Accumulate the statistics of arrays, in memory or memory-mapped, in one pass.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Features. The pages of a memory-mapped array are released as soon as they are read.
    Y : array-like of shape (n, c) or (n,)
        Targets; one dimension stands for one target.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights; 1 by default.
    dtype : {float32, float64}, optional
        Type in which products of at most 2048 rows are taken; that of ``X`` by default. Sums of products are
        float64 in any case.

    Returns
    -------
    Moments
        n d^2 + 2 n d c floating-point operations.

    Raises
    ------
    ValueError
        If shapes do not match, there is no row, or an entry is not finite.
    """
    return moments_of_chunks(row_chunks(X, Y, sample_weight), dtype=dtype)


def moments_of_chunks(chunks: Iterable[Sequence[Any]], *, dtype: npt.DTypeLike | None = None) -> Moments:
    """Accumulate the statistics of a stream of chunks.

    Chunks are merged pairwise in a tree that depends on their number only: the same chunks give the same
    bits, wherever each was accumulated.

    Parameters
    ----------
    chunks : iterable of (X, Y) or (X, Y, sample_weight)
        Arrays as for :func:`moments`.
    dtype : {float32, float64}, optional
        As for :func:`moments`.

    Returns
    -------
    Moments
        At most log2(chunks) partial statistics of d (d + c) numbers are held.

    Raises
    ------
    ValueError
        If there is no chunk, or one of them is bad (see :func:`moments`).
    """
    return tree_reduce(Moments.__add__, (_of_chunk(dtype, *chunk) for chunk in chunks))


def tree_reduce(
    merge: Callable[[Value, Value], Value], values: Iterable[Value], sizes: Iterable[int] = repeat(1)
) -> Value:
    """Reduce a stream by pairwise merges in a fixed tree.

    Parameters
    ----------
    merge : callable
        Joins two neighbours, the earlier one first.
    values : iterable
        n values; at most log2(n) partial ones are held.
    sizes : iterable of int
        How many of the leaves each value stands for: powers of two that divide where the value begins.

    Returns
    -------
    object
        Depends on the values and on nothing else, rounding included.

    Raises
    ------
    ValueError
        If there is no value.
    """
    stack: list[tuple[int, Value]] = []
    for size, value in zip(sizes, values, strict=False):
        while stack and stack[-1][0] == size:
            value = merge(stack.pop()[1], value)
            size *= 2
        stack.append((size, value))
    if not stack:
        raise ValueError("there is no chunk of data to reduce")
    total = stack.pop()[1]
    while stack:
        total = merge(stack.pop()[1], total)
    return total


def row_chunks(
    X: npt.ArrayLike, Y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None, *, rows: int | None = None
) -> Iterator[tuple[Array, Array, Array | None]]:
    """Yield arrays by row ranges; pages of memory maps are released after each.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Features.
    Y : array-like of shape (n, c) or (n,)
        Targets.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights.
    rows : int, optional
        Rows a chunk; by default as many as 32 MB of ``X`` hold.

    Yields
    ------
    tuple of ndarray
        ``(X, Y, weights)`` of the range, views where possible; weights None if there are none.

    Raises
    ------
    ValueError
        Before the first chunk, if shapes do not match or a weight is negative.
    """
    X, Y = np.asanyarray(X), np.asanyarray(Y)
    if X.ndim != 2 or Y.ndim not in (1, 2):
        raise ValueError(f"X and Y must have 2 dimensions, got shapes {X.shape} and {Y.shape}")
    if X.shape[0] != Y.shape[0] or X.size == 0 or Y.size == 0:
        raise ValueError(f"X and Y need the same positive number of rows, got shapes {X.shape} and {Y.shape}")
    weights = as_weights("sample_weight", sample_weight, X.shape[0])
    size = rows or max(_BLOCK_ROWS, _CHUNK_BYTES // (X.shape[1] * X.itemsize))
    for start in range(0, X.shape[0], size):
        part = slice(start, start + size)
        yield X[part], Y[part], None if weights is None else weights[part]
        _release_pages(X)
        _release_pages(Y)


def _release_pages(array: Array) -> None:
    """Unmap the resident pages of a file-backed array (they stay in the page cache, changes included)."""
    base: object = array
    while isinstance(base, np.ndarray):
        owner, base = base, base.base
    # copy-on-write pages (mode "c") hold changes that exist nowhere else
    shared = getattr(owner, "mode", "c") != "c"
    if shared and isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _of_chunk(
    dtype: npt.DTypeLike | None,
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    sample_weight: npt.ArrayLike | None = None,
) -> Moments:
    """Statistics of one chunk of rows."""
    X, Y = _as_floats("X", X), _as_floats("Y", Y)
    Y = Y.reshape(Y.shape[0], -1)
    if X.ndim != 2 or X.shape[0] != Y.shape[0] or X.size == 0:
        raise ValueError(f"X and Y of a chunk are empty or do not match: shapes {X.shape} and {Y.shape}")
    kind = np.dtype(X.dtype if dtype is None else dtype)
    if kind not in ROUNDING:
        raise ValueError(f"dtype must be float32 or float64, got {kind}")
    root = None if sample_weight is None else np.sqrt(np.asarray(sample_weight, dtype=np.float64))[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        found = _accumulate(X, Y, root, kind)
    if not np.isfinite([found.mean_x.sum(), found.gram.trace(), found.target_square.sum()]).all():
        as_finite("X", X)
        as_finite("Y", Y)
        raise ValueError(f"the entries of X or Y are too large for products in {kind}: scale them")
    return found


def _accumulate(X: Array, Y: Array, root: Array | None, kind: np.dtype[Any]) -> Moments:
    """Moments of rows with weights ``root^2``: blocks shifted by the first mean, products in ``kind``."""
    n, d, c = *X.shape, Y.shape[1]
    shift_x = X[:_BLOCK_ROWS].mean(axis=0, dtype=np.float64).astype(kind)
    shift_y = Y[:_BLOCK_ROWS].mean(axis=0, dtype=np.float64)
    # page faults add up: the product's memory is reused, and np.zeros would fault twice, read and written
    gram, product = np.full((d, d), 0.0), np.empty((d, d), dtype=kind)
    # a last target of 1, so that the products hold the sums as well
    cross = np.zeros((d, c + 1))
    target_square, sums = np.zeros(c), np.zeros(c + 1)
    block, target = np.empty((min(n, _BLOCK_ROWS), d), dtype=kind), np.empty((min(n, _BLOCK_ROWS), c + 1))
    for start in range(0, n, _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, n))
        block, target = block[: rows.stop - start], target[: rows.stop - start]
        np.subtract(X[rows], shift_x, out=block, casting="same_kind")
        np.subtract(Y[rows], shift_y, out=target[:, :c])
        target[:, c] = 1.0
        if root is not None:
            block *= root[rows].astype(kind)
            target *= root[rows]
        gram += np.matmul(block.T, block, out=product)
        cross += block.T @ target.astype(kind)
        target_square += np.einsum("ij,ij->j", target[:, :c], target[:, :c])
        sums += target[:, c] @ target
    weight, sum_x, sum_y = float(sums[c]), cross[:, c], sums[:c]
    scale = 1.0 / weight if weight > 0.0 else 0.0
    gram -= np.outer(scale * sum_x, sum_x)
    _clip_diagonal(gram)
    return Moments(
        n,
        weight,
        shift_x + scale * sum_x,
        shift_y + scale * sum_y,
        gram,
        cross[:, :c] - np.outer(scale * sum_x, sum_y),
        np.maximum(target_square - scale * sum_y**2, 0.0),
        ROUNDING[kind],
    )


def _clip_diagonal(gram: Array) -> None:
    """Squares that cancelled to below zero are rounding errors of zero."""
    np.fill_diagonal(gram, np.maximum(gram.diagonal(), 0.0))


def _as_floats(name: str, value: npt.ArrayLike) -> Array:
    """``value`` as a floating array; finiteness is left to the accumulated sums."""
    array = np.asanyarray(value)
    return array if array.dtype in ROUNDING else as_finite(name, array)
