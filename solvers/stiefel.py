"""Linear and quadratic problems over matrices with orthonormal columns.

Over ``W (d, c)``, c <= d, with a positive definite metric S (the identity in the plain Stiefel manifold):

    Procrustes          max tr(W'B)                  W'W = I     W = polar(B) generalised linear  max tr(W'C)
    W'SW = I    W = S^-1 C (C' S^-1 C)^{-1/2} quadratic           min tr(W'AW) - 2 tr(W'B)     W'SW = I    W
    <- polar((qI - A)W + B), q >= lambda_max(A) reduced-rank ridge  min |XW - Y|^2 + alpha|W|^2  rank <= r
    ridge solution projected on r response directions

The quadratic iteration (Nie, Zhang and Li, "A generalized power method for solving quadratic problem on the
Stiefel manifold", Science China Information Sciences 2017) minimises a linear majorant, so the objective
never increases. At its limit ``L = sym(W'(B - AW))`` is the multiplier of the constraint, and for every
feasible Z

    f(Z) - f(W) = tr(D'AD) + tr(D L D') + 2 <AW + WL - B, D>,  D = Z - W, |D|^2 <= 4c,

so ``lambda_min(A) + lambda_min(L) >= 0`` proves a global minimum, and its shortfall bounds the distance to
it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, eigvalsh, svd

from .affine import AffineMap
from .least_squares import absolute_penalty
from .linear_system import SpdFactor, factor_checked, factor_spd
from .moments import Moments
from .result import Callback, Measure, OnLimit, Result, Status, conclude, iterate
from .validation import Array, as_count, as_finite, as_scalar, as_square

# The Gram route loses cond^2 digits; one Newton-Schulz step then restores orthonormality.
_GRAM_ROUTE_RCOND = 1e-3
_NULL_EIGENVALUE = 1e-10


def polar_factor(matrix: npt.ArrayLike) -> Array:
    """Nearest matrix with orthonormal columns (rows, if wide): ``U V'`` of the thin SVD, in float64.

    Well-conditioned tall matrices go through a (c, c) eigendecomposition, 4 d c^2 + 9 c^3 operations; others
    through the SVD. Null directions of a rank-deficient matrix are completed arbitrarily.
    """
    M = as_finite("matrix", matrix, ndim=2).astype(np.float64, copy=False)
    if M.shape[0] < M.shape[1]:
        return polar_factor(M.T).T
    values, vectors = eigh(M.T @ M, check_finite=False)
    if values.size and values[0] > _GRAM_ROUTE_RCOND**2 * values[-1]:
        W = M @ ((vectors / np.sqrt(values)) @ vectors.T)
        return 1.5 * W - 0.5 * W @ (W.T @ W)
    left, _, right = svd(M, full_matrices=False, check_finite=False)
    return left @ right


def solve_procrustes(B: npt.ArrayLike) -> Result:
    """Maximise ``tr(W'B)`` over ``W'W = I``; W is also the orthonormal matrix nearest to ``B``.

    Parameters
    ----------
    B : array-like of shape (d, c), c <= d
        For ``min |AW - T|_F`` with square W pass ``A.T @ T``.

    Returns
    -------
    Result
        ``objective`` is the maximum (the nuclear norm of B). ``residuals``: ``primal`` = max|W'W - I|,
        ``stationarity`` = |B - W H| / |B| with H = sym(W'B), ``dual`` = the most negative eigenvalue of H
        over |B|; all three at 0 prove the global maximum.

    Raises
    ------
    ValueError
        If ``B`` is wide or not finite.
    """
    start = time.perf_counter()
    B = _as_tall("B", B)
    W = polar_factor(B)
    return _linear_result(W, B, W, np.eye(B.shape[1]), start, {})


def solve_stiefel_linear(C: npt.ArrayLike, S: npt.ArrayLike | SpdFactor) -> Result:
    """Maximise ``tr(W'C)`` over ``W'SW = I``, in closed form.

    Parameters
    ----------
    C : array-like of shape (d, c), c <= d
        Linear term. If its rank is r < c, null directions are left out: ``W'SW`` is the projector on its row
        space and W has rank r, since any completion is arbitrary and leaves the maximum unchanged.
    S : array-like of shape (d, d) or SpdFactor
        Metric, symmetric positive definite; or its factor from :func:`~liftopt.solvers.factor_spd`.

    Returns
    -------
    Result
        ``objective`` is the maximum, the nuclear norm of ``S^{-1/2} C``. Residuals as in
        :func:`solve_procrustes`, in the metric of S. ``info``: ``rank``, ``jitter``. d^3 / 3 + 4 d^2 c
        operations.

    Raises
    ------
    ValueError
        If shapes do not match, entries are not finite, or S has a negative eigenvalue.
    """
    start = time.perf_counter()
    C = _as_tall("C", C)
    factor = S if isinstance(S, SpdFactor) else factor_spd(S)
    if factor.lower.shape[0] != C.shape[0]:
        raise ValueError(f"S of order {factor.lower.shape[0]} does not fit C of shape {C.shape}")
    whitened = factor.whiten(C)
    values, vectors = eigh(whitened.T @ whitened, check_finite=False)
    kept = values > _NULL_EIGENVALUE * max(values[-1], 0.0)
    basis = vectors[:, kept]
    Q = whitened @ ((basis / np.sqrt(values[kept])) @ basis.T)
    Q = 1.5 * Q - 0.5 * Q @ (Q.T @ Q)
    info = {"rank": int(kept.sum()), "jitter": factor.jitter}
    return _linear_result(factor.unwhiten(Q), whitened, Q, basis @ basis.T, start, info)


def _linear_result(
    x: Array, B: Array, W: Array, projector: Array, start: float, info: dict[str, float]
) -> Result:
    """Result ``x`` of the linear problem, judged in the coordinates where it is ``max tr(W'B)``, W'W = I."""
    product = W.T @ B
    symmetric = (product + product.T) / 2.0
    scale = float(np.linalg.norm(B)) or 1.0
    residuals = {
        "primal": float(np.abs(W.T @ W - projector).max()),
        "stationarity": float(np.linalg.norm(B - W @ symmetric)) / scale,
        "dual": max(0.0, -float(eigvalsh(symmetric)[0])) / scale,
    }
    return Result(
        x,
        float(np.trace(product)),
        Status.OPTIMAL,
        time=time.perf_counter() - start,
        residuals=residuals,
        message="closed form",
        info=info,
    )


class _Point(NamedTuple):
    """Iterate of the power iteration and ``A W``."""

    W: Array
    AW: Array


def solve_stiefel_quadratic(
    A: npt.ArrayLike,
    B: npt.ArrayLike,
    S: npt.ArrayLike | SpdFactor | None = None,
    *,
    start: npt.ArrayLike | None = None,
    max_iter: int = 10_000,
    tol: float = 1e-8,
    time_limit: float = np.inf,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """Minimise ``tr(W'AW) - 2 tr(W'B)`` over ``W'SW = I`` by the generalised power iteration.

    Parameters
    ----------
    A : array-like of shape (d, d)
        Symmetric; need not be definite.
    B : array-like of shape (d, c), c <= d
        Linear term.
    S : array-like of shape (d, d) or SpdFactor, optional
        Metric, positive definite; the identity by default.
    start : array-like of shape (d, c), optional
        Feasible start. By default the better of ``polar(B)`` and the lowest eigenvectors of A turned towards
        B.
    max_iter : int
        Largest number of iterations, 2 d^2 c operations each.
    tol : float
        Bound on ``|AW + WL - B|_F / (|A|_2 sqrt(c) + |B|_F)``, L = sym(W'(B - AW)), in the metric of S.
    time_limit : float
        Wall-clock seconds.
    callback : callable, optional
        Called with each history record; a true return value stops.
    on_limit : {"warn", "raise", "ignore"}
        What to do when a budget ends first.

    Returns
    -------
    Result
        ``gap`` bounds the distance from the global minimum. ``status`` is ``optimal`` if the point is
        stationary and ``gap`` is at rounding or tol level relative to the scale above, ``local_optimum`` if
        it is stationary without that certificate. ``info``: ``multiplier`` (L), ``certificate``
        (lambda_min(A) + lambda_min(L)).

    Raises
    ------
    ValueError
        If shapes do not match or entries are not finite.
    """
    A, B = as_square("A", A).astype(np.float64, copy=False), _as_tall("B", B)
    if A.shape[0] != B.shape[0]:
        raise ValueError(f"A of order {A.shape[0]} does not fit B of shape {B.shape}")
    as_count("max_iter", max_iter, low=0)
    as_scalar("tol", tol, low=0.0)
    metric = S if S is None or isinstance(S, SpdFactor) else factor_spd(S)
    if metric is not None:
        A, B = metric.whiten(metric.whiten(A).T), metric.whiten(B)
        A = (A + A.T) / 2.0
    spectrum, vectors = eigh(A, check_finite=False)
    majorant = float(spectrum[-1])
    scale = max(abs(spectrum[0]), abs(majorant)) * np.sqrt(B.shape[1]) + np.linalg.norm(B) or 1.0
    if start is None:
        W = _best_start(A, B, vectors[:, : B.shape[1]])
    else:
        W = _as_tall("start", start)
        if W.shape != B.shape:
            raise ValueError(f"start has shape {W.shape}, expected {B.shape}")
        W = polar_factor(W if metric is None else metric.lower.T @ W)

    def step(point: _Point) -> _Point:
        W = polar_factor(majorant * point.W - point.AW + B)
        return _Point(W, A @ W)

    def measure(point: _Point) -> Measure:
        primal = float(np.abs(point.W.T @ point.W - np.eye(B.shape[1])).max())
        residual = np.linalg.norm(_gradient(point, B)) / scale
        return Measure(_objective(point, B), {"stationarity": float(residual), "primal": primal})

    run = iterate(
        step,
        _Point(W, A @ W),
        measure=measure,
        max_iter=max_iter,
        tol=max(tol, 64.0 * float(np.finfo(np.float64).eps)),
        time_limit=time_limit,
        check_every=5,
        callback=callback,
    )
    point = run.state
    multiplier = _multiplier(point, B)
    certificate = float(spectrum[0] + eigvalsh(multiplier)[0])
    gap = _gap(point, B, certificate, float(spectrum[: B.shape[1]].sum()))
    status = run.status
    if status is Status.OPTIMAL and gap > 1e2 * tol * scale:
        status = Status.LOCAL_OPTIMUM
    x = point.W if metric is None else metric.unwhiten(point.W)
    info = {"multiplier": multiplier, "certificate": certificate}
    return conclude(run.result(x, status=status, gap=gap, info=info), on_limit)


def _best_start(A: Array, B: Array, lowest: Array) -> Array:
    """The better one of the linear term's maximiser and the quadratic term's minimiser turned towards B."""
    starts = [polar_factor(B), lowest @ polar_factor(lowest.T @ B)]
    return min(starts, key=lambda W: _objective(_Point(W, A @ W), B))


def _objective(point: _Point, B: Array) -> float:
    return float(np.sum(point.W * (point.AW - 2.0 * B)))


def _multiplier(point: _Point, B: Array) -> Array:
    product = point.W.T @ (B - point.AW)
    return (product + product.T) / 2.0


def _gradient(point: _Point, B: Array) -> Array:
    """Half the gradient of the Lagrangian, zero at a stationary point."""
    return point.AW + point.W @ _multiplier(point, B) - B


def _gap(point: _Point, B: Array, certificate: float, lowest_sum: float) -> float:
    """Bound on f(W) - min f: the smaller one of the certificate's and of ``sum lambda - 2 |B|_*``."""
    c = B.shape[1]
    slope = 4.0 * np.sqrt(c) * float(np.linalg.norm(_gradient(point, B)))
    curvature = 4.0 * c * max(0.0, -certificate)
    separate = lowest_sum - 2.0 * float(svd(B, compute_uv=False).sum())
    return min(slope + curvature, max(0.0, _objective(point, B) - separate))


def solve_reduced_rank_ridge(
    statistics: Moments, rank: int, *, alpha: float = 1.0, relative: bool = False
) -> Result:
    """Ridge regression with coefficients of rank at most ``rank``.

    Minimises ``sum_i w_i |x_i coef + intercept - y_i|^2 + alpha |coef|_F^2`` over ``rank(coef) <= rank``: the
    ridge solution times the projector on the leading eigenvectors of ``cross' (gram + alpha I)^-1 cross``
    (Izenman,
    "Reduced-rank regression for the multivariate linear model", Journal of Multivariate Analysis 1975).

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


def _as_tall(name: str, value: npt.ArrayLike) -> Array:
    matrix = as_finite(name, value, ndim=2).astype(np.float64, copy=False)
    if matrix.shape[0] < matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"{name} must have at least as many rows as columns, got shape {matrix.shape}")
    return matrix
