"""Joint change of the discrete weights of one unit inside a larger loss, verified exactly.

A unit has pre-activation ``u = a X t + b`` with ``t in C^d``; the rest of the model is seen through the
loss ``F(u)``, known by its gradient ``g`` and a positive curvature ``c`` at the current ``u``
(Gauss-Newton), and by a function that evaluates it exactly. One step

1. scores every change of every entry by the second-order model and keeps the most promising coordinates,
2. minimises ``<g, du> + rho/2 <c, du^2>`` over changes of these coordinates jointly, greedily and exactly
in their
   Gram matrix, with the bias profiled out, each change gaining at least ``threshold``,
3. fits ``(a, b)`` to the model in closed form,
4. evaluates the exact loss: accepted if lower, else ``rho`` triples and steps 2 to 4 repeat.

So the loss falls with every accepted step whatever the quality of the model. Cost ``O(n d + s q^2)`` for n
rows, s of them sampled for the curvature and q kept coordinates.

References
----------
Date et al., "Training Deep Neural Networks with Constrained Learning Parameters", arXiv 2009.00540.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_FIRST_RHO, _RHO_GROWTH, _ATTEMPTS = 1.5, 3.0, 3


class Unit(NamedTuple):
    """One unit ``x -> scale * (x @ values[codes]) + bias``.

    Attributes
    ----------
    codes : ndarray of shape (d,)
        Places in the value set.
    scale, bias : float
        a and b.
    """

    codes: Array
    scale: float
    bias: float


class UnitStep(NamedTuple):
    """An accepted change: unit, pre-activation (n,), exact loss, number of changed entries."""

    unit: Unit
    pre_activation: Array
    loss: float
    changes: int


class Features:
    """Rows prepared for many unit steps: features first, and the squares of a sample for the curvature.

    Parameters
    ----------
    columns : ndarray of shape (d, n)
        The inputs, transposed and contiguous; rows in random order, since the sample is the first ones.
    sample : int
        Number of rows that estimate the curvature.
    """

    def __init__(self, columns: Array, sample: int) -> None:
        self.columns = columns
        self.sample = columns[:, :sample]
        self.squares = self.sample**2


def improve_unit(
    features: Features,
    values: Array,
    unit: Unit,
    pre_activation: Array,
    gradient: Array,
    curvature: Array,
    evaluate: Callable[[Array], float],
    loss: float,
    *,
    threshold: float,
    candidates: int = 128,
) -> UnitStep | None:
    """One verified step on one unit, or None if no proposal lowers the exact loss.

    Parameters
    ----------
    features : Features
        The inputs of the unit.
    values : ndarray of shape (m,)
        Sorted value set.
    unit : Unit
        Current weights.
    pre_activation, gradient, curvature : ndarray of shape (n,)
        ``u``, ``dF/du`` and a non-negative curvature at ``u``.
    evaluate : callable
        Exact loss for a pre-activation (n,).
    loss : float
        ``evaluate(pre_activation)``.
    threshold : float
        Least gain of a single change in the model, and of the step in the exact loss.
    candidates : int
        Coordinates that enter the joint model.

    Returns
    -------
    UnitStep or None
        The new ``unit``, its ``pre_activation`` (n,), its exact ``loss`` and the number of ``changes``.

    Notes
    -----
    O(n d + s q^2) for s sampled rows and q candidates, and at most three evaluations. Arrays are not checked.
    """
    model = _Model(features, values, unit, gradient, curvature, candidates, threshold)
    rho = _FIRST_RHO
    for _ in range(_ATTEMPTS):
        codes = model.propose(rho)
        changed = np.flatnonzero(codes != unit.codes)
        delta = (values[codes[changed]] - values[unit.codes[changed]]).astype(features.columns.dtype)
        du = unit.scale * (delta @ features.columns[changed])
        ratio, shift = _fit_affine(pre_activation - unit.bias + du, du, gradient, curvature, rho)
        moved = (1.0 + ratio) * (pre_activation - unit.bias + du) + (unit.bias + shift)
        moved = moved.astype(pre_activation.dtype)
        after = evaluate(moved)
        if after < loss - threshold:
            new = Unit(codes, unit.scale * (1.0 + ratio), unit.bias + shift)
            return UnitStep(new, moved, after, changed.size)
        rho *= _RHO_GROWTH
    return None


def _fit_affine(s: Array, du: Array, gradient: Array, curvature: Array, rho: float) -> tuple[float, float]:
    """Relative change of the scale and shift of the bias that minimise the model after ``du``."""
    slope = gradient + rho * curvature * du
    weighted = curvature * s
    A = rho * np.array(
        [[float(weighted @ s), float(weighted.sum())], [float(weighted.sum()), float(curvature.sum())]]
    )
    A[np.diag_indices(2)] += 1e-6 * np.diag(A) + 1e-12
    step = -np.linalg.solve(A, np.array([float(slope @ s), float(slope.sum())]))
    return float(np.clip(step[0], -0.5, 1.0)), float(step[1])


class _Model:
    """The quadratic model restricted to the coordinates whose single changes promise most."""

    def __init__(
        self,
        features: Features,
        values: Array,
        unit: Unit,
        g: Array,
        c: Array,
        candidates: int,
        threshold: float,
    ) -> None:
        from .unit_kernels import best_single_gain  # compiled: imported where it is used

        a, self.values, self.codes, self.threshold = unit.scale, values, unit.codes, threshold
        sample = c[: features.sample.shape[1]]
        total, seen = float(c.sum()), float(sample.sum())
        blow_up = total / seen if seen > 0.0 else 0.0
        mean = features.sample @ sample / max(seen, 1e-30)
        slopes = a * (features.columns @ g - float(g.sum()) * mean).astype(np.float64)
        bends = a * a * (blow_up * (features.squares @ sample) - total * mean**2).astype(np.float64)
        live = bends > 1e-6 * max(bends.max(initial=0.0), 1e-300)
        gains = best_single_gain(slopes, bends, unit.codes, values, _FIRST_RHO)
        order = np.argsort(np.where(live, gains, np.inf))[:candidates]
        self.kept = np.sort(order[(gains < -threshold)[order] & live[order]])
        X = features.sample[self.kept]
        self.slopes = slopes[self.kept]
        M = blow_up * ((X * sample) @ X.T) - total * np.outer(mean[self.kept], mean[self.kept])
        self.M = (a * a * M).astype(np.float64)

    def propose(self, rho: float) -> Array:
        """Codes after the greedy joint descent of the model with curvature ``rho M``."""
        from .unit_kernels import greedy_descent

        codes = self.codes.copy()
        if self.kept.size:
            codes[self.kept] = greedy_descent(
                rho * self.M, self.slopes, codes[self.kept], self.values, self.threshold
            )
        return codes
