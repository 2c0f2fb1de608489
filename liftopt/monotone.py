r"""Full-batch block descent on the lifted problem: no step raises the relaxed objective, and that is tested.

One sweep is

    V-blocks, last to first   ``V <- prox_{s lam Phi*}(V - s (g - lam u))``; ``g`` is the gradient of the
                              convex cost beyond V, and ``s`` shrinks until the quadratic majoriser holds.
                              Below squares the block is one box QP a row and is solved
    all W-blocks jointly      limited-memory quasi-Newton step on ``W -> min_V objective``, whose gradient is
                              that of the W-blocks at the present V; V is carried along with its distance
                              ``V - phi(u)`` kept, and the step counts only if the objective falls
    W-blocks, else            matching-loss regression: ``c`` bounds the cost's curvature in u, so that one
                              Cholesky factor of ``c M'SM + alpha I`` serves all neurons

The joint step is what makes descent fast: at fixed V a W-block cannot leave the targets that V sets, while
V carried along lets all layers move at once. The factors of the W-blocks are its first inverse Hessian.

Given V the W-blocks are independent: ``order="parallel"`` updates them at the same V (in threads if asked),
``"sequence"`` refreshes V_l between W_{l+1} and W_l. Multipliers are constant within a stage; descent holds
within each, because a change of multipliers is a change of objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed

from liftopt.activations import Identity, ReLU
from liftopt.layers import Conv2d, Dense
from liftopt.lifted import Blocks, LiftedProblem
from liftopt.losses import CrossEntropy, Squared, logsumexp_rows, softmax_rows
from liftopt.secant import Located, Pairs
from liftopt.solvers.box_qp import solve_box_qp
from liftopt.solvers.linear_system import SpdFactor, factor_checked
from liftopt.solvers.matching import solve_matching
from liftopt.solvers.result import Callback, Record, Run, iterate

Array = npt.NDArray[Any]
Order = Literal["parallel", "sequence"]

ORDERS = ("parallel", "sequence")
_HALVINGS = 40
_JOINT_TRIALS = 4
_REFACTOR = 10  # sweeps between two factorisations of the Gram matrices that scale the joint steps
_WEIGHT_STEPS = 4
_QP_TOL = 1e-8
_DOUBLINGS = 12
_JITTER = 1e-10  # ridge of a W-block relative to its mean curvature, where alpha is zero
_EASE = 2.0  # what a V-step tries to gain over the last accepted one
_LONGEST = 1e6  # bound on lam times a V-step, for costs without curvature


@dataclass(frozen=True)
class DescentState:
    """A point and what the next sweep remembers: V-steps, secant pairs and factors of the weights."""

    blocks: Blocks
    steps: tuple[float, ...]
    pairs: Pairs
    factors: tuple[SpdFactor, ...] = ()
    age: int = 0

    def state(self) -> dict[str, Any]:
        """The point as a tree."""
        return {
            "blocks": [self.blocks.weights, self.blocks.biases, self.blocks.values],
            "steps": self.steps,
            "pairs": self.pairs.state(),
            "factors": [[factor.lower, factor.jitter, factor.rcond] for factor in self.factors],
            "age": self.age,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> DescentState:
        """Inverse of :meth:`state`."""
        factors = tuple(SpdFactor(*parts) for parts in state["factors"])
        pairs, steps = Pairs.of_state(state["pairs"]), tuple(state["steps"])
        return cls(Blocks(*map(tuple, state["blocks"])), steps, pairs, factors, state["age"])


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
        start: Blocks | DescentState,
        *,
        max_iter: int,
        tol: float,
        callback: Callback | None = None,
        on_sweep: Callable[[DescentState], None] = lambda state: None,
        past: Sequence[Record] = (),
    ) -> Run[DescentState]:
        """Sweeps from ``start`` until the largest residual is at most ``tol``, or rounding rules.

        ``on_sweep`` receives every new state, ``callback`` every history record (true stops). A run goes on
        from one of its states with the ``past`` records before it.
        """

        def sweep(state: DescentState) -> DescentState:
            following = self.sweep(state)
            on_sweep(following)
            return following

        return iterate(
            sweep,
            DescentState(start, (1.0,) * len(start.values), Pairs()) if isinstance(start, Blocks) else start,
            measure=lambda state: self.problem.measure(state.blocks),
            max_iter=max_iter,
            tol=tol,
            stall_after=3,
            stall_rtol=1e-9,
            callback=callback,
            past=past,
        )

    def sweep(self, state: DescentState) -> DescentState:
        """One sweep; the objective of the result is at most that of ``state`` up to rounding."""
        blocks, found = state.blocks, list(state.steps)
        for layer in range(len(blocks.values) - 1, -1, -1):
            if self.order == "sequence":
                blocks = blocks.with_layer(layer + 1, *self._weights(blocks, layer + 1))
            blocks, found[layer] = self._value(blocks, layer, found[layer])
        here = self._parameters(blocks)
        pairs = state.pairs.extended(here)
        factors = state.factors
        if state.age % _REFACTOR == 0:
            layers = range(len(blocks.weights))
            factors = tuple(self._factor(self.problem.matrix(blocks, layer), layer) for layer in layers)
        moved = self._joint_step(blocks, here, pairs, factors) if len(pairs) else None
        if moved is None:
            moved = self._weight_blocks(blocks)
        return DescentState(moved, tuple(found), pairs, factors, state.age + 1)

    def _weight_blocks(self, blocks: Blocks) -> Blocks:
        """All W-blocks at the same activations; in sequence, those above the first have been solved."""
        layers = [0] if self.order == "sequence" else list(range(len(blocks.weights)))
        solve = delayed(self._weights)
        parallel = Parallel(n_jobs=self.n_jobs, prefer="threads")
        for layer, (W, b) in zip(layers, parallel(solve(blocks, i) for i in layers), strict=True):
            blocks = blocks.with_layer(layer, W, b)
        return blocks

    def _parameters(self, blocks: Blocks) -> Located:
        """Weights and biases with their gradients at the present activations, one column of rows a layer."""
        gradients = [self.problem.weight_gradient(blocks, layer) for layer in range(len(blocks.weights))]
        return Located(
            [np.vstack(pair).astype(np.float64) for pair in zip(blocks.weights, blocks.biases, strict=True)],
            [np.vstack(pair).astype(np.float64) for pair in gradients],
        )

    def _joint_step(
        self, blocks: Blocks, here: Located, pairs: Pairs, factors: tuple[SpdFactor, ...]
    ) -> Blocks | None:
        """Quasi-Newton step of all weights, activations carried along; None if nothing falls."""
        direction = pairs.direction(
            here.gradient, lambda parts: [f.solve(p) for f, p in zip(factors, parts, strict=True)]
        )
        start, length = self.problem.objective(blocks), 1.0
        for _ in range(_JOINT_TRIALS):
            moved = self._carried(
                blocks, [x - length * d for x, d in zip(here.point, direction, strict=True)]
            )
            if self.problem.objective(moved) < start:
                return moved
            length /= 4.0
        return None

    def _carried(self, blocks: Blocks, parameters: list[Array]) -> Blocks:
        """New weights, and activations that keep their distance from what enters them."""
        dtype = blocks.weights[0].dtype
        weights = [part[:-1].astype(dtype) for part in parameters]
        biases = [part[-1].astype(dtype) for part in parameters]
        moved = Blocks(tuple(weights), tuple(biases), blocks.values)
        for layer, V in enumerate(blocks.values):
            part = self.problem.maps[layer]
            before = part.activation(self.problem.linear(blocks, layer))
            after = part.activation(self.problem.linear(moved, layer))
            carried = np.clip(after + (V.reshape(before.shape) - before), *part.activation.range)
            moved = moved.with_value(layer, carried.astype(V.dtype, copy=False).reshape(V.shape))
        return moved

    def _value(self, blocks: Blocks, layer: int, step: float) -> tuple[Blocks, float]:
        """Proximal steps on the activations that leave ``layer``; returns the accepted step length."""
        problem = self.problem
        activation, lam = problem.maps[layer].activation, problem.multipliers[layer]
        u = problem.linear(blocks, layer)
        exact = self._exact_value(blocks, layer)
        if exact is not None:
            return exact, step
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

    def _exact_value(self, blocks: Blocks, layer: int) -> Blocks | None:
        """Global minimum of the last V-block below squares by box QPs; None where it is no QP."""
        problem, part = self.problem, self.problem.maps[layer]
        above = problem.maps[-1]
        quadratic = isinstance(problem.head, Squared) and isinstance(part.activation, (Identity, ReLU))
        if (
            not quadratic
            or layer + 1 < len(blocks.values)
            or above.before
            or not isinstance(above.layer, Dense)
        ):
            return None
        if isinstance(part.layer, Conv2d):
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
        return moved if problem.objective(moved) <= problem.objective(blocks) else None

    def _beyond(self, blocks: Blocks, layer: int) -> Array:
        """Cost of every sample in the layer above ``layer``, as a function of the activations between."""
        above = layer + 1
        u = self.problem.linear(blocks, above)
        return self.problem.row_cost(above, u, self.problem.leaving(blocks, above))

    def _weights(self, blocks: Blocks, layer: int) -> tuple[Array, Array]:
        """W-block of ``layer``: matching-loss regression; a line search for a head without potential."""
        problem = self.problem
        phi: Callable[[Array], Array]
        if layer < len(blocks.values):
            activation, lam = problem.maps[layer].activation, problem.multipliers[layer]
            phi, potential, bound, target = (
                activation,
                activation.potential,
                activation.lipschitz,
                blocks.values[layer].reshape(-1, blocks.weights[layer].shape[1]),
            )
        elif isinstance(problem.head, CrossEntropy):
            lam, target = 1.0, problem.target
            phi, potential, bound = softmax_rows, logsumexp_rows, problem.head.bound
        else:
            return self._searched(blocks, layer)
        M = problem.matrix(blocks, layer)
        found = solve_matching(
            M,
            target,
            phi,
            potential,
            lipschitz=bound,
            ridge=0.5 * problem.alpha / lam,
            init=(blocks.weights[layer], blocks.biases[layer]),
            sample_weight=problem.row_share(M.shape[0]),
            max_iter=_WEIGHT_STEPS,
            tol=0.0,
            on_limit="ignore",
        ).x
        dtype = M.dtype
        return found.weight.astype(dtype), found.intercept.astype(dtype)

    def _searched(self, blocks: Blocks, layer: int) -> tuple[Array, Array]:
        """W-block of ``layer``: majorised Newton direction, step doubled while the convex cost falls."""
        problem = self.problem
        W, b = blocks.weights[layer], blocks.biases[layer]
        M = problem.matrix(blocks, layer)
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


def box_values(V: Array, u: Array, T: Array, W: Array, lam: float, low: float) -> Array:
    """Rows ``v >= low`` that minimise ``lam (|v|^2 / 2 - u'v) + |T - v W|^2 / 2``, each for itself."""
    wide = W.astype(np.float64)
    hessian = wide @ wide.T
    hessian[np.diag_indices_from(hessian)] += lam
    linear = u.astype(np.float64) * lam + T.astype(np.float64) @ wide.T
    found = solve_box_qp(hessian, linear, low, np.inf, tol=_QP_TOL, init=V, on_limit="ignore").x
    return found.astype(V.dtype, copy=False)
