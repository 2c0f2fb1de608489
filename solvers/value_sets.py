"""Weights from a finite value set, and the exact projection onto it.

A discrete matrix is ``W = values[codes] * scale`` with one scale per column. The nearest one to a given
matrix separates over columns:

    minimise over t in C^d, a >= 0:   sum_j h_j (w_j - a t_j)^2

For given ``a`` every entry decides alone (nearest element of ``a C``), so the minimiser is among the
assignments met while ``a`` falls from infinity to zero: an entry moves from value ``c`` to its neighbour
``c'`` at ``a = 2 w_j / (c + c')``. Sorting these breakpoints and following ``p = sum h w t`` and
``q = sum h t^2`` gives the global optimum, value ``sum h w^2 - max p^2 / q``, in
``O(d |C| log(d |C|))`` a column.

References
----------
Date, Carothers, Mitchell, Hendler, Magdon-Ismail, "Training Deep Neural Networks with Constrained Learning
Parameters", IEEE ICRC 2020, arXiv 2009.00540.
Li, Zhang, Liu, "Ternary Weight Networks", arXiv 1605.04711 (the same problem, with a fixed threshold).
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .result import Result, Status
from .validation import as_finite

Array = npt.NDArray[Any]

TERNARY = (-1.0, 0.0, 1.0)
MAX_VALUES = 256


class FiniteWeights(NamedTuple):
    """The matrix ``values[codes] * scale``.

    Attributes
    ----------
    values : ndarray of shape (m,)
        The sorted value set.
    codes : ndarray of shape (d, k), uint8
        Places in ``values``.
    scale : ndarray of shape (k,)
        Factor of each column.
    """

    values: Array
    codes: Array
    scale: Array

    def units(self) -> Array:
        """The unscaled entries ``values[codes]``, shape (d, k)."""
        entries: Array = self.values[self.codes]
        return entries

    def dense(self) -> Array:
        """The weights as a float64 matrix (d, k)."""
        return self.units() * self.scale


def as_values(values: npt.ArrayLike) -> Array:
    """Return a value set as a sorted float64 array.

    Parameters
    ----------
    values : array-like of shape (m,)
        2 to 256 different finite numbers.

    Returns
    -------
    ndarray of shape (m,)
        Sorted, float64.

    Raises
    ------
    ValueError
        If it is empty, has one element or more than 256, or holds duplicates or non-finite numbers.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size < 2:
        raise ValueError(f"values needs at least two different numbers, got {array.tolist()}")
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite, got {array.tolist()}")
    if np.unique(array).size < array.size:
        raise ValueError(f"values must not repeat, got {array.tolist()}")
    if array.size > MAX_VALUES:
        raise ValueError(f"values may hold at most {MAX_VALUES} numbers, got {array.size}")
    return np.sort(array)


def nearest_codes(W: Array, values: Array) -> Array:
    """Index of the element of the sorted ``values`` nearest to each entry (ties go down), uint8."""
    return np.searchsorted((values[:-1] + values[1:]) / 2, W).astype(np.uint8)


def quantize(
    W: npt.ArrayLike, values: npt.ArrayLike = TERNARY, *, importance: npt.ArrayLike | None = None
) -> Result:
    """Nearest discrete matrix with one non-negative scale per column, globally optimal.

    Parameters
    ----------
    W : array-like of shape (d, k)
        Columns are projected separately.
    values : array-like of shape (m,)
        The finite set, 2 to 256 different numbers.
    importance : array-like of shape (d,), optional
        Non-negative weights ``h`` of the rows; all ones by default.

    Returns
    -------
    Result
        ``x`` is a :class:`FiniteWeights`; ``objective`` the weighted squared error summed over columns;
        ``info["error"]`` holds it per column. Status ``optimal``.

    Raises
    ------
    ValueError
        On bad value sets, non-finite entries or negative importance.

    Notes
    -----
    O(d m log(d m)) a column.
    """
    start = time.perf_counter()
    allowed = as_values(values)
    target = as_finite("W", W, ndim=2).astype(np.float64)
    h = np.ones(target.shape[0]) if importance is None else as_finite("importance", importance, ndim=1)
    if h.shape != target.shape[:1] or h.min(initial=0.0) < 0.0:
        raise ValueError(f"importance must hold {target.shape[0]} non-negative numbers")
    scale = _best_scales(target, allowed, h.astype(np.float64)[:, None])
    ratio = np.divide(target, scale, out=np.zeros_like(target), where=scale > 0)
    codes = nearest_codes(ratio, allowed)
    entries = allowed[codes]
    p = (h[:, None] * target * entries).sum(axis=0)
    q = (h[:, None] * entries**2).sum(axis=0)
    scale = np.divide(np.maximum(p, 0.0), q, out=np.zeros_like(p), where=q > 0)
    error = (h[:, None] * (target - entries * scale) ** 2).sum(axis=0)
    return Result(
        FiniteWeights(allowed, codes, scale),
        float(error.sum()),
        Status.OPTIMAL,
        time=time.perf_counter() - start,
        gap=0.0,
        info={"error": error},
    )


def _best_scales(W: Array, values: Array, h: Array) -> Array:
    """Scale of each column at which ``p^2 / q`` is largest; 0 where no scale helps."""
    middle = (values[:-1] + values[1:]) / 2
    step, square_step = np.diff(values), np.diff(values**2)
    breaks, dp, dq = [], [], []
    for mid, up, up_square in zip(middle, step, square_step, strict=True):
        # a falls through w / mid: the entry climbs to c' (mid > 0) or drops to c (mid < 0)
        moves = W * mid > 0
        sign = 1.0 if mid > 0 else -1.0
        breaks.append(np.where(moves, W / mid if mid else 0.0, 0.0))
        dp.append(np.where(moves, sign * h * W * up, 0.0))
        dq.append(np.where(moves, sign * h * up_square, 0.0))
    first = values[np.searchsorted(middle, np.where(W > 0, 1e-300, -1e-300))]  # the choice at a = infinity
    at = np.concatenate(breaks)
    order = np.argsort(-at, axis=0, kind="stable")
    p = (h * W * first).sum(axis=0) + np.cumsum(np.take_along_axis(np.concatenate(dp), order, 0), axis=0)
    q = (h * first**2).sum(axis=0) + np.cumsum(np.take_along_axis(np.concatenate(dq), order, 0), axis=0)
    p = np.concatenate([(h * W * first).sum(axis=0)[None], p])
    q = np.concatenate([np.broadcast_to((h * first**2).sum(axis=0), p[:1].shape), q])
    usable = (p > 0) & (q > 1e-300)
    merit = np.where(usable, p**2 / np.where(usable, q, 1.0), -1.0)
    best = merit.argmax(axis=0)
    columns = np.arange(W.shape[1])
    optimal = p[best, columns] / np.where(usable[best, columns], q[best, columns], 1.0)
    return np.where(merit[best, columns] > 0, optimal, 0.0)
