"""From checked data to a network by row-block descent: hold-out, sweeps, decision layer, fold.

The penalties follow the noise: with ``sigma2`` the smallest mean squared residual seen on held-out rows,
ridge terms are ``factor * sigma2 / n`` relative to the Gram matrices (the ratio that the evidence of a
linear Gaussian model prescribes), so that nothing has to be tuned. Held-out rows also choose the sweep,
and the linear model where no sweep beats it; the decision layer is then solved exactly on all rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from liftopt.activations import Activation, Identity
from liftopt.base import TrainingData, holdout_split, score_outputs
from liftopt.checkpoint import State, random_bits, restore_bits
from liftopt.heads import FitPlan, fit_head, output_layer, target_moments
from liftopt.input_map import InputMap, fold, unfold
from liftopt.layers import Dense
from liftopt.manifold_descent import (
    DescentSettings,
    Penalty,
    RowBlockDescent,
    Rows,
    carry_linear,
    initial_weights,
)
from liftopt.network import Network
from liftopt.recording import Recorder, run_interruptible
from liftopt.solvers.affine import AffineMap

Array = npt.NDArray[Any]

FULL_PASS_ROWS = 2000  # up to here a sweep is one exact pass
_FEW_ROWS = 5000  # up to here sweeps are cheap enough for many of them
_FULL_STEP, _BLOCK_STEP = 8.0, 4.0  # exact statistics bear a longer step
_LARGEST_BLOCK, _BLOCK_TO_WIDTH = 500, 2.0
_HOLD_OUT_FROM = 150  # rows (or sum of weights) below which a hold-out costs more than it tells
HOLD_OUT_MOST = 3000  # rows: more would not choose better
_LINEAR_JUDGE_ROWS = 10_000  # enough to see whether the linear model is the better one
UNKNOWN_NOISE = 0.5  # share of the target variance, where no row is held out
_DECAY_FACTOR = {"regression": 5.0, "classification": 20.0}
_DECAY_RANGE = {"regression": (1e-5, 3e-2), "classification": (3e-4, 3e-2)}
_RIDGE_TO_DECAY = 3.0
_DIVERGED = 3.0  # times the best loss: back to the best network with half the step
_NEGLIGIBLE = 1e-3  # losses below this may jump
_TOLERATED_RESTARTS = 5


class Problem(NamedTuple):
    """Mapped rows, scaled targets, and which of them train or are held out."""

    data: TrainingData
    rows: Rows
    train: Array
    held: Array
    mass: float  # sum of the sample weights

    def part(self, index: Array) -> Rows:
        """Rows of ``index``."""
        weight = None if self.rows.weight is None else self.rows.weight[index]
        return Rows(self.rows.Z[index], self.rows.Y[index], weight)


class Solution(NamedTuple):
    """Hidden layers and head (bias as last row), their penalties, and the sweeps used."""

    weights: list[Array]
    head: Array | None
    penalty: Penalty
    n_iter: int


class _Linear(NamedTuple):
    """Held-out loss of the linear model, and the hidden layers and head that represent it."""

    loss: float
    layers: list[Array]
    head: Array | None


def fit_descent(
    data: TrainingData,
    plan: FitPlan,
    input_map: InputMap,
    init: Network | None,
    recorder: Recorder,
    random_state: np.random.RandomState,
) -> tuple[Network, int]:
    """Train on ``data``; return the network, with ``input_map`` folded in, and the number of sweeps."""
    centre, spread = target_moments(data)
    mass = float(data.X.shape[0] if data.weight is None else data.weight.sum())
    most = HOLD_OUT_MOST / data.X.shape[0]
    fraction = min(plan.validation_fraction, most) if mass >= _HOLD_OUT_FROM else 0.0
    train, held = holdout_split(data, fraction, random_state)
    problem = mapped_problem(data, input_map, centre, spread, train, held)
    if init is None:
        activation = plan.activation
        weights = initial_weights(problem.part(train), plan.widths, activation, random_state)
    else:
        weights, activation = hidden_weights(unfold(init, input_map), data.X.dtype)
    if weights:
        search = SweepSearch(problem, weights, activation, plan, recorder, random_state)
        run_interruptible(search.run, "the descent", recorder)
        solution = search.solution()
    else:
        solution = Solution([], None, penalty_for(plan, UNKNOWN_NOISE, problem), 1)
    mapped = _assemble(problem, solution, activation, plan, centre, spread)
    return fold(mapped, input_map), solution.n_iter


class SweepSearch:
    """Sweeps of one descent, the penalties that follow its noise, and its best hidden layers."""

    def __init__(
        self,
        problem: Problem,
        weights: list[Array],
        activation: Activation,
        plan: FitPlan,
        recorder: Recorder,
        random_state: np.random.RandomState,
    ) -> None:
        self.problem, self.activation, self.plan = problem, activation, plan
        self.recorder, self.random_state = recorder, random_state
        own = problem.part(problem.train)
        self.judge = problem.part(problem.held) if problem.held.size else own
        self.judged = problem.data.rows(problem.held if problem.held.size else problem.train)
        self.noise = UNKNOWN_NOISE
        self.descent = RowBlockDescent(
            own,
            weights,
            activation,
            one_sided=problem.data.codes is not None,
            block_size=_block_size(self.n_rows, weights[-1].shape[1]),
            penalty=penalty_for(plan, self.noise, problem),
            settings=DescentSettings(step=_FULL_STEP if self.n_rows <= FULL_PASS_ROWS else _BLOCK_STEP),
        )
        self.best = Solution([W.copy() for W in weights], None, self.descent.penalty, 0)
        self.loss = np.inf
        self.n_iter = self.idle = self.restarts = 0

    def run(self) -> None:
        """Sweep until the schedule ends, the held-out loss stops falling, or the callback says so."""
        limit = self.plan.max_iter or _automatic_sweeps(self.n_rows)
        state = self.recorder.resumed()
        if state is not None:
            self.restore(state)
        for sweep in range(self.n_iter, limit):
            self.pass_over_rows(partial(_step_scale, sweep, limit))
            self.n_iter += 1
            loss = self.descent.loss(*self.judge)
            if not loss <= _DIVERGED * np.clip(self.loss, _NEGLIGIBLE, 1.0):
                self.restarts += 1
                if self.restarts > _TOLERATED_RESTARTS:
                    warnings.warn("the descent kept diverging", ConvergenceWarning, stacklevel=2)
                    return
                self.descent.restart(self.best.weights, self.descent.settings.step / 2.0)
                continue
            stop = self._record(loss)
            falling = 2 * sweep >= limit
            self.idle = self.idle + 1 if falling and loss >= self.loss * (1.0 - self.plan.tol) else 0
            self._keep(loss)
            if stop or self.idle >= self.plan.n_iter_no_change:
                return
            self.recorder.save(self.state)

    @property
    def n_rows(self) -> int:
        """Number of training rows."""
        return self.problem.train.size

    def pass_over_rows(self, scale: Callable[[float], float]) -> None:
        """One sweep of the descent; ``scale`` shrinks the step at a share of it."""
        self.descent.sweep(self.random_state.permutation(self.n_rows), scale)

    def state(self) -> State:
        """What the sweeps after this one depend on."""
        return {
            "descent": self.descent.state(),
            "best": {**self.best._asdict(), "penalty": list(self.best.penalty)},
            "counts": [self.loss, self.noise, self.n_iter, self.idle, self.restarts],
            "random": random_bits(self.random_state),
        }

    def restore(self, state: State) -> None:
        """Return to a :meth:`state`."""
        self.descent.restore(state["descent"])
        self.best = Solution(**{**state["best"], "penalty": Penalty(*state["best"]["penalty"])})
        self.loss, self.noise, self.n_iter, self.idle, self.restarts = state["counts"]
        restore_bits(self.random_state, state["random"])

    def solution(self) -> Solution:
        """Best hidden layers, or those that carry the linear model where it is better on held-out rows."""
        problem, best = self.problem, self.best._replace(n_iter=max(1, self.n_iter))
        if not problem.held.size or self._linear(best, _LINEAR_JUDGE_ROWS).loss >= self.loss:
            return best
        linear = self._linear(best, problem.train.size)
        return best._replace(weights=linear.layers, head=linear.head)

    def _linear(self, best: Solution, most_rows: int) -> _Linear:
        """Layers of the best one's widths that carry the linear model of at most so many training rows."""
        problem, widths = self.problem, tuple(W.shape[1] for W in best.weights)
        if min(widths) < 2 * problem.rows.Y.shape[1]:
            return _Linear(np.inf, best.weights, best.head)
        rows = problem.part(problem.train[:: -(-problem.train.size // most_rows)])
        carried = carry_linear(rows, widths, self.activation, best.penalty.ridge)
        descent = RowBlockDescent(
            rows,
            carried,
            self.activation,
            one_sided=problem.data.codes is not None,
            block_size=rows.Z.shape[0],
            penalty=best.penalty,
            settings=DescentSettings(),
        )
        descent.solve_head()
        return _Linear(descent.loss(*self.judge), carried, descent.B)

    def _record(self, loss: float) -> bool:
        score = score_outputs(self.descent.outputs(self.judge.Z), self.judged)
        key = "validation_score" if self.problem.held.size else "training_score"
        return self.recorder.add(loss=loss, decay=self.descent.penalty.decay, **{key: score})

    def _keep(self, loss: float) -> None:
        if loss < self.loss:
            weights = [W.copy() for W in self.descent.weights]
            self.loss, self.best = loss, Solution(weights, self.descent.B, self.descent.penalty, self.n_iter)
        if self.problem.held.size:
            self.noise = min(self.noise, loss)
            self.descent.penalty = penalty_for(self.plan, self.noise, self.problem)


def mapped_problem(
    data: TrainingData, input_map: InputMap, centre: Array, spread: Array, train: Array, held: Array
) -> Problem:
    """Training problem on mapped inputs, targets -1 and +1 or scaled numbers, and weights of mean one."""
    n = data.X.shape[0]
    Z = np.ones((n, input_map.n_components + 1), dtype=data.X.dtype)
    Z[:, :-1] = input_map.transform(data.X)
    if data.codes is None:
        Y = ((data.target - centre) / spread).astype(data.X.dtype)
    else:
        Y = 2 * data.target - 1
    if data.weight is None:
        return Problem(data, Rows(Z, Y, None), train, held, float(n))
    mass = float(data.weight.sum())
    weight = (data.weight * (n / mass)).astype(data.X.dtype)[:, None]
    return Problem(data, Rows(Z, Y, weight), train, held, mass)


def penalty_for(plan: FitPlan, noise: float, problem: Problem) -> Penalty:
    """Ridge terms for residual variance ``noise``, or the one asked for."""
    task = problem.data.task
    decay = plan.alpha
    if decay is None:
        decay = float(np.clip(_DECAY_FACTOR[task] * noise / problem.mass, *_DECAY_RANGE[task]))
    return Penalty(decay, _RIDGE_TO_DECAY * decay)


def _step_scale(sweep: int, limit: int, share: float) -> float:
    """Constant over the first half of all sweeps, then linear to zero."""
    return min(1.0, 2.0 - 2.0 * (sweep + share) / limit)


def _block_size(n: int, width: int) -> int:
    """All rows, or a fortieth of them; never so few that a head of ``width`` inputs follows single blocks."""
    if n <= FULL_PASS_ROWS:
        return n
    least = int(np.clip(_BLOCK_TO_WIDTH * width, 100, _LARGEST_BLOCK))
    return int(np.clip(n // 40, least, _LARGEST_BLOCK))


def _automatic_sweeps(n: int) -> int:
    return 60 if n <= _FEW_ROWS else int(np.clip(500_000 // n, 8, 30))


def hidden_weights(network: Network, dtype: npt.DTypeLike) -> tuple[list[Array], Activation]:
    """Hidden layers of ``network`` with the bias as last row, and their common activation."""
    hidden = network.layers[:-1]
    kinds = {str(layer.activation): layer.activation for layer in hidden if isinstance(layer, Dense)}
    if len(kinds) > 1 or not all(isinstance(layer, Dense) for layer in hidden):
        raise ValueError("init must be a network of Dense layers with one activation in all hidden layers")
    weights = [
        np.vstack([layer.arrays()["weight"], layer.arrays()["bias"]]).astype(dtype) for layer in hidden
    ]
    return weights, next(iter(kinds.values()), Identity())


def _assemble(
    problem: Problem,
    solution: Solution,
    activation: Activation,
    plan: FitPlan,
    centre: Array,
    spread: Array,
) -> Network:
    """Network on mapped rows: hidden layers, then the decision layer solved on all rows."""
    layers = [Dense(W[:-1].copy(), W[-1].copy(), activation) for W in solution.weights]
    features = problem.rows.Z[:, :-1]
    for layer in layers:
        features = layer(features)
    head = fit_head(
        plan.head,
        features,
        problem.rows.Y,
        alpha=solution.penalty.ridge,
        relative=True,
        sample_weight=problem.data.weight,
        start=None if solution.head is None else AffineMap(solution.head[:-1], solution.head[-1]),
    )
    return Network([*layers, output_layer(head, features, problem.data, centre, spread)])
