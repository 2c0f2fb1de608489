"""Quadratic problems over matrices with orthonormal columns, by the generalised power iteration.

    min f(W) = tr(W'AW) - 2 tr(W'B)    over W (d, c),  W'SW = I

With ``S = R R'`` and ``R'W`` in place of W the metric is the identity. The step ``W <- polar((qI - A) Z +
B)``, ``q = lambda_max(A)``, minimises a majorant of f that touches it at Z (Nie, Zhang, Li); with Z
extrapolated and restarted where f would rise (:mod:`liftopt.solvers.acceleration`) the descent stays
monotone.

At a stationary point ``AW + WL = B`` with the symmetric multiplier ``L = W'(B - AW)``. For any feasible Z, D
= Z - W,

    f(Z) - f(W) = tr(D'AD) + tr(DLD') + 2 <AW + WL - B, D>,

and since |D|_2 <= 2 the first two terms are at least ``-4 sum_j max(0, -(a_j + l_j))`` for the sorted
eigenvalues of A and L. So ``a_1 + l_1 >= 0`` proves a global minimum, and otherwise the sum bounds the
distance to it.

References
----------
Nie, Zhang, Li, "A generalized power method for solving quadratic problem on the Stiefel manifold", Science
China Information Sciences 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, eigvalsh, svdvals

from .acceleration import at_rest, descent_step
from .linear_system import SpdFactor, factor_spd
from .result import Callback, Measure, OnLimit, Result, Status, conclude, iterate
from .stiefel import as_tall, polar_factor
from .validation import Array, as_count, as_scalar, as_square


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
    """Minimise ``tr(W'AW) - 2 tr(W'B)`` over ``W'SW = I``.

    Parameters
    ----------
    A : array-like of shape (d, d)
        Symmetric; need not be definite.
    B : array-like of shape (d, c), c <= d
        Linear term.
    S : array-like of shape (d, d) or SpdFactor, optional
        Metric, positive definite; the identity by default.
    start : array-like of shape (d, c), optional
        Start, made feasible by its polar factor. By default the better one of ``polar(B)`` and the lowest
        eigenvectors of A turned towards B.
    max_iter : int
        Largest number of iterations.
    tol : float
        Bound on ``|AW + WL - B|_F / (|A|_2 sqrt(c) + |B|_F)``, L = sym(W'(B - AW)), in the metric of S; the
        floor is 64 units of rounding.
    time_limit : float
        Wall-clock seconds.
    callback : callable, optional
        Called with each history record; a true return value stops.
    on_limit : {"warn", "raise", "ignore"}
        What to do when a budget ends first.

    Returns
    -------
    Result
        ``gap`` is a proven bound on the distance from the global minimum. ``status`` is ``optimal`` for a
        stationary point whose gap is at most ``100 tol`` in the scale of ``tol``, ``local_optimum`` for one
        without that proof. ``info``: ``multiplier`` (L), ``certificate`` (lambda_min(A) + lambda_min(L),
        non-negative at a proven optimum).

    Raises
    ------
    ValueError
        If shapes do not match or entries are not finite.

    Notes
    -----
    One eigendecomposition of A, O(d^3), then 2 d^2 c operations and a polar factor an iteration.
    """
    metric = S if S is None or isinstance(S, SpdFactor) else factor_spd(S)
    problem = _Problem.build(as_square("A", A), as_tall("B", B), metric)
    origin = problem.default_start() if start is None else problem.feasible(start, metric)
    run = iterate(
        descent_step(problem.majorise, problem.objective, momentum=True),
        at_rest(origin, problem.objective),
        measure=lambda state: Measure(state.objective, problem.residuals(state.point)),
        max_iter=as_count("max_iter", max_iter, low=0),
        tol=max(as_scalar("tol", tol, low=0.0), 64.0 * float(np.finfo(np.float64).eps)),
        time_limit=time_limit,
        check_every=5,
        callback=callback,
    )
    point = run.state.point
    multiplier = problem.multiplier(point)
    gap = problem.gap(point)
    certificate = float(problem.spectrum[0] + eigvalsh(multiplier)[0])
    unproven = run.status is Status.OPTIMAL and gap > 1e2 * tol * problem.scale
    result = run.result(
        point.W if metric is None else metric.unwhiten(point.W),
        status=Status.LOCAL_OPTIMUM if unproven else run.status,
        gap=gap,
        info={"multiplier": multiplier, "certificate": certificate},
    )
    return conclude(result, on_limit)


class _Point(NamedTuple):
    """A matrix and its product with A."""

    W: Array
    AW: Array


@dataclass(frozen=True, eq=False)
class _Problem:
    """Whitened A and B, the eigenvalues of A, the lowest eigenvectors, and the scale of the gradient."""

    A: Array
    B: Array
    spectrum: Array
    lowest: Array
    scale: float

    @classmethod
    def build(cls, A: Array, B: Array, metric: SpdFactor | None) -> _Problem:
        if A.shape[0] != B.shape[0]:
            raise ValueError(f"A of order {A.shape[0]} does not fit B of shape {B.shape}")
        A = A.astype(np.float64, copy=False)
        if metric is not None:
            A, B = metric.whiten(metric.whiten(A).T), metric.whiten(B)
        spectrum, vectors = eigh(A, check_finite=False)
        size = float(np.abs(spectrum).max() * np.sqrt(B.shape[1]) + np.linalg.norm(B))
        return cls(A, B, spectrum, vectors[:, : B.shape[1]], size or 1.0)

    def at(self, W: Array) -> _Point:
        return _Point(W, self.A @ W)

    def default_start(self) -> _Point:
        """The better one of ``polar(B)`` and the lowest eigenvectors turned towards B."""
        starts = polar_factor(self.B), self.lowest @ polar_factor(self.lowest.T @ self.B)
        return min(map(self.at, starts), key=self.objective)

    def feasible(self, start: npt.ArrayLike, metric: SpdFactor | None) -> _Point:
        W = as_tall("start", start)
        if W.shape != self.B.shape:
            raise ValueError(f"start has shape {W.shape}, expected {self.B.shape}")
        return self.at(polar_factor(W if metric is None else metric.lower.T @ W))

    def majorise(self, point: _Point) -> _Point:
        return self.at(polar_factor(self.spectrum[-1] * point.W - point.AW + self.B))

    def objective(self, point: _Point) -> float:
        return float(np.sum(point.W * (point.AW - 2.0 * self.B)))

    def multiplier(self, point: _Point) -> Array:
        product = point.W.T @ (self.B - point.AW)
        return (product + product.T) / 2.0

    def gradient(self, point: _Point) -> Array:
        """Half the gradient of the Lagrangian."""
        return point.AW + point.W @ self.multiplier(point) - self.B

    def residuals(self, point: _Point) -> dict[str, Any]:
        return {
            "stationarity": float(np.linalg.norm(self.gradient(point))) / self.scale,
            "primal": float(np.abs(point.W.T @ point.W - np.eye(self.B.shape[1])).max()),
        }

    def gap(self, point: _Point) -> float:
        """The smaller one of the certificate's bound and that of the two terms minimised separately."""
        c = self.B.shape[1]
        curvature = np.minimum(self.spectrum[:c] + eigvalsh(self.multiplier(point)), 0.0)
        proven = 4.0 * float(svdvals(self.gradient(point)).sum() - curvature.sum())
        separate = float(self.spectrum[:c].sum() - 2.0 * svdvals(self.B).sum())
        return min(proven, max(0.0, self.objective(point) - separate))
