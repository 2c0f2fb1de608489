"""Ridge regression for many targets from one factorisation.

Minimises over ``W (d, c)`` and ``b (c,)``

    sum_i w_i |x_i W + b - y_i|^2 + alpha |W|_F^2,

the intercept being free. With centred statistics (:mod:`liftopt.solvers.moments`) the solution is

    W = (gram + alpha I)^-1 cross,    b = mean_y - mean_x W:

one Cholesky factorisation, any number of targets. With fewer rows than features the dual ``W = X' (X X' +
alpha I)^-1 Y`` of centred, weighted rows is solved instead. Without penalty the solution of least norm is
returned, so rank-deficient data need no care.

Precision rule: a Gram matrix known to ``rounding * lambda_max`` gives coefficients to about
``rounding / rcond`` relative. If that exceeds 1e-3, :func:`solve_ridge` climbs from float32 products (2e-7)
to float64 products (4e-16) to a singular value decomposition of the rows, which does not square the condition
number.

References
----------
Bjorck, "Numerical Methods for Least Squares Problems", SIAM 1996.
Izenman, "Reduced-rank regression for the multivariate linear model", J. Multivariate Analysis 1975.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, svd

from .affine import AffineMap
from .linear_system import factor_checked
from .moments import Moments, moments, row_chunks
from .result import OnLimit, Result, Status, conclude
from .validation import Array, as_count, as_finite, as_scalar

_ACCEPTED_ERROR = 1e-3


def solve_ridge(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    alpha: float = 1.0,
    relative: bool = False,
    sample_weight: npt.ArrayLike | None = None,
    fit_intercept: bool = True,
) -> Result:
    """Ridge regression of ``Y`` on ``X``, in memory or memory-mapped.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Features, float32 or float64 (other types are converted to float64).
    Y : array-like of shape (n, c) or (n,)
        Targets; one dimension stands for one target.
    alpha : float
        Penalty on the sum of squares; 0 gives the least-squares solution of least norm.
    relative : bool
        Whether ``alpha`` counts in units of the mean eigenvalue ``trace(gram) / d``.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights; an integer weight equals that many copies of the row.
    fit_intercept : bool
        Whether to fit an unpenalised intercept (else 0).

    Returns
    -------
    Result
        ``x`` is a :class:`~liftopt.solvers.AffineMap` in float64; ``objective`` the minimised sum;
        ``residuals["stationarity"]`` the relative residual of the normal equations; ``residuals["rounding"]``
        the estimated relative error of the coefficients. ``info``: ``alpha`` (absolute), ``rank``, ``form``
        ("gram", "dual" or "svd"), ``products`` (dtype).

    Raises
    ------
    ValueError
        If an entry is not finite, shapes do not match, or ``alpha`` is negative.

    Notes
    -----
    n d^2 + d^3 / 3 + 2 d^2 c operations for n >= d.

    Examples
    --------
    >>> import numpy as np
    >>> result = solve_ridge([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], alpha=0.0)
    >>> [round(float(value), 6) for value in (*result.x.weight[0], *result.x.intercept)]
    [2.0, 1.0]
    """
    start = time.perf_counter()
    alpha = as_scalar("alpha", alpha, low=0.0)
    X = np.asanyarray(X)
    if X.ndim == 2 and X.shape[0] >= X.shape[1]:
        kinds = ["float32", "float64"] if X.dtype == np.float32 else ["float64"]
        for kind in kinds:
            statistics = moments(X, Y, sample_weight=sample_weight, dtype=kind)
            result = _solve(statistics, alpha, relative, fit_intercept, start)
            if result.residuals["rounding"] <= _ACCEPTED_ERROR:
                return result
    return _solve_rows(X, Y, sample_weight, alpha, relative, fit_intercept, start)


def solve_ridge_moments(
    statistics: Moments,
    *,
    alpha: float = 1.0,
    relative: bool = False,
    fit_intercept: bool = True,
    on_limit: OnLimit = "warn",
) -> Result:
    """Ridge regression from sufficient statistics alone.

    Parameters
    ----------
    statistics : Moments
        Sufficient statistics of the rows.
    alpha, relative, fit_intercept
        As for :func:`solve_ridge`.
    on_limit : {"warn", "raise", "ignore"}
        What to do when the status is ``stalled``.

    Returns
    -------
    Result
        As :func:`solve_ridge`, with status ``stalled`` if the statistics determine the coefficients to fewer
        than three digits: accumulate them in float64 or raise ``alpha``.

    Raises
    ------
    ValueError
        If ``alpha`` is negative.
    SolverError
        If the status is ``stalled`` and ``on_limit="raise"``.

    Notes
    -----
    d^3 / 3 + 2 d^2 c operations.
    """
    start = time.perf_counter()
    alpha = as_scalar("alpha", alpha, low=0.0)
    return conclude(_solve(statistics, alpha, relative, fit_intercept, start), on_limit)


def solve_reduced_rank_ridge(
    statistics: Moments, rank: int, *, alpha: float = 1.0, relative: bool = False
) -> Result:
    """Ridge regression with coefficients of rank at most ``rank``.

    Minimises ``sum_i w_i |x_i W + b - y_i|^2 + alpha |W|_F^2`` over ``rank(W) <= rank``: the ridge solution
    times the projector on the leading eigenvectors of ``cross' (gram + alpha I)^-1 cross`` (Izenman).

    Parameters
    ----------
    statistics : Moments
        Sufficient statistics of the rows.
    rank : int
        Largest rank, at least 1.
    alpha, relative
        Penalty as in :func:`~liftopt.solvers.solve_ridge`.

    Returns
    -------
    Result
        ``x`` is a :class:`~liftopt.solvers.AffineMap`. ``residuals["stationarity"]``: the normal equations
        projected on the response directions kept, relative. ``info``: ``alpha``, ``jitter``, ``directions``
        (c, rank).

    Raises
    ------
    ValueError
        If ``rank`` is not a positive integer or ``alpha`` is negative.

    Notes
    -----
    d^3 / 3 + 2 d^2 c + 2 d c^2 + 9 c^3 operations.
    """
    begin = time.perf_counter()
    rank = min(as_count("rank", rank), statistics.shape[1])
    gram, cross = statistics.gram, statistics.cross
    penalty = absolute_penalty(gram, as_scalar("alpha", alpha, low=0.0), relative)
    factor = factor_checked(gram, penalty)
    full = factor.solve(cross)
    product = cross.T @ full
    directions = eigh((product + product.T) / 2.0, check_finite=False)[1][:, ::-1][:, :rank]
    coef = full @ directions @ directions.T
    gradient = (gram @ coef + penalty * coef - cross) @ directions
    objective = statistics.target_square.sum() - np.sum(coef * (2.0 * cross - gram @ coef - penalty * coef))
    return Result(
        AffineMap(coef, statistics.mean_y - statistics.mean_x @ coef),
        float(max(objective, 0.0)),
        Status.OPTIMAL,
        time=time.perf_counter() - begin,
        residuals={"stationarity": float(np.linalg.norm(gradient) / (np.linalg.norm(cross) or 1.0))},
        message="closed form",
        info={"alpha": penalty, "jitter": factor.jitter, "directions": directions},
    )


def _solve(statistics: Moments, alpha: float, relative: bool, fit_intercept: bool, start: float) -> Result:
    """Cholesky solution, or the spectral one where the Gram matrix is numerically singular."""
    centred = statistics if fit_intercept else statistics.uncentred()
    gram, cross = centred.gram, centred.cross
    penalty = absolute_penalty(gram, alpha, relative)
    coef, rank, error = solve_semidefinite(gram, penalty, cross, centred.rounding)
    gradient = gram @ coef + penalty * coef - cross
    fit = centred.target_square - np.einsum("ij,ij->j", coef, 2.0 * cross - gram @ coef)
    resolved = error <= _ACCEPTED_ERROR
    return Result(
        AffineMap(coef, centred.mean_y - centred.mean_x @ coef),
        float(np.maximum(fit, 0.0).sum() + penalty * np.sum(coef**2)),
        Status.OPTIMAL if resolved else Status.STALLED,
        time=time.perf_counter() - start,
        residuals={"stationarity": _relative(gradient, cross), "rounding": error},
        message=f"coefficients known to about {error:.1e} relative"
        + ("" if resolved else ": accumulate the statistics in float64 or raise alpha"),
        info={"alpha": penalty, "rank": rank, "form": "gram", "products": _products(centred.rounding)},
    )


def _solve_rows(
    X: Array,
    Y: npt.ArrayLike,
    sample_weight: npt.ArrayLike | None,
    alpha: float,
    relative: bool,
    fit_intercept: bool,
    start: float,
) -> Result:
    """Solution from float64 rows: the dual for fewer rows than features, else singular values."""
    rows, targets, mean_x, mean_y = centred_rows(X, Y, sample_weight, fit_intercept)
    n, d = rows.shape
    penalty = alpha * float(np.sum(rows**2)) / d if relative else alpha
    form, rounding = "dual", 4e-16
    if n < d:
        dual, rank, error = solve_semidefinite(rows @ rows.T, penalty, targets, rounding)
        coef = rows.T @ dual
    if n >= d or error > _ACCEPTED_ERROR:
        coef, rank, error = _solve_by_singular_values(rows, penalty, targets)
        form = "svd"
    residual = rows @ coef - targets
    gradient = rows.T @ residual + penalty * coef
    return Result(
        AffineMap(coef, mean_y - mean_x @ coef),
        float(np.sum(residual**2) + penalty * np.sum(coef**2)),
        Status.OPTIMAL,
        time=time.perf_counter() - start,
        residuals={"stationarity": _relative(gradient, rows.T @ targets), "rounding": error},
        message=f"coefficients known to about {error:.1e} relative",
        info={"alpha": penalty, "rank": rank, "form": form, "products": "float64"},
    )


def solve_semidefinite(gram: Array, alpha: float, rhs: Array, rounding: float) -> tuple[Array, int, float]:
    """Solve ``(gram + alpha I) x = rhs``, rhs in the range of gram; least norm where it is singular.

    Returns the solution, the rank used and the estimated relative error for a Gram matrix that is known to
    ``rounding`` times its largest eigenvalue.
    """
    d = gram.shape[0]
    factor = factor_checked(gram, alpha)
    if factor.jitter == 0.0 and factor.rcond * _ACCEPTED_ERROR > rounding:
        return factor.solve(rhs), d, rounding / factor.rcond
    values, vectors = eigh(gram, check_finite=False)
    # eigenvalues at rounding belong to the null space, where rhs has no component
    noise = max(d * float(np.finfo(np.float64).eps), rounding)
    kept = values > noise * max(values[-1], 0.0)
    values, vectors = values[kept] + alpha, vectors[:, kept]
    error = rounding * values[-1] / values[0] if values.size else 0.0
    return vectors @ ((vectors.T @ rhs) / values[:, None]), int(kept.sum()), float(error)


def absolute_penalty(gram: Array, alpha: float, relative: bool) -> float:
    """``alpha`` itself, or in units of the mean eigenvalue of ``gram``."""
    return alpha * float(np.trace(gram)) / gram.shape[0] if relative else alpha


def centred_rows(
    X: npt.ArrayLike, Y: npt.ArrayLike, sample_weight: npt.ArrayLike | None, fit_intercept: bool
) -> tuple[Array, Array, Array, Array]:
    """Rows and targets about their weighted means, times the root of the weights (float64); and the means."""
    A, T, weight = next(row_chunks(X, Y, sample_weight, rows=sys.maxsize))
    A, T = as_finite("X", A).astype(np.float64), as_finite("Y", T).astype(np.float64).reshape(len(A), -1)
    mean_x, mean_y = np.zeros(A.shape[1]), np.zeros(T.shape[1])
    if fit_intercept:
        mean_x, mean_y = np.average(A, axis=0, weights=weight), np.average(T, axis=0, weights=weight)
    A -= mean_x
    T -= mean_y
    if weight is not None:
        A *= np.sqrt(weight)[:, None]
        T *= np.sqrt(weight)[:, None]
    return A, T, mean_x, mean_y


def _solve_by_singular_values(rows: Array, alpha: float, targets: Array) -> tuple[Array, int, float]:
    left, values, right = svd(rows, full_matrices=False, check_finite=False)
    eps = float(np.finfo(np.float64).eps)
    kept = values > max(rows.shape) * eps * values[0]
    values = values[kept]
    coef = right[kept].T @ ((values / (values**2 + alpha))[:, None] * (left[:, kept].T @ targets))
    error = eps * values[0] / np.sqrt(values[-1] ** 2 + alpha) if values.size else 0.0
    return coef, int(kept.sum()), float(error)


def _relative(gradient: Array, scale: Array) -> float:
    size = float(np.linalg.norm(scale))
    return float(np.linalg.norm(gradient)) / size if size > 0.0 else float(np.linalg.norm(gradient))


def _products(rounding: float) -> Any:
    return "float32" if rounding > 1e-10 else "float64"
