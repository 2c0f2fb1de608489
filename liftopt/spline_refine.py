"""Gradient epochs from a spline's network, the start kept unless an epoch is better on rows held out."""

from __future__ import annotations

import numpy as np

from liftopt.backprop import Settings, descend
from liftopt.base import Recorder, TrainingData, score_of
from liftopt.input_map import fold, standardise, unfold
from liftopt.layers import Dense
from liftopt.network import Network
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
    inputs = standardise(train.X, train.weight)
    outputs = None if train.codes is not None else standardise(train.target, train.weight)

    def mapped(data: TrainingData) -> TrainingData:
        target = data.target if outputs is None else outputs.transform(data.target)
        return data._replace(X=inputs.transform(data.X), target=target)

    network = unfold(start, inputs)
    if outputs is not None:
        network = _with_outputs(network, outputs.factor, -outputs.mean * outputs.factor)
    settings = Settings("adam", learning_rate, "one_cycle", "auto", epochs, 0.0, epochs, 0.0)
    found = descend(network, mapped(train), mapped(held_out), settings, recorder, random_state).network
    if outputs is not None:
        found = _with_outputs(found, 1.0 / outputs.factor, outputs.mean)
    found = fold(found, inputs)
    best = found if score_of(found, held_out) > score_of(start, held_out) else start
    return best, recorder.history


def _with_outputs(network: Network, scale: np.ndarray, shift: np.ndarray) -> Network:
    """Network whose outputs are ``scale * outputs + shift``."""
    last = network.layers[-1]
    assert isinstance(last, Dense)
    weight, bias = last.weight * scale, last.bias * scale + shift
    head = Dense(weight.astype(network.dtype), bias.astype(network.dtype), last.activation)
    return Network([*network.layers[:-1], head], None, network.metadata)
