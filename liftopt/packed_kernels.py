"""Compiled multiplication of a few rows with packed weights, without unpacking them.

For every byte position the partial sums of all 256 bytes are tabulated once, ``O(256 fan_in / digits)``
additions a row; each output then adds one table entry a byte.

References
----------
Wei et al., "T-MAC: CPU Renaissance via Table Lookup for Low-Bit LLM Deployment", EuroSys 2025,
arXiv 2407.00088.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@numba.njit(cache=True)
def multiply_by_table(rows: Array, packed: Array, values: Array, per_byte: int, out: Array) -> None:
    """For each row and byte position tabulate the partial sums of all bytes, then add by look-up."""
    base, n_bytes = values.size, packed.shape[1]
    table = np.zeros((n_bytes, 256), dtype=out.dtype)
    for n in range(rows.shape[0]):
        for position in range(n_bytes):
            size = 1
            table[position, 0] = 0.0
            for i in range(per_byte):
                feature = position * per_byte + i
                x = rows[n, feature] if feature < rows.shape[1] else rows.dtype.type(0)
                for digit in range(base - 1, -1, -1):
                    for low in range(size):
                        table[position, digit * size + low] = table[position, low] + values[digit] * x
                size *= base
        for unit in range(packed.shape[0]):
            total = out.dtype.type(0)
            for position in range(n_bytes):
                total += table[position, packed[unit, position]]
            out[n, unit] = total
