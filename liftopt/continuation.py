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

from liftopt.checkpoint import State
from liftopt.lifted import Blocks, LiftedProblem
from liftopt.losses import CrossEntropy, Squared
from liftopt.monotone import ORDERS, BlockDescent, DescentState, Order
from liftopt.solvers.least_squares import solve_ridge
from liftopt.solvers.result import Callback, Record
from liftopt.solvers.softmax import solve_softmax_regression

Following = Callable[[LiftedProblem, Blocks], tuple[float, ...]]

SCHEDULES = ("fixed", "geometric", "increasing", "augmented")
_STAGES = 4
_GROWTH = 2.0
_REFIT_STEPS = 50
_PATIENCE = 30
_PATH_GAIN = 0.95  # held-out loss of a weaker ridge relative to the stronger ones
_SAMPLE_ROWS = 10_000  # of more than twice as many, a sample settles the ridge and the first sweeps


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
    n_jobs : int
        Threads for parallel W-blocks.
    max_iter : int
        Sweeps for every ridge.
    ridges : tuple of float
        Weights of the ridge, each started from the last; with held-out rows the path ends where they say so.
    tol : float
        Bound on the block residuals (:meth:`LiftedProblem.measure`).
    """

    multiplier: float
    schedule: str
    order: Order
    n_jobs: int
    max_iter: int
    tol: float
    ridges: tuple[float, ...]

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

    def following(self, problem: LiftedProblem, blocks: Blocks) -> tuple[float, ...]:
        """Multipliers of the next stage."""
        if self.schedule == "increasing":
            return tuple(_GROWTH * lam for lam in problem.multipliers)
        gaps = [cost / lam for cost, lam in zip(problem.costs(blocks), problem.multipliers, strict=False)]
        largest = max(gaps, default=0.0)
        return tuple(
            lam * (1.0 + (gap / largest if largest > 0.0 else 0.0))
            for lam, gap in zip(problem.multipliers, gaps, strict=True)
        )


class Outcome:
    """What :func:`descend_lifted` has reached, kept up to date so that an interrupted run leaves it.

    Parameters
    ----------
    blocks : Blocks
        The start, then the last point.
    judge : callable, optional
        Loss of a point on held-out rows: ``best`` is the point where it was lowest, and a run is finished
        when it has not fallen for thirty sweeps. Without it the last point is the best.
    save : callable, optional
        Called after every sweep with :meth:`state`, from which the descent can go on.
    """

    def __init__(
        self,
        blocks: Blocks,
        judge: Callable[[Blocks], float] | None = None,
        save: Callable[[Callable[[], State]], None] = lambda state: None,
    ) -> None:
        self.blocks = self.best = blocks
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
        start: Blocks | DescentState = self.blocks
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
            self.blocks = end.state.blocks
            multipliers = following(descent.problem, self.blocks)
        self._finished.append({**self._present(), "multipliers": multipliers})
        return multipliers

    def accept(self, state: DescentState) -> None:
        """Take the point of one more sweep."""
        self.blocks, self.n_iter = state.blocks, self.n_iter + 1
        self.offer(state.blocks)
        self._save(partial(self.state, state))

    def offer(self, blocks: Blocks) -> bool:
        """Keep ``blocks`` as the best if held-out rows agree (or there are none)."""
        loss = -np.inf if self._judge is None else self._judge(blocks)
        better = self._judge is None or loss < self.lowest
        self.idle = 0 if better else self.idle + 1
        if better:
            self.best, self.lowest = blocks, loss
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
        self.best = Blocks(tuple(weights), tuple(biases), ())
        self.lowest, self.idle, self.n_iter = present["counts"]


def descend_lifted(problem: LiftedProblem, outcome: Outcome, settings: Descent, report: Callback) -> None:
    """Minimise the lifted objective from ``outcome.blocks``, then refit the head on true forward features.

    ``outcome`` is filled as the sweeps go. Held-out rows, if it has any, end the path of ridges and decide
    about the refit. With many rows the path is followed on a sample of them; then all rows take over from its
    best point for half as many sweeps, with a ridge that is smaller by the ratio of the numbers of rows.
    """
    stride = max(1, problem.X.shape[0] // _SAMPLE_ROWS)
    few = problem.every(stride) if stride > 1 else problem
    if stride > 1:
        outcome.blocks = few.forward(outcome.blocks.weights, outcome.blocks.biases)
    chosen, interrupted = _descend_path(few, outcome, settings, report)
    if stride > 1:
        problem = replace(problem, alpha=chosen.alpha / stride, multipliers=chosen.multipliers)
        outcome.blocks, outcome.idle = problem.forward(outcome.best.weights, outcome.best.biases), 0
        if not interrupted:
            last = replace(settings, max_iter=max(1, settings.max_iter // 2))
            _descend_stages(problem, outcome, last, report)
        chosen = problem
    outcome.offer(refit_head(chosen, outcome.best))


def _descend_path(
    problem: LiftedProblem, outcome: Outcome, settings: Descent, report: Callback
) -> tuple[LiftedProblem, bool]:
    """Descent for every ridge while held-out rows gain; the last of them, and whether the user stopped."""
    chosen = problem
    for ridge in settings.ridges:
        problem = replace(problem, alpha=ridge, multipliers=settings.start(len(problem.multipliers)))
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


def _descend_stages(problem: LiftedProblem, outcome: Outcome, settings: Descent, report: Callback) -> bool:
    """Descent through the stages of the multipliers; returns whether the user's callback stopped it."""
    asked: list[bool] = []

    def watch(record: Record) -> bool:
        asked.append(bool(report(record)))
        return asked[-1] or outcome.idle >= _PATIENCE

    stages = settings.stages
    for stage in range(stages):
        rest = settings.max_iter % stages if stage == stages - 1 else 0
        multipliers = outcome.run(
            BlockDescent(problem, settings.order, n_jobs=settings.n_jobs),
            settings.following,
            watch,
            max_iter=settings.max_iter // stages + rest,
            tol=settings.tol,
        )
        if asked and asked[-1]:
            return True
        problem = replace(problem, multipliers=multipliers)
    return False


def refit_head(problem: LiftedProblem, blocks: Blocks) -> Blocks:
    """The last layer at its global optimum for the forward activations (ridge included)."""
    passed = problem.forward(blocks.weights, blocks.biases)
    last = len(problem.maps) - 1
    M = problem.maps[last].matrix(problem.entering(passed, last))
    share = problem.share * M.shape[0]
    if isinstance(problem.head, CrossEntropy):
        start = (passed.weights[last], passed.biases[last])
        ridge = 0.5 * problem.alpha * M.shape[0]
        found = solve_softmax_regression(
            M,
            problem.target,
            ridge=ridge,
            init=start,
            sample_weight=share,
            max_iter=_REFIT_STEPS,
            on_limit="ignore",
        ).x
    elif isinstance(problem.head, Squared):
        alpha = problem.alpha * M.shape[0]
        found = solve_ridge(M, problem.target, alpha=alpha, sample_weight=share).x
    else:
        return passed
    dtype = passed.weights[last].dtype
    return passed.with_layer(last, found.weight.astype(dtype), found.intercept.astype(dtype))
