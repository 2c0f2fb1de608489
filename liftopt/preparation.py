"""Between raw data and a training problem: mapped rows, scaled targets, and outputs in their own units."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from liftopt.base import TrainingData
from liftopt.input_map import InputMap, fold, reciprocal, unfold
from liftopt.layers import Dense
from liftopt.losses import Head
from liftopt.network import Network
from liftopt.solvers.least_squares import solve_ridge

Array = npt.NDArray[Any]

_START_ROWS = 3000


class Frame(NamedTuple):
    """Coordinates in which a descent works: a map of the inputs and a scaling of the targets, or None."""

    input_map: InputMap | None
    target_map: InputMap | None

    def data(self, data: TrainingData) -> TrainingData:
        """Mapped rows and targets."""
        X = data.X if self.input_map is None else self.input_map.transform(data.X)
        target = data.target if self.target_map is None else self.target_map.transform(data.target)
        return data._replace(X=X, target=target)

    def enter(self, network: Network) -> Network:
        """Network on mapped rows and targets, from one on raw rows."""
        outputs = self.target_map
        if outputs is not None:
            network = affine_outputs(network, outputs.factor, -outputs.mean * outputs.factor)
        return network if self.input_map is None else unfold(network, self.input_map)

    def leave(self, network: Network) -> Network:
        """Network on raw rows; a constant target has factor 0 and is met exactly."""
        outputs = self.target_map
        if outputs is not None:
            network = affine_outputs(network, reciprocal(outputs.factor), outputs.mean)
        return network if self.input_map is None else fold(network, self.input_map)


def mapped(data: TrainingData, input_map: InputMap | None, centre: Array, scale: Array) -> TrainingData:
    """``data`` with mapped inputs and targets ``(target - centre) / scale`` (classes stay)."""
    X = data.X if input_map is None else input_map.transform(data.X)
    target = data.target if data.codes is not None else (data.target - centre) / scale
    return data._replace(X=X, target=target.astype(X.dtype, copy=False))


def affine_outputs(network: Network, scale: Array, shift: Array) -> Network:
    """Network whose outputs (before a softmax) are ``scale * outputs + shift``."""
    last = network.layers[-1]
    if not isinstance(last, Dense):
        raise ValueError(f"the last layer must be Dense, got {last}")
    weight, bias = last.weight * scale, last.bias * scale + shift
    head = Dense(weight.astype(network.dtype), bias.astype(network.dtype), last.activation)
    return Network([*network.layers[:-1], head], network.input_shape, network.metadata)


def with_ridge_head(network: Network, data: TrainingData, head: Head) -> Network:
    """``network`` with its head fitted to (scaled) targets on the random features of a few rows."""
    few = data.rows(np.arange(min(_START_ROWS, data.X.shape[0])))
    features = network.hidden(few.X)[-1] if len(network.layers) > 1 else few.X
    weight = few.weight if few.weight is not None and few.weight.sum() > 0 else None
    found = solve_ridge(
        features, head.fitting_scores(few.target), alpha=1e-2, relative=True, sample_weight=weight
    ).x
    last, dtype = network.layers[-1], network.dtype
    assert isinstance(last, Dense)
    fitted = Dense(found.weight.astype(dtype), found.intercept.astype(dtype), last.activation)
    return Network([*network.layers[:-1], fitted], network.input_shape)
