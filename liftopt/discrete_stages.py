"""A network as stages of discrete weights, and how values, changes and derivatives travel through them.

A stage is a Dense or Conv2d layer with the parameter-free layers that follow it; its weights are
``values[codes] * scale``. For the searches a convolution is a dense layer on patches, whose samples are
positions; a unit is an output channel. A change of one unit reaches the next stage as a low-rank term,
later stages by their forward pass, earlier ones never.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.layers import IDENTITY, AvgPool2d, Conv2d, Dense, Flatten
from liftopt.network import Network
from liftopt.packing import FiniteArray, Packing
from liftopt.solvers.gram_search import search_gram
from liftopt.solvers.moments import Moments, moments_of_chunks
from liftopt.solvers.value_sets import FiniteWeights

Array = npt.NDArray[Any]

_CHUNK_FLOATS = 2**24


@dataclass(frozen=True, eq=False)
class Stage:
    """One parametric layer: ``layer`` gives shape, geometry and activation (its numbers are the float start).

    ``weights`` holds codes (fan_in, units); ``bias`` (units,) float64; ``after`` the pooling and reshaping
    that follow.
    """

    layer: Dense | Conv2d
    after: tuple[AvgPool2d | Flatten, ...]
    weights: FiniteWeights
    bias: Array

    def numbers(self) -> Dense | Conv2d:
        """The layer with its discrete weights as numbers, in the dtype of the start."""
        return with_numbers(self.layer, self.weights.dense(), self.bias)

    def packed(self, packing: Packing, input_scale: Array | None = None) -> Dense | Conv2d:
        """The layer with packed weights."""
        dtype, units = self.layer.bias.dtype, self.weights.scale.size
        shape = (units, *self.layer.weight_shape[1:]) if isinstance(self.layer, Conv2d) else (units, -1)
        scales = (
            self.weights.scale.astype(dtype),
            None if input_scale is None else input_scale.astype(dtype),
        )
        codes = self.weights.codes.T.reshape(shape)
        stored = FiniteArray.from_codes(codes, self.weights.values, *scales, packing=packing)
        return _rebuilt(self.layer, stored, self.bias.astype(dtype))

    def __call__(self, V: Array) -> Array:
        """Output of the stage, pooling included."""
        return run_stage(self.numbers(), self.after, V)


def with_numbers(layer: Dense | Conv2d, matrix: Array, bias: Array) -> Dense | Conv2d:
    """``layer`` with weights from a (fan_in, units) matrix."""
    dtype = layer.bias.dtype
    weight = matrix.T.reshape(layer.weight_shape) if isinstance(layer, Conv2d) else matrix
    return _rebuilt(layer, np.ascontiguousarray(weight, dtype=dtype), bias.astype(dtype))


def _rebuilt(layer: Dense | Conv2d, weight: Array | FiniteArray, bias: Array) -> Dense | Conv2d:
    if isinstance(layer, Conv2d):
        return Conv2d(weight, bias, layer.activation, layer.stride, layer.padding)
    return Dense(weight, bias, layer.activation)


def split_stages(
    network: Network,
) -> tuple[list[AvgPool2d | Flatten], list[tuple[Dense | Conv2d, tuple[Any, ...]]]]:
    """Layers before the first parametric one, and each parametric layer with what follows it."""
    lead: list[AvgPool2d | Flatten] = []
    stages: list[tuple[Dense | Conv2d, tuple[Any, ...]]] = []
    for layer in network.layers:
        if isinstance(layer, (Dense, Conv2d)):
            stages.append((layer, ()))
        elif not isinstance(layer, (AvgPool2d, Flatten)):
            raise ValueError(
                f"the discrete search knows Dense, Conv2d, AvgPool2d and Flatten layers, not {layer}"
            )
        elif stages:
            stages[-1] = (stages[-1][0], (*stages[-1][1], layer))
        else:
            lead.append(layer)
    return lead, stages


def run_stage(layer: Dense | Conv2d, after: Sequence[AvgPool2d | Flatten], V: Array) -> Array:
    """Layer, activation and what follows, in chunks of rows that bound the patches."""
    parts = []
    for rows in row_slices(layer, V):
        part = layer(V[rows])
        for step in after:
            part = step(part)
        parts.append(part)
    return np.concatenate(parts)


def row_slices(layer: Dense | Conv2d, V: Array) -> Iterator[slice]:
    """Slices of rows whose patches and outputs hold at most ``_CHUNK_FLOATS`` numbers."""
    size = max(1, _CHUNK_FLOATS // positions(layer, V.shape[1:]) // sum(unit_shape(layer)))
    for start in range(0, V.shape[0], size):
        yield slice(start, start + size)


def positions(layer: Dense | Conv2d, shape: tuple[int, ...]) -> int:
    """Number of positions at which a unit is evaluated on one sample."""
    return int(np.prod(layer.output_shape(shape)[1:])) if isinstance(layer, Conv2d) else 1


def unit_shape(layer: Dense | Conv2d) -> tuple[int, int]:
    """Fan-in and number of units."""
    shape = layer.weight_shape
    return (int(np.prod(shape[1:])), shape[0]) if isinstance(layer, Conv2d) else (shape[0], shape[1])


def linear_inputs(layer: Dense | Conv2d, V: Array) -> Array:
    """What a unit sees: rows (n, fan_in), or patches (n * positions, fan_in)."""
    return layer.patches(V).reshape(-1, unit_shape(layer)[0]) if isinstance(layer, Conv2d) else V


def quantise_stages(
    network: Network, X: Array, values: Array, weight: Array | None
) -> tuple[list[Any], list[Stage]]:
    """Layerwise discrete least squares with error correction.

    Every layer's pre-activations on the float network's path are fitted from the outputs of the already
    discrete layers before it, from sufficient statistics (one pass a layer, :func:`search_gram`).

    Returns
    -------
    lead, stages
        The parameter-free layers in front, and the discrete stages.
    """
    lead, layers = split_stages(network)
    for step in lead:
        X = step(X)
    exact, discrete = X, X
    stages: list[Stage] = []
    for layer, after in layers:
        statistics = moments_of_chunks(regression_rows(layer, exact, discrete, weight))
        stage = Stage(layer, after, *discrete_regression(statistics, values))
        stages.append(stage)
        if len(stages) < len(layers):
            exact, discrete = run_stage(layer, after, exact), stage(discrete)
    return lead, stages


def discrete_regression(
    statistics: Moments, values: Array, start: FiniteWeights | None = None
) -> tuple[FiniteWeights, Array]:
    """Discrete weights and biases of one layer from sufficient statistics (which may come from a stream).

    Parameters
    ----------
    statistics : Moments
        Of the layer's inputs (d) and the pre-activations wanted of it (units).
    values : ndarray of shape (m,)
        Sorted value set.
    start : FiniteWeights, optional
        Where the search begins.
    """
    gram = (statistics.gram + statistics.gram.T) / 2  # exactly symmetric, whatever cancelled in the sums
    weights: FiniteWeights = search_gram(gram, statistics.cross, values, start=start, on_limit="ignore").x
    return weights, statistics.mean_y - (statistics.mean_x @ weights.units()) * weights.scale


def regression_rows(
    layer: Dense | Conv2d, exact: Array, discrete: Array, weight: Array | None
) -> Iterator[tuple[Array, ...]]:
    """Inputs on the ``discrete`` path, pre-activations on the ``exact`` one, weights; some rows at a time."""
    units, repeats = unit_shape(layer)[1], positions(layer, exact.shape[1:])
    for rows in row_slices(layer, exact):
        target = layer.linear(exact[rows])
        if isinstance(layer, Conv2d):
            target = target.transpose(0, 2, 3, 1).reshape(-1, units)
        inputs = linear_inputs(layer, discrete[rows])
        yield (inputs, target) if weight is None else (inputs, target, np.repeat(weight[rows], repeats))


def random_stages(network: Network, values: Array, rng: np.random.Generator) -> tuple[list[Any], list[Stage]]:
    """Uniformly random codes with scales that keep pre-activations of order one; zero biases."""
    lead, layers = split_stages(network)
    stages = []
    for layer, after in layers:
        shape = unit_shape(layer)
        codes = rng.integers(0, values.size, shape).astype(np.uint8)
        scale = np.full(shape[1], np.sqrt(2.0 / shape[0] / np.mean(values**2)))
        stages.append(Stage(layer, after, FiniteWeights(values, codes, scale), np.zeros(shape[1])))
    return lead, stages


def push_unit(stage: Stage, following: Dense | Conv2d, unit: int, change: Array) -> Array:
    """Change of the pre-activations of ``following`` when the activations of one unit change.

    ``change`` (n, *positions) belongs to ``unit`` of ``stage``.
    """
    part = change.reshape(change.shape[0], 1, *change.shape[1:])
    for step in stage.after:
        part = step(part)
    return _restricted(following, unit, part.shape[1]).linear(part)


def pull_unit(
    stage: Stage, following: Dense | Conv2d, unit: int, G: Array, shape: tuple[int, ...], power: int
) -> Array:
    """Adjoint of :func:`push_unit` (``power`` 2: with squared coefficients), shape (n, *shape)."""
    shapes = [(1, *shape)]
    for step in stage.after:
        shapes.append(step.output_shape(shapes[-1]))
    G = adjoint(_restricted(following, unit, shapes[-1][0]), G, shapes[-1], power)
    for step, before in zip(reversed(stage.after), reversed(shapes[:-1]), strict=True):
        G = adjoint(step, G, before, power)
    return G.reshape(G.shape[0], *shape)


def _restricted(layer: Dense | Conv2d, unit: int, width: int) -> Dense | Conv2d:
    """``layer`` without bias, seeing only the ``width`` inputs that come from ``unit``."""
    zeros = np.zeros_like(layer.bias)
    if isinstance(layer, Conv2d):
        kernel = layer.weight[:, unit : unit + 1]
        return Conv2d(kernel, zeros, IDENTITY, layer.stride, layer.padding)
    return Dense(layer.weight[unit * width : (unit + 1) * width], zeros)


def adjoint(layer: Any, G: Array, shape: tuple[int, ...], power: int = 1) -> Array:
    """Transpose of the linear map of ``layer`` (entries to the ``power``); its inputs have ``shape``."""
    if isinstance(layer, Flatten):
        return G.reshape(G.shape[0], *shape)
    if isinstance(layer, AvgPool2d):
        spread = np.repeat(np.repeat(G, layer.size, axis=2), layer.size, axis=3) / layer.size ** (2 * power)
        missing = [(0, side - have) for side, have in zip(shape[1:], spread.shape[2:], strict=True)]
        return np.pad(spread, ((0, 0), (0, 0), *missing))
    if isinstance(layer, Dense):
        return G @ (layer.weight**power).T
    return _conv_adjoint(layer, G, shape, power)


def _conv_adjoint(layer: Conv2d, G: Array, shape: tuple[int, ...], power: int) -> Array:
    """Every tap adds its product to the window it read."""
    kernel, (n, _, height, width) = layer.weight**power, G.shape
    out, channels, rows, columns = kernel.shape
    products = (G.transpose(0, 2, 3, 1) @ kernel.reshape(out, -1)).reshape(
        n, height, width, channels, rows, columns
    )
    pad, stride = layer.padding, layer.stride
    total = np.zeros((n, shape[0], shape[1] + 2 * pad, shape[2] + 2 * pad), dtype=G.dtype)
    for i in range(rows):
        for j in range(columns):
            window = total[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
            window += products[..., i, j].transpose(0, 3, 1, 2)
    return total[:, :, pad : pad + shape[1], pad : pad + shape[2]]


def replaced(stage: Stage, codes: Array, scale: Array, bias: Array) -> Stage:
    """``stage`` with other weights."""
    return replace(stage, weights=stage.weights._replace(codes=codes, scale=scale), bias=bias)
