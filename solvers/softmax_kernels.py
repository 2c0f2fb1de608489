"""Compiled sweep of :mod:`~liftopt.solvers.softmax_search`.

For each feature the probabilities of its rows are gathered once, class-major, so that scoring a class is a
contiguous product; they are updated after every accepted change and written back at the end.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_LOG_RANGE = 600.0
_EXP_RANGE = 300.0  # exp of twice this is finite; beyond, the recomputed loss decides
_SAFE_RANGE = 15.0  # below it 1 + q (g - 1) keeps seven digits even for q = 1
_FAST = {"reassoc", "nsz", "contract"}


@numba.njit(cache=True, fastmath=_FAST)
def _log_normalisers(q: Array, up: Array, down: Array, chunk: int) -> float:
    """``sum log(1 + q (g - 1))`` with ``g = up * down``, one log a chunk."""
    total = 0.0
    for low in range(0, q.size, chunk):
        part, rise, fall = q[low : low + chunk], up[low : low + chunk], down[low : low + chunk]
        product = 1.0
        for r in range(part.size):
            product *= 1.0 + part[r] * (rise[r] * fall[r] - 1.0)
        total += np.log(product)
    return total


@numba.njit(cache=True)
def _careful_log_normalisers(q: Array, up: Array, down: Array, weights: Array) -> float:
    """The same with sample weights (size 0: ones) and for any range of ``g``."""
    total = 0.0
    for r in range(q.size):
        g = up[r] * down[r]
        term = np.log(max(1.0 + q[r] * (g - 1.0), min(g, 1.0)))
        total += term * weights[r] if weights.size else term
    return total


@numba.njit(cache=True, fastmath=_FAST)
def _exp(x: Array, factor: float, out: Array) -> None:
    """``exp(factor x)`` for ``|factor x| <= 15``: Taylor polynomial of the 64th part, squared six times."""
    for r in range(x.size):
        z = factor * x[r] * 0.015625
        y = 1.0 + z * 0.09090909090909091
        y = 1.0 + z * 0.1 * y
        y = 1.0 + z * 0.1111111111111111 * y
        y = 1.0 + z * 0.125 * y
        y = 1.0 + z * 0.14285714285714285 * y
        y = 1.0 + z * 0.16666666666666666 * y
        y = 1.0 + z * 0.2 * y
        y = 1.0 + z * 0.25 * y
        y = 1.0 + z * 0.3333333333333333 * y
        y = 1.0 + z * 0.5 * y
        y = 1.0 + z * y
        y *= y
        y *= y
        y *= y
        y *= y
        y *= y
        out[r] = y * y


@numba.njit(cache=True)
def _powers(x: Array, exponents: Array, scale: float, safe: bool, E: Array) -> None:
    """``E[i] = exp(scale exponents[i] x)`` for exponents sorted and symmetric about zero."""
    for i in range(exponents.size):
        mirror = exponents.size - 1 - i
        if exponents[i] == 0.0:
            E[i, : x.size] = 1.0
        elif mirror < i:
            for r in range(x.size):
                E[i, r] = 1.0 / E[mirror, r]
        elif safe:
            _exp(x, scale * exponents[i], E[i][: x.size])
        else:
            for r in range(x.size):
                E[i, r] = np.exp(max(-_EXP_RANGE, min(_EXP_RANGE, scale * exponents[i] * x[r])))


@numba.njit(cache=True)
def _apply(q: Array, k: int, up: Array, down: Array) -> None:
    """Multiply class k's odds by ``up * down`` and renormalise every row."""
    factor = np.empty(up.size)
    for r in range(up.size):
        g = up[r] * down[r]
        f = max(1.0 + q[k, r] * (g - 1.0), min(g, 1.0))
        q[k, r] *= g
        factor[r] = 1.0 / f
    for c in range(q.shape[0]):
        for r in range(up.size):
            q[c, r] *= factor[r]


@numba.njit(cache=True)
def sweep(
    indptr: Array,
    indices: Array,
    data: Array,
    moments: Array,
    Q: Array,
    codes: Array,
    values: Array,
    scale: Array,
    weights: Array,
    features: Array,
    threshold: float,
) -> int:
    """Visit every (feature, class), take the best value if it gains more than ``threshold``.

    ``Q`` (n, K) and ``codes`` (d, K) are updated in place; ``weights`` of size 0 means all ones.
    """
    K, m = Q.shape[1], values.size
    longest = np.diff(indptr).max()
    spread = values[-1] - values[0]
    buffer = np.empty((K, longest))
    exponents = np.unique(np.concatenate((values, -values)))
    place = np.searchsorted(exponents, values)
    powers = np.empty((exponents.size, longest))
    changes = 0
    for j in features:
        low, high = indptr[j], indptr[j + 1]
        count = high - low
        if count == 0:
            continue
        rows, x = indices[low:high], data[low:high]
        for r in range(count):
            for k in range(K):
                buffer[k, r] = Q[rows[r], k]
        sample = weights[rows] if weights.size else weights
        largest = max(np.abs(x).max() * spread, 1e-300)
        changed = False
        for k in range(K):
            if scale[k] == 0.0:
                continue
            reach = largest * abs(scale[k])
            safe = reach <= _SAFE_RANGE
            if k == 0 or scale[k] != scale[k - 1]:
                _powers(x, exponents, scale[k], safe, powers)
            chunk = max(1, int(min(count, _LOG_RANGE / max(reach, 1e-300))))
            down = powers[exponents.size - 1 - place[codes[j, k]]][:count]
            best, code = -threshold, -1
            for other in range(m):
                if other == codes[j, k]:
                    continue
                if safe and not weights.size:
                    logs = _log_normalisers(buffer[k][:count], powers[place[other]][:count], down, chunk)
                else:
                    logs = _careful_log_normalisers(
                        buffer[k][:count], powers[place[other]][:count], down, sample
                    )
                change = logs - scale[k] * (values[other] - values[codes[j, k]]) * moments[j, k]
                if change < best:
                    best, code = change, other
            if code >= 0:
                _apply(buffer, k, powers[place[code]][:count], down)
                codes[j, k] = code
                changes += 1
                changed = True
        if changed:
            for r in range(count):
                for k in range(K):
                    Q[rows[r], k] = buffer[k, r]
    return changes
