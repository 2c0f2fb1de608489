r"""Full-batch block descent on the lifted problem: no step raises the relaxed objective, and that is tested.

One sweep is

    V-blocks, last to first   ``V <- prox_{s lam Phi*}(V - s (g - lam u))``; ``g`` is the gradient of the
                              convex cost beyond V, and ``s`` shrinks until the quadratic majoriser holds
    W-blocks                  along ``-(c M'SM + alpha I)^-1 gradient``: ``c`` bounds the cost's curvature in
                              u, so one Cholesky serves all neurons; the unit step descends, and longer ones
                              are taken while the convex cost along the line falls
    extrapolation             all blocks move on along their last change, if the objective falls there

Given V the W-blocks are independent: ``order="parallel"`` updates them at the same V (in threads if asked),
``"sequence"`` refreshes V_l between W_{l+1} and W_l. Multipliers are constant within a stage; descent holds
within each, because a change of multipliers is a change of objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed

from liftopt.lifted import Blocks, LiftedProblem
from liftopt.solvers.linear_system import SpdFactor, factor_checked
from liftopt.solvers.result import Callback, Run, iterate

Array = npt.NDArray[Any]
Order = Literal["parallel", "sequence"]

ORDERS = ("parallel", "sequence")
_HALVINGS = 40
_DOUBLINGS = 12
_JITTER = 1e-10  # ridge of a W-block relative to its mean curvature, where alpha is zero
_EASE = 2.0  # what a V-step tries to gain over the last accepted one
_LONGEST = 1e6  # bound on lam times a V-step, for costs without curvature


@dataclass(frozen=True)
class DescentState:
    """A point and what the next sweep remembers: V-steps and the last change of the weights."""

    blocks: Blocks
    steps: tuple[float, ...]
    previous: Blocks | None = None
    stretch: float = 1.0


@dataclass(frozen=True)
class BlockDescent:
    """The sweep for one :class:`LiftedProblem`.

    Parameters
    ----------
    problem : LiftedProblem
        Objective, with its multipliers fixed.
    order : {"parallel", "sequence"}
        See the module.
    value_steps : int
        Proximal steps a V-block and sweep.
    n_jobs : int
        Threads for the independent W-blocks.
    """

    problem: LiftedProblem
    order: Order = "parallel"
    value_steps: int = 2
    n_jobs: int = 1

    def run(
        self,
        blocks: Blocks,
        *,
        max_iter: int,
        tol: float,
        callback: Callback | None = None,
        on_sweep: Callable[[Blocks], None] = lambda blocks: None,
    ) -> Run[DescentState]:
        """Sweeps from ``blocks`` until the largest residual is at most ``tol``, or rounding rules.

        ``on_sweep`` receives every new point, ``callback`` every history record (true stops).
        """

        def sweep(state: DescentState) -> DescentState:
            following = self.sweep(state)
            on_sweep(following.blocks)
            return following

        return iterate(
            sweep,
            DescentState(blocks, (1.0,) * len(blocks.values)),
            measure=lambda state: self.problem.measure(state.blocks),
            max_iter=max_iter,
            tol=tol,
            stall_after=3,
            stall_rtol=1e-9,
            callback=callback,
        )

    def sweep(self, state: DescentState) -> DescentState:
        """One sweep; the objective of the result is at most that of ``state`` up to rounding."""
        blocks = self._extrapolate(state)
        stretch = state.stretch * 1.5 if blocks is not state.blocks else max(0.5, 0.5 * state.stretch)
        found = list(state.steps)
        for layer in range(len(blocks.values) - 1, -1, -1):
            if self.order == "sequence":
                blocks = blocks.with_layer(layer + 1, *self._weights(blocks, layer + 1))
            blocks, found[layer] = self._value(blocks, layer, found[layer])
        layers = [0] if self.order == "sequence" else list(range(len(blocks.weights)))
        solve = delayed(self._weights)
        parallel = Parallel(n_jobs=self.n_jobs, prefer="threads")
        for layer, (W, b) in zip(layers, parallel(solve(blocks, i) for i in layers), strict=True):
            blocks = blocks.with_layer(layer, W, b)
        return DescentState(blocks, tuple(found), state.blocks, stretch)

    def _extrapolate(self, state: DescentState) -> Blocks:
        """The point moved on along the last change of all blocks, if the objective falls there."""
        now, before = state.blocks, state.previous
        if before is None:
            return now

        def ahead(new: Array, old: Array) -> Array:
            return new + new.dtype.type(state.stretch) * (new - old)

        values = [
            np.clip(ahead(new, old), *part.activation.range)
            for new, old, part in zip(now.values, before.values, self.problem.maps, strict=False)
        ]
        moved = Blocks(
            tuple(map(ahead, now.weights, before.weights)),
            tuple(map(ahead, now.biases, before.biases)),
            tuple(values),
        )
        return moved if self.problem.objective(moved) < self.problem.objective(now) else now

    def _value(self, blocks: Blocks, layer: int, step: float) -> tuple[Blocks, float]:
        """Proximal steps on the activations that leave ``layer``; returns the accepted step length."""
        problem = self.problem
        activation, lam = problem.maps[layer].activation, problem.multipliers[layer]
        u = problem.linear(blocks, layer)
        for _ in range(self.value_steps):
            V = blocks.values[layer]
            cost = self._beyond(blocks, layer)
            G = problem.value_gradient(blocks, layer)
            step = min(_EASE * step, _LONGEST / lam)
            for _ in range(_HALVINGS):
                pulled = V.reshape(u.shape) - V.dtype.type(step) * (
                    G.reshape(u.shape) - V.dtype.type(lam) * u
                )
                moved = activation.prox(pulled, step * lam).astype(V.dtype, copy=False).reshape(V.shape)
                trial = blocks.with_value(layer, moved)
                change = (moved - V).reshape(V.shape[0], -1)
                slope = np.einsum("ij,ij->i", G.reshape(change.shape), change, dtype=np.float64)
                square = np.einsum("ij,ij->i", change, change, dtype=np.float64)
                bound = cost + slope + square / (2.0 * step)
                slack = 8 * np.finfo(V.dtype).eps * (1.0 + np.abs(cost))
                if problem.share @ (self._beyond(trial, layer) - bound - slack) <= 0.0:
                    blocks = trial
                    break
                step /= 2.0
        return blocks, step

    def _beyond(self, blocks: Blocks, layer: int) -> Array:
        """Cost of every sample in the layer above ``layer``, as a function of the activations between."""
        above = layer + 1
        u = self.problem.linear(blocks, above)
        return self.problem.row_cost(above, u, self.problem.leaving(blocks, above))

    def _weights(self, blocks: Blocks, layer: int) -> tuple[Array, Array]:
        """W-block of ``layer``: majorised Newton direction, step doubled while the convex cost falls."""
        problem = self.problem
        W, b = blocks.weights[layer], blocks.biases[layer]
        M = problem.maps[layer].matrix(problem.entering(blocks, layer))
        dW, db = problem.weight_gradient(blocks, layer)
        right = np.vstack([dW, db]).astype(np.float64)
        direction = -self._factor(M, layer).solve(right)
        step_W, step_b = direction[:-1].astype(W.dtype), direction[-1].astype(b.dtype)
        u, move = M @ W + b, M @ step_W + step_b
        V = problem.leaving(blocks, layer)

        def cost(length: float) -> float:
            rows = problem.row_cost(layer, u + u.dtype.type(length) * move, V)
            return float(problem.share @ rows) + problem.ridge([W + W.dtype.type(length) * step_W])

        best, length = cost(0.0), 0.0
        trial = 1.0
        for _ in range(_DOUBLINGS):
            value = cost(trial)
            if not value < best:
                break
            best, length, trial = value, trial, 2.0 * trial
        scale = W.dtype.type(length)
        return W + scale * step_W, b + scale * step_b

    def _factor(self, M: Array, layer: int) -> SpdFactor:
        """Cholesky factor of the majorising Hessian of a W-block, shared by all its neurons."""
        problem = self.problem
        last = layer == len(problem.maps) - 1
        bound = (
            problem.head.bound
            if last
            else problem.multipliers[layer] * problem.maps[layer].activation.lipschitz
        )
        ones = np.hstack([M, np.ones((M.shape[0], 1), dtype=M.dtype)])
        ones *= np.sqrt(problem.row_share(M.shape[0]))[:, None].astype(M.dtype)
        gram = bound * (ones.T @ ones).astype(np.float64)
        level = np.full(gram.shape[0], problem.alpha)
        level[-1] = 0.0
        gram[np.diag_indices_from(gram)] += level + _JITTER * np.trace(gram) / gram.shape[0]
        return factor_checked(gram, 0.0)
