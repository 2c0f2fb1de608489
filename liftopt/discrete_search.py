"""Full-loss search over the stages of a discrete network: hidden units by verified joint changes, the head.

    minimise  L = sum_n w_n loss(z_n, y_n)   over the codes, scales and biases of all layers

One sweep visits the units of every hidden stage (:func:`~liftopt.solvers.unit_search.improve_unit`: scored
by one backward pass, changed jointly in a quadratic model, verified by pushing the change forward), then
the head (:class:`~liftopt.solvers.softmax_search.SoftmaxSearch`, or least squares for regression). The loss
on the rows of a stage falls with every accepted step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from liftopt.checkpoint import State, random_bits, restore_bits
from liftopt.discrete_stages import (
    Stage,
    adjoint,
    discrete_regression,
    linear_inputs,
    positions,
    pull_unit,
    push_unit,
    replaced,
    unit_shape,
)
from liftopt.solvers.moments import moments
from liftopt.solvers.softmax_search import DiscreteAffine, SearchPoint, SoftmaxSearch
from liftopt.solvers.unit_search import Features, Unit, improve_unit

Array = npt.NDArray[Any]

_SAMPLE = 8192
_MAX_FLOATS = 2**27  # of inputs and outputs of one stage: more rows are not searched on
_CANDIDATES = 128


class Objective(NamedTuple):
    """Summed loss of outputs ``Z`` (n, K): cross-entropy of the softmax, or squared error over ``spread``.

    ``target`` (n, K); ``weight`` (n,) or None; ``spread`` (K,) variances of the targets, None for the
    cross-entropy.
    """

    target: Array
    weight: Array | None = None
    spread: Array | None = None

    def rows(self, count: int) -> Objective:
        """The first ``count`` rows."""
        return Objective(
            self.target[:count], None if self.weight is None else self.weight[:count], self.spread
        )

    def value(self, Z: Array) -> float:
        """Summed loss, accumulated in float64."""
        if self.spread is None:
            top = Z.max(axis=1, keepdims=True)
            losses = np.log(np.exp(Z - top).sum(axis=1)) + top[:, 0]
            losses = losses - np.einsum("nk,nk->n", self.target, Z)
        else:
            losses = ((Z - self.target) ** 2 / (2 * self.spread)).sum(axis=1)
        weighted = losses if self.weight is None else losses * self.weight
        return float(weighted.sum(dtype=np.float64))

    def derivatives(self, Z: Array) -> tuple[Array, Array]:
        """Gradient and diagonal curvature with respect to ``Z``."""
        if self.spread is None:
            Q = special.softmax(Z, axis=1)
            G, C = Q - self.target, Q * (1 - Q)
        else:
            G = ((Z - self.target) / self.spread).astype(Z.dtype)
            C = np.broadcast_to((1 / self.spread).astype(Z.dtype), Z.shape)
        if self.weight is not None:
            weight = self.weight[:, None].astype(Z.dtype)
            G, C = G * weight, C * weight
        return G, C

    def curvature_along(self, Z: Array, direction: Array) -> Array:
        """Second derivative of each row's loss along ``direction`` (K,)."""
        if self.spread is None:
            Q = special.softmax(Z, axis=1)
            c = (Q * (direction - (Q @ direction)[:, None]) ** 2).sum(axis=1)  # no cancellation
        else:
            c = np.full(Z.shape[0], (direction**2 / self.spread).sum(), dtype=Z.dtype)
        return c if self.weight is None else c * self.weight.astype(Z.dtype)


class Sweep(NamedTuple):
    """Outcome of one sweep: stages, summed loss of the head's search, changed entries."""

    stages: list[Stage]
    loss: float
    changes: int


class NetworkSearch:
    """The rows and settings of a search, with what stays the same from sweep to sweep.

    Parameters
    ----------
    X : ndarray of shape (n, *shape)
        Inputs of the first stage, rows in random order.
    objective : Objective
        Loss on the same rows.
    threshold : float
        Least gain of a change of the summed loss.
    random_state : int
        Seed of the orders.
    """

    def __init__(self, X: Array, objective: Objective, threshold: float, random_state: int) -> None:
        self.X, self.objective, self.threshold = X, objective, threshold
        self.rng = np.random.default_rng(random_state)
        self._linear: SoftmaxSearch | None = None
        self._point: SearchPoint | None = None

    def state(self) -> State:
        """What the sweeps after this one depend on, beside the stages."""
        point = None if self._point is None else [self._point.products, self._point.loss]
        return {"random": random_bits(self.rng), "point": point}

    def restore(self, state: State, stages: list[Stage]) -> None:
        """Return to a :meth:`state` with the stages of that time."""
        restore_bits(self.rng, state["random"])
        if state["point"] is not None:
            self._point = SearchPoint(DiscreteAffine(stages[-1].weights, stages[-1].bias), *state["point"])

    def sweep(self, stages: list[Stage]) -> Sweep:
        """Visit all hidden units, then the head."""
        stages, V, changes = list(stages), self.X, 0
        for index in range(len(stages) - 1):
            found = _StageSearch(stages, index, V, self.objective, self.threshold)
            changes += found.run(self.rng)
            stages[index] = found.stage
            V = stages[index](V)
        before = stages[-1].weights.codes
        stages[-1] = (
            self._softmax_head(stages[-1], V)
            if self.objective.spread is None
            else self._least_squares_head(stages[-1], V)
        )
        loss = self.objective.value(stages[-1].numbers().linear(V))
        return Sweep(stages, loss, changes + int((stages[-1].weights.codes != before).sum()))

    def _softmax_head(self, stage: Stage, V: Array) -> Stage:
        search, start = self._linear, self._point
        if search is None or V is not self.X:
            target, weight = self.objective.target, self.objective.weight
            search = SoftmaxSearch(V, target, stage.weights.values, weights=weight, threshold=self.threshold)
        if start is None or start.x.weights is not stage.weights:
            start = search.at(DiscreteAffine(stage.weights, stage.bias))
        found, _ = search.sweep(start, self.rng)
        best = found if found.loss < start.loss else start
        if V is self.X:  # a linear model: the next sweep has the same inputs and starts here
            self._linear, self._point = search, best
        return replace(stage, weights=best.x.weights, bias=best.x.bias)

    def _least_squares_head(self, stage: Stage, V: Array) -> Stage:
        statistics = moments(V, self.objective.target, sample_weight=self.objective.weight)
        found, bias = discrete_regression(statistics, stage.weights.values, stage.weights)
        return replaced(stage, found.codes, found.scale, bias)


class _StageSearch:
    """Units of one hidden stage, with the state of the stages after it.

    ``pre`` (units, n, *positions) are the stage's pre-activations, ``later[i]`` those of stage ``index + 1
    + i``.
    """

    def __init__(
        self, stages: list[Stage], index: int, V: Array, objective: Objective, threshold: float
    ) -> None:
        self.stage, self.later_stages, self.threshold = stages[index], stages[index + 1 :], threshold
        layer = self.stage.layer
        size = positions(layer, V.shape[1:]) * sum(unit_shape(layer))
        V = V[: max(1, _MAX_FLOATS // size)]
        self.objective = objective.rows(V.shape[0])
        columns = np.ascontiguousarray(linear_inputs(layer, V).T)
        self.features = Features(columns, min(_SAMPLE, columns.shape[1]))
        self.layers = [stage.numbers() for stage in self.later_stages]
        units = self.stage.weights.units().astype(V.dtype)
        scale, bias = self.stage.weights.scale.astype(V.dtype), self.stage.bias.astype(V.dtype)
        shape = layer.output_shape(V.shape[1:])[1:]
        self.pre = ((units.T @ columns) * scale[:, None] + bias[:, None]).reshape(-1, V.shape[0], *shape)
        self.later = self._forward(self._first_later())
        self.loss = self.objective.value(self.later[-1])

    def _first_later(self) -> Array:
        """Pre-activations of the next stage."""
        out = np.moveaxis(self.stage.layer.activation(self.pre), 0, 1)
        for step in self.stage.after:
            out = step(out)
        return self.layers[0].linear(out)

    def _forward(self, first: Array) -> list[Array]:
        """Pre-activations of all later stages from those of the next one."""
        pre = [first]
        for stage, layer in zip(self.later_stages, self.layers[1:], strict=False):
            out = stage.layer.activation(pre[-1])
            for step in stage.after:
                out = step(out)
            pre.append(layer.linear(out))
        return pre

    def _backward(self) -> tuple[Array, Array]:
        """Gradient and Gauss-Newton diagonal with respect to the next stage's pre-activations."""
        G, C = self.objective.derivatives(self.later[-1])
        for i in range(len(self.layers) - 1, 0, -1):
            stage, pre = self.later_stages[i - 1], self.later[i - 1]
            shapes = [pre.shape[1:]]
            for step in stage.after:
                shapes.append(step.output_shape(shapes[-1]))
            steps: list[Any] = [*stage.after, self.layers[i]]
            for step, shape in zip(reversed(steps), reversed(shapes), strict=True):
                G, C = adjoint(step, G, shape, 1), adjoint(step, C, shape, 2)
            slope = stage.layer.activation.derivative(pre)
            G, C = G * slope, C * slope**2
        return G, C

    def run(self, rng: np.random.Generator) -> int:
        """Improve every unit once in random order; returns the number of changed entries."""
        weights, bias = self.stage.weights, self.stage.bias.copy()
        codes, scale = weights.codes.copy(), weights.scale.copy()
        changes, fresh = 0, True
        for h in rng.permutation(scale.size):
            if fresh:
                G, C = self._backward()
            step = self._improve(h, Unit(codes[:, h], float(scale[h]), float(bias[h])), G, C)
            fresh = step is not None
            if step is None:
                continue
            codes[:, h], scale[h], bias[h] = step.unit.codes, step.unit.scale, step.unit.bias
            self._accept(h, step.pre_activation.reshape(self.pre[h].shape))
            self.loss, changes = step.loss, changes + step.changes
        self.stage = replaced(self.stage, codes, scale, bias)
        return changes

    def _improve(self, h: int, unit: Unit, G: Array, C: Array) -> Any:
        u, activation = self.pre[h], self.stage.layer.activation
        slope, now = activation.derivative(u), activation(u)
        shape = u.shape[1:]
        g = pull_unit(self.stage, self.layers[0], h, G, shape, 1) * slope
        if len(self.layers) == 1 and not shape:
            c = self.objective.curvature_along(self.later[0], self.layers[0].weight[h])
        else:
            c = pull_unit(self.stage, self.layers[0], h, C, shape, 2)
        c = c * slope**2

        def evaluate(moved: Array) -> float:
            change = activation(moved.reshape(u.shape)) - now
            pushed = push_unit(self.stage, self.layers[0], h, change)
            return self.objective.value(self._forward(self.later[0] + pushed)[-1])

        flat = (u.ravel(), g.ravel(), c.ravel())
        return improve_unit(
            self.features,
            self.stage.weights.values,
            unit,
            *flat,
            evaluate,
            self.loss,
            threshold=self.threshold,
            candidates=_CANDIDATES,
        )

    def _accept(self, h: int, moved: Array) -> None:
        activation = self.stage.layer.activation
        change = activation(moved) - activation(self.pre[h])
        self.later = self._forward(self.later[0] + push_unit(self.stage, self.layers[0], h, change))
        self.pre[h] = moved


def network_scores(lead: list[Any], stages: list[Stage], X: Array) -> Array:
    """Outputs before the head's activation."""
    for step in lead:
        X = step(X)
    for stage in stages[:-1]:
        X = stage(X)
    return stages[-1].numbers().linear(X)
