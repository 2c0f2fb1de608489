"""The affine parts of a network as matrix products: ``u = M(V) W + b``, the form every block solver needs.

A :class:`LinearMap` joins one parametric layer (Dense or Conv2d) with the pooling and flattening before it.
``linear`` computes ``u`` for a weight matrix ``W`` (fan_in, fan_out), ``gradient`` the derivatives for ``W``
and ``b``, ``input_gradient`` and ``adjoint`` that for ``V``; ``matrix`` forms ``M(V)`` where its Gram matrix
is needed. Images are kept channels-last between the layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.activations import Activation
from liftopt.convolution import Correlation, pool_images, unpool_images
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
    geometry : Correlation, optional
        Of a Conv2d; None for a Dense layer.
    """

    before: tuple[AvgPool2d | Flatten, ...]
    layer: Dense | Conv2d
    output_shape: tuple[int, ...]
    geometry: Correlation | None = None

    @property
    def activation(self) -> Activation:
        """Activation of the layer."""
        return self.layer.activation

    @property
    def weight(self) -> Array:
        """The layer's weights as a matrix (fan_in, fan_out), a copy."""
        if isinstance(self.layer, Dense):
            return self.layer.weight.copy()
        return self.layer.matrix

    def with_weights(self, W: Array, b: Array) -> list[Layer]:
        """The layers with weight matrix ``W`` and bias ``b``."""
        if isinstance(self.layer, Dense):
            return [*self.before, Dense(W, b, self.activation)]
        channels_out, channels_in, *window = self.layer.weight.shape
        kernels = W.reshape(*window, channels_in, channels_out).transpose(3, 2, 0, 1)
        geometry = {"stride": self.layer.stride, "padding": self.layer.padding}
        return [*self.before, Conv2d(np.ascontiguousarray(kernels), b, self.activation, **geometry)]

    def arranged(self, V: Array) -> Array:
        """What products with the weights read: ``V`` pooled, flattened, cut for a convolution."""
        for layer in self.before:
            V = _flatten(V) if isinstance(layer, Flatten) else pool_images(V, layer.size)
        return V if self.geometry is None else self.geometry.cut(V)

    def linear(self, M: Array, W: Array, b: Array, out: Array | None = None) -> Array:
        """``u = M(V) W + b`` for :meth:`arranged` inputs, a row for each sample and position."""
        u = np.matmul(M, W, out=out) if self.geometry is None else self.geometry.product(M, W, out)
        samples = u.reshape(-1, math.prod(self.output_shape))  # long rows: short ones are slow to add to
        samples += np.tile(b, samples.shape[1] // b.size)
        return u

    def gradient(self, M: Array, G: Array) -> tuple[Array, Array]:
        """Gradients with respect to ``W`` and ``b`` from ``G`` (rows, fan_out), that for ``u``."""
        dW = M.T @ G if self.geometry is None else self.geometry.weight_gradient(M, G)
        samples = G.reshape(-1, math.prod(self.output_shape))
        return dW, samples.sum(axis=0).reshape(-1, G.shape[1]).sum(axis=0)

    def input_gradient(self, G: Array, W: Array) -> Array:
        """Gradient with respect to what enters the layer itself from ``G``, that for ``u``."""
        return G @ W.T if self.geometry is None else self.geometry.input_gradient(G, W)

    def adjoint(self, G: Array, shape: tuple[int, ...]) -> Array:
        """Gradient with respect to ``V`` of ``shape`` from an :meth:`input_gradient`."""
        shapes = [shape]
        for layer in self.before:
            shapes.append(_shape_after(layer, shapes[-1]))
        for layer, inner in zip(reversed(self.before), reversed(shapes[:-1]), strict=True):
            G = _unflatten(G, inner) if isinstance(layer, Flatten) else unpool_images(G, layer.size, inner)
        return G

    def matrix(self, V: Array) -> Array:
        """``M(V)`` of shape (rows, fan_in), a patch in each row for a convolution."""
        M = self.arranged(V)
        return M if self.geometry is None else self.geometry.patches(M)

    def output(self, u: Array) -> Array:
        """Rows ``u`` (rows, fan_out) as a batch of samples."""
        return u.reshape(-1, *self.output_shape)


def linear_maps(network: Network) -> list[LinearMap]:
    """The parametric layers of ``network``, each with the parameter-free ones before it."""
    maps: list[LinearMap] = []
    before: list[AvgPool2d | Flatten] = []
    shape = network.input_shape
    for layer in network.layers:
        entering, shape = shape, layer.output_shape(shape)
        if isinstance(layer, (AvgPool2d, Flatten)):
            before.append(layer)
        elif not isinstance(layer, (Dense, Conv2d)):
            raise ValueError(f"block descent cannot train through the layer {layer}")
        else:
            geometry = layer.geometry(entering) if isinstance(layer, Conv2d) else None
            maps.append(LinearMap(tuple(before), layer, (*shape[1:], shape[0]), geometry))
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


def _flatten(V: Array) -> Array:
    """Channels-first order, as :class:`~liftopt.layers.Flatten` has it."""
    return (V.transpose(0, 3, 1, 2) if V.ndim == 4 else V).reshape(V.shape[0], math.prod(V.shape[1:]))


def _unflatten(G: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) == 2:
        return G
    n, height, width, channels = shape
    return G.reshape(n, channels, height, width).transpose(0, 2, 3, 1)


def _shape_after(layer: AvgPool2d | Flatten, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, Flatten):
        return (shape[0], int(np.prod(shape[1:])))
    return (shape[0], shape[1] // layer.size, shape[2] // layer.size, shape[3])
