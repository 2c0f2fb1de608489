"""Compiled sweeps of :mod:`liftopt.solvers.hinge`: inner products with every hinge of a variable at once.

A variable ``x`` has knots ``T_0 < ... < T_{K-1}``; row i lies in bin ``b_i = #{k : T_k <= x_i}`` at the
offset ``r_i = x_i - T_{max(b_i - 1, 0)}``. For a vector ``u`` the bin sums of ``u_i`` and ``u_i r_i`` give,
by one recursion from either end,

    U_k = sum_i u_i (x_i - T_k)+      and      V_k = sum_i u_i (T_k - x_i)+

for all knots and both signs in O(n + K). Offsets keep the error at rounding level however far the column lies
from zero; textbook moments about zero would cancel. ``min(p, h)`` of a parent p >= 0 needs two more sweeps:

    min(p, (x - t)+) = (x - t)+ - (x - p - t)+,      min(p, (t - x)+) = (t - x)+ - (t - (x + p))+.

Many vectors go through one sweep together, stored row by row so that the inner loop runs over contiguous
memory. The kernels release the GIL.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]

_compiled = njit(cache=True, nogil=True, error_model="numpy")

_CELLS = 1024
_TILE = 256  # rows whose values stay in the cache from one variable to the next
TIE = 1e-6  # gains closer than this, relatively, are equal to rounding once columns are nearly dependent


class Grid(NamedTuple):
    """Knots (d, K) and their ``counts`` (d,); ``bins`` and ``offsets`` (d, n) of the rows; padding is inf.

    ``tables`` (d, cells) say where to look for a value's bin.
    """

    knots: Array
    counts: Array
    tables: Array
    bins: Array
    offsets: Array


@_compiled
def _lower(bins: Array, i: int) -> Any:
    """Index of the knot from which row i is measured: the one at or below it, else the first."""
    b: Any = np.intp(bins[i])
    return max(b - 1, 0)


@_compiled
def _accumulate(bins: Array, offsets: Array, vectors: Array, sums: Array) -> None:
    """Add bin sums of ``vectors`` (N, C) and of their products with the offsets to ``sums`` (K + 1, 2, C)."""
    width = vectors.shape[1]
    if width == 2:
        for s in range(bins.size):
            b, r = np.intp(bins[s]), offsets[s]
            u, v = vectors[s, 0], vectors[s, 1]
            sums[b, 0, 0] += u
            sums[b, 0, 1] += v
            sums[b, 1, 0] += r * u
            sums[b, 1, 1] += r * v
        return
    for s in range(bins.size):
        b, r = np.intp(bins[s]), offsets[s]
        for c in range(width):
            sums[b, 0, c] += vectors[s, c]
        for c in range(width):
            sums[b, 1, c] += r * vectors[s, c]


@_compiled
def _add_up(sums: Array, knots: Array, factor: float, out: Array) -> None:
    """Add ``factor * U_k`` of every vector to ``out`` (K, C)."""
    last = knots.size - 1
    above, value = sums[last + 1, 0].copy(), sums[last + 1, 1].copy()
    for c in range(value.size):
        out[last, c] += factor * value[c]
    for k in range(last - 1, -1, -1):
        gap = knots[k + 1] - knots[k]
        for c in range(value.size):
            value[c] += gap * above[c] + sums[k + 1, 1, c]
            above[c] += sums[k + 1, 0, c]
            out[k, c] += factor * value[c]


@_compiled
def _add_down(sums: Array, knots: Array, factor: float, out: Array) -> None:
    """Add ``factor * V_k`` of every vector to ``out`` (K, C)."""
    below, value = sums[0, 0].copy(), -sums[0, 1]
    for c in range(value.size):
        out[0, c] += factor * value[c]
    for k in range(1, knots.size):
        gap = knots[k] - knots[k - 1]
        for c in range(value.size):
            below[c] += sums[k, 0, c]
            value[c] += gap * below[c] - sums[k, 1, c]
            out[k, c] += factor * value[c]


@_compiled
def _pack(rows: Array, weight: Array, columns: Array) -> Array:
    """Weighted vectors on the support, one row a sample, at least two wide for the short loop."""
    packed = np.zeros((rows.size, max(columns.shape[0], 2)))
    for c in range(columns.shape[0]):
        for s in range(rows.size):
            packed[s, c] = weight[s] * columns[c, rows[s]]
    return packed


def empty_bins(grid: Grid, variables: Array, shifted: Array | None, width: int) -> tuple[Array, Array]:
    """Zeros for the bin sums of ``width`` vectors: (V, 1, K + 1, 2, C), and (V, 2, ...) where ``shifted``."""
    shape = (grid.knots.shape[1] + 1, 2, max(width, 2))
    sides = 0 if shifted is None else 2
    return np.zeros((variables.size, 1, *shape)), np.zeros((variables.size, sides, *shape))


@_compiled
def sum_bins(rows: Array, weight: Array, columns: Array, grid: Grid, variables: Array, bins: Array) -> None:
    """Add the bin sums of ``columns`` (C, n) over a parent's support to ``bins`` (V, 1, K + 1, 2, C).

    ``rows``, ``weight`` (N,) are the support and ``sqrt(omega) p`` on it; ``sqrt(omega)`` for minima.
    """
    vectors = _pack(rows, weight, columns)
    whole = rows.size == grid.bins.shape[1]
    for t in range(variables.size):
        j = variables[t]
        if whole:
            _accumulate(grid.bins[j], grid.offsets[j], vectors, bins[t, 0])
        else:
            _accumulate(grid.bins[j][rows], grid.offsets[j][rows], vectors, bins[t, 0])


@_compiled
def sum_shifted_bins(
    rows: Array,
    weight: Array,
    columns: Array,
    grid: Grid,
    variables: Array,
    parent: Array,
    shifted: Array,
    bins: Array,
) -> None:
    """Add the sums over the bins ``shifted`` of x -+ p to ``bins`` (V, 2, K + 1, 2, C)."""
    vectors = _pack(rows, weight, columns)
    for t in range(variables.size):
        for side in range(2):
            offsets = _shifted_offsets(rows, parent, grid, variables[t], side, shifted[t, side])
            _accumulate(shifted[t, side], offsets, vectors, bins[t, side])


@_compiled
def from_bins(own: Array, shifted: Array, knots: Array, counts: Array, variables: Array) -> Array:
    """Inner products (V, 2, K, C) with the hinges of ``variables``, up and down, from their bin sums.

    ``shifted`` holds those of x -+ p for the minimum with a parent p. Entries beyond a variable's knots are
    zero.
    """
    out = np.zeros((variables.size, 2, knots.shape[1], own.shape[-1]))
    for t in range(variables.size):
        T = knots[variables[t], : counts[variables[t]]]
        _add_up(own[t, 0], T, 1.0, out[t, 0])
        _add_down(own[t, 0], T, 1.0, out[t, 1])
        if shifted.shape[1] == 2:
            _add_up(shifted[t, 0], T, -1.0, out[t, 0])
            _add_down(shifted[t, 1], T, -1.0, out[t, 1])
    return out


@_compiled
def _shifted(rows: Array, parent: Array, grid: Grid, j: int, side: int) -> Array:
    """``x - p`` (side 0) or ``x + p`` (side 1) of variable j on the support."""
    z = np.empty(rows.size)
    sign = 2.0 * side - 1.0
    for s in range(rows.size):
        i = rows[s]
        z[s] = grid.knots[j, _lower(grid.bins[j], i)] + grid.offsets[j, i] + sign * parent[s]
    return z


@_compiled
def _shifted_offsets(rows: Array, parent: Array, grid: Grid, j: int, side: int, bins: Array) -> Array:
    """Offsets of the shifted values from the knot below."""
    r = _shifted(rows, parent, grid, j, side)
    for s in range(rows.size):
        r[s] -= grid.knots[j, _lower(bins, s)]
    return r


def cell_table(T: Array) -> Array:
    """Bins, about, at the start of each of ``_CELLS`` evenly spaced cells between the ends of ``T``."""
    if not T.size:
        return np.zeros(_CELLS, dtype=np.int32)
    return np.searchsorted(T, T[0] + (T[-1] - T[0]) / _CELLS * np.arange(_CELLS)).astype(np.int32)


@_compiled
def _bin_of(x: Any, T: Array, table: Array, rate: Any) -> Any:
    """``#{k : T_k <= x}`` for increasing ``T``, begun at its :func:`cell_table`."""
    b = np.intp(table[int(min(max((x - T[0]) * rate, 0.0), _CELLS - 1.0))])
    while b > 0 and T[b - 1] > x:
        b -= 1
    while b < T.size and T[b] <= x:
        b += 1
    return b


@_compiled
def _cell_rate(T: Array) -> Any:
    """Cells of a :func:`cell_table` a unit."""
    span = T[-1] - T[0]
    return _CELLS / span if span > 0.0 else 0.0


@_compiled
def locate(
    X: Array, raw: Array, counts: Array, tables: Array, scale: Array, bins: Array, offsets: Array
) -> None:
    """Bins and offsets (d, n), in units of ``scale``, of rows ``X`` (n, d) among ``raw`` knots."""
    for start in range(0, X.shape[0], _TILE):
        stop = min(start + _TILE, X.shape[0])
        for j in range(counts.size):
            if counts[j] == 0:
                continue
            T = raw[j, : counts[j]]
            rate = _cell_rate(T)
            for i in range(start, stop):
                x = np.float64(X[i, j])
                b = _bin_of(x, T, tables[j], rate)
                bins[j, i] = b
                offsets[j, i] = (x - T[max(b - 1, 0)]) / scale[j]


@_compiled
def shifted_bins(rows: Array, parent: Array, grid: Grid, variables: Array) -> Array:
    """Bins (V, 2, N) of ``x - p`` and ``x + p``."""
    out = np.empty((variables.size, 2, rows.size), grid.bins.dtype)
    for t in range(variables.size):
        j = variables[t]
        T = grid.knots[j, : grid.counts[j]]
        rate = _cell_rate(T)
        for side in range(2):
            z = _shifted(rows, parent, grid, j, side)
            for s in range(z.size):
                out[t, side, s] = _bin_of(z[s], T, grid.tables[j], rate)
    return out


@_compiled
def hinge_column(rows: Array, grid: Grid, j: int, side: int, knot: int) -> Array:
    """Values (N,) of one hinge on the support."""
    h = np.empty(rows.size)
    sign = 1.0 - 2.0 * side
    for s in range(rows.size):
        i = rows[s]
        x = grid.knots[j, _lower(grid.bins[j], i)] - grid.knots[j, knot] + grid.offsets[j, i]
        h[s] = max(sign * x, 0.0)
    return h


@_compiled
def _squares(bins: Array, offsets: Array, w: Array, T: Array) -> Array:
    """``sum w (x - T_k)+^2`` and ``sum w (T_k - x)+^2``, shape (2, K)."""
    last = T.size - 1
    w0, w1, w2 = np.zeros(T.size + 1), np.zeros(T.size + 1), np.zeros(T.size + 1)
    for s in range(bins.size):
        b, r = np.intp(bins[s]), offsets[s]
        w0[b] += w[s]
        w1[b] += w[s] * r
        w2[b] += w[s] * r * r
    out = np.empty((2, T.size))
    above, first, second = w0[last + 1], w1[last + 1], w2[last + 1]
    out[0, last] = second
    for k in range(last - 1, -1, -1):
        gap = T[k + 1] - T[k]
        second += 2 * gap * first + gap * gap * above + w2[k + 1]
        first += gap * above + w1[k + 1]
        above += w0[k + 1]
        out[0, k] = second
    below, first, second = w0[0], -w1[0], w2[0]
    out[1, 0] = second
    for k in range(1, last + 1):
        gap = T[k] - T[k - 1]
        below += w0[k]
        second += 2 * gap * first + gap * gap * below + w2[k] - 2 * gap * w1[k]
        first += gap * below - w1[k]
        out[1, k] = second
    return out


@_compiled
def squared_norms(rows: Array, weight: Array, grid: Grid, variables: Array) -> Array:
    """``sum_i w_i h_i^2`` (V, 2, K) over the hinges of ``variables``; ``weight`` (N,) on the support."""
    norms = np.zeros((variables.size, 2, grid.knots.shape[1]))
    for t in range(variables.size):
        j = variables[t]
        T = grid.knots[j, : grid.counts[j]]
        norms[t, :, : T.size] = _squares(grid.bins[j][rows], grid.offsets[j][rows], weight, T)
    return norms


@_compiled
def subtract_capped(
    rows: Array, omega: Array, grid: Grid, variables: Array, parent: Array, shifted: Array, norms: Array
) -> None:
    """Turn the squared norms of hinges into those of ``min(p, hinge)``.

    With ``z = x - p``: ``(x - t)+^2 - min(p, (x - t)+)^2 = (z - t)+^2 + 2 p (z - t)+``; mirrored for x + p.
    """
    vectors = np.zeros((rows.size, 2))
    vectors[:, 0] = 2.0 * omega * parent
    sums = np.empty((grid.knots.shape[1] + 1, 2, 2))
    for t in range(variables.size):
        j = variables[t]
        T = grid.knots[j, : grid.counts[j]]
        for side in range(2):
            bins = shifted[t, side]
            offsets = _shifted_offsets(rows, parent, grid, j, side, bins)
            linear = np.zeros((T.size, 2))
            sums[:] = 0.0
            _accumulate(bins, offsets, vectors, sums)
            if side == 0:
                _add_up(sums, T, 1.0, linear)
            else:
                _add_down(sums, T, 1.0, linear)
            norms[t, side, : T.size] -= _squares(bins, offsets, omega, T)[side] + linear[:, 0]


@_compiled
def support_weight(rows: Array, omega: Array, grid: Grid, variables: Array) -> Array:
    """Weight (V, 2, K) of the support strictly above and strictly below each knot."""
    out = np.zeros((variables.size, 2, grid.knots.shape[1]))
    for t in range(variables.size):
        j = variables[t]
        K = grid.counts[j]
        held, on_knot = np.zeros(K + 1), np.zeros(K + 1)
        for s in range(rows.size):
            b = np.intp(grid.bins[j, rows[s]])
            held[b] += omega[s]
            if grid.offsets[j, rows[s]] == 0.0:
                on_knot[b] += omega[s]
        below = np.cumsum(held)
        out[t, 0, :K] = below[K] - below[:K] - on_knot[1:]
        out[t, 1, :K] = below[:K]
    return out


@_compiled
def best_candidate(
    alpha: Array, beta: Array, gamma: Array, floor: Array, pairs: bool, tol: float
) -> tuple[float, int, int, int]:
    """Largest drop of the residual sum of squares in a bank: (gain, position of the variable, side, knot).

    ``alpha`` (V, 2, K, R) and ``beta`` (V, 2, K) are inner products with the residual and squared norms, both
    after projection off the model; ``gamma`` (V, K) is the inner product of a hinge and its mirror image. A
    candidate whose ``beta`` is at most ``floor`` lies in the span of the model or is not admissible. Ties
    within ``TIE`` go to the first in the order (variable, knot, up before down).
    """
    best, position, side, knot = 0.0, -1, 0, 0
    for t in range(beta.shape[0]):
        for k in range(beta.shape[2]):
            up, down = beta[t, 0, k], beta[t, 1, k]
            up_ok, down_ok = up > floor[t, 0, k], down > floor[t, 1, k]
            if not (up_ok or down_ok):
                continue
            up2, down2, cross = 0.0, 0.0, 0.0
            for r in range(alpha.shape[3]):
                up2 += alpha[t, 0, k, r] ** 2
                down2 += alpha[t, 1, k, r] ** 2
                cross += alpha[t, 0, k, r] * alpha[t, 1, k, r]
            gain_up = up2 / up if up_ok else 0.0
            gain_down = down2 / down if down_ok else 0.0
            gain = max(gain_up, gain_down)
            if pairs and up_ok and down_ok:
                determinant = up * down - gamma[t, k] ** 2
                if determinant > tol * up * down:
                    gain = (up2 * down - 2 * cross * gamma[t, k] + down2 * up) / determinant
            if gain > best * (1 + TIE):
                best, position, knot = gain, t, k
                side = 1 if gain_down > gain_up * (1 + TIE) else 0
    return best, position, side, knot
