"""Layers as values: arrays, a linear map and an activation. They know nothing of training.

A layer maps a batch (first axis: samples) to a batch. ``linear`` is the affine part, calling the layer
applies the activation too. Images are (n, channels, height, width); convolutions are cross-correlations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from liftopt.activations import Activation, Identity, get_activation

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

IDENTITY = Identity()


@dataclass(frozen=True, eq=False)
class Dense:
    """``activation(X @ weight + bias)``.

    Parameters
    ----------
    weight : ndarray of shape (fan_in, fan_out)
        Floating point, finite.
    bias : ndarray of shape (fan_out,)
        Same dtype.
    activation : Activation
        From the table in :mod:`liftopt.activations`, or your own.
    """

    weight: Array
    bias: Array
    activation: Activation = IDENTITY
    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        _check_parameters(self, weight_ndim=2, fan_out_axis=1)

    def linear(self, X: Array) -> Array:
        """Pre-activation ``X @ weight + bias``."""
        out: Array = X @ self.weight
        out += self.bias
        return out

    def __call__(self, X: Array) -> Array:
        """Activated output."""
        return self.activation(self.linear(X))

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output sample for an input sample of ``shape``."""
        if shape != self.weight.shape[:1]:
            raise ValueError(f"Dense of fan_in {self.weight.shape[0]} cannot follow samples of shape {shape}")
        return self.weight.shape[1:]

    def arrays(self) -> dict[str, Array]:
        """The stored arrays by name."""
        return {"weight": self.weight, "bias": self.bias}

    def config(self) -> dict[str, Any]:
        """JSON-able description without the arrays."""
        return {"kind": self.kind, "activation": self.activation.config()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Array]) -> Dense:
        """Inverse of :meth:`config` and :meth:`arrays`."""
        return cls(arrays["weight"], arrays["bias"], get_activation(config["activation"]))

    def __str__(self) -> str:
        fan_in, fan_out = self.weight.shape
        return f"Dense {fan_in} -> {fan_out}, {self.activation}"


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Two-dimensional cross-correlation with bias and activation.

    Parameters
    ----------
    weight : ndarray of shape (channels_out, channels_in, height, width)
        The kernels.
    bias : ndarray of shape (channels_out,)
        Same dtype.
    activation : Activation
        Entrywise activation.
    stride, padding : int
        Same in both directions; zero padding.
    """

    weight: Array
    bias: Array
    activation: Activation = IDENTITY
    stride: int = 1
    padding: int = 0
    kind: ClassVar[str] = "conv2d"

    def __post_init__(self) -> None:
        _check_parameters(self, weight_ndim=4, fan_out_axis=0)
        if self.stride < 1 or self.padding < 0:
            raise ValueError(
                f"Conv2d needs stride >= 1 and padding >= 0, got {self.stride} and {self.padding}"
            )

    def patches(self, X: Array) -> Array:
        """Receptive fields, shape (n, height_out, width_out, channels_in * height * width)."""
        margin = (self.padding, self.padding)
        padded = np.pad(X, ((0, 0), (0, 0), margin, margin)) if self.padding else X
        windows = sliding_window_view(padded, self.weight.shape[2:], axis=(2, 3))
        windows = windows[:, :, :: self.stride, :: self.stride].transpose(0, 2, 3, 1, 4, 5)
        return windows.reshape(*windows.shape[:3], -1)

    def linear(self, X: Array) -> Array:
        """Pre-activation, shape (n, channels_out, height_out, width_out)."""
        kernels = self.weight.reshape(self.weight.shape[0], -1).T
        out = self.patches(X) @ kernels
        out += self.bias
        return out.transpose(0, 3, 1, 2)

    def __call__(self, X: Array) -> Array:
        """Activated output."""
        return self.activation(self.linear(X))

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output sample for an input sample of ``shape``."""
        channels_out, channels_in, *window = self.weight.shape
        if len(shape) != 3 or shape[0] != channels_in:
            raise ValueError(f"Conv2d of {channels_in} input channels cannot follow samples of shape {shape}")
        sides = [
            (side + 2 * self.padding - k) // self.stride + 1
            for side, k in zip(shape[1:], window, strict=True)
        ]
        if min(sides) < 1:
            raise ValueError(f"Conv2d window {tuple(window)} exceeds samples of shape {shape}")
        return (channels_out, *sides)

    def arrays(self) -> dict[str, Array]:
        """The stored arrays by name."""
        return {"weight": self.weight, "bias": self.bias}

    def config(self) -> dict[str, Any]:
        """JSON-able description without the arrays."""
        geometry = {"stride": self.stride, "padding": self.padding}
        return {"kind": self.kind, "activation": self.activation.config(), **geometry}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Array]) -> Conv2d:
        """Inverse of :meth:`config` and :meth:`arrays`."""
        activation = get_activation(config["activation"])
        return cls(arrays["weight"], arrays["bias"], activation, config["stride"], config["padding"])

    def __str__(self) -> str:
        channels_out, channels_in, height, width = self.weight.shape
        return (
            f"Conv2d {channels_in} -> {channels_out}, {height}x{width}, "
            f"stride {self.stride}, padding {self.padding}, {self.activation}"
        )


@dataclass(frozen=True, eq=False)
class AvgPool2d:
    """Mean over non-overlapping ``size`` x ``size`` windows; incomplete windows at the edge are dropped."""

    size: int
    kind: ClassVar[str] = "avg_pool2d"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"AvgPool2d needs size >= 1, got {self.size}")

    def linear(self, X: Array) -> Array:
        """The pooled batch (pooling is linear)."""
        n, channels, height, width = X.shape
        rows, columns = height // self.size, width // self.size
        whole = X[:, :, : rows * self.size, : columns * self.size]
        return whole.reshape(n, channels, rows, self.size, columns, self.size).mean(axis=(3, 5))

    def __call__(self, X: Array) -> Array:
        """Same as :meth:`linear`: there is no activation."""
        return self.linear(X)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output sample for an input sample of ``shape``."""
        if len(shape) != 3 or min(shape[1:]) < self.size:
            raise ValueError(f"AvgPool2d of size {self.size} cannot follow samples of shape {shape}")
        return (shape[0], shape[1] // self.size, shape[2] // self.size)

    def arrays(self) -> dict[str, Array]:
        """No arrays."""
        return {}

    def config(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"kind": self.kind, "size": self.size}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Array]) -> AvgPool2d:
        """Inverse of :meth:`config`."""
        return cls(config["size"])

    def __str__(self) -> str:
        return f"AvgPool2d {self.size}x{self.size}"


@dataclass(frozen=True, eq=False)
class Flatten:
    """Samples of any shape become rows, last axis fastest."""

    kind: ClassVar[str] = "flatten"

    def linear(self, X: Array) -> Array:
        """The batch as a matrix."""
        return X.reshape(X.shape[0], -1)

    def __call__(self, X: Array) -> Array:
        """Same as :meth:`linear`: there is no activation."""
        return self.linear(X)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output sample for an input sample of ``shape``."""
        return (int(np.prod(shape)),)

    def arrays(self) -> dict[str, Array]:
        """No arrays."""
        return {}

    def config(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"kind": self.kind}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Array]) -> Flatten:
        """Inverse of :meth:`config`."""
        return cls()

    def __str__(self) -> str:
        return "Flatten"


@dataclass(frozen=True, eq=False)
class Normalize:
    """Rows scaled to unit Euclidean length; zero rows stay zero."""

    kind: ClassVar[str] = "normalize"

    def linear(self, X: Array) -> Array:
        """The scaled rows (the name is that of the other layers; the map is not linear)."""
        length = np.linalg.norm(X, axis=1, keepdims=True)
        return X / np.where(length > 0, length, 1).astype(X.dtype)

    def __call__(self, X: Array) -> Array:
        """Same as :meth:`linear`: there is no activation."""
        return self.linear(X)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output sample for an input sample of ``shape``."""
        if len(shape) != 1:
            raise ValueError(f"Normalize needs rows, got samples of shape {shape}")
        return shape

    def arrays(self) -> dict[str, Array]:
        """No arrays."""
        return {}

    def config(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"kind": self.kind}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Array]) -> Normalize:
        """Inverse of :meth:`config`."""
        return cls()

    def __str__(self) -> str:
        return "Normalize"


Layer: TypeAlias = Dense | Conv2d | AvgPool2d | Flatten | Normalize
LAYERS: Mapping[str, type[Layer]] = {
    kind.kind: kind for kind in (Dense, Conv2d, AvgPool2d, Flatten, Normalize)
}


def _check_parameters(layer: Dense | Conv2d, *, weight_ndim: int, fan_out_axis: int) -> None:
    """Refuse shapes that do not fit and non-finite weights, before they can travel."""
    name, weight, bias = type(layer).__name__, layer.weight, layer.bias
    if not (isinstance(weight, np.ndarray) and isinstance(bias, np.ndarray)):
        raise ValueError(f"{name} needs arrays, got {type(weight).__name__} and {type(bias).__name__}")
    if weight.ndim != weight_ndim or bias.shape != (weight.shape[fan_out_axis],):
        raise ValueError(f"{name} got weight of shape {weight.shape} with bias of shape {bias.shape}")
    if weight.dtype != bias.dtype or not np.issubdtype(weight.dtype, np.floating):
        raise ValueError(f"{name} needs one floating dtype, got {weight.dtype} and {bias.dtype}")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"{name} weights hold NaN or infinite entries")
