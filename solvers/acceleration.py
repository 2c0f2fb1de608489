"""Majorise-minimise steps, with Nesterov momentum that never increases the objective.

A majoriser that may be built at any point is built at the extrapolation ``p + beta (p - previous)``. If the
objective rises there, momentum restarts and the step is taken from ``p`` itself, where descent is certain
(O'Donoghue and Candes, "Adaptive restart for accelerated gradient schemes", Foundations of Computational
Mathematics 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

Point = TypeVar("Point", bound=tuple[Any, ...])


class Momentum(NamedTuple, Generic[Point]):
    """Iterate, its predecessor, the age of the momentum and the objective at ``point``."""

    point: Point
    previous: Point
    age: float
    objective: float


def at_rest(point: Point, objective: Callable[[Point], float]) -> Momentum[Point]:
    """Start without momentum."""
    return Momentum(point, point, 1.0, objective(point))


def descent_step(
    majorise: Callable[[Point], Point], objective: Callable[[Point], float], *, momentum: bool
) -> Callable[[Momentum[Point]], Momentum[Point]]:
    """Step for :func:`~liftopt.solvers.iterate` from one majorise-minimise step.

    ``Point`` is a named tuple of arrays whose entries are affine in one another, so that all of them
    extrapolate.
    """

    def step(state: Momentum[Point]) -> Momentum[Point]:
        if not momentum:
            return at_rest(majorise(state.point), objective)
        age = (1.0 + (1.0 + 4.0 * state.age**2) ** 0.5) / 2.0
        trial = majorise(_extrapolate(state.point, state.previous, (state.age - 1.0) / age))
        value = objective(trial)
        if value > state.objective and state.age > 1.0:
            trial, age = majorise(state.point), 1.0
            value = objective(trial)
        return Momentum(trial, state.point, age, value)

    return step


def _extrapolate(point: Point, previous: Point, beta: float) -> Point:
    if beta == 0.0:
        return point
    return type(point)(*(new + beta * (new - old) for new, old in zip(point, previous, strict=True)))
