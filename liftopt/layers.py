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
from liftopt.convolution import Correlation, pool_images
from liftopt.packing import FiniteArray

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

IDENTITY = Identity()


@dataclass(frozen=True, eq=False, init=False)
class Dense:
    """``activation(X @ weight + bias)``.

    Parameters
    ----------
    weight : ndarray of shape (fan_in, fan_out), or FiniteArray of fan_out units
        Floating point, finite; or packed codes of a finite value set, unpacked where numbers are needed.
    bias : ndarray of shape (fan_out,)
        Same dtype.
    activation : Activation
        From the table in :mod:`liftopt.activations`, or your own.
    """

    stored: Array | FiniteArray
    bias: Array
    activation: Activation = IDENTITY
    kind: ClassVar[str] = "dense"

    def __init__(self, weight: Array | FiniteArray, bias: Array, activation: Activation = IDENTITY) -> None:
        object.__setattr__(self, "stored", weight)
        object.__setattr__(self, "bias", bias)
        object.__setattr__(self, "activation", activation)
        _check_parameters(self, weight_ndim=2, fan_out_axis=1)

    @property
    def weight(self) -> Array:
        """The weights as numbers (fan_in, fan_out); packed ones are unpacked at every access."""
        return self.stored.dense().T if isinstance(self.stored, FiniteArray) else self.stored

    @property
    def weight_shape(self) -> Shape:
        """Shape of ``weight``, without unpacking."""
        shape = self.stored.shape
        return shape[::-1] if isinstance(self.stored, FiniteArray) else shape

    def linear(self, X: Array) -> Array:
        """Pre-activation ``X @ weight + bias``."""
        out: Array = self.stored.multiply(X) if isinstance(self.stored, FiniteArray) else X @ self.stored
        out += self.bias
        return out

    def __call__(self, X: Array) -> Array:
        """Activated output."""
        return self.activation(self.linear(X))

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output sample for an input sample of ``shape``."""
        fan_in, fan_out = self.weight_shape
        if shape != (fan_in,):
            raise ValueError(f"Dense of fan_in {fan_in} cannot follow samples of shape {shape}")
        return (fan_out,)

    def arrays(self) -> dict[str, Array]:
        """The stored arrays by name."""
        return {**_stored_arrays(self.stored), "bias": self.bias}

    def config(self) -> dict[str, Any]:
        """JSON-able description without the arrays."""
        return {"kind": self.kind, "activation": self.activation.config(), **_storage(self.stored)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Array]) -> Dense:
        """Inverse of :meth:`config` and :meth:`arrays`."""
        return cls(_restore(config, arrays), arrays["bias"], get_activation(config["activation"]))

    def __str__(self) -> str:
        fan_in, fan_out = self.weight_shape
        return f"Dense {fan_in} -> {fan_out}, {self.activation}{_describe(self.stored)}"


@dataclass(frozen=True, eq=False, init=False)
class Conv2d:
    """Two-dimensional cross-correlation with bias and activation.

    Parameters
    ----------
    weight : ndarray of shape (channels_out, channels_in, height, width), or FiniteArray of that shape
        The kernels, as numbers or packed.
    bias : ndarray of shape (channels_out,)
        Same dtype.
    activation : Activation
        Entrywise activation.
    stride, padding : int
        Same in both directions; zero padding.
    """

    stored: Array | FiniteArray
    bias: Array
    activation: Activation = IDENTITY
    stride: int = 1
    padding: int = 0
    kind: ClassVar[str] = "conv2d"

    def __init__(
        self,
        weight: Array | FiniteArray,
        bias: Array,
        activation: Activation = IDENTITY,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        given = {
            "stored": weight,
            "bias": bias,
            "activation": activation,
            "stride": stride,
            "padding": padding,
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)
        _check_parameters(self, weight_ndim=4, fan_out_axis=0)
        if self.stride < 1 or self.padding < 0:
            raise ValueError(
                f"Conv2d needs stride >= 1 and padding >= 0, got {self.stride} and {self.padding}"
            )

    @property
    def weight(self) -> Array:
        """The kernels as numbers; packed ones are unpacked at every access."""
        return self.stored.dense() if isinstance(self.stored, FiniteArray) else self.stored

    @property
    def weight_shape(self) -> Shape:
        """Shape of ``weight``, without unpacking."""
        return self.stored.shape

    def patches(self, X: Array) -> Array:
        """Receptive fields in ``X``, shape (n, height_out, width_out, channels_in * height * width)."""
        margin = (self.padding, self.padding)
        padded = np.pad(X, ((0, 0), (0, 0), margin, margin)) if self.padding else X
        windows = sliding_window_view(padded, self.weight_shape[2:], axis=(2, 3))
        windows = windows[:, :, :: self.stride, :: self.stride].transpose(0, 2, 3, 1, 4, 5)
        return windows.reshape(*windows.shape[:3], -1)

    @property
    def matrix(self) -> Array:
        """The kernels as a matrix (height * width * channels_in, channels_out), a copy."""
        return self.weight.transpose(2, 3, 1, 0).reshape(-1, self.weight_shape[0])

    def geometry(self, shape: Shape) -> Correlation:
        """Geometry of the products for input samples of ``shape``."""
        channels, height, width = shape
        channels_out, _, *kernel = self.weight_shape
        return Correlation(
            height, width, channels, (kernel[0], kernel[1]), channels_out, self.stride, self.padding
        )

    def linear(self, X: Array) -> Array:
        """Pre-activation of ``X``, shape (n, channels_out, height_out, width_out)."""
        geometry = self.geometry(X.shape[1:])
        out = geometry.product(geometry.cut(X.transpose(0, 2, 3, 1)), self.matrix)
        positions = geometry.rows * geometry.columns
        samples = out.reshape(-1, positions * self.bias.size)  # long rows: short ones are slow to add to
        samples += np.tile(self.bias, positions)
        return out.reshape(-1, geometry.rows, geometry.columns, self.bias.size).transpose(0, 3, 1, 2)

    def __call__(self, X: Array) -> Array:
        """Activated output."""
        return self.activation(self.linear(X))

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output sample for an input sample of ``shape``."""
        channels_out, channels_in, *window = self.weight_shape
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
        return {**_stored_arrays(self.stored), "bias": self.bias}

    def config(self) -> dict[str, Any]:
        """JSON-able description without the arrays."""
        geometry = {"stride": self.stride, "padding": self.padding}
        storage = _storage(self.stored)
        return {"kind": self.kind, "activation": self.activation.config(), **geometry, **storage}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Array]) -> Conv2d:
        """Inverse of :meth:`config` and :meth:`arrays`."""
        activation = get_activation(config["activation"])
        weight = _restore(config, arrays)
        return cls(weight, arrays["bias"], activation, config["stride"], config["padding"])

    def __str__(self) -> str:
        channels_out, channels_in, height, width = self.weight_shape
        return (
            f"Conv2d {channels_in} -> {channels_out}, {height}x{width}, "
            f"stride {self.stride}, padding {self.padding}, {self.activation}{_describe(self.stored)}"
        )


@dataclass(frozen=True, eq=False)
class AvgPool2d:
    """Mean over non-overlapping windows of (n, channels, height, width); incomplete ones are dropped.

    Parameters
    ----------
    size : int
        Height and width of a window.

    Raises
    ------
    ValueError
        If ``size`` is not positive.
    """

    size: int
    kind: ClassVar[str] = "avg_pool2d"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"AvgPool2d needs size >= 1, got {self.size}")

    def linear(self, X: Array) -> Array:
        """The pooled batch ``X`` (pooling is linear)."""
        return pool_images(X.transpose(0, 2, 3, 1), self.size).transpose(0, 3, 1, 2)

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
        """Inverse of :meth:`config`; ``arrays`` is empty."""
        return cls(config["size"])

    def __str__(self) -> str:
        return f"AvgPool2d {self.size}x{self.size}"


@dataclass(frozen=True, eq=False)
class Flatten:
    """Samples of any shape become rows, last axis fastest."""

    kind: ClassVar[str] = "flatten"

    def linear(self, X: Array) -> Array:
        """The batch ``X`` as a matrix (n, features)."""
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
        """Inverse of :meth:`config`; ``arrays`` is empty."""
        return cls()

    def __str__(self) -> str:
        return "Flatten"


@dataclass(frozen=True, eq=False)
class Normalize:
    """Rows scaled to unit Euclidean length; zero rows stay zero."""

    kind: ClassVar[str] = "normalize"

    def linear(self, X: Array) -> Array:
        """The scaled rows of ``X`` (the name is that of the other layers; the map is not linear)."""
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
        """Inverse of :meth:`config`; ``arrays`` is empty."""
        return cls()

    def __str__(self) -> str:
        return "Normalize"


Layer: TypeAlias = Dense | Conv2d | AvgPool2d | Flatten | Normalize
LAYERS: Mapping[str, type[Layer]] = {
    kind.kind: kind for kind in (Dense, Conv2d, AvgPool2d, Flatten, Normalize)
}


def _stored_arrays(stored: Array | FiniteArray) -> dict[str, Array]:
    return stored.arrays() if isinstance(stored, FiniteArray) else {"weight": stored}


def _storage(stored: Array | FiniteArray) -> dict[str, Any]:
    return {"storage": stored.config()} if isinstance(stored, FiniteArray) else {}


def _restore(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array | FiniteArray:
    return FiniteArray.from_config(config["storage"], arrays) if "storage" in config else arrays["weight"]


def _describe(stored: Array | FiniteArray) -> str:
    if not isinstance(stored, FiniteArray):
        return ""
    return f", {stored.values.size} values packed in {stored.packing}"


def _check_parameters(layer: Dense | Conv2d, *, weight_ndim: int, fan_out_axis: int) -> None:
    """Refuse shapes that do not fit and non-finite weights, before they can travel."""
    name, stored, bias = type(layer).__name__, layer.stored, layer.bias
    if not (isinstance(stored, (np.ndarray, FiniteArray)) and isinstance(bias, np.ndarray)):
        raise ValueError(f"{name} needs arrays, got {type(stored).__name__} and {type(bias).__name__}")
    shape = layer.weight_shape
    if len(shape) != weight_ndim or bias.shape != (shape[fan_out_axis],):
        raise ValueError(f"{name} got weight of shape {shape} with bias of shape {bias.shape}")
    if stored.dtype != bias.dtype or not np.issubdtype(stored.dtype, np.floating):
        raise ValueError(f"{name} needs one floating dtype, got {stored.dtype} and {bias.dtype}")
    checked = [bias] if isinstance(stored, FiniteArray) else [stored, bias]
    if not all(np.isfinite(array).all() for array in checked):
        raise ValueError(f"{name} weights hold NaN or infinite entries")
