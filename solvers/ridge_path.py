"""Choice of the ridge penalty: the whole path from one factorisation, without a second fit per value.

With ``gram = V diag(L) V'`` and ``K = V' cross`` the coefficients at penalty a are ``V K / (L + a)``; the
residual sum of squares of target k is ``target_square_k - sum_j K_jk^2 (L_j + 2a) / (L_j + a)^2`` and the hat
matrix has trace ``1 + sum_j L_j / (L_j + a)`` (the 1 is the free intercept). Three criteria choose a:

    gcv     (RSS / n) / (1 - trace / n)^2                         statistics only
    loo     mean of (residual_i / (1 - h_i))^2, exact             one more pass over the rows
    kfold   error on each fold, the others' statistics being the total minus the fold's

with leverages ``h_i = w_i (1 / sum w + sum_j (x_i v_j)^2 / (L_j + a))``.

References
----------
Golub, Heath, Wahba, "Generalized cross-validation as a method for choosing a good ridge parameter",
Technometrics 1979.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, svd

from .affine import AffineMap
from .least_squares import centred_rows
from .moments import Moments, moments, row_chunks, tree_reduce
from .result import Result, Status
from .validation import Array, as_finite

Criterion = Literal["gcv", "loo"]


@dataclass(frozen=True, eq=False)
class RidgePath:
    """All ridge solutions of one problem.

    Attributes
    ----------
    eigenvalues : ndarray of shape (r,)
        Positive eigenvalues L of the centred Gram matrix.
    vectors : ndarray of shape (d, r)
        Their eigenvectors V.
    projection : ndarray of shape (r, c)
        ``K = V' cross``.
    mean_x, mean_y : ndarray of shape (d,), (c,)
        What the intercept restores; zero without one.
    target_square : ndarray of shape (c,)
        Sum of squares of the centred targets.
    n_rows : int
        Number of rows.
    weight : float
        Sum of the sample weights; ``inf`` if there is no intercept to estimate.
    """

    eigenvalues: Array
    vectors: Array
    projection: Array
    mean_x: Array
    mean_y: Array
    target_square: Array
    n_rows: int
    weight: float

    def at(self, alpha: float) -> AffineMap:
        """Solution for the absolute penalty ``alpha``: 2 d r c operations."""
        coef = self.vectors @ (self.projection / (self.eigenvalues + alpha)[:, None])
        return AffineMap(coef, self.mean_y - self.mean_x @ coef)

    def residual_square(self, alphas: Array) -> Array:
        """Weighted residual sum of squares at ``alphas`` (g,), shape (g, c)."""
        shifted = self.eigenvalues + alphas[:, None]
        explained = (shifted + alphas[:, None]) / shifted**2 @ self.projection**2
        return np.maximum(self.target_square - explained, 0.0)

    def degrees_of_freedom(self, alphas: Array) -> Array:
        """Trace of the hat matrix at ``alphas`` (g,), shape (g,)."""
        shrinkage = self.eigenvalues / (self.eigenvalues + alphas[:, None])
        return np.isfinite(self.weight) + shrinkage.sum(axis=1)

    def gcv(self, alphas: Array) -> Array:
        """Generalised cross-validation score at ``alphas`` (g,), shape (g, c)."""
        slack = np.maximum(1.0 - self.degrees_of_freedom(alphas) / self.n_rows, np.finfo(np.float64).eps)
        return self.residual_square(alphas) / self.n_rows / slack[:, None] ** 2

    def loo(
        self, alphas: Array, X: npt.ArrayLike, Y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> Array:
        """Weighted mean of squared leave-one-out errors at ``alphas`` (g,), shape (g, c).

        ``X``, ``Y``, ``sample_weight`` are the rows of the fit: 2 n r (d + g c) operations, row chunks only.
        """
        spectrum = 1.0 / (self.eigenvalues + alphas[:, None])
        total, weight = np.zeros((alphas.size, self.mean_y.size)), 0.0
        for A, T, w in row_chunks(X, Y, sample_weight):
            scores = (A - self.mean_x) @ self.vectors
            targets = T.reshape(len(A), -1) - self.mean_y
            weights = np.ones(len(A)) if w is None else w
            leverage = weights[:, None] * (1.0 / self.weight + scores**2 @ spectrum.T)
            slack = np.maximum(1.0 - leverage, np.finfo(np.float64).eps)
            for index, inverse in enumerate(spectrum):
                errors = (targets - scores @ (inverse[:, None] * self.projection)) / slack[:, index, None]
                total[index] += weights @ errors**2
            weight += float(weights.sum())
        return total / weight


def ridge_path(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    fit_intercept: bool = True,
) -> RidgePath:
    """Diagonalise the ridge problem of ``X`` and ``Y`` (float64 products).

    Parameters
    ----------
    X, Y, sample_weight, fit_intercept
        As in :func:`~liftopt.solvers.solve_ridge`.

    Returns
    -------
    RidgePath
        Every solution, float64.

    Raises
    ------
    ValueError
        As :func:`~liftopt.solvers.solve_ridge`.

    Notes
    -----
    n d^2 + 9 d^3 operations for n >= d, else by singular values of the rows in about 6 n^2 d.
    """
    if np.ndim(X) == 2 and np.shape(X)[0] >= np.shape(X)[1]:
        return ridge_path_moments(
            moments(X, Y, sample_weight=sample_weight, dtype=np.float64), fit_intercept=fit_intercept
        )
    rows, targets, mean_x, mean_y = centred_rows(X, Y, sample_weight, fit_intercept)
    left, values, right = svd(rows, full_matrices=False, check_finite=False)
    kept = values > max(rows.shape) * np.finfo(np.float64).eps * values[0]
    values = values[kept]
    weight = float(len(rows) if sample_weight is None else np.sum(sample_weight))
    return RidgePath(
        values**2,
        right[kept].T,
        values[:, None] * (left[:, kept].T @ targets),
        mean_x,
        mean_y,
        np.einsum("ij,ij->j", targets, targets),
        len(rows),
        weight if fit_intercept else np.inf,
    )


def ridge_path_moments(statistics: Moments, *, fit_intercept: bool = True) -> RidgePath:
    """Diagonalise the ridge problem of sufficient statistics.

    Parameters
    ----------
    statistics : Moments
        Of the rows.
    fit_intercept : bool
        Whether the intercept is free (else 0).

    Returns
    -------
    RidgePath
        Without eigenvalues below the rounding of the statistics.

    Notes
    -----
    9 d^3 operations.
    """
    centred = statistics if fit_intercept else statistics.uncentred()
    values, vectors = eigh(centred.gram, check_finite=False)
    noise = max(values.size * float(np.finfo(np.float64).eps), centred.rounding)
    kept = values > noise * max(values[-1], 0.0)
    return RidgePath(
        values[kept],
        vectors[:, kept],
        vectors[:, kept].T @ centred.cross,
        centred.mean_x,
        centred.mean_y,
        centred.target_square,
        centred.n_rows,
        centred.weight if fit_intercept else np.inf,
    )


def solve_ridge_path(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    alphas: npt.ArrayLike,
    criterion: Criterion = "loo",
    sample_weight: npt.ArrayLike | None = None,
    fit_intercept: bool = True,
) -> Result:
    """Ridge regression at the best of many penalties, by exact leave-one-out or GCV.

    Parameters
    ----------
    X, Y, sample_weight, fit_intercept
        As in :func:`~liftopt.solvers.solve_ridge`.
    alphas : array-like of shape (g,)
        Positive absolute penalties.
    criterion : {"loo", "gcv"}
        Score to minimise, averaged over the targets.

    Returns
    -------
    Result
        ``x`` is the :class:`~liftopt.solvers.AffineMap` at the best penalty and ``objective`` its mean score.
        ``info``: ``alpha``, ``scores`` (g, c) and ``path`` (:class:`RidgePath`, which gives every other
        solution).

    Raises
    ------
    ValueError
        If a penalty is not positive, the criterion is unknown, there is one row only, or the data are bad.

    Notes
    -----
    One factorisation, n d^2 + 9 d^3 operations for n >= d; then O(g d c) for GCV, 2 n d (d + g c) for
    leave-one-out.
    """
    start = time.perf_counter()
    grid = _as_grid(alphas)
    if criterion not in ("gcv", "loo"):
        raise ValueError(f"criterion must be 'loo' or 'gcv', got {criterion!r}")
    path = ridge_path(X, Y, sample_weight=sample_weight, fit_intercept=fit_intercept)
    if path.n_rows < 2:
        raise ValueError("a penalty cannot be chosen from a single row")
    scores = path.gcv(grid) if criterion == "gcv" else path.loo(grid, X, Y, sample_weight)
    return _best(path, grid, scores, start)


def solve_ridge_folds(
    folds: Sequence[Moments], *, alphas: npt.ArrayLike, fit_intercept: bool = True
) -> Result:
    """Ridge regression at the penalty with the smallest K-fold error; no row is looked at again.

    Parameters
    ----------
    folds : sequence of Moments
        Statistics of at least two disjoint parts of the data.
    alphas : array-like of shape (g,)
        Positive absolute penalties.
    fit_intercept : bool
        Whether to fit an unpenalised intercept.

    Returns
    -------
    Result
        As :func:`solve_ridge_path`; the solution is fitted to all folds.

    Raises
    ------
    ValueError
        If there are fewer than two folds or a penalty is not positive.

    Notes
    -----
    One eigendecomposition a fold, 9 d^3 operations, and O(g d^2 c) for the errors on it.
    """
    start = time.perf_counter()
    grid = _as_grid(alphas)
    if len(folds) < 2:
        raise ValueError(f"K-fold needs at least two folds, got {len(folds)}")
    total = tree_reduce(Moments.__add__, folds)
    scores = np.zeros((grid.size, total.shape[1]))
    for fold in folds:
        path = ridge_path_moments(total - fold, fit_intercept=fit_intercept)
        scores += [squared_error(path.at(alpha), fold) for alpha in grid]
    return _best(ridge_path_moments(total, fit_intercept=fit_intercept), grid, scores / total.weight, start)


def squared_error(model: AffineMap, statistics: Moments) -> Array:
    """Weighted sum of squared errors of ``model`` on the rows behind ``statistics``, per target."""
    coef, offset = model.weight, statistics.mean_x @ model.weight + model.intercept - statistics.mean_y
    spread = np.einsum("ij,ij->j", coef, statistics.gram @ coef - 2.0 * statistics.cross)
    return np.maximum(statistics.target_square + spread + statistics.weight * offset**2, 0.0)


def _as_grid(alphas: npt.ArrayLike) -> Array:
    grid = np.atleast_1d(as_finite("alphas", alphas)).astype(np.float64)
    if grid.ndim != 1 or grid.size == 0 or grid.min() <= 0.0:
        raise ValueError("alphas must be a list of positive penalties")
    return grid


def _best(path: RidgePath, alphas: Array, scores: Array, start: float) -> Result:
    best = int(scores.mean(axis=1).argmin())
    alpha = float(alphas[best])
    at_edge = alphas.size > 1 and alpha in (alphas.min(), alphas.max())
    return Result(
        path.at(alpha),
        float(scores[best].mean()),
        Status.OPTIMAL,
        time=time.perf_counter() - start,
        message="the best penalty is at the edge of the grid: extend alphas" if at_edge else "",
        info={"alpha": alpha, "scores": scores, "path": path},
    )
