"""Sweeps of the full-loss search over a discrete network, judged on held-out rows."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from liftopt.base import TrainingData, score_outputs
from liftopt.checkpoint import State
from liftopt.discrete_search import NetworkSearch, Objective, network_scores
from liftopt.discrete_stages import Stage, replaced
from liftopt.recording import Recorder

Array = npt.NDArray[Any]

_PATIENCE = 3


class _Best(NamedTuple):
    """The chosen point so far: validation score (or minus the loss) and its stages."""

    score: float
    stages: list[Stage]


class SearchLoop:
    """Sweeps until nothing changes, the score stops improving, or the budget ends.

    Parameters
    ----------
    lead, stages : list
        Parameter-free layers in front, and the stages to search from.
    train, held_out : TrainingData
        Rows of the search, and rows that choose the sweep (none: the training loss chooses).
    objective : Objective
        Loss on the training rows.
    recorder : Recorder
        Gets ``loss``, ``validation_score`` and ``changes`` of every sweep.
    tol : float
        Least decrease of the mean loss for which a weight is changed.
    seed : int
        Of the orders.
    """

    def __init__(
        self,
        lead: list[Any],
        stages: list[Stage],
        train: TrainingData,
        held_out: TrainingData,
        objective: Objective,
        recorder: Recorder,
        *,
        tol: float,
        seed: int,
    ) -> None:
        self.lead, self.stages, self.held_out, self.recorder = lead, stages, held_out, recorder
        self.mass = train.X.shape[0] if train.weight is None else float(train.weight.sum())
        self.threshold = tol * self.mass
        X = train.X
        for step in lead:
            X = step(X)
        self.search = NetworkSearch(X, objective, self.threshold, seed)
        loss = objective.value(network_scores([], stages, X))
        self.best = _Best(self._score(loss), stages)
        self.n_iter = self.idle = 0
        self.converged = loss <= self.threshold
        recorder.add(loss=loss / self.mass, validation_score=self.best.score, changes=0)

    def run(self, max_iter: int, name: str) -> None:
        """At most ``max_iter`` sweeps; warns under ``name`` if weights still change then."""
        if (state := self.recorder.resumed()) is not None:
            self.restore(state)
        while self.n_iter < max_iter and not self.converged:
            if self._sweep():
                return
            self.recorder.save(self.state)
        if not self.converged:
            warnings.warn(
                f"{name}: weights still changed in the last of {max_iter} sweeps; increase max_iter or tol",
                ConvergenceWarning,
                stacklevel=6,
            )

    def state(self) -> State:
        """What the sweeps after this one depend on."""
        return {
            "stages": _numbers(self.stages),
            "best": [self.best.score, _numbers(self.best.stages)],
            "counts": [self.n_iter, self.idle, self.converged],
            "search": self.search.state(),
        }

    def restore(self, state: State) -> None:
        """Return to a :meth:`state`."""
        score, best = state["best"]
        self.stages, self.best = (
            _with_numbers(self.stages, state["stages"]),
            _Best(score, _with_numbers(self.stages, best)),
        )
        self.n_iter, self.idle, self.converged = state["counts"]
        self.search.restore(state["search"], self.stages)

    def _sweep(self) -> bool:
        """One sweep and its record; whether the callback asks to stop."""
        sweep = self.search.sweep(self.stages)
        self.stages = sweep.stages
        self.n_iter += 1
        score = self._score(sweep.loss)
        self.idle = 0 if score > self.best.score else self.idle + 1
        self.best = _Best(score, self.stages) if score >= self.best.score else self.best
        # no change can gain more than the loss itself
        self.converged = sweep.changes == 0 or self.idle >= _PATIENCE or sweep.loss <= self.threshold
        return self.recorder.add(loss=sweep.loss / self.mass, validation_score=score, changes=sweep.changes)

    def _score(self, loss: float) -> float:
        """Validation score of the present stages, or minus their loss."""
        if self.held_out.X.shape[0] == 0:
            return -loss
        return score_outputs(network_scores(self.lead, self.stages, self.held_out.X), self.held_out)


def _numbers(stages: list[Stage]) -> list[list[Array]]:
    """Codes, scales and biases."""
    return [[stage.weights.codes, stage.weights.scale, stage.bias] for stage in stages]


def _with_numbers(stages: list[Stage], numbers: list[list[Array]]) -> list[Stage]:
    """``stages`` with other :func:`_numbers`."""
    return [replaced(stage, *parts) for stage, parts in zip(stages, numbers, strict=True)]
