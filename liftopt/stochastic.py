"""The run around the stochastic block steps: step race, decay, regularisation, hold-out stop.

Nothing here is tuned per data set. The step length is found by a short race from the start, the decay begins
when the hold-out loss stops falling (half the budget at the latest), noise enters as that loss rises, and the
best weights on held-out rows are returned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from liftopt.block_steps import BlockTrainer, Noise
from liftopt.linear_maps import rebuild
from liftopt.losses import CrossEntropy
from liftopt.network import Network

Array = npt.NDArray[Any]

_RACE_BATCHES = 20
_RACE_ROUNDS = 5
_RACE_FACTOR = 4.0
_RACE_GAIN = 0.97  # what a longer step must promise
_PROBE_ROWS = 4000
_NOISE_UP, _NOISE_DOWN = 0.25, 0.05  # changes of the noise level after a pass
_PATIENCE = 3, 4  # passes without a better hold-out loss before the decay: at least 3, a quarter of all
_MAX_RESTARTS = 6


@dataclass(frozen=True)
class Rows:
    """Mapped inputs with targets and row weights (None for all ones)."""

    Z: Array
    target: Array
    weight: Array | None = None

    def __len__(self) -> int:
        return int(self.Z.shape[0])

    def take(self, index: Array | slice) -> Rows:
        """The rows of ``index``."""
        weight = None if self.weight is None else self.weight[index]
        return Rows(self.Z[index], self.target[index], weight)


@dataclass(frozen=True)
class Budget:
    """Budget and sizes of a stochastic run."""

    step: float
    batch_size: int
    max_iter: int
    dropout: float
    input_noise: float


Reporter = Callable[..., bool]


class StochasticRun:
    """One training run of a :class:`BlockTrainer` on rows that fit in memory.

    Parameters
    ----------
    trainer : BlockTrainer
        Its parameters are changed in place; at the end they are the best ones seen.
    train, held : Rows
        Training rows, and held-out rows (possibly none).
    budget : Budget
        Sizes.
    random_state : RandomState
        Order of rows, noise.
    report : callable
        Called with the facts of every pass; a true value stops.
    """

    def __init__(
        self,
        trainer: BlockTrainer,
        train: Rows,
        held: Rows,
        budget: Budget,
        random_state: np.random.RandomState,
        report: Reporter,
    ) -> None:
        self.trainer, self.train, self.held = trainer, train, held
        self.budget, self.report = budget, report
        self._random = random_state
        self.passes = 0
        self._lowest = np.inf
        hidden = max(1, len(trainer.maps) - 1)
        self.noise = Noise(budget.dropout / hidden, budget.input_noise, random_state, strength=0.0)
        self.length = budget.step
        size = min(budget.batch_size, len(train))
        self._slices = [slice(i * size, (i + 1) * size) for i in range(max(1, len(train) // size))]
        self._probe = train.take(slice(0, _PROBE_ROWS))

    def fit(self) -> None:
        """Race, passes with decay, best weights kept."""
        self._race()
        total = self.budget.max_iter
        decay_from, decay_passes = total / 2, max(total / 2, 1.0)
        best, best_score, idle = self.trainer.state(), -np.inf, 0
        done, restarts = 0, 0
        lowest = np.inf
        while done < total and done < decay_from + decay_passes:
            self._pass(done, decay_from, decay_passes)
            done += 1
            self.passes = done
            if not self.trainer.finite:
                restarts += 1
                self.trainer.restore(best, self.trainer.steps)
                self.length /= _RACE_FACTOR
                if restarts > _MAX_RESTARTS:
                    _warn_diverged()
                    break
                continue
            facts = self._assess()
            if facts["score"] >= best_score:
                best, best_score = self.trainer.state(), facts["score"]
            idle = 0 if facts["loss"] < lowest else idle + 1
            lowest = min(lowest, facts["loss"])
            if idle >= max(_PATIENCE[0], total // _PATIENCE[1]) and done < decay_from:
                decay_from, decay_passes = float(done), min(total / 2, done)
            if self.report(**facts, step=self.length):
                break
        self.trainer.restore(best, self.trainer.steps)

    def network(self, like: Network) -> Network:
        """``like`` with the current weights, in float32."""
        trainer = self.trainer
        return rebuild(like.astype(np.float32), trainer.maps, trainer.weights, trainer.biases)

    def advance(self, factor: float, *, race: bool) -> float:
        """One pass over a chunk of a stream at ``factor`` of the step; returns the step before the factor."""
        if race:
            self._race()
        start, length = self.trainer.state(), self.length
        self.length = length * factor
        self._pass(0, np.inf, 1.0)
        if not self.trainer.finite:
            self.trainer.restore(start, self.trainer.steps)
            length /= _RACE_FACTOR
        return length

    def _pass(self, done: int, decay_from: float, decay_passes: float) -> None:
        """One pass over the training rows in random order."""
        shuffled = self.train.take(self._random.permutation(len(self.train)))
        count = len(self._slices)
        for index, rows in enumerate(self._slices):
            late = done + index / count - decay_from
            factor = min(1.0, max(0.0, 1.0 - late / decay_passes))
            self._step(shuffled, rows, self.length * factor)

    def _step(self, rows: Rows, batch: slice, length: float) -> None:
        weight = None if rows.weight is None else rows.weight[batch]
        self.trainer.step(rows.Z[batch], rows.target[batch], weight, length, self.noise)

    def _race(self) -> None:
        """Move the step by factors of four while short decayed runs from the start say that it pays."""
        trainer = self.trainer
        count = min(_RACE_BATCHES, len(self._slices) * self.budget.max_iter)
        size = self._slices[0].stop
        index = [self._random.randint(len(self.train), size=size) for _ in range(count)]
        batches = [self.train.take(i) for i in index]
        start = trainer.state()

        def run(length: float) -> tuple[float, list[Array]]:
            trainer.restore(start, 0)
            with np.errstate(over="ignore", invalid="ignore"):
                for index, batch in enumerate(batches):
                    self._step(batch, slice(None), length * (1.0 - index / count))
                loss = self._loss(self._probe) if trainer.finite else np.inf
            return (loss if np.isfinite(loss) else np.inf), trainer.state()

        tried = {self.length: run(self.length)}

        def loss_at(length: float) -> float:
            if length not in tried:
                tried[length] = run(length)
            return tried[length][0]

        for _ in range(_RACE_ROUNDS):
            shorter, longer = self.length / _RACE_FACTOR, self.length * _RACE_FACTOR
            if loss_at(shorter) < loss_at(self.length):
                self.length = shorter
            elif loss_at(longer) < _RACE_GAIN * loss_at(self.length):
                self.length = longer
            else:
                break
        loss, state = tried[self.length]
        trainer.restore(state if np.isfinite(loss) else start, count)

    def _loss(self, rows: Rows) -> float:
        return self.trainer.head.mean_loss(self.trainer.scores(rows.Z), rows.target, rows.weight)

    def _assess(self) -> dict[str, float]:
        """Losses and score after a pass; noise rises when the held-out loss does, and slowly falls else."""
        train_loss = self._loss(self._probe)
        if not len(self.held):
            return {"loss": train_loss, "train_loss": train_loss, "score": -train_loss, "noise": 0.0}
        scores = self.trainer.scores(self.held.Z)
        loss = self.trainer.head.mean_loss(scores, self.held.target, self.held.weight)
        change = _NOISE_UP if loss > self._lowest else -_NOISE_DOWN
        self._lowest = min(self._lowest, loss)
        self.noise.strength = float(np.clip(self.noise.strength + change, 0.0, 1.0))
        score = -loss
        if self.held.target.shape[1] > 1 and isinstance(self.trainer.head, CrossEntropy):
            hits = scores.argmax(axis=1) == self.held.target.argmax(axis=1)
            score = float(np.average(hits, weights=self.held.weight))
        return {"loss": loss, "train_loss": train_loss, "score": score, "noise": self.noise.strength}


def _warn_diverged() -> None:
    warnings.warn(
        "the block steps kept leaving the finite numbers: the best network so far is kept; "
        "scale the targets or reduce step",
        ConvergenceWarning,
        stacklevel=4,
    )
