"""Gradient epochs from a spline's network, the start kept unless an epoch is better on rows held out."""

from __future__ import annotations

import numpy as np

from liftopt.backprop import Settings, descend
from liftopt.base import TrainingData, score_of
from liftopt.input_map import standardise
from liftopt.network import Network
from liftopt.preparation import Frame
from liftopt.recording import Recorder
from liftopt.solvers.result import Record

_RATE = 1e-3  # Adam at 1e-2 destroys the start within ten steps


def refine_network(
    start: Network,
    train: TrainingData,
    held_out: TrainingData,
    *,
    epochs: int,
    random_state: np.random.RandomState,
    learning_rate: float = _RATE,
) -> tuple[Network, list[Record]]:
    """Train ``start`` by Adam with a one-cycle rate; return the best network and one record an epoch.

    Parameters
    ----------
    start : Network
        Dense, on raw inputs.
    train, held_out : TrainingData
        Rows to descend on, and rows that judge every epoch and the start.
    epochs : int
        Largest number of epochs.
    random_state : RandomState
        Orders the rows.
    learning_rate : float
        Peak rate, for standardised inputs and targets.
    """
    recorder = Recorder("spline refinement")
    recorder.add(epoch=0, validation_score=score_of(start, held_out))
    scaled = None if train.codes is not None else standardise(train.target, train.weight)
    frame = Frame(standardise(train.X, train.weight), scaled)
    settings = Settings("adam", learning_rate, "one_cycle", "auto", epochs, 0.0, epochs, 0.0)
    data = frame.data(train), frame.data(held_out)
    found = frame.leave(descend(frame.enter(start), *data, settings, recorder, random_state).network)
    best = found if score_of(found, held_out) > score_of(start, held_out) else start
    return best, recorder.history
