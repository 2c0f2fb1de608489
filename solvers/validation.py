"""Checks on solver input: every message names the argument, what is wrong and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def as_finite(name: str, value: npt.ArrayLike, *, ndim: int | None = None) -> Array:
    """Return ``value`` as a finite array of ``ndim`` dimensions: float32 stays, all else becomes float64."""
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{name} must be real, got dtype {array.dtype}")
    if array.dtype not in (np.float32, np.float64):
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be numeric, got dtype {array.dtype}") from None
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} holds {bad} NaN or infinite entries: remove or impute them first")
    return array


def as_square(name: str, value: npt.ArrayLike) -> Array:
    """Return ``value`` as a finite symmetric matrix (asymmetry beyond rounding is refused)."""
    matrix = as_finite(name, value, ndim=2)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square, got shape {matrix.shape}")
    scale = float(np.abs(matrix).max(initial=0.0))
    slack = 1e3 * float(np.finfo(matrix.dtype).eps) * scale
    if np.abs(matrix - matrix.T).max(initial=0.0) > slack:
        raise ValueError(f"{name} must be symmetric: pass ({name} + {name}.T) / 2 if that is what you mean")
    return matrix


def as_scalar(
    name: str, value: Any, *, low: float = -np.inf, high: float = np.inf, strict: bool = False
) -> float:
    """Return ``value`` as a finite float in [low, high] (``strict``: above ``low``)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not (np.isfinite(number) and low <= number <= high) or (strict and number == low):
        lower = f" {'>' if strict else '>='} {low:g}" if np.isfinite(low) else ""
        upper = f"{' and' if lower else ''} <= {high:g}" if np.isfinite(high) else ""
        raise ValueError(f"{name} must be a finite number{lower}{upper}, got {number!r}")
    return number


def as_count(name: str, value: Any, *, low: int = 1) -> int:
    """Return ``value`` as an integer >= ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")
    return int(value)


def as_weights(name: str, value: npt.ArrayLike | None, n: int) -> Array | None:
    """Return sample weights as float64 of length ``n``: non-negative, finite, not all zero."""
    if value is None:
        return None
    weights = as_finite(name, value, ndim=1).astype(np.float64, copy=False)
    if weights.shape[0] != n:
        raise ValueError(f"{name} has {weights.shape[0]} entries for {n} rows")
    if weights.min(initial=0.0) < 0.0 or weights.sum() <= 0.0:
        raise ValueError(f"{name} must be non-negative with a positive sum")
    return weights


def as_distributions(name: str, value: npt.ArrayLike, n: int) -> Array:
    """Return ``value`` as ``n`` rows of class probabilities: non-negative, each summing to one."""
    Y = as_finite(name, value, ndim=2)
    if Y.shape[0] != n:
        raise ValueError(f"{name} has {Y.shape[0]} rows, X has {n}")
    if Y.shape[1] < 2:
        raise ValueError(f"{name} needs a column for each of at least two classes")
    if Y.min(initial=0.0) < 0.0 or np.abs(Y.sum(axis=1, dtype=np.float64) - 1.0).max(initial=0.0) > 1e-5:
        raise ValueError(f"rows of {name} must be class probabilities: non-negative, summing to one")
    return Y
