"""The solution type of every linear model."""

from __future__ import annotations

from typing import NamedTuple

from .validation import Array


class AffineMap(NamedTuple):
    """``X -> X @ weight + intercept``.

    Attributes
    ----------
    weight : ndarray of shape (features, outputs)
        Float64 from the solvers.
    intercept : ndarray of shape (outputs,)
        Same dtype.
    """

    weight: Array
    intercept: Array

    def __call__(self, X: Array) -> Array:
        """Outputs (n, outputs), in the dtype of ``X``."""
        return X @ self.weight.astype(X.dtype, copy=False) + self.intercept.astype(X.dtype, copy=False)
