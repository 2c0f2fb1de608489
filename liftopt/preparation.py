"""Between raw data and a training problem: input map, target scale, and how both fold back into a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.base import TrainingData
from liftopt.input_map import InputMap, fit_input_map, standardise
from liftopt.layers import Dense
from liftopt.network import Network

Array = npt.NDArray[Any]

_PCA_SHARE = 0.99


def fit_map(
    spec: str | Mapping[str, Any] | None, data: TrainingData, random_state: np.random.RandomState
) -> InputMap | None:
    """The input map of ``spec``: ``"standardise"``, ``"pca"``, arguments of the whitening, or None."""
    if spec is None:
        return None
    if isinstance(spec, str) and spec == "standardise":
        return standardise(data.X, data.weight)
    if isinstance(spec, str) and spec == "pca":
        spec = {"n_components": _PCA_SHARE}
    if isinstance(spec, Mapping):
        return fit_input_map(data.X, sample_weight=data.weight, random_state=random_state, **spec)
    raise ValueError(
        "input_map must be 'standardise', 'pca', a mapping of fit_input_map's arguments or None, "
        f"got {spec!r}"
    )


def target_moments(data: TrainingData) -> tuple[Array, Array]:
    """Mean and standard deviation of every output; 0 and 1 for classes, 1 for constant targets."""
    width = data.target.shape[1]
    if data.codes is not None:
        return np.zeros(width), np.ones(width)
    moments = standardise(data.target, data.weight)
    return moments.mean, np.divide(1.0, moments.factor, out=np.ones(width), where=moments.factor > 0)


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
