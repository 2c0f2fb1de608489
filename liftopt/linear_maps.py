"""The affine parts of a network as matrix products: ``u = M(V) W + b``, the form every block solver needs.

A :class:`LinearMap` joins one parametric layer (Dense or Conv2d) with the pooling and flattening before it.
``matrix(V)`` lays the batch out so that the layer is a product with the weight matrix ``W``
(fan_in, fan_out); ``adjoint`` maps a gradient with respect to ``M(V)`` back to ``V``. Images are kept
channels-last between the layers, so that products need no transposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from liftopt.activations import Activation
from liftopt.layers import AvgPool2d, Conv2d, Dense, Flatten, Layer
from liftopt.network import Network

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LinearMap:
    """One Dense or Conv2d layer with the parameter-free layers in front of it.

    Parameters
    ----------
    before : tuple of AvgPool2d or Flatten
        Applied first; linear.
    layer : Dense or Conv2d
        The layer; its arrays are the starting point, not the state.
    output_shape : tuple of int
        Shape of one output sample, channels last.
    """

    before: tuple[AvgPool2d | Flatten, ...]
    layer: Dense | Conv2d
    output_shape: tuple[int, ...]

    @property
    def activation(self) -> Activation:
        """Activation of the layer."""
        return self.layer.activation

    @property
    def weight(self) -> Array:
        """The layer's weights as a matrix (fan_in, fan_out), a copy."""
        if isinstance(self.layer, Dense):
            return self.layer.weight.copy()
        return self.layer.weight.transpose(2, 3, 1, 0).reshape(-1, self.layer.weight.shape[0]).copy()

    def with_weights(self, W: Array, b: Array) -> list[Layer]:
        """The layers with weight matrix ``W`` and bias ``b``."""
        if isinstance(self.layer, Dense):
            return [*self.before, Dense(W, b, self.activation)]
        channels_out, channels_in, *window = self.layer.weight.shape
        kernels = W.reshape(*window, channels_in, channels_out).transpose(3, 2, 0, 1)
        geometry = {"stride": self.layer.stride, "padding": self.layer.padding}
        return [*self.before, Conv2d(np.ascontiguousarray(kernels), b, self.activation, **geometry)]

    def matrix(self, V: Array) -> Array:
        """``M(V)`` of shape (rows, fan_in); rows are samples, times positions for a convolution."""
        for layer in self.before:
            V = _flatten(V) if isinstance(layer, Flatten) else _pool(V, layer.size)
        if isinstance(self.layer, Dense):
            return V
        windows = self._windows(V)
        return windows.reshape(-1, int(np.prod(windows.shape[3:])))

    def output(self, u: Array) -> Array:
        """Rows ``u`` (rows, fan_out) as a batch of samples."""
        return u.reshape(-1, *self.output_shape)

    def adjoint(self, G: Array, shape: tuple[int, ...]) -> Array:
        """Gradient with respect to ``V`` of ``shape`` from the gradient ``G`` with respect to ``M(V)``."""
        shapes = [shape]
        for layer in self.before:
            shapes.append(_shape_after(layer, shapes[-1]))
        if isinstance(self.layer, Conv2d):
            G = self._scatter(G, shapes[-1])
        for layer, inner in zip(reversed(self.before), reversed(shapes[:-1]), strict=True):
            G = _unflatten(G, inner) if isinstance(layer, Flatten) else _unpool(G, layer.size, inner)
        return G

    def _windows(self, V: Array) -> Array:
        """Receptive fields, shape (n, rows, columns, height, width, channels)."""
        assert isinstance(self.layer, Conv2d)
        margin = (self.layer.padding, self.layer.padding)
        padded = np.pad(V, ((0, 0), margin, margin, (0, 0))) if self.layer.padding else V
        stride = self.layer.stride
        windows = sliding_window_view(padded, self.layer.weight.shape[2:], axis=(1, 2))
        return windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)

    def _scatter(self, G: Array, shape: tuple[int, ...]) -> Array:
        """Sum window gradients into the image they were cut from."""
        assert isinstance(self.layer, Conv2d)
        (height, width), padding, stride = self.layer.weight.shape[2:], self.layer.padding, self.layer.stride
        n, rows, columns, channels = shape
        padded = np.zeros((n, rows + 2 * padding, columns + 2 * padding, channels), dtype=G.dtype)
        down = (rows + 2 * padding - height) // stride + 1
        across = (columns + 2 * padding - width) // stride + 1
        parts = G.reshape(n, down, across, height, width, channels)
        for i in range(height):
            for j in range(width):
                padded[:, i : i + down * stride : stride, j : j + across * stride : stride] += parts[
                    :, :, :, i, j
                ]
        return padded[:, padding : padding + rows, padding : padding + columns]


def linear_maps(network: Network) -> list[LinearMap]:
    """The parametric layers of ``network``, each with the parameter-free ones before it."""
    maps: list[LinearMap] = []
    before: list[AvgPool2d | Flatten] = []
    shape = network.input_shape
    for layer in network.layers:
        shape = layer.output_shape(shape)
        if isinstance(layer, (AvgPool2d, Flatten)):
            before.append(layer)
        elif not isinstance(layer, (Dense, Conv2d)):
            raise ValueError(f"block descent cannot train through the layer {layer}")
        else:
            maps.append(LinearMap(tuple(before), layer, (*shape[1:], shape[0])))
            before = []
    if before or not maps:
        raise ValueError("a network to be trained must end in a Dense layer")
    return maps


def rebuild(
    network: Network, maps: Sequence[LinearMap], weights: Sequence[Array], biases: Sequence[Array]
) -> Network:
    """``network`` with new weight matrices and biases."""
    layers = [
        layer for part, W, b in zip(maps, weights, biases, strict=True) for layer in part.with_weights(W, b)
    ]
    return Network(layers, network.input_shape, network.metadata)


def channels_last(X: Array, input_shape: tuple[int, ...]) -> Array:
    """Rows as a batch of samples: images (channels, height, width) become (height, width, channels)."""
    if len(input_shape) == 1:
        return X
    return X.reshape(X.shape[0], *input_shape).transpose(0, 2, 3, 1)


def _pool(V: Array, size: int) -> Array:
    n, height, width, channels = V.shape
    rows, columns = height // size, width // size
    out = np.zeros((n, rows, columns, channels), dtype=V.dtype)
    for i in range(size):
        for j in range(size):
            out += V[:, i : rows * size : size, j : columns * size : size]
    out *= V.dtype.type(1.0 / size**2)
    return out


def _unpool(G: Array, size: int, shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape, dtype=G.dtype)
    share = G * G.dtype.type(1.0 / size**2)
    rows, columns = G.shape[1] * size, G.shape[2] * size
    for i in range(size):
        for j in range(size):
            out[:, i:rows:size, j:columns:size] = share
    return out


def _flatten(V: Array) -> Array:
    """Channels-first order, as :class:`~liftopt.layers.Flatten` has it."""
    return (V.transpose(0, 3, 1, 2) if V.ndim == 4 else V).reshape(V.shape[0], -1)


def _unflatten(G: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) == 2:
        return G
    n, height, width, channels = shape
    return G.reshape(n, channels, height, width).transpose(0, 2, 3, 1)


def _shape_after(layer: AvgPool2d | Flatten, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, Flatten):
        return (shape[0], int(np.prod(shape[1:])))
    return (shape[0], shape[1] // layer.size, shape[2] // layer.size, shape[3])
