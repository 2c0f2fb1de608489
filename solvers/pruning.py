"""Backward elimination of basis terms, and the size of the model by generalised cross-validation (GCV).

From ``B' Omega B = R'R`` and ``R c = Q'y`` the drop of terms one at a time needs no row of the data:

    delta_j = sum_r c_jr^2 / (G^-1)_jj,      G = R'R,

is the rise of the residual sum of squares (RSS) when term j goes. Each step drops the term with the smallest
rise, never the intercept. Among the M sizes on the path, GCV chooses the least

    GCV(m) = RSS / (n (1 - C / n)^2),        C = m + penalty (m - 1) / 2.

References
----------
Friedman, "Multivariate adaptive regression splines", Annals of Statistics 1991; Craven, Wahba, "Smoothing
noisy data with spline functions", Numerische Mathematik 1979.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr, solve_triangular

from .validation import as_finite, as_scalar

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class PruningPath:
    """Nested subsets of terms, one for every size.

    Attributes
    ----------
    order : ndarray of shape (M - 1,)
        Terms in the order in which they were dropped.
    rss : ndarray of shape (M,)
        ``rss[m - 1]`` is the residual sum of squares of the subset of m terms.
    factor, projections : ndarray of shape (M, M) and (M, R)
        The triangular system the path was computed from.
    """

    order: Array
    rss: Array
    factor: Array
    projections: Array

    def subset(self, size: int) -> Array:
        """Sorted positions of the terms in the subset of ``size``."""
        return np.setdiff1d(np.arange(self.rss.size), self.order[: self.rss.size - size])

    def gcv(self, n_samples: float, penalty: float) -> Array:
        """GCV (M,) of every size, ``penalty`` a knot; ``inf`` where the parameters reach ``n_samples``."""
        return gcv(self.rss, np.arange(1, self.rss.size + 1), n_samples, penalty)

    def fit(self, keep: Array) -> tuple[Array, Array]:
        """Least-squares coefficients (m, R) of the terms ``keep``, and their triangular factor (m, m)."""
        q, r = qr(self.factor[:, keep], mode="economic")
        return solve_triangular(r, q.T @ self.projections), r


def gcv(rss: npt.ArrayLike, size: npt.ArrayLike, n_samples: float, penalty: float) -> Array:
    """Generalised cross-validation of models with ``size`` terms, the intercept included."""
    size = np.asarray(size, dtype=np.float64)
    share = (size + penalty * (size - 1) / 2) / n_samples
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.asarray(rss) / (n_samples * (1 - share) ** 2)
    return np.where(share < 1, score, np.inf)


def prune_terms(factor: npt.ArrayLike, projections: npt.ArrayLike, rss: float) -> PruningPath:
    """Drop terms one at a time, each time the one whose loss raises the RSS least.

    Parameters
    ----------
    factor : array-like of shape (M, M)
        Upper triangular R with ``B' Omega B = R'R``; the first term is the intercept and stays.
    projections : array-like of shape (M, R)
        ``R c`` of the least-squares coefficients c.
    rss : float
        Residual sum of squares of the full model.

    Returns
    -------
    PruningPath
        The RSS along it agrees with fresh least-squares fits to rounding.

    Raises
    ------
    ValueError
        If an entry is not finite or ``rss`` is negative.
    LinAlgError
        If ``factor`` is singular.

    Notes
    -----
    O(M^3) operations.
    """
    R = as_finite("factor", factor, ndim=2)
    z = as_finite("projections", projections, ndim=2)
    as_scalar("rss", rss, low=0.0)
    inverse = solve_triangular(R, np.eye(R.shape[0]))
    gram_inverse = inverse @ inverse.T
    coefficients = inverse @ z
    alive = np.arange(R.shape[0])
    order, path = [], [float(rss)]
    while alive.size > 1:
        diagonal = np.diag(gram_inverse)
        rise = np.einsum("mr,mr->m", coefficients, coefficients) / diagonal
        j = 1 + int(np.argmin(rise[1:]))
        path.append(path[-1] + float(rise[j]))
        order.append(alive[j])
        column = gram_inverse[:, j] / diagonal[j]
        coefficients = np.delete(coefficients - np.outer(column, coefficients[j]), j, axis=0)
        reduced = gram_inverse - np.outer(column, gram_inverse[j])
        gram_inverse = np.delete(np.delete(reduced, j, axis=0), j, axis=1)
        alive = np.delete(alive, j)
    return PruningPath(np.array(order, dtype=np.intp), np.array(path[::-1]), R, z)
