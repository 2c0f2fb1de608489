"""The lifted problem over all rows as a sum over parts of them, each worked on wherever an executor says.

Everything that block descent needs is either separable over the rows (activations) or a sum over them (costs,
gradients, Gram matrices, residuals). A *part* is a range of rows: in memory a :class:`LiftedProblem`, beyond
memory a :class:`liftopt.lifted_store.StoredRows` whose rows and activations lie in files. Tasks are pure
functions of a part, the weights and the part's activations; sums are merged in the tree that the number of
parts fixes, so that neither the executor nor the number of workers changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from liftopt.executor import Executor, ThreadExecutor
from liftopt.lifted import Blocks, LiftedProblem, Weighted
from liftopt.linear_maps import LinearMap
from liftopt.losses import Head
from liftopt.solvers.result import Measure

Array = npt.NDArray[Any]

_PART_ROWS = 10_000  # in memory


class Part(Protocol):
    """Rows of the problem, and the keeper of their activations."""

    @property
    def maps(self) -> Sequence[LinearMap]:
        """Layers."""

    @property
    def head(self) -> Head:
        """Loss."""

    @property
    def multipliers(self) -> tuple[float, ...]:
        """Of the penalties."""

    @property
    def alpha(self) -> float:
        """Of the ridge."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    def load(self) -> LiftedProblem:
        """The problem on the rows of the part."""

    def opened(self, kept: Any) -> tuple[Array, ...]:
        """Activations that were kept."""

    def keep(self, values: tuple[Array, ...]) -> Any:
        """Keep activations; returns what :meth:`opened` needs."""

    def stored_as(self, problem: LiftedProblem) -> Part:
        """Part that holds the rows of ``problem``, where this one holds its own."""


@dataclass(frozen=True)
class Point:
    """A point of the lifted problem: weights, biases, and where the activations of every part are kept."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    kept: tuple[Any, ...] = ()

    def with_layer(self, layer: int, stacked: Array) -> Point:
        """Copy with layer ``layer``'s weights, over its bias, replaced."""
        weights, biases = list(self.weights), list(self.biases)
        dtype = weights[layer].dtype
        weights[layer], biases[layer] = stacked[:-1].astype(dtype), stacked[-1].astype(dtype)
        return replace(self, weights=tuple(weights), biases=tuple(biases))

    @property
    def stacked(self) -> list[Array]:
        """Weights over biases of every layer, float64."""
        pairs = zip(self.weights, self.biases, strict=True)
        return [np.vstack(pair).astype(np.float64) for pair in pairs]


@dataclass(frozen=True)
class PartedProblem:
    """Sum of the lifted problems of all parts.

    Parameters
    ----------
    parts : tuple of Part
        With the same layers, head and penalties; their means are over the rows of all.
    executor : Executor
        Works on them.
    """

    parts: tuple[Part, ...]
    executor: Executor

    @property
    def maps(self) -> Sequence[LinearMap]:
        """The layers."""
        return self.parts[0].maps

    @property
    def head(self) -> Head:
        """Loss of the last pre-activation."""
        return self.parts[0].head

    @property
    def multipliers(self) -> tuple[float, ...]:
        """Of the hidden layers' penalties."""
        return self.parts[0].multipliers

    @property
    def alpha(self) -> float:
        """Ridge on the weights."""
        return self.parts[0].alpha

    @property
    def n_rows(self) -> int:
        """Number of rows of all parts."""
        return sum(part.n_rows for part in self.parts)

    def penalised(self, **changes: Any) -> PartedProblem:
        """The same rows with other ``multipliers`` or ``alpha``."""
        return replace(self, parts=tuple(replace(part, **changes) for part in self.parts))  # type: ignore[type-var]

    def total(self, function: Callable[[LiftedProblem, Blocks], Any], point: Point) -> Any:
        """Sum over the parts of a pure ``function``, whose values are numbers, arrays or tuples of them."""
        items = list(zip(self.parts, point.kept, strict=True))
        return self.executor.reduce(partial(_summed, function, point.weights, point.biases), added, items)

    def moved(
        self, function: Callable[..., tuple[Blocks, Any]], point: Point, extras: Sequence[Any] | None = None
    ) -> tuple[Point, list[Any]]:
        """Point whose activations ``function`` has set on every part, and what else it returns for each.

        ``extras`` holds one more argument for every part.
        """
        further = [()] * len(self.parts) if extras is None else [(extra,) for extra in extras]
        items = list(zip(self.parts, point.kept, further, strict=True))
        task = partial(_moved, function, point.weights, point.biases)
        found = list(self.executor.map(task, items))
        return replace(point, kept=tuple(kept for kept, _ in found)), [other for _, other in found]

    def forward(self, point: Weighted) -> Point:
        """The point whose activations are those of the network: every penalty is zero."""
        blank = Point(point.weights, point.biases, ((),) * len(self.parts))
        return self.moved(_forward, blank)[0]

    def head_only(self, point: Weighted) -> PartedProblem:
        """The convex problem of the last layer on the network's own features."""
        parts = self.executor.map(partial(_head_of, Point(point.weights, point.biases)), self.parts)
        return replace(self, parts=tuple(parts))

    def costs(self, point: Point) -> tuple[float, ...]:
        """Weighted mean penalty of every hidden layer (times its multiplier), then the lifted loss."""
        costs: tuple[float, ...] = self.total(LiftedProblem.costs, point)
        return costs

    def ridge(self, weights: Sequence[Array]) -> float:
        """``(alpha/2) sum |W|^2``."""
        return 0.5 * self.alpha * sum(float(np.vdot(W, W)) for W in weights)

    def first_order(self, point: Point) -> tuple[float, list[Array]]:
        """The relaxed objective, and its gradients by the weights over the biases of every layer."""
        costs, slopes = self.total(_costs_and_slopes, point)
        gradients = self._ridged(point, range(len(self.maps)), slopes)
        return sum(costs) + self.ridge(point.weights), gradients

    def gradients(self, point: Point, layers: Sequence[int]) -> list[Array]:
        """Gradients of the objective by the weights over the biases of ``layers``."""
        slopes = self.total(partial(_of_layers, LiftedProblem.slope, tuple(layers)), point)
        return self._ridged(point, layers, slopes)

    def grams(self, point: Point, layers: Sequence[int]) -> tuple[Array, ...]:
        """Majorising Hessians of ``layers``, without the ridge."""
        found: tuple[Array, ...] = self.total(partial(_of_layers, LiftedProblem.gram, tuple(layers)), point)
        return found

    def layer_costs(self, point: Point, layers: Sequence[int]) -> list[float]:
        """What each of ``layers`` adds to the objective, its ridge included."""
        costs = self.total(partial(_of_layers, LiftedProblem.cost, tuple(layers)), point)
        return [cost + self.ridge([point.weights[i]]) for i, cost in zip(layers, costs, strict=True)]

    def measure(self, point: Point) -> Measure:
        """Objective, block residuals and the parts of the objective, as reported every sweep.

        The residual ``values`` is the root mean square of ``V - phi(u - gradient / lam)`` over a layer's
        activations, the largest one; ``weights`` the largest norm of a W-block's gradient.
        """
        (*penalties, lifted), slopes, misfits, forward = self.total(_measured, point)
        ridge = self.ridge(point.weights)
        gradients = self._ridged(point, range(len(self.maps)), slopes)
        residuals = [float(np.sqrt(square / count)) for square, count in misfits]
        return Measure(
            lifted + sum(penalties) + ridge,
            {
                "values": max(residuals, default=0.0),
                "weights": max(float(np.linalg.norm(gradient)) for gradient in gradients),
            },
            {
                "lifted_loss": lifted,
                "forward_loss": forward,
                "gap": forward - lifted,
                "penalties": tuple(penalties),
                "ridge": ridge,
            },
        )

    def _ridged(self, point: Point, layers: Sequence[int], slopes: Sequence[Array]) -> list[Array]:
        """``slopes`` with the gradient of the ridge, which spares the biases."""
        gradients = [slope.copy() for slope in slopes]
        for gradient, layer in zip(gradients, layers, strict=True):
            gradient[:-1] += self.alpha * point.weights[layer]
        return gradients


def in_parts(problem: LiftedProblem, threads: int = 1) -> PartedProblem:
    """The rows of ``problem`` in parts of some thousands in memory, worked on by ``threads``."""
    n = problem.X.shape[0]
    if n <= _PART_ROWS:
        return PartedProblem((problem,), ThreadExecutor(1))
    whole = replace(problem, total=problem.mass)
    edges = np.linspace(0, n, -(-n // _PART_ROWS) + 1).astype(int)
    parts = tuple(whole.rows(slice(start, stop)) for start, stop in pairwise(edges))
    return PartedProblem(parts, ThreadExecutor(threads))


def added(first: Any, second: Any) -> Any:
    """Sums of tuples entry by entry."""
    if isinstance(first, tuple):
        return tuple(map(added, first, second))
    return first + second


def _summed(
    function: Callable[[LiftedProblem, Blocks], Any],
    weights: tuple[Array, ...],
    biases: tuple[Array, ...],
    item: tuple[Part, Any],
) -> Any:
    part, kept = item
    return function(part.load(), Blocks(weights, biases, part.opened(kept)))


def _moved(
    function: Callable[..., tuple[Blocks, Any]],
    weights: tuple[Array, ...],
    biases: tuple[Array, ...],
    item: tuple[Part, Any, tuple[Any, ...]],
) -> tuple[Any, Any]:
    part, kept, extra = item
    blocks, other = function(part.load(), Blocks(weights, biases, part.opened(kept)), *extra)
    return part.keep(blocks.values), other


def _forward(problem: LiftedProblem, blocks: Blocks) -> tuple[Blocks, None]:
    return problem.forward(blocks.weights, blocks.biases), None


def _head_of(point: Point, part: Part) -> Part:
    return part.stored_as(part.load().head_of(point))


def _of_layers(
    function: Callable[[LiftedProblem, Blocks, int], Any],
    layers: tuple[int, ...],
    problem: LiftedProblem,
    blocks: Blocks,
) -> tuple[Any, ...]:
    return tuple(function(problem, blocks, layer) for layer in layers)


def _costs_and_slopes(problem: LiftedProblem, blocks: Blocks) -> tuple[Any, ...]:
    return problem.costs(blocks), tuple(problem.slope(blocks, layer) for layer in range(len(problem.maps)))


def _measured(problem: LiftedProblem, blocks: Blocks) -> tuple[Any, ...]:
    """Costs, slopes, misfits and the forward loss."""
    costs, slopes = _costs_and_slopes(problem, blocks)
    forward = problem.forward_loss(blocks)
    return costs, slopes, tuple(problem.misfit(blocks, i) for i in range(len(blocks.values))), forward
