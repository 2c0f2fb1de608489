"""Convolution and pooling of images (n, height, width, channels), and their derivatives.

A cross-correlation is a product of image strips with a banded matrix. The padded image is cut into
overlapping strips: each holds the columns that ``tile`` neighbouring outputs depend on and is contiguous,
(height, reach * channels). All that a row of ``tile`` outputs depends on is then one contiguous piece x_i of
a strip, and the outputs are one BLAS product with a banded matrix B (kernel height * reach * channels,
tile * channels_out) that holds the kernels once for each of the outputs, shifted. The derivatives are
products with the same pieces:

    u_i = x_i B,        dB = sum_i x_i' g_i,        dx_r = sum_i g_i B[r - stride * i]'.

An entry of the image is copied ``reach / (tile * stride)`` times, not once for each entry of the kernel. In
exchange products with zeros grow the arithmetic by ``reach / kernel width``; the tile balances this against
the slowness of products with few columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

Array = npt.NDArray[Any]

_EXTRA_COLUMNS = 16  # a product with n columns takes the time of n + 16 columns at full speed (measured)


@dataclass(frozen=True)
class Correlation:
    """Geometry of a cross-correlation; images are (n, height, width, channels).

    Parameters
    ----------
    height, width, channels : int
        One image, without padding.
    kernel : tuple of int
        Height and width of the kernels.
    channels_out : int
        Number of kernels.
    stride, padding : int
        Same in both directions; zero padding.
    """

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    channels_out: int
    stride: int = 1
    padding: int = 0

    @cached_property
    def rows(self) -> int:
        """Height of an output."""
        return (self.height + 2 * self.padding - self.kernel[0]) // self.stride + 1

    @cached_property
    def columns(self) -> int:
        """Width of an output."""
        return (self.width + 2 * self.padding - self.kernel[1]) // self.stride + 1

    @cached_property
    def tile(self) -> int:
        """Outputs of a strip in each row: the divisor of ``columns`` with the least estimated time."""
        tiles = [tile for tile in range(1, self.columns + 1) if self.columns % tile == 0]
        return min(
            tiles, key=lambda tile: self._reach(tile) * (1 + _EXTRA_COLUMNS / (tile * self.channels_out))
        )

    @property
    def reach(self) -> int:
        """Columns of the padded image in a strip."""
        return self._reach(self.tile)

    @property
    def strips(self) -> int:
        """Number of strips."""
        return self.columns // self.tile

    def cut(self, X: Array) -> Array:
        """Strips (n, strips, padded height, reach * channels) of images ``X`` with any memory layout."""
        n, p = X.shape[0], self.padding
        padded = np.zeros((n, self.height + 2 * p, self.width + 2 * p, self.channels), dtype=X.dtype)
        padded[:, p : p + self.height, p : p + self.width] = X
        sample, row, column, channel = padded.strides
        shape = (n, self.strips, padded.shape[1], self.reach, self.channels)
        step = self.tile * self.stride * column
        overlapping = as_strided(padded, shape, (sample, step, row, column, channel), writeable=False)
        return np.ascontiguousarray(overlapping).reshape(*shape[:3], self.reach * self.channels)

    def product(self, strips: Array, W: Array, out: Array | None = None) -> Array:
        """Outputs (n * rows * columns, channels_out) for kernels ``W`` (height * width * channels, same)."""
        n = strips.shape[0]
        if out is None:
            shape = (n * self.rows * self.columns, self.channels_out)
            out = np.empty(shape, dtype=np.result_type(strips, W))
        np.matmul(self._pieces(strips), self._band(W), out=self._by_row(out, n))
        return out

    def patches(self, strips: Array) -> Array:
        """The receptive fields of all outputs, (n * rows * columns, kernel height * width * channels)."""
        n, (height, width) = strips.shape[0], self.kernel
        sample, strip, row, item = strips.strides
        column = self.channels * item
        shape = (n, self.rows, self.strips, self.tile, height, width * self.channels)
        steps = (sample, self.stride * row, strip, self.stride * column, row, item)
        return as_strided(strips, shape, steps, writeable=False).reshape(-1, height * width * self.channels)

    def weight_gradient(self, strips: Array, G: Array) -> Array:
        """Gradient with respect to ``W`` from the gradient ``G`` with respect to the outputs."""
        pieces = self._pieces(strips).swapaxes(2, 3)
        G = self._by_row(G, strips.shape[0])
        band = np.zeros((self.strips, pieces.shape[2], G.shape[3]), dtype=G.dtype)
        for piece, g in zip(pieces, G, strict=True):
            band += np.matmul(piece, g)
        return self._from_band(band.sum(axis=0))

    def input_gradient(self, G: Array, W: Array) -> Array:
        """Gradient with respect to the images (n, height, width, channels) from that of the outputs."""
        n = G.shape[0] // (self.rows * self.columns)
        width = self.tile * self.channels_out
        G = G.reshape(n, self.rows, self.strips, width).transpose(0, 2, 1, 3).reshape(n * self.strips, -1)
        band = self._band(W).reshape(self.kernel[0], -1, width).transpose(0, 2, 1)
        parts = np.empty((n * self.strips, self.height, band.shape[2]), dtype=G.dtype)
        for row in range(self.height):
            below = row + self.padding
            first = max(0, -((self.kernel[0] - 1 - below) // self.stride))
            last = min(self.rows, below // self.stride + 1)
            taps = below - self.stride * np.arange(first, last)
            np.matmul(
                G[:, first * width : last * width], band[taps].reshape(-1, band.shape[2]), out=parts[:, row]
            )
        return self._join(parts.reshape(n, self.strips, self.height, -1))

    def _reach(self, tile: int) -> int:
        return (tile - 1) * self.stride + self.kernel[1]

    def _pieces(self, strips: Array) -> Array:
        """What each row of outputs depends on: a view (rows, strips, n, kernel height * reach * channels)."""
        sample, strip, row, item = strips.strides
        shape = (self.rows, strips.shape[1], strips.shape[0], self.kernel[0] * strips.shape[3])
        return as_strided(strips, shape, (self.stride * row, strip, sample, item), writeable=False)

    def _by_row(self, G: Array, n: int) -> Array:
        """Outputs as a view (rows, strips, n, tile * channels_out)."""
        return G.reshape(n, self.rows, self.strips, self.tile * self.channels_out).transpose(1, 2, 0, 3)

    def _band(self, W: Array) -> Array:
        """The banded matrix (kernel height * reach * channels, tile * channels_out)."""
        height, width = self.kernel
        kernels = W.reshape(height, width, self.channels, self.channels_out)
        band = np.zeros((height, self.reach, self.channels, self.tile, self.channels_out), dtype=W.dtype)
        for shift in range(self.tile):
            band[:, shift * self.stride : shift * self.stride + width, :, shift] = kernels
        return band.reshape(-1, self.tile * self.channels_out)

    def _from_band(self, band: Array) -> Array:
        """Adjoint of :meth:`_band`."""
        height, width = self.kernel
        band = band.reshape(height, self.reach, self.channels, self.tile, self.channels_out)
        shifted = (
            band[:, shift * self.stride : shift * self.stride + width, :, shift] for shift in range(self.tile)
        )
        return np.asarray(sum(shifted)).reshape(-1, self.channels_out)

    def _join(self, parts: Array) -> Array:
        """Sum strips (n, strips, height, reach * channels) into the images that they were cut from."""
        n, p = parts.shape[0], self.padding
        images = np.zeros((n, self.height, self.width + 2 * p, self.channels), dtype=parts.dtype)
        flat = images.reshape(n, self.height, -1)
        step = self.tile * self.stride * self.channels
        for strip in range(self.strips):
            flat[:, :, strip * step : strip * step + parts.shape[3]] += parts[:, strip]
        return images[:, :, p : p + self.width]


def pool_images(V: Array, size: int) -> Array:
    """Means over windows of ``size`` by ``size`` entries of images ``V``; incomplete windows are dropped.

    Rows are added first: they are long and contiguous. The result has the memory order of ``V``.
    """
    rows, columns = V.shape[1] // size, V.shape[2] // size
    down = V[:, : rows * size : size].copy(order="K")
    for i in range(1, size):
        down += V[:, i : rows * size : size]
    out = down[:, :, : columns * size : size].copy(order="K")
    for j in range(1, size):
        out += down[:, :, j : columns * size : size]
    out *= V.dtype.type(1.0 / size**2)
    return out


def unpool_images(G: Array, size: int, shape: tuple[int, ...]) -> Array:
    """Gradient with respect to the images of ``shape`` from that with respect to their pooled ones."""
    n, _, width, channels = shape
    rows, columns = G.shape[1] * size, G.shape[2] * size
    share = G * G.dtype.type(1.0 / size**2)
    across = np.zeros((n, G.shape[1], width, channels), dtype=G.dtype)
    for j in range(size):
        across[:, :, j:columns:size] = share
    out = np.empty(shape, dtype=G.dtype)
    for i in range(size):
        out[:, i:rows:size] = across
    out[:, rows:] = 0
    return out
