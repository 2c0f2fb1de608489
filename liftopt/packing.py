"""Weights of a finite value set as a storage form: packed codes, the values, one scale per output.

Codes are packed along each output unit, most compactly for the size ``m`` of the value set:

    bits     the smallest of 1, 2, 4, 8 bits that hold a code; four ternary codes a byte
    digits   as many base-m digits as a byte holds (``m^r <= 256``); five ternary codes a byte, 1.6 bit each

The first code of a byte is its lowest digit; unused digits at the end of a unit are zero. Decoding is one
look-up in a table of at most 256 rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Packing = Literal["bits", "digits"]

_FEW_ROWS = 4  # up to here look-ups beat unpacking (measured, benchmarks/ternary_memory.py)


@dataclass(frozen=True, eq=False)
class FiniteArray:
    """A float array with entries ``input_scale[j] * scale[k] * values[code]`` for output unit k and input j.

    Parameters
    ----------
    packed : ndarray of shape (units, bytes), uint8
        Codes of each unit, packed.
    values : ndarray of shape (m,)
        The value set, floating point.
    scale : ndarray of shape (units,)
        Same dtype.
    unit_shape : tuple of int
        Shape of the weights of one unit: (fan_in,) or (channels, height, width).
    packing : {"bits", "digits"}
        See the module.
    input_scale : ndarray of shape (fan_in,), optional
        Factor of every input (standardised features), for units of one axis.

    Raises
    ------
    ValueError
        If the length does not fit ``unit_shape``, a code word is not used by the format, or a number is not
        finite.
    """

    packed: Array
    values: Array
    scale: Array
    unit_shape: tuple[int, ...]
    packing: Packing = "bits"
    input_scale: Array | None = None

    def __post_init__(self) -> None:
        _check_form(self)
        base, per_byte = code_layout(self.values.size, self.packing)
        expected = -(-self.fan_in // per_byte)
        if self.packed.ndim != 2 or self.packed.shape != (self.scale.size, expected):
            raise ValueError(
                f"packed weights of shape {self.packed.shape} do not hold {self.scale.size} units of "
                f"{self.fan_in} codes: expected ({self.scale.size}, {expected}) bytes"
            )
        _check_words(self.packed, self.values.size, base, per_byte, self.fan_in)

    @classmethod
    def from_codes(
        cls,
        codes: Array,
        values: Array,
        scale: Array,
        input_scale: Array | None = None,
        *,
        packing: Packing = "bits",
    ) -> FiniteArray:
        """Pack ``codes`` of shape ``(units, *unit_shape)``, integers below ``len(values)``.

        ``values``, ``scale``, ``input_scale`` and ``packing`` are those of the class.
        """
        if codes.size and int(codes.max()) >= values.size:
            raise ValueError(f"codes reach {int(codes.max())}, the value set has {values.size} elements")
        packed = pack_codes(codes.reshape(codes.shape[0], -1), values.size, packing)
        return cls(packed, values.astype(scale.dtype), scale, codes.shape[1:], packing, input_scale)

    @property
    def fan_in(self) -> int:
        """Codes per unit."""
        return math.prod(self.unit_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array it stands for, units first."""
        return (self.scale.size, *self.unit_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Floating dtype of the numbers it stands for."""
        return self.scale.dtype

    def codes(self) -> Array:
        """The codes, uint8 of shape ``(units, *unit_shape)``."""
        codes = unpack_codes(self.packed, self.values.size, self.fan_in, self.packing)
        return codes.reshape(self.shape)

    def dense(self) -> Array:
        """The numbers it stands for, units first."""
        table = self.digit_values()[digit_table(*code_layout(self.values.size, self.packing))]
        units: Array = table[self.packed].reshape(self.scale.size, -1)[:, : self.fan_in]
        units = units * self.scale[:, None]
        if self.input_scale is not None:
            units *= self.input_scale
        return units.reshape(self.shape)

    def digit_values(self) -> Array:
        """Value of every digit of the code words; digits outside the set (never stored) give 0."""
        base, _ = code_layout(self.values.size, self.packing)
        return np.concatenate([self.values, np.zeros(base - self.values.size, self.dtype)])

    def multiply(self, rows: Array) -> Array:
        """``rows @ dense().T`` for units of one axis: unpacked into BLAS, or from the codes for few rows."""
        if rows.shape[0] > _FEW_ROWS or rows.dtype != self.dtype:
            return rows @ self.dense().T
        from liftopt.packed_kernels import multiply_by_table

        if self.input_scale is not None:
            rows = rows * self.input_scale
        _, per_byte = code_layout(self.values.size, self.packing)
        sums = np.empty((rows.shape[0], self.scale.size), dtype=self.dtype)
        multiply_by_table(np.ascontiguousarray(rows), self.packed, self.digit_values(), per_byte, sums)
        sums *= self.scale
        return sums

    def arrays(self) -> dict[str, Array]:
        """The stored arrays by name."""
        stored = {"packed": self.packed, "values": self.values, "scale": self.scale}
        return stored if self.input_scale is None else stored | {"input_scale": self.input_scale}

    def config(self) -> dict[str, Any]:
        """JSON-able description without the arrays."""
        return {"packing": self.packing, "unit_shape": list(self.unit_shape)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Array]) -> FiniteArray:
        """Inverse of :meth:`config` and :meth:`arrays`."""
        shape = tuple(int(side) for side in config["unit_shape"])
        needed = (arrays["packed"], arrays["values"], arrays["scale"])
        return cls(*needed, shape, config["packing"], arrays.get("input_scale"))


def code_layout(m: int, packing: Packing) -> tuple[int, int]:
    """Base of the digits and number of digits per byte for a set of ``m`` values."""
    if packing not in get_args(Packing):
        raise ValueError(f"packing must be one of {get_args(Packing)}, got {packing!r}")
    if not 2 <= m <= 256:
        raise ValueError(f"a packed value set has 2 to 256 values, got {m}")
    base = m if packing == "digits" else next(2**bits for bits in (1, 2, 4, 8) if 2**bits >= m)
    per_byte = 1
    while base ** (per_byte + 1) <= 256:
        per_byte += 1
    return base, per_byte


def pack_codes(codes: Array, m: int, packing: Packing = "bits") -> Array:
    """Pack codes (units, fan_in) below ``m`` into bytes (units, ceil(fan_in / digits per byte))."""
    base, per_byte = code_layout(m, packing)
    fan_in = codes.shape[1]
    padded = np.zeros((codes.shape[0], -(-fan_in // per_byte) * per_byte), dtype=np.uint8)
    padded[:, :fan_in] = codes
    groups = padded.reshape(codes.shape[0], -1, per_byte)
    packed: Array = (groups * base ** np.arange(per_byte)).sum(axis=2).astype(np.uint8)
    return packed


def unpack_codes(packed: Array, m: int, fan_in: int, packing: Packing = "bits") -> Array:
    """Inverse of :func:`pack_codes`."""
    base, per_byte = code_layout(m, packing)
    codes: Array = digit_table(base, per_byte)[packed].reshape(packed.shape[0], -1)[:, :fan_in]
    return codes


def digit_table(base: int, per_byte: int) -> Array:
    """Row b holds the digits of byte b, lowest first; bytes beyond the last code word are zero rows."""
    words = np.arange(256)[:, None]
    digits = words // base ** np.arange(per_byte) % base
    return np.where(words < base**per_byte, digits, 0).astype(np.uint8)


def _check_form(array: FiniteArray) -> None:
    if not array.unit_shape or min(array.unit_shape) < 1:
        raise ValueError(f"packed weights need a unit of positive size, got shape {array.unit_shape}")
    floats = [array.values, array.scale]
    if array.input_scale is not None:
        floats.append(array.input_scale)
        if array.input_scale.shape != array.unit_shape:
            raise ValueError(
                f"input_scale of shape {array.input_scale.shape} for units of {array.unit_shape}"
            )
    if array.packed.dtype != np.uint8 or any(vector.ndim != 1 for vector in floats):
        raise ValueError("packed weights need uint8 bytes, a vector of values and a vector of scales")
    if len({vector.dtype for vector in floats}) > 1 or not np.issubdtype(array.scale.dtype, np.floating):
        raise ValueError(f"values and scales need one floating dtype, got {[str(v.dtype) for v in floats]}")
    if not all(np.isfinite(vector).all() for vector in floats):
        raise ValueError("packed weights hold NaN or infinite values or scales")


def _check_words(packed: Array, m: int, base: int, per_byte: int, fan_in: int) -> None:
    """Refuse bytes that no encoder writes: digits outside the value set, or a filled tail."""
    if packed.size and base**per_byte <= int(packed.max()):
        raise ValueError(f"packed weights hold the forbidden byte {int(packed.max())}")
    digits = digit_table(base, per_byte)
    used = np.zeros(256, dtype=bool)
    used[np.unique(packed)] = True
    if m < base and digits[used].max(initial=0) >= m:
        raise ValueError(f"packed weights hold a code word outside the {m} values of the set")
    tail = packed.shape[1] * per_byte - fan_in
    if tail and packed.size and digits[packed[:, -1]][:, per_byte - tail :].any():
        raise ValueError("packed weights hold codes beyond the length of a unit")
