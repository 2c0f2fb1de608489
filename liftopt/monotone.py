r"""Full-batch block descent on the lifted problem: no step raises the relaxed objective, and that is tested.

One sweep is

    V-blocks, last to first   proximal steps or box QPs, every part of the rows for itself
                              (:mod:`liftopt.lifted_steps`)
    all W-blocks jointly      limited-memory quasi-Newton step on ``W -> min_V objective``, whose gradient is
                              that of the W-blocks at the present V; V is carried along with its distance
                              ``V - phi(u)`` kept, and the step counts only if the objective falls
    W-blocks, else            matching-loss regression: one Cholesky factor of a majorising Hessian
                              ``c M'SM + alpha I`` serves all neurons and gives the direction, in which the
                              step doubles while the convex cost falls

The joint step is what makes descent fast: at fixed V a W-block cannot leave the targets that V sets, while
V carried along lets all layers move at once. The factors of the W-blocks are its first inverse Hessian.

All sums over rows are taken by :class:`liftopt.lifted_parts.PartedProblem`, in this process or elsewhere.
Given V the W-blocks are independent: ``order="parallel"`` updates them at the same V, ``"sequence"``
refreshes V_l between W_{l+1} and W_l. Multipliers are constant within a stage; descent holds within each,
because a change of multipliers is a change of objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from liftopt.lifted_parts import PartedProblem, Point, added
from liftopt.lifted_steps import Steps, carry_values, settle_values
from liftopt.secant import Located, Pairs
from liftopt.solvers.linear_system import SpdFactor, factor_checked
from liftopt.solvers.moments import tree_reduce
from liftopt.solvers.result import Callback, Record, Run, iterate

Array = npt.NDArray[Any]
Order = Literal["parallel", "sequence"]

ORDERS = ("parallel", "sequence")
_JOINT_TRIALS = 4
_REFACTOR = 10  # sweeps between two factorisations of the Gram matrices that scale the joint steps
_WEIGHT_STEPS = 4
_DOUBLINGS = 12
_JITTER = 1e-10  # ridge of a W-block relative to its mean curvature, where alpha is zero


@dataclass(frozen=True)
class DescentState:
    """A point and what the next sweep remembers: V-steps of all parts, secant pairs, factors of weights."""

    point: Point
    steps: tuple[Steps, ...]
    pairs: Pairs
    factors: tuple[SpdFactor, ...] = ()
    age: int = 0

    def state(self) -> dict[str, Any]:
        """The point as a tree."""
        return {
            "point": [self.point.weights, self.point.biases, self.point.kept],
            "steps": self.steps,
            "pairs": self.pairs.state(),
            "factors": [[factor.lower, factor.jitter, factor.rcond] for factor in self.factors],
            "age": self.age,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> DescentState:
        """Inverse of :meth:`state`."""
        factors = tuple(SpdFactor(*parts) for parts in state["factors"])
        pairs, steps = Pairs.of_state(state["pairs"]), tuple(map(tuple, state["steps"]))
        return cls(Point(*map(tuple, state["point"])), steps, pairs, factors, state["age"])


@dataclass(frozen=True)
class BlockDescent:
    """The sweep for one :class:`~liftopt.lifted_parts.PartedProblem`.

    Parameters
    ----------
    problem : PartedProblem
        Objective, with its multipliers fixed.
    order : {"parallel", "sequence"}
        See the module.
    value_steps : int
        Proximal steps a V-block and sweep.
    """

    problem: PartedProblem
    order: Order = "parallel"
    value_steps: int = 2

    def run(
        self,
        start: Point | DescentState,
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
            self.opened(start) if isinstance(start, Point) else start,
            measure=lambda state: self.problem.measure(state.point),
            max_iter=max_iter,
            tol=tol,
            stall_after=3,
            stall_rtol=1e-9,
            callback=callback,
            past=past,
        )

    def opened(self, start: Point) -> DescentState:
        """State of a run that begins at ``start``."""
        hidden = len(self.problem.multipliers)
        return DescentState(start, ((1.0,) * hidden,) * len(self.problem.parts), Pairs())

    def sweep(self, state: DescentState) -> DescentState:
        """One sweep; the objective of the result is at most that of ``state`` up to rounding."""
        point, steps = state.point, state.steps
        hidden, layers = list(range(len(self.problem.multipliers)))[::-1], range(len(self.problem.maps))
        if self.order == "parallel":
            point, steps = self.settled(point, steps, hidden)
        else:
            for layer in hidden:
                point = self.weight_blocks(point, [layer + 1])
                point, steps = self.settled(point, steps, [layer])
        value, gradients = self.problem.first_order(point)
        here = Located(point.stacked, gradients)
        pairs, factors = state.pairs.extended(here), state.factors
        if state.age % _REFACTOR == 0:
            factors = self._factors(point, layers)
        moved = self._joint_step(point, value, here, pairs, factors) if len(pairs) else None
        if moved is None:  # in sequence the layers above the first have been solved
            moved = self.weight_blocks(point, layers if self.order == "parallel" else [0])
        return DescentState(moved, steps, pairs, factors, state.age + 1)

    def settled(
        self, point: Point, steps: tuple[Steps, ...], layers: Sequence[int]
    ) -> tuple[Point, tuple[Steps, ...]]:
        """V-blocks of ``layers`` in this order, in every part."""
        if not layers:
            return point, steps
        task = partial(settle_values, tuple(layers), self.value_steps)
        moved, found = self.problem.moved(task, point, steps)
        return moved, tuple(found)

    def weight_blocks(self, point: Point, layers: Sequence[int]) -> Point:
        """W-blocks of ``layers`` at the same activations: Newton steps with one majorising Hessian."""
        factors = self._factors(point, layers)
        lowest = dict(zip(layers, self.problem.layer_costs(point, layers), strict=True))
        for _ in range(_WEIGHT_STEPS):
            gradients = self.problem.gradients(point, layers)
            steps = {
                layer: -factor.solve(gradient)
                for layer, factor, gradient in zip(layers, factors, gradients, strict=True)
            }
            point = self._searched(point, steps, lowest)
        return point

    def _searched(self, point: Point, steps: Mapping[int, Array], lowest: dict[int, float]) -> Point:
        """Each layer as far along its step, doubled time and again, as its cost falls below ``lowest``."""
        starts, falling, length = point.stacked, list(steps), 1.0
        for _ in range(_DOUBLINGS):
            trial = point
            for layer in falling:
                trial = trial.with_layer(layer, starts[layer] + length * steps[layer])
            costs = dict(zip(falling, self.problem.layer_costs(trial, falling), strict=True))
            falling = [layer for layer in falling if costs[layer] < lowest[layer]]
            if not falling:
                break
            for layer in falling:
                lowest[layer] = costs[layer]
                point = point.with_layer(layer, starts[layer] + length * steps[layer])
            length *= 2.0
        return point

    def _joint_step(
        self, point: Point, value: float, here: Located, pairs: Pairs, factors: tuple[SpdFactor, ...]
    ) -> Point | None:
        """Quasi-Newton step of all weights, activations carried along; None if none falls below ``value``."""
        direction = pairs.direction(
            here.gradient, lambda parts: [f.solve(p) for f, p in zip(factors, parts, strict=True)]
        )
        length = 1.0
        for _ in range(_JOINT_TRIALS):
            target = point
            for layer, (x, d) in enumerate(zip(here.point, direction, strict=True)):
                target = target.with_layer(layer, x - length * d)
            moved, costs = self.problem.moved(partial(carry_values, target.weights, target.biases), point)
            moved = Point(target.weights, target.biases, moved.kept)
            if sum(tree_reduce(added, costs)) + self.problem.ridge(moved.weights) < value:
                return moved
            length /= 4.0
        return None

    def _factors(self, point: Point, layers: Sequence[int]) -> tuple[SpdFactor, ...]:
        """Cholesky factors of the majorising Hessians of W-blocks, each for all neurons of a layer."""
        factors = []
        for gram in self.problem.grams(point, layers):
            level = np.full(gram.shape[0], self.problem.alpha)
            level[-1] = 0.0
            hessian = gram.copy()
            hessian[np.diag_indices_from(hessian)] += level + _JITTER * np.trace(gram) / gram.shape[0]
            factors.append(factor_checked(hessian, 0.0))
        return tuple(factors)
