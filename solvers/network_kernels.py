"""Compiled sweep of :mod:`~liftopt.solvers.network_search`: changes pushed through a small ReLU network.

Layers are padded to one width. ``inputs[l]`` (n, width + 1) are the inputs of layer l with a one for the
bias, ``pre[l]`` its pre-activations, ``losses`` the weighted loss of each row.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@numba.njit(cache=True)
def _row_loss(z: Array, y: Array, width: int, softmax: bool) -> float:
    total = 0.0
    if not softmax:
        for k in range(width):
            total += 0.5 * (z[k] - y[k]) ** 2
        return total
    top = z[0]
    for k in range(1, width):
        top = max(top, z[k])
    mass = 0.0
    for k in range(width):
        total += np.exp(z[k] - top)
        mass += y[k] * (z[k] - top)
    return np.log(total) - mass


@numba.njit(cache=True)
def _tail(
    row: int, layer: int, z: Array, work: Array, codes: Array, values: Array, sizes: Array, keep: Array
) -> None:
    """Replace ``z``, pre-activations of ``layer``, by the outputs; ``keep`` takes them if it is not empty."""
    for later in range(layer + 1, codes.shape[0]):
        for h in range(sizes[later + 1]):
            work[h] = values[codes[later, sizes[later], h]]
        for i in range(sizes[later]):
            if z[i] > 0.0:
                for h in range(sizes[later + 1]):
                    work[h] += z[i] * values[codes[later, i, h]]
        for h in range(sizes[later + 1]):
            z[h] = work[h]
            if keep.shape[0]:
                keep[later, row, h] = work[h]


@numba.njit(cache=True)
def forward(
    codes: Array,
    inputs: Array,
    pre: Array,
    losses: Array,
    values: Array,
    sizes: Array,
    Y: Array,
    weights: Array,
    softmax: bool,
) -> float:
    """Fill ``inputs``, ``pre`` and ``losses``; returns the summed loss."""
    total = 0.0
    depth = codes.shape[0]
    z, work = np.empty(pre.shape[2]), np.empty(pre.shape[2])
    for row in range(Y.shape[0]):
        for h in range(sizes[1]):
            z[h] = 0.0
            for i in range(sizes[0] + 1):
                z[h] += inputs[0, row, i] * values[codes[0, i, h]]
            pre[0, row, h] = z[h]
        _tail(row, 0, z, work, codes, values, sizes, pre)
        for layer in range(depth - 1):
            for h in range(sizes[layer + 1]):
                inputs[layer + 1, row, h] = max(pre[layer, row, h], 0.0)
        losses[row] = weights[row] * _row_loss(z, Y[row], int(sizes[depth]), softmax)
        total += losses[row]
    return total


@numba.njit(cache=True)
def _change(
    layer: int,
    i: int,
    h: int,
    dv: float,
    codes: Array,
    inputs: Array,
    pre: Array,
    losses: Array,
    values: Array,
    sizes: Array,
    Y: Array,
    weights: Array,
    softmax: bool,
) -> float:
    """Exact change of the summed loss when entry (i, h) of ``layer`` moves by ``dv``."""
    total = 0.0
    depth = codes.shape[0]
    z, work, nothing = np.empty(pre.shape[2]), np.empty(pre.shape[2]), np.empty((0, 0, 0))
    for row in range(Y.shape[0]):
        step = dv * inputs[layer, row, i]
        if step == 0.0:
            continue
        if layer == depth - 1:
            for k in range(sizes[depth]):
                z[k] = pre[layer, row, k]
            z[h] += step
        else:
            step = max(pre[layer, row, h] + step, 0.0) - max(pre[layer, row, h], 0.0)
            if step == 0.0:
                continue
            for k in range(sizes[layer + 2]):
                z[k] = pre[layer + 1, row, k] + step * values[codes[layer + 1, h, k]]
            _tail(row, layer + 1, z, work, codes, values, sizes, nothing)
        total += weights[row] * _row_loss(z, Y[row], int(sizes[depth]), softmax) - losses[row]
    return total


@numba.njit(cache=True)
def sweep(
    codes: Array,
    inputs: Array,
    pre: Array,
    losses: Array,
    total: float,
    values: Array,
    sizes: Array,
    Y: Array,
    weights: Array,
    softmax: bool,
    coordinates: Array,
    threshold: float,
) -> tuple[int, float]:
    """Visit the coordinates once; returns the number of changes and the recomputed loss."""
    changes = 0
    for index in range(coordinates.shape[0]):
        layer, i, h = coordinates[index]
        now = codes[layer, i, h]
        best, code = -threshold, now
        for other in range(values.size):
            if other == now:
                continue
            dv = values[other] - values[now]
            gain = _change(layer, i, h, dv, codes, inputs, pre, losses, values, sizes, Y, weights, softmax)
            if gain < best:
                best, code = gain, other
        if code != now:
            codes[layer, i, h] = code
            total = forward(codes, inputs, pre, losses, values, sizes, Y, weights, softmax)
            changes += 1
    return changes, total
