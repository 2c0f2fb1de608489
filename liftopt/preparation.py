"""Between raw data and a training problem: mapped rows, scaled targets, and outputs in their own units."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from liftopt.base import TrainingData
from liftopt.input_map import InputMap
from liftopt.layers import Dense
from liftopt.network import Network

Array = npt.NDArray[Any]


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
