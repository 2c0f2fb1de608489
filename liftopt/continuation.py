"""The run around the monotone block descent: stages of the multipliers, a path of ridges, refit of the head.

Every stage minimises one relaxed objective from the last stage's point. The ridge falls along a path, as the
loss of a strongly regularised network is the easier one, until held-out rows see little gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.checkpoint import State
from liftopt.lifted import LiftedProblem
from liftopt.lifted_parts import PartedProblem, Point
from liftopt.losses import CrossEntropy, Squared
from liftopt.monotone import ORDERS, BlockDescent, DescentState, Order
from liftopt.solvers.least_squares import solve_ridge
from liftopt.solvers.result import Callback, Record
from liftopt.solvers.softmax import solve_softmax_regression

Array = npt.NDArray[Any]
Following = Callable[[PartedProblem, Point], tuple[float, ...]]

SCHEDULES = ("fixed", "geometric", "increasing", "augmented")
_STAGES = 4
_GROWTH = 2.0
_REFIT_STEPS, _REFIT_TOL = 50, 1e-5
_PATIENCE = 30
_PATH_GAIN = 0.95  # held-out loss of a weaker ridge relative to the stronger ones
SAMPLE_ROWS = 10_000  # of more than twice as many, a sample settles the ridge and the first sweeps


@dataclass(frozen=True)
class Descent:
    """Settings of :func:`descend_lifted`.

    Parameters
    ----------
    multiplier : float
        Penalty weight of the first hidden layer's constraint.
    schedule : {"fixed", "geometric", "increasing", "augmented"}
        The same for all layers; doubled from layer to layer toward the output; in four stages from a quarter
        of it, doubled at each; or in four stages by dual ascent, growing where the penalty is largest.
    order : {"parallel", "sequence"}
        Of the W-blocks.
    max_iter : int
        Sweeps for every ridge.
    ridges : tuple of float
        Weights of the ridge, each started from the last; with held-out rows the path ends where they say so.
    tol : float
        Bound on the block residuals (:meth:`PartedProblem.measure`).
    keeps_ridge : bool
        Whether the ridge of a sample is that of all rows, too; else it shrinks as they grow in number.
    """

    multiplier: float
    schedule: str
    order: Order
    max_iter: int
    tol: float
    ridges: tuple[float, ...]
    keeps_ridge: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"multiplier_schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
            )
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")

    @property
    def stages(self) -> int:
        """Objectives minimised one after the other."""
        return min(_STAGES, self.max_iter) if self.schedule in ("increasing", "augmented") else 1

    def start(self, hidden: int) -> tuple[float, ...]:
        """Multipliers of the first stage."""
        if self.schedule == "geometric":
            return tuple(self.multiplier * _GROWTH**layer for layer in range(hidden))
        return (self.multiplier / (_STAGES if self.schedule == "increasing" else 1.0),) * hidden

    def following(self, problem: PartedProblem, point: Point) -> tuple[float, ...]:
        """Multipliers of the next stage."""
        if self.schedule == "increasing":
            return tuple(_GROWTH * lam for lam in problem.multipliers)
        gaps = [cost / lam for cost, lam in zip(problem.costs(point), problem.multipliers, strict=False)]
        largest = max(gaps, default=0.0)
        return tuple(
            lam * (1.0 + (gap / largest if largest > 0.0 else 0.0))
            for lam, gap in zip(problem.multipliers, gaps, strict=True)
        )


class Outcome:
    """What :func:`descend_lifted` has reached, kept up to date so that an interrupted run leaves it.

    Parameters
    ----------
    point : Point
        The start, then the last point.
    judge : callable, optional
        Loss of a point on held-out rows: ``best`` is the point where it was lowest, and a run is finished
        when it has not fallen for thirty sweeps. Without it the last point is the best.
    save : callable, optional
        Called after every sweep with :meth:`state`, from which the descent can go on.
    """

    def __init__(
        self,
        point: Point,
        judge: Callable[[Point], float] | None = None,
        save: Callable[[Callable[[], State]], None] = lambda state: None,
    ) -> None:
        self.point = self.best = point
        self.n_iter = 0
        self.lowest = np.inf
        self.idle = 0
        self._judge, self._save = judge, save
        self._records: list[Record] = []  # of the run in progress
        self._finished: list[State] = []  # what the runs before it left
        self._recalled: State | None = None

    def run(
        self, descent: BlockDescent, following: Following, callback: Callback, **budget: Any
    ) -> tuple[float, ...]:
        """Sweep until the run ends, and return the multipliers that follow.

        A run that a checkpoint has behind it is recalled, not repeated.
        """
        recalled, self._records = self._recalled, []
        start: Point | DescentState = self.point
        if recalled is not None and len(self._finished) < len(recalled["finished"]):
            found = recalled["finished"][len(self._finished)]
            self._return_to(found)
            multipliers = tuple(found["multipliers"])
        else:
            past: list[Record] = []
            if recalled is not None:
                start, past = DescentState.of_state(recalled["descent"]), recalled["past"]
                self._return_to(recalled["now"])
                self._records, self._recalled = list(past), None

            def watch(record: Record) -> bool:
                self._records.append(record)
                return bool(callback(record))

            end = descent.run(start, callback=watch, on_sweep=self.accept, past=past, **budget)
            self.point = end.state.point
            multipliers = following(descent.problem, self.point)
        self._finished.append({**self._present(), "multipliers": multipliers})
        return multipliers

    def accept(self, state: DescentState) -> None:
        """Take the point of one more sweep."""
        self.point, self.n_iter = state.point, self.n_iter + 1
        self.offer(state.point)
        self._save(partial(self.state, state))

    def offer(self, point: Point) -> bool:
        """Keep ``point`` as the best if held-out rows agree (or there are none)."""
        loss = -np.inf if self._judge is None else self._judge(point)
        better = self._judge is None or loss < self.lowest
        self.idle = 0 if better else self.idle + 1
        if better:
            self.best, self.lowest = point, loss
        return better

    def state(self, now: DescentState) -> State:
        """What the descent after the sweep that led to ``now`` depends on."""
        parts = {"descent": now.state(), "past": self._records}
        return {**parts, "now": self._present(), "finished": self._finished}

    def go_on_from(self, state: State | None) -> None:
        """Recall a :meth:`state` as the runs come by; None for a fresh start."""
        self._recalled = state

    def _present(self) -> State:
        """Best point and counts; activations follow from the weights."""
        best = [self.best.weights, self.best.biases]
        return {"best": best, "counts": [self.lowest, self.idle, self.n_iter]}

    def _return_to(self, present: State) -> None:
        weights, biases = present["best"]
        self.best = Point(tuple(weights), tuple(biases))
        self.lowest, self.idle, self.n_iter = present["counts"]


def sample_stride(n_rows: int) -> int:
    """Stride of the rows that settle the ridge and the first sweeps; 1 for all of them."""
    return max(1, n_rows // SAMPLE_ROWS)


def descend_lifted(
    few: PartedProblem, rest: PartedProblem | None, outcome: Outcome, settings: Descent, report: Callback
) -> None:
    """Minimise the lifted objective from ``outcome.point``, then refit the head on true forward features.

    ``outcome`` is filled as the sweeps go. Held-out rows, if it has any, end the path of ridges and decide
    about the refit. The path is followed on ``few`` rows; then all of them, ``rest``, if there are more, take
    over from its best point for half as many sweeps, with a ridge that is smaller by the ratio of the numbers
    of rows unless it is given.
    """
    outcome.point = few.forward(outcome.point)
    chosen, interrupted = _descend_path(few, outcome, settings, report)
    if rest is not None:
        alpha = chosen.alpha * (1.0 if settings.keeps_ridge else few.n_rows / rest.n_rows)
        chosen = rest.penalised(alpha=alpha, multipliers=chosen.multipliers)
        outcome.point, outcome.idle = chosen.forward(outcome.best), 0
        if not interrupted:
            last = replace(settings, max_iter=max(1, settings.max_iter // 2))
            _descend_stages(chosen, outcome, last, report)
    outcome.offer(refit_head(chosen, outcome.best))


def _descend_path(
    problem: PartedProblem, outcome: Outcome, settings: Descent, report: Callback
) -> tuple[PartedProblem, bool]:
    """Descent for every ridge while held-out rows gain; the last of them, and whether the user stopped."""
    chosen = problem
    for ridge in settings.ridges:
        problem = problem.penalised(alpha=ridge, multipliers=settings.start(len(problem.multipliers)))
        before, lowest = outcome.best, outcome.lowest
        outcome.idle = 0
        interrupted = _descend_stages(problem, outcome, settings, report)
        if outcome.lowest > _PATH_GAIN * lowest:
            outcome.best, outcome.lowest = before, lowest
            break
        chosen = problem
        if interrupted:
            return chosen, True
    return chosen, False


def _descend_stages(problem: PartedProblem, outcome: Outcome, settings: Descent, report: Callback) -> bool:
    """Descent through the stages of the multipliers; returns whether the user's callback stopped it."""
    asked: list[bool] = []

    def watch(record: Record) -> bool:
        asked.append(bool(report(record)))
        return asked[-1] or outcome.idle >= _PATIENCE

    stages = settings.stages
    for stage in range(stages):
        rest = settings.max_iter % stages if stage == stages - 1 else 0
        multipliers = outcome.run(
            BlockDescent(problem, settings.order),
            settings.following,
            watch,
            max_iter=settings.max_iter // stages + rest,
            tol=settings.tol,
        )
        if asked and asked[-1]:
            return True
        problem = problem.penalised(multipliers=multipliers)
    return False


def refit_head(problem: PartedProblem, point: Point) -> Point:
    """The last layer at its global optimum for the forward activations (ridge included).

    Rows in one part are fitted by the block solver of the loss; those in several parts by the descent that
    remains of the sweeps when there is no hidden layer.
    """
    head = problem.head_only(point)
    last = Point(point.weights[-1:], point.biases[-1:], ((),) * len(problem.parts))
    if len(head.parts) > 1:
        run = BlockDescent(head).run(last, max_iter=_REFIT_STEPS, tol=_REFIT_TOL)
        found = run.state.point.stacked[0]
    else:
        found = _solved_head(head.parts[0].load(), last)
    return Point(point.weights, point.biases).with_layer(len(problem.maps) - 1, found)


def _solved_head(problem: LiftedProblem, start: Point) -> Array:
    """Weights over biases of a last layer at its optimum; the start for a loss without a solver."""
    M = problem.maps[0].matrix(problem.X)
    n = M.shape[0]
    if isinstance(problem.head, CrossEntropy):
        found = solve_softmax_regression(
            M,
            problem.target,
            ridge=0.5 * problem.alpha * n,
            init=(start.weights[0], start.biases[0]),
            sample_weight=problem.share * n,
            max_iter=_REFIT_STEPS,
            on_limit="ignore",
        ).x
    elif isinstance(problem.head, Squared):
        found = solve_ridge(M, problem.target, alpha=problem.alpha * n, sample_weight=problem.share * n).x
    else:
        return start.stacked[0]
    return np.vstack([found.weight, found.intercept])
