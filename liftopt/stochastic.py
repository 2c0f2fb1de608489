"""The run around the stochastic block steps: step race, schedule, regularisation, hold-out, finish.

Nothing here is tuned per data set. The step length is checked by a short race, its schedule is fixed (rise,
rest, linear fall to zero), noise enters as the held-out loss rises, the best weights on held-out rows are
kept, and from those a few last passes go over all rows, the held-out ones included. Rows beyond the margin
of a hinge leave all blocks alone; they rest in the next pass and cost nothing meanwhile (the shrinking of
support vector machines: Joachims, "Making large-scale SVM learning practical", 1999).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from liftopt.block_steps import BlockTrainer, Noise
from liftopt.checkpoint import State, random_bits, restore_bits
from liftopt.linear_maps import rebuild
from liftopt.network import Network
from liftopt.recording import Recorder

Array = npt.NDArray[Any]

_RACE_BATCHES, _RACE_ROWS = 32, 128
_RACE_ROUNDS = 5
_RACE_FACTOR = 4.0
_RACE_GAIN = 0.5  # relative loss that makes the step move: short runs say little about long ones
_PROBE_ROWS = 2000
_NOISE_UP, _NOISE_DOWN = 0.25, 0.05  # changes of the noise level after a pass
_RISE, _REST = 0.1, 0.3  # ends of the step's rise and of its rest, as shares of the run
_FINISH, _FINISH_STEP = 0.2, 0.3  # last passes over all rows, and their first step, relative to the run's
_JUMP, _POOR = 3.0, 0.5  # a pass has failed above so many times the lowest, and the first or zero's, loss
_MAX_RESTARTS = 6


@dataclass(frozen=True)
class Rows:
    """Mapped inputs with targets and row weights (None for all ones)."""

    Z: Array
    target: Array
    weight: Array | None = None

    def __len__(self) -> int:
        return int(self.Z.shape[0])

    def take(self, index: Array) -> Rows:
        """The rows of ``index``."""
        weight = None if self.weight is None else self.weight[index]
        return Rows(self.Z.take(index, axis=0), self.target.take(index, axis=0), weight)

    def joined(self, other: Rows) -> Rows:
        """These rows and those of ``other`` (weights in both or in neither)."""
        weight = None
        if self.weight is not None and other.weight is not None:
            weight = np.concatenate([self.weight, other.weight])
        return Rows(np.concatenate([self.Z, other.Z]), np.concatenate([self.target, other.target]), weight)


class Resting:
    """Rows that a pass leaves out: those in which the pass before it found no residual.

    Parameters
    ----------
    count : int
        Number of rows; none rests at first.
    """

    def __init__(self, count: int) -> None:
        self.passes = 0
        self._wake = np.zeros(count, dtype=np.int32)  # pass of the next visit

    def begin_pass(self) -> None:
        """Count a pass."""
        self.passes += 1

    def awake(self, index: Array) -> Array:
        """Those of ``index`` that do not rest in this pass."""
        return index[self._wake.take(index) <= self.passes]

    def seen(self, index: Array, active: Array) -> None:
        """Note which of the rows ``index`` had a residual; the others rest in the next pass."""
        self._wake[index] = self.passes + np.where(active, 1, 2)

    def state(self) -> list[Any]:
        """All of it."""
        return [self.passes, self._wake]

    def restore(self, state: Sequence[Any]) -> None:
        """Return to a :meth:`state`."""
        self.passes, self._wake = state


@dataclass(frozen=True)
class Budget:
    """Budget and sizes of a stochastic run, and levels of its :class:`~liftopt.block_steps.Noise`."""

    step: float
    batch_size: int
    max_iter: int
    dropout: float
    input_noise: float
    noise_floor: float


class StochasticRun:
    """One training run of a :class:`BlockTrainer` on rows that fit in memory.

    Parameters
    ----------
    trainer : BlockTrainer
        Its parameters are changed in place.
    train, held : Rows
        Training rows, and held-out rows (possibly none).
    budget : Budget
        Sizes.
    random_state : RandomState
        Order of rows, noise.
    recorder : Recorder
        Gets the facts of every pass, and keeps the state.
    judge : callable
        Score of the outputs for the held-out rows, higher is better.
    """

    def __init__(
        self,
        trainer: BlockTrainer,
        train: Rows,
        held: Rows,
        budget: Budget,
        random_state: np.random.RandomState,
        recorder: Recorder,
        judge: Callable[[Array], float],
    ) -> None:
        self.trainer, self.train, self.held = trainer, train, held
        self.budget, self.recorder, self.judge = budget, recorder, judge
        self._random = random_state
        self.passes = 0
        self._lowest = np.inf
        hidden = max(1, len(trainer.maps) - 1)
        self._size = min(budget.batch_size, len(train))
        levels = budget.dropout / hidden, budget.input_noise, budget.noise_floor if len(held) else 0.0
        self.noise = Noise(*levels, max(self._size, _RACE_ROWS), random_state, strength=0.0)
        self.length = budget.step
        self._resting = Resting(len(train))
        self._probe = train.take(np.arange(min(_PROBE_ROWS, len(train))))
        self._best_pass = 0
        self._last = self._least = np.inf  # training losses: after the last pass, the lowest so far
        silent = np.zeros_like(trainer.scores(self._probe.Z))
        ignorance = trainer.head.mean_loss(silent, self._probe.target, self._probe.weight)
        self._first = max(self._loss(self._probe), ignorance)  # a good start has little to throw away

    def fit(self) -> None:
        """Race, then passes; the best weights on held-out rows are kept."""
        total = self.budget.max_iter
        state = self.recorder.resumed()
        if state is None:
            self._race()
            best, highest, restarts = self.trainer.state(), -np.inf, 0
        else:
            best, highest, restarts = self.restore(state)
        try:
            for done in range(self.passes, total):
                self._pass(self.train, self._resting, _schedule, done / total, (done + 1) / total)
                self.passes = done + 1
                if self._failed():
                    restarts += 1
                    self.trainer.restore(best)
                    self._resting = Resting(len(self.train))
                    self.length /= _RACE_FACTOR
                    if restarts > _MAX_RESTARTS:
                        _warn_diverged()
                        break
                    continue
                facts, score = self._assess()
                if score >= highest:
                    best, highest, self._best_pass = self.trainer.state(), score, self.passes
                if self.recorder.add(**facts, step=self.length):
                    self._best_pass = 0
                    break
                self.recorder.save(partial(self.state, best, highest, restarts))
        finally:
            self.trainer.restore(best)

    def state(self, best: list[Array], highest: float, restarts: int) -> State:
        """What the passes after this one depend on."""
        return {
            "weights": self.trainer.state(),
            "motion": self.trainer.motion(),
            "noise": self.noise.state(),
            "resting": self._resting.state(),
            "best": best,
            "chosen": [highest, restarts, self._best_pass],
            "run": [self.passes, self.length, self._lowest, self._last, self._least],
            "random": random_bits(self._random),
        }

    def restore(self, state: State) -> tuple[list[Array], float, int]:
        """Return to a :meth:`state`; its best weights, their score, and the restarts so far."""
        self.trainer.restore(state["weights"])
        self.trainer.set_motion(state["motion"])
        self.noise.restore(state["noise"])
        self._resting.restore(state["resting"])
        self.passes, self.length, self._lowest, self._last, self._least = state["run"]
        restore_bits(self._random, state["random"])
        highest, restarts, self._best_pass = state["chosen"]
        return state["best"], highest, restarts

    def finish(self) -> None:
        """A few last passes over all rows, unless none were held out or the run was stopped."""
        passes = int(_FINISH * self._best_pass)
        if not len(self.held) or not passes:
            return
        start, rows = self.trainer.state(), self.train.joined(self.held)
        resting = Resting(len(rows))
        for done in range(passes):
            self._pass(rows, resting, _finishing, done / passes, (done + 1) / passes)
        if not self.trainer.finite:
            self.trainer.restore(start)
        self.passes += passes

    def network(self, like: Network) -> Network:
        """``like`` with the current weights, in float32."""
        trainer = self.trainer
        return rebuild(like.astype(np.float32), trainer.maps, trainer.weights, trainer.biases)

    def advance(self, factor: float, *, race: bool) -> float:
        """One pass over a chunk of a stream at ``factor`` of the step; returns the step before the factor."""
        if race:
            self._race()
        start = self.trainer.state()
        self._pass(self.train, self._resting, lambda share: factor, 0.0, 1.0)
        if not self.trainer.finite:
            self.trainer.restore(start)
            return self.length / _RACE_FACTOR
        return self.length

    def _pass(
        self, rows: Rows, resting: Resting, factor: Callable[[float], float], start: float, end: float
    ) -> None:
        """One pass over ``rows`` in random order; the step's factor is taken from ``start`` to ``end``."""
        order = self._random.permutation(len(rows))
        size, count = self._size, len(rows) // self._size
        resting.begin_pass()
        with np.errstate(over="ignore", invalid="ignore"):  # seen at the end of the pass
            for number in range(count):
                index = resting.awake(order[number * size : (number + 1) * size])
                length = self.length * factor(start + (end - start) * number / count)
                resting.seen(index, self._step(rows.take(index), length, size))

    def _step(self, batch: Rows, length: float, size: int) -> Array:
        return self.trainer.step(batch.Z, batch.target, batch.weight, length, self.noise, size)

    def _race(self) -> None:
        """Move the step by factors of four while short decayed runs say that it pays.

        The runs start at a random head: a fitted one leaves nothing to gain in so few batches, and the
        shortest step would win.
        """
        trainer, size = self.trainer, min(self._size, _RACE_ROWS)
        batches = [
            self.train.take(self._random.randint(len(self.train), size=size)) for _ in range(_RACE_BATCHES)
        ]
        start = trainer.state()
        seed = self._random.randint(2**31)

        @cache
        def loss_at(length: float) -> float:
            trainer.restore(start)
            trainer.randomise_head(np.random.RandomState(seed))
            with np.errstate(over="ignore", invalid="ignore"):
                for index, batch in enumerate(batches):
                    self._step(batch, length * (1.0 - index / _RACE_BATCHES), size)
                loss = self._loss(self._probe) if trainer.finite else np.inf
            return loss if np.isfinite(loss) else np.inf

        for _ in range(_RACE_ROUNDS):
            shorter, longer = self.length / _RACE_FACTOR, self.length * _RACE_FACTOR
            if loss_at(shorter) < _RACE_GAIN * loss_at(self.length):
                self.length = shorter
            elif loss_at(longer) < _RACE_GAIN * loss_at(self.length):
                self.length = longer
            else:
                break
        trainer.restore(start)

    def _failed(self) -> bool:
        """Whether a pass has left the finite numbers, or thrown away most of what was learnt."""
        if not self.trainer.finite:
            return True
        loss = self._last = self._loss(self._probe)
        if not np.isfinite(loss) or loss > max(_JUMP * self._least, _POOR * self._first):
            return True
        self._least = min(self._least, loss)
        return False

    def _loss(self, rows: Rows) -> float:
        return self.trainer.head.mean_loss(self.trainer.scores(rows.Z), rows.target, rows.weight)

    def _assess(self) -> tuple[dict[str, float], float]:
        """Facts of a pass, and the score that chooses; the noise follows the held-out loss."""
        train_loss = self._last
        if not len(self.held):
            return {"loss": train_loss, "noise": 0.0}, -train_loss
        outputs = self.trainer.scores(self.held.Z)
        loss = self.trainer.head.mean_loss(outputs, self.held.target, self.held.weight)
        change = _NOISE_UP if loss > self._lowest else -_NOISE_DOWN
        self._lowest = min(self._lowest, loss)
        self.noise.strength = float(np.clip(self.noise.strength + change, 0.0, 1.0))
        score = self.judge(outputs)
        facts = {"loss": loss, "train_loss": train_loss, "validation_score": score}
        return facts | {"noise": self.noise.strength}, score


def _schedule(share: float) -> float:
    """Factor of the step after a ``share`` of the run."""
    return min(share / _RISE, 1.0, (1.0 - share) / (1.0 - _REST))


def _finishing(share: float) -> float:
    """The same for the last passes over all rows."""
    return _FINISH_STEP * (1.0 - share)


def _warn_diverged() -> None:
    warnings.warn(
        "the block steps kept leaving the finite numbers: the best network so far is kept; "
        "scale the targets or reduce step",
        ConvergenceWarning,
        stacklevel=4,
    )
