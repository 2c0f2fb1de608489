"""Compiled parts of :mod:`~liftopt.solvers.unit_search`: scores and greedy descent of the quadratic model."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@numba.njit(cache=True)
def best_single_gain(slopes: Array, bends: Array, codes: Array, values: Array, rho: float) -> Array:
    """Most negative ``dv s + rho/2 dv^2 m`` over the values, per coordinate."""
    gains = np.zeros(slopes.size)
    for j in range(slopes.size):
        for other in range(values.size):
            dv = values[other] - values[codes[j]]
            gains[j] = min(gains[j], dv * slopes[j] + 0.5 * rho * dv * dv * bends[j])
    return gains


@numba.njit(cache=True)
def greedy_descent(M: Array, slopes: Array, codes: Array, values: Array, threshold: float) -> Array:
    """Steepest single changes of ``<slopes, d> + d' M d / 2`` until none gains more than ``threshold``."""
    s, t = slopes.copy(), codes.copy()
    for _ in range(20 * t.size):
        best, where, code = -threshold, -1, 0
        for j in range(t.size):
            for other in range(values.size):
                dv = values[other] - values[t[j]]
                gain = dv * s[j] + 0.5 * dv * dv * M[j, j]
                if gain < best:
                    best, where, code = gain, j, other
        if where < 0:
            break
        s += (values[code] - values[t[where]]) * M[where]
        t[where] = code
    return t
