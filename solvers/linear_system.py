"""Symmetric positive definite systems: factor once, solve for many right-hand sides.

The matrix ``gram + alpha I`` is factored in float64 whatever the type of ``gram``. If rounding makes it
indefinite, a jitter of 1e-12 times its largest diagonal entry is added and raised tenfold until the
factorisation succeeds; the value is kept in ``jitter`` and never hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, lapack, solve_triangular

from .validation import Array, as_scalar, as_square


@dataclass(frozen=True, eq=False)
class SpdFactor:
    """Cholesky factor ``lower @ lower.T = gram + (alpha + jitter) I``.

    Attributes
    ----------
    lower : ndarray of shape (d, d)
        Lower triangular factor, float64.
    jitter : float
        What had to be added to the diagonal, 0 for a matrix that is definite beyond rounding.
    rcond : float
        Reciprocal condition number in the 1-norm (estimate). Relative errors of the matrix reach the solution
        multiplied by ``1 / rcond``.
    """

    lower: Array
    jitter: float
    rcond: float

    def solve(self, rhs: npt.ArrayLike) -> Array:
        """Solve ``(gram + alpha I) x = rhs`` for rhs (d,) or (d, k): 2 d^2 k operations, float64."""
        return self.unwhiten(self.whiten(rhs))

    def whiten(self, rhs: npt.ArrayLike) -> Array:
        """``lower^-1 rhs`` for rhs (d,) or (d, k): d^2 k operations."""
        return solve_triangular(self.lower, np.asarray(rhs), lower=True, check_finite=False)

    def unwhiten(self, rhs: npt.ArrayLike) -> Array:
        """``lower^-T rhs`` for rhs (d,) or (d, k): d^2 k operations."""
        return solve_triangular(self.lower, np.asarray(rhs), lower=True, trans="T", check_finite=False)


def factor_spd(gram: npt.ArrayLike, alpha: float = 0.0) -> SpdFactor:
    """Cholesky-factor ``gram + alpha I`` in float64, with a reported jitter if it is not definite.

    Parameters
    ----------
    gram : array-like of shape (d, d)
        Symmetric positive semi-definite.
    alpha : float
        Non-negative, added to the diagonal.

    Returns
    -------
    SpdFactor
        d^3 / 3 operations.

    Raises
    ------
    ValueError
        If ``gram`` is not square, symmetric, finite, or has an eigenvalue that is negative beyond rounding.
    """
    matrix = as_square("gram", gram)
    alpha = as_scalar("alpha", alpha, low=0.0)
    return factor_checked(matrix, alpha)


def factor_checked(gram: Array, alpha: float) -> SpdFactor:
    """:func:`factor_spd` for a matrix that is known to be symmetric and finite."""
    d = gram.shape[0]
    scale = float(gram.diagonal().max(initial=0.0)) + alpha or 1.0
    jitter = 0.0
    while True:
        matrix = np.array(gram, dtype=np.float64, order="F")
        matrix.flat[:: d + 1] += alpha + jitter
        norm = float(np.abs(matrix).sum(axis=0).max(initial=0.0))
        try:
            lower = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            if not jitter <= 1e-3 * scale:  # NaN too
                raise ValueError(
                    "gram has a negative eigenvalue beyond rounding: it is no Gram matrix"
                ) from None
            jitter = max(10.0 * jitter, 1e-12 * scale)
            continue
        return SpdFactor(lower, jitter, float(_reciprocal_condition(lower, norm)))


def _reciprocal_condition(lower: Array, norm: float) -> Any:
    """Estimate 1 / (|A|_1 |A^-1|_1) from the factor of A in O(d^2)."""
    return lapack.dpocon(lower, norm, uplo="L")[0] if norm > 0.0 else 0.0
