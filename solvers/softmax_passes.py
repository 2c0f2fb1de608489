r"""Softmax regression on given features, from passes over the rows, which need not fit in memory.

For features ``b_i`` of the rows (a constant among them), class probabilities ``y_i`` and weights ``w_i``,

    min over A:  sum_i w_i CE(y_i, softmax(b_i A)) + sum_j penalty_j |A_j|^2.

A pass sums the loss and its gradient ``B'(w (softmax - Y))`` at one A. The points are those of L-BFGS in the
coordinates ``L'A``, where ``L L' = B' diag(w c) B + 2 diag(penalty)`` with the mean curvature c of a row over
the classes at the start: a good start makes a good metric.

References
----------
Liu, Nocedal, "On the limited memory BFGS method for large scale optimization", Math. Programming 45:503-528,
1989.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from .linear_system import factor_checked
from .result import Callback, OnLimit, Record, Result, Status, conclude
from .row_sums import SumRows, row_blocks
from .validation import as_count, as_finite, as_scalar

Array = npt.NDArray[Any]


_MEMORY = 30  # pairs of L-BFGS: passes cost more than they do
_STATUS = {2: Status.STALLED, 99: Status.INTERRUPTED}  # of scipy


class _Point(NamedTuple):
    """A place, its objective and the largest entry of its scaled gradient."""

    coefficients: Array
    objective: float
    stationarity: float


def solve_softmax_passes(
    sum_rows: SumRows,
    features: Callable[[Array], Array],
    start: npt.ArrayLike,
    *,
    penalty: npt.ArrayLike,
    max_iter: int = 100,
    tol: float = 1e-5,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """Fit a softmax regression to its global optimum, one pass over the rows an iteration.

    Parameters
    ----------
    sum_rows : callable
        Makes a pass: the sums over all chunks of a picklable function of rows (m, d), class probabilities
        (m, classes) and weights (m,) or None.
    features : callable
        Features (m, t) of rows, picklable.
    start : array-like of shape (t, classes)
        Start.
    penalty : array-like of shape (t,)
        Weight of every feature's squared coefficients; 0 for the constant.
    max_iter : int
        Largest number of iterations; a few of them take a second pass, and the start takes two.
    tol : float
        Bound on the largest gradient entry divided by the sum of the weights and by the root mean square of
        its feature.
    callback : callable, optional
        Receives each history record; a true return value stops.
    on_limit : {"warn", "raise", "ignore"}
        What to do when a budget ends before ``tol`` is met.

    Returns
    -------
    Result
        ``x``: coefficients (t, classes). ``residuals["stationarity"]`` as in ``tol``, of a pass at ``x``.

    Raises
    ------
    ValueError
        If an array holds NaN, or a setting is out of range.

    Notes
    -----
    ``4 n t classes`` operations a pass, ``2 n t^2`` the first, and those of the features.
    """
    A = as_finite("start", start, ndim=2).astype(np.float64)
    ridge = as_finite("penalty", penalty, ndim=1)[:, None]
    search = _Search(sum_rows, features, A, ridge, as_scalar("tol", tol, low=0.0), callback)
    options: Any = {"maxiter": as_count("max_iter", max_iter), "ftol": 0.0, "gtol": 0.0, "maxcor": _MEMORY}
    ended: Any = minimize(
        search.at,
        (search.factor.lower.T @ A).ravel(),
        jac=True,
        method="L-BFGS-B",
        callback=search.accept,
        options=options,
    )
    return conclude(search.result(_STATUS.get(ended.status, Status.MAX_ITER)), on_limit)


class _Search:
    """Points of L-BFGS in the coordinates of ``factor``, each measured by a pass."""

    def __init__(
        self,
        sum_rows: SumRows,
        features: Callable[[Array], Array],
        start: Array,
        ridge: Array,
        tol: float,
        callback: Callback | None,
    ) -> None:
        self._begin = time.perf_counter()
        weight, squares, curvature = sum_rows(partial(curvature_sums, features, start))
        self.factor = factor_checked(curvature + np.diag(2 * ridge[:, 0]), 0.0)
        self._unit = float(weight) * np.sqrt(np.where(squares > 0, squares, 1.0) / weight)[:, None]
        self._sum_rows, self._features, self._ridge = sum_rows, features, ridge
        self._shape, self._tol, self._callback = start.shape, tol, callback
        self._seen: list[_Point] = []
        self._history: list[Record] = []

    def at(self, u: Any) -> Any:
        """Objective and gradient at the coordinates ``u``."""
        A = self.factor.unwhiten(u.reshape(self._shape))
        loss, gradient = self._sum_rows(partial(cross_entropy_sums, self._features, A))
        gradient = gradient + 2 * self._ridge * A
        objective = float(loss) + float(np.sum(self._ridge * A**2))
        self._seen.append(_Point(A, objective, float(np.abs(gradient / self._unit).max())))
        return objective, self.factor.whiten(gradient).ravel()

    def accept(self, intermediate_result: Any) -> None:
        """Record the point seen last, which is that of an iteration; ends the search where it suffices."""
        del self._seen[:-1]
        self._history.append(
            {
                "iteration": len(self._history),
                "time": time.perf_counter() - self._begin,
                "objective": self._seen[-1].objective,
                "stationarity": self._seen[-1].stationarity,
            }
        )
        stop = self._callback is not None and bool(self._callback(self._history[-1]))
        if stop or self._seen[-1].stationarity <= self._tol:
            raise StopIteration

    def result(self, status: Status) -> Result:
        """The best point seen; ``status`` says why the search ended above ``tol``."""
        best = min(self._seen, key=lambda point: point.objective)
        status = Status.OPTIMAL if best.stationarity <= self._tol else status
        reached = f"stationarity {best.stationarity:.2e} after {len(self._history)} iterations"
        return Result(
            best.coefficients,
            best.objective,
            status,
            n_iter=len(self._history),
            time=time.perf_counter() - self._begin,
            residuals={"stationarity": best.stationarity},
            history=tuple(self._history),
            message=f"{reached}; {status.advice}" if status.advice else reached,
        )


def cross_entropy_sums(
    features: Callable[[Array], Array], coefficients: Array, X: Array, Y: Array, weight: Array | None
) -> list[Array]:
    """Loss and gradient (t, classes) of some rows at given ``coefficients`` (t, classes)."""
    loss, gradient = np.zeros(()), np.zeros(coefficients.shape)
    for x, y, omega in row_blocks(X, Y, weight):
        B = features(x)
        scores = B @ coefficients
        norm = logsumexp(scores, axis=1)
        loss = loss + omega @ (norm - np.einsum("ic,ic->i", scores, y))
        gradient += B.T @ ((np.exp(scores - norm[:, None]) - y) * omega[:, None])
    return [loss, gradient]


def curvature_sums(
    features: Callable[[Array], Array], coefficients: Array, X: Array, Y: Array, weight: Array | None
) -> list[Array]:
    """Weight, squares (t,) of the features, and their Gram matrix weighted by the mean curvature of a row."""
    t, classes = coefficients.shape
    total, squares, gram = np.zeros(()), np.zeros(t), np.zeros((t, t))
    for x, _, omega in row_blocks(X, Y, weight):
        B = features(x)
        proba = softmax(B @ coefficients, axis=1)
        # mean eigenvalue of diag(p) - p p' off the common shift
        curvature = (1 - np.einsum("ic,ic->i", proba, proba)) / max(1, classes - 1)
        total, squares = total + omega.sum(), squares + omega @ B**2
        gram += (B * (omega * curvature)[:, None]).T @ B
    return [total, squares, gram]
