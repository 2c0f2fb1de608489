"""Compiled descent for :mod:`~liftopt.solvers.gram_search`: one column at a time, ``H t`` kept up to date.

Maximises ``p^2 / q`` over ``t in C^d`` (``p = t'c > 0``, ``q = t'Ht``). A change by ``delta`` on a few
coordinates S gives ``p' = p + sum delta c`` and ``q' = q + 2 sum delta Ht + sum_ij delta_i delta_j H_ij``
exactly. ``p`` and ``q`` are recomputed at every sweep. Coordinates with ``H_jj = 0`` (dead inputs) stay
where they are.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_MAX_BLOCK = 12


@numba.njit(cache=True)
def _merit(p: float, q: float) -> float:
    return p * p / q if p > 0.0 and q > 0.0 else 0.0


@numba.njit(cache=True)
def _shift(H: Array, j: int, code: int, values: Array, t: Array, Ht: Array) -> None:
    """Set coordinate j to ``code`` and keep ``Ht``."""
    dv = values[code] - values[t[j]]
    for i in range(H.shape[0]):
        Ht[i] += dv * H[j, i]
    t[j] = code


@numba.njit(cache=True)
def _totals(c: Array, values: Array, t: Array, Ht: Array) -> tuple[float, float]:
    p = q = 0.0
    for j in range(t.size):
        p += values[t[j]] * c[j]
        q += values[t[j]] * Ht[j]
    return p, q


@numba.njit(cache=True)
def _best_single(
    H: Array, c: Array, values: Array, t: Array, Ht: Array, j: int, p: float, q: float
) -> tuple[int, float]:
    """Best code of coordinate j and its merit."""
    best, code = _merit(p, q), int(t[j])
    for other in range(values.size):
        dv = values[other] - values[t[j]]
        merit = _merit(p + dv * c[j], q + 2.0 * dv * Ht[j] + dv * dv * H[j, j])
        if merit > best:
            best, code = merit, other
    return code, best


@numba.njit(cache=True)
def _single_sweep(H: Array, c: Array, values: Array, t: Array, Ht: Array, tol: float) -> int:
    p, q = _totals(c, values, t, Ht)
    changes = 0
    for j in range(t.size):
        if H[j, j] <= 0.0:
            continue
        code, best = _best_single(H, c, values, t, Ht, j, p, q)
        if best > _merit(p, q) * (1.0 + tol) and code != t[j]:
            dv = values[code] - values[t[j]]
            p, q = p + dv * c[j], q + 2.0 * dv * Ht[j] + dv * dv * H[j, j]
            _shift(H, j, code, values, t, Ht)
            changes += 1
    return changes


@numba.njit(cache=True)
def _pair_sweep(H: Array, c: Array, values: Array, t: Array, Ht: Array, tol: float) -> int:
    """First-improvement pass over all changes of two entries."""
    p, q = _totals(c, values, t, Ht)
    changes = 0
    for i in range(t.size):
        for j in range(i + 1, t.size):
            if H[i, i] <= 0.0 or H[j, j] <= 0.0:
                continue
            best, first, second = _merit(p, q) * (1.0 + tol), -1, -1
            for ci in range(values.size):
                di = values[ci] - values[t[i]]
                pi, qi = p + di * c[i], q + 2.0 * di * Ht[i] + di * di * H[i, i]
                for cj in range(values.size):
                    dj = values[cj] - values[t[j]]
                    qij = qi + 2.0 * dj * (Ht[j] + di * H[i, j]) + dj * dj * H[j, j]
                    merit = _merit(pi + dj * c[j], qij)
                    if merit > best:
                        best, first, second = merit, ci, cj
            if first >= 0:
                _shift(H, i, first, values, t, Ht)
                _shift(H, j, second, values, t, Ht)
                p, q = _totals(c, values, t, Ht)
                changes += 1
    return changes


@numba.njit(cache=True)
def _block_sweep(
    H: Array, c: Array, values: Array, t: Array, Ht: Array, size: int, tol: float, rng: np.random.Generator
) -> int:
    """Exhaustive search inside each block of a random partition of the coordinates."""
    order = rng.permutation(t.size)
    p, q = _totals(c, values, t, Ht)
    m, changes = values.size, 0
    delta, pattern, best_pattern = np.empty(size), np.empty(size, np.int64), np.empty(size, np.int64)
    for low in range(0, t.size, size):
        members = order[low : low + size]
        b = members.size
        best, found = _merit(p, q) * (1.0 + tol), False
        for number in range(m**b):
            rest, dp, dq = number, 0.0, 0.0
            for i in range(b):
                pattern[i] = rest % m
                rest //= m
                j = members[i]
                delta[i] = values[pattern[i]] - values[t[j]]
                dp += delta[i] * c[j]
                inner = 2.0 * Ht[j] + delta[i] * H[j, j]
                for k in range(i):
                    inner += 2.0 * delta[k] * H[members[k], j]
                dq += delta[i] * inner
            merit = _merit(p + dp, q + dq)
            if merit > best:
                best, found = merit, True
                best_pattern[:b] = pattern[:b]
        if found:
            for i in range(b):
                if best_pattern[i] != t[members[i]] and H[members[i], members[i]] > 0.0:
                    _shift(H, members[i], best_pattern[i], values, t, Ht)
            p, q = _totals(c, values, t, Ht)
            changes += 1
    return changes


@numba.njit(cache=True)
def descend(
    H: Array,
    C: Array,
    values: Array,
    codes: Array,
    Ht: Array,
    kind: int,
    max_iter: int,
    tol: float,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Sweep every column until nothing changes; ``kind`` 0: single, -1: pairs too, b > 1: blocks of b too.

    ``codes`` and ``Ht`` (column-major) are updated in place. Returns sweeps and the largest relative gain of
    a single change left, per column.
    """
    k = C.shape[1]
    sweeps, gain = np.zeros(k, np.int64), np.zeros(k)
    for column in range(k):
        c, t, h = C[:, column], codes[:, column], Ht[:, column]
        while sweeps[column] < max_iter:
            changes = _single_sweep(H, c, values, t, h, tol)
            if changes == 0 and kind == -1:
                changes = _pair_sweep(H, c, values, t, h, tol)
            if changes == 0 and kind > 0:
                changes = _block_sweep(H, c, values, t, h, kind, tol, rng)
            sweeps[column] += 1
            if changes == 0:
                break
        p, q = _totals(c, values, t, h)
        now = _merit(p, q)
        for j in range(t.size):
            if H[j, j] > 0.0:
                best = _best_single(H, c, values, t, h, j, p, q)[1]
                gain[column] = max(gain[column], (best - now) / max(now, 1e-300))
    return sweeps, gain


@numba.njit(cache=True)
def descend_fixed(
    H: Array, C: Array, values: Array, codes: Array, Ht: Array, scale: Array, max_iter: int, tol: float
) -> tuple[Array, Array]:
    """Single changes for fixed scales: the nearest value to the one-dimensional minimiser, cyclically."""
    k, d = C.shape[1], C.shape[0]
    sweeps, gain = np.zeros(k, np.int64), np.zeros(k)
    for column in range(k):
        a, t, h = scale[column], codes[:, column], Ht[:, column]
        size = 0.0
        for j in range(d):
            size += abs(a * values[t[j]] * C[j, column])
        while sweeps[column] < max_iter and a != 0.0:
            changes, worst = 0, 0.0
            for j in range(d):
                code, drop = t[j], 0.0
                for other in range(values.size):
                    dv = values[other] - values[t[j]]
                    change = a * a * dv * (2.0 * h[j] + dv * H[j, j]) - 2.0 * a * dv * C[j, column]
                    if -change > drop:
                        code, drop = other, -change
                worst = max(worst, drop / max(size, 1e-300))
                if drop > tol * max(size, 1e-300) and H[j, j] > 0.0:
                    _shift(H, j, code, values, t, h)
                    changes += 1
            sweeps[column] += 1
            gain[column] = worst
            if changes == 0:
                break
    return sweeps, gain
