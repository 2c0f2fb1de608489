"""Linear problems over matrices with orthonormal columns, in closed form.

Over ``W (d, c)``, c <= d, with a positive definite metric S (the identity on the plain Stiefel manifold):

    Procrustes          max tr(W'B)    W'W = I     W = polar(B)
    generalised linear  max tr(W'C)    W'SW = I    W = S^-1 C (C' S^-1 C)^{-1/2}

The second is the first after the change of variable ``R'W``, ``S = R R'``. A feasible W with ``B = W H``, H
symmetric positive semi-definite, is a global maximiser: the residuals measure exactly that.

References
----------
Schonemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31:1-10, 1966.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, eigvalsh, svd

from .linear_system import SpdFactor, factor_spd
from .result import Result, Status
from .validation import Array, as_finite

# The Gram route loses cond^2 digits; one Newton-Schulz step then restores orthonormality.
_GRAM_ROUTE_RCOND = 1e-3
# Labels give the linear term rank c - 1 up to the rounding of float32 products.
_NULL_SINGULAR_VALUE = 1e-5


def polar_factor(matrix: npt.ArrayLike) -> Array:
    """Nearest matrix with orthonormal columns (rows, if wide): ``U V'`` of the thin SVD, in float64.

    Parameters
    ----------
    matrix : array-like of shape (d, c)
        Finite.

    Returns
    -------
    ndarray of shape (d, c)
        Null directions of a rank-deficient matrix are completed arbitrarily.

    Notes
    -----
    Well-conditioned tall matrices go through a (c, c) eigendecomposition, 4 d c^2 + 9 c^3 operations; others
    through the SVD.
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

    Notes
    -----
    4 d c^2 + 9 c^3 operations.
    """
    start = time.perf_counter()
    B = as_tall("B", B)
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
        :func:`solve_procrustes`, in the metric of S. ``info``: ``rank``, ``jitter``.

    Raises
    ------
    ValueError
        If shapes do not match, entries are not finite, or S has a negative eigenvalue.

    Notes
    -----
    d^3 / 3 + 4 d^2 c operations, 4 d^2 c with the factor of S given.
    """
    start = time.perf_counter()
    C = as_tall("C", C)
    factor = S if isinstance(S, SpdFactor) else factor_spd(S)
    if factor.lower.shape[0] != C.shape[0]:
        raise ValueError(f"S of order {factor.lower.shape[0]} does not fit C of shape {C.shape}")
    whitened = factor.whiten(C)
    left, values, right = svd(whitened, full_matrices=False, check_finite=False)
    kept = values > _NULL_SINGULAR_VALUE * values[0]
    Q, projector = left[:, kept] @ right[kept], right[kept].T @ right[kept]
    info = {"rank": int(kept.sum()), "jitter": factor.jitter}
    return _linear_result(factor.unwhiten(Q), whitened, Q, projector, start, info)


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


def as_tall(name: str, value: npt.ArrayLike) -> Array:
    """``value`` as a finite float64 matrix with at least as many rows as columns."""
    matrix = as_finite(name, value, ndim=2).astype(np.float64, copy=False)
    if matrix.shape[0] < matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"{name} must have at least as many rows as columns, got shape {matrix.shape}")
    return matrix
