r"""Steps on the activations of one part of the rows: pure functions of a lifted problem and a point of it.

The V-blocks are separable over the rows, so every part takes steps of its own length ``s``,

    ``V <- prox_{s lam Phi*}(V - s (g - lam u))``,  ``g`` the gradient of the convex cost beyond V,

which shrinks until the quadratic majoriser holds. Below squares the block is one box QP a row and is solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.activations import Identity, ReLU
from liftopt.layers import Conv2d, Dense
from liftopt.lifted import Blocks, LiftedProblem
from liftopt.losses import Squared
from liftopt.solvers.box_qp import solve_box_qp

Array = npt.NDArray[Any]
Steps = tuple[float, ...]

_HALVINGS = 40
_QP_TOL = 1e-8
_EASE = 2.0  # what a V-step tries to gain over the last accepted one
_LONGEST = 1e6  # bound on lam times a V-step, for costs without curvature


def settle_values(
    layers: Sequence[int], count: int, problem: LiftedProblem, blocks: Blocks, steps: Steps
) -> tuple[Blocks, Steps]:
    """``count`` proximal steps, or an exact solution, on the activations that leave each of ``layers``.

    Returns the point and the accepted step lengths.
    """
    found = list(steps)
    for layer in layers:
        exact = _exact_value(problem, blocks, layer)
        if exact is not None:
            blocks = exact
            continue
        for _ in range(count):
            blocks, found[layer] = _proximal_step(problem, blocks, layer, found[layer])
    return blocks, tuple(found)


def carry_values(
    weights: tuple[Array, ...], biases: tuple[Array, ...], problem: LiftedProblem, blocks: Blocks
) -> tuple[Blocks, tuple[float, ...]]:
    """New weights, and activations that keep their distance ``V - phi(u)``; returns the costs too."""
    moved = Blocks(weights, biases, blocks.values)
    for layer, V in enumerate(blocks.values):
        part = problem.maps[layer]
        before = part.activation(problem.linear(blocks, layer))
        after = part.activation(problem.linear(moved, layer))
        carried = np.clip(after + (V.reshape(before.shape) - before), *part.activation.range)
        moved = moved.with_value(layer, carried.astype(V.dtype, copy=False).reshape(V.shape))
    return moved, problem.costs(moved)


def _proximal_step(problem: LiftedProblem, blocks: Blocks, layer: int, step: float) -> tuple[Blocks, float]:
    """One proximal step on the activations that leave ``layer``, shortened until the majoriser holds."""
    activation, lam = problem.maps[layer].activation, problem.multipliers[layer]
    u, V = problem.linear(blocks, layer), blocks.values[layer]
    cost, G = _beyond(problem, blocks, layer), problem.value_gradient(blocks, layer)
    step = min(_EASE * step, _LONGEST / lam)
    for _ in range(_HALVINGS):
        pulled = V.reshape(u.shape) - V.dtype.type(step) * (G.reshape(u.shape) - V.dtype.type(lam) * u)
        moved = activation.prox(pulled, step * lam).astype(V.dtype, copy=False).reshape(V.shape)
        trial = blocks.with_value(layer, moved)
        change = (moved - V).reshape(V.shape[0], -1)
        slope = np.einsum("ij,ij->i", G.reshape(change.shape), change, dtype=np.float64)
        square = np.einsum("ij,ij->i", change, change, dtype=np.float64)
        bound = cost + slope + square / (2.0 * step)
        slack = 8 * np.finfo(V.dtype).eps * (1.0 + np.abs(cost))
        if problem.share @ (_beyond(problem, trial, layer) - bound - slack) <= 0.0:
            return trial, step
        step /= 2.0
    return blocks, step


def _exact_value(problem: LiftedProblem, blocks: Blocks, layer: int) -> Blocks | None:
    """Global minimum of the last V-block below squares by box QPs; None where it is no QP, or no gain."""
    part, above = problem.maps[layer], problem.maps[-1]
    if (
        not isinstance(problem.head, Squared)
        or not isinstance(part.activation, (Identity, ReLU))
        or layer + 1 < len(blocks.values)
        or above.before
        or not isinstance(above.layer, Dense)
        or isinstance(part.layer, Conv2d)
    ):
        return None
    V = box_values(
        blocks.values[layer],
        problem.linear(blocks, layer),
        problem.target - blocks.biases[-1],
        blocks.weights[-1],
        problem.multipliers[layer],
        part.activation.range[0],
    )
    moved = blocks.with_value(layer, V)
    return moved if sum(problem.costs(moved)) <= sum(problem.costs(blocks)) else None


def _beyond(problem: LiftedProblem, blocks: Blocks, layer: int) -> Array:
    """Cost of every sample in the layer above ``layer``, as a function of the activations between."""
    above = layer + 1
    return problem.row_cost(above, problem.linear(blocks, above), problem.leaving(blocks, above))


def box_values(V: Array, u: Array, T: Array, W: Array, lam: float, low: float) -> Array:
    """Rows ``v >= low`` that minimise ``lam (|v|^2 / 2 - u'v) + |T - v W|^2 / 2``, each for itself."""
    wide = W.astype(np.float64)
    hessian = wide @ wide.T
    hessian[np.diag_indices_from(hessian)] += lam
    linear = u.astype(np.float64) * lam + T.astype(np.float64) @ wide.T
    found = solve_box_qp(hessian, linear, low, np.inf, tol=_QP_TOL, init=V, on_limit="ignore").x
    return found.astype(V.dtype, copy=False)
