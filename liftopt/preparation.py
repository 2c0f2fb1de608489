"""Between raw data and a training problem: mapped rows, scaled targets, and outputs in their own units."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

from liftopt.base import TrainingData
from liftopt.input_map import InputMap, fold, reciprocal, unfold
from liftopt.layers import Dense
from liftopt.network import Network

Array = npt.NDArray[Any]


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
