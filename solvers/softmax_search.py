"""Discrete multinomial regression by coordinate search with exact loss changes.

    minimise over T in C^(d x K), a, b:   sum_n w_n [ log sum_k exp z_nk - <y_n, z_n> ],   z = X T diag(a) + b

for target rows ``y_n`` on the simplex (one-hot labels, or soft ones). With ``q_n = softmax(z_n)``, changing
``T[j, k]`` by ``delta`` multiplies ``exp z_nk`` by ``g_n = exp(a_k delta x_nj)`` and changes the loss by
exactly

    sum_n w_n log(1 + q_nk (g_n - 1)) - a_k delta sum_n w_n y_nk x_nj

over the rows with ``x_nj != 0``; the logs of a chunk are one log of a product that cannot overflow, because
``|log f| <= |a delta x|``. A sweep costs ``O(nnz(X) K |C|)``. For fixed T the problem is convex in ``(a,
b)``: Newton steps between sweeps. The loss is recomputed from the weights after every sweep.

References
----------
Date et al., "Training Deep Neural Networks with Constrained Learning Parameters", arXiv 2009.00540.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse, special

from .result import OnLimit, Result, Status, conclude
from .validation import as_count, as_finite, as_scalar, as_weights
from .value_sets import TERNARY, FiniteWeights, as_values

Array = npt.NDArray[Any]

_NEWTON_STEPS = 6
_SOLVED = 1e-3  # mean loss at which separable data count as fitted


class DiscreteAffine(NamedTuple):
    """One layer ``X -> X @ weights.dense() + bias``.

    Attributes
    ----------
    weights : FiniteWeights
        Codes (d, K) and scales (K,).
    bias : ndarray of shape (K,)
        Float64.
    """

    weights: FiniteWeights
    bias: Array

    def __call__(self, X: Array) -> Array:
        """Pre-activations in float64."""
        units = self.weights.units()
        product = X @ units.astype(X.dtype)
        out: Array = product.astype(np.float64) * self.weights.scale + self.bias
        return out


def search_softmax(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    values: npt.ArrayLike = TERNARY,
    *,
    start: DiscreteAffine | None = None,
    weights: npt.ArrayLike | None = None,
    refit: bool = True,
    threshold: float = 0.0,
    order: str = "random",
    max_iter: int = 20,
    random_state: int = 0,
    callback: Callable[[int, DiscreteAffine, float], bool] | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """Coordinate search for a softmax-linear layer with weights from a finite set.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Rows; zeros cost nothing.
    Y : array-like of shape (n, K)
        Targets: non-negative rows that sum to one.
    values : array-like of shape (m,)
        The finite set.
    start : DiscreteAffine, optional
        Where to begin; by default the entries nearest to zero, scale ``1 / (2 rms of X)`` over the square
        root of the mean count of non-zeros a row, biases fitted.
    weights : array-like of shape (n,), optional
        Sample weights.
    refit : bool
        Fit scales and biases by Newton's method before every sweep and at the end.
    threshold : float
        A change is accepted if it lowers the summed loss by more than this.
    order : {"random", "cyclic"}
        Order of the features, drawn anew for every sweep or fixed.
    max_iter : int
        Largest number of sweeps.
    random_state : int
        Seed of the orders.
    callback : callable, optional
        ``callback(sweep, x, loss)`` after every sweep; a true value stops the search.
    on_limit : {"warn", "raise", "ignore"}
        What to do when ``max_iter`` ends the search.

    Returns
    -------
    Result
        ``x`` is a :class:`DiscreteAffine`, ``objective`` the summed loss at ``x``. Status ``local_optimum``
        when a whole sweep with fixed scales changed nothing (no single change gains more than ``threshold``),
        ``stalled`` when rounding made the recomputed loss rise (that sweep is undone). ``history`` holds loss
        and changes of every sweep.

    Raises
    ------
    ValueError
        On bad value sets, shapes, NaN entries or target rows off the simplex.

    Notes
    -----
    A sweep costs O(nnz(X) K m) for m values, a Newton step of scales and biases O(n K^2).
    """
    begin = time.perf_counter()
    as_count("max_iter", max_iter)
    if order not in ("random", "cyclic"):
        raise ValueError(f"order must be 'random' or 'cyclic', got {order!r}")
    search = SoftmaxSearch(X, Y, values, weights=weights, threshold=threshold, refit=refit)
    point = search.at(search.origin() if start is None else start)
    rng = np.random.default_rng(random_state)
    history: list[dict[str, Any]] = []
    status, n_iter = Status.MAX_ITER, 0
    while n_iter < max_iter and status is Status.MAX_ITER:
        following, changes = search.sweep(point, rng if order == "random" else None)
        n_iter += 1
        if changes and not following.loss < point.loss:
            status = Status.STALLED
            break
        point = following
        record = {"iteration": n_iter, "time": time.perf_counter() - begin}
        history.append({**record, "objective": point.loss, "changes": changes})
        if changes == 0:
            status = Status.LOCAL_OPTIMUM
        elif callback is not None and callback(n_iter, point.x, point.loss):
            status = Status.INTERRUPTED
    outcome = Result(
        point.x,
        point.loss,
        status,
        n_iter,
        time.perf_counter() - begin,
        history=tuple(history),
        message=_MESSAGES.get(status, ""),
    )
    return conclude(outcome, on_limit)


_MESSAGES = {
    Status.MAX_ITER: "the last sweep still changed entries: increase max_iter or threshold",
    Status.STALLED: "changes are below what the arithmetic resolves: raise threshold",
}


def softmax_origin(X: Array, k: int, values: Array, weights: Array | None = None) -> DiscreteAffine:
    """Start of a search: entries nearest to zero, one scale that keeps logits of order one, no biases."""
    square = float(np.average(np.einsum("nd,nd->n", X, X, dtype=np.float64), weights=weights))
    scale = np.full(k, 4.0 / np.sqrt(max(square, 1e-12)) / np.abs(values).max())
    codes = np.full((X.shape[1], k), np.abs(values).argmin(), dtype=np.uint8)
    return DiscreteAffine(FiniteWeights(values, codes, scale), np.zeros(k))


class SearchPoint(NamedTuple):
    """Weights, the products ``X T`` (n, K) of their unscaled entries, and the summed loss."""

    x: DiscreteAffine
    products: Array
    loss: float


class SoftmaxSearch:
    """The data of :func:`search_softmax` in the order the search needs, for callers that own the loop.

    Parameters
    ----------
    X, Y, values, weights, threshold, refit
        As for :func:`search_softmax`.

    Raises
    ------
    ValueError
        As :func:`search_softmax`.
    """

    def __init__(
        self,
        X: npt.ArrayLike,
        Y: npt.ArrayLike,
        values: npt.ArrayLike = TERNARY,
        *,
        weights: npt.ArrayLike | None = None,
        threshold: float = 0.0,
        refit: bool = True,
    ) -> None:
        self.X, self.Y = as_finite("X", X, ndim=2), as_finite("Y", Y, ndim=2).astype(np.float64)
        _check_targets(self.X, self.Y)
        self.weights = as_weights("weights", weights, self.X.shape[0])
        self.values, self.refit = as_values(values), refit
        self.threshold = as_scalar("threshold", threshold, low=0.0)
        self.shape = (self.X.shape[1], self.Y.shape[1])
        columns = sparse.csc_array(self.X)
        self._columns = (columns.indptr, columns.indices, columns.data.astype(np.float64))
        self._weighted = self.Y if self.weights is None else self.Y * self.weights[:, None]
        # sum_n w y x: the linear part of every loss change
        self._moments = (self.X.T @ self._weighted.astype(self.X.dtype)).astype(np.float64)

    def origin(self) -> DiscreteAffine:
        """Entries nearest to zero, one scale that keeps logits of order one."""
        return softmax_origin(self.X, self.shape[1], self.values, self.weights)

    def at(self, x: DiscreteAffine) -> SearchPoint:
        """The point of the weights of ``x``, scales and biases refitted."""
        if x.weights.codes.shape != self.shape or not np.array_equal(x.weights.values, self.values):
            raise ValueError(f"start must hold codes of shape {self.shape} into the same values")
        P = (self.X @ x.weights.units().astype(self.X.dtype)).astype(np.float64)
        if self.refit:
            scale, bias = fit_scales(P, self.Y, x.weights.scale, x.bias, self.weights)
            x = DiscreteAffine(x.weights._replace(scale=scale), bias)
        z = P * x.weights.scale + x.bias
        normalisers = special.logsumexp(z, axis=1)
        total = normalisers.sum() if self.weights is None else self.weights @ normalisers
        return SearchPoint(x, P, float(total - np.vdot(self._weighted, z)))

    def sweep(self, point: SearchPoint, rng: np.random.Generator | None = None) -> tuple[SearchPoint, int]:
        """One pass over all entries from ``point`` (features shuffled by ``rng``), with its change count."""
        from .softmax_kernels import sweep  # compiled: imported where it is used

        d = self.shape[0]
        features = np.arange(d) if rng is None else rng.permutation(d)
        weights, bias = point.x
        codes = weights.codes.copy()
        Q = special.softmax(point.products * weights.scale + bias, axis=1)
        sample = np.empty(0) if self.weights is None else self.weights
        changes = sweep(
            *self._columns,
            self._moments,
            Q,
            codes,
            self.values,
            weights.scale,
            sample,
            features,
            self.threshold,
        )
        if changes == 0:
            return point, 0
        return self.at(DiscreteAffine(weights._replace(codes=codes), bias)), changes


def fit_scales(
    P: Array, Y: Array, scale: Array, bias: Array, weights: Array | None = None, steps: int = _NEWTON_STEPS
) -> tuple[Array, Array]:
    """Minimise the cross-entropy of ``P * scale + bias`` over ``scale`` and ``bias`` by damped Newton steps.

    Convex; every step lowers the loss or ends the iteration. O(n K^2) a step.
    """
    w = np.ones(P.shape[0]) if weights is None else weights
    K = P.shape[1]
    theta = np.concatenate([scale, bias])

    def loss_of(point: Array) -> float:
        z = P * point[:K] + point[K:]
        return float(w @ (special.logsumexp(z, axis=1) - (Y * z).sum(axis=1)))

    loss = loss_of(theta)
    for _ in range(steps):
        if loss <= _SOLVED * w.sum():
            break
        Q = special.softmax(P * theta[:K] + theta[K:], axis=1)
        error = w[:, None] * (Q - Y)
        gradient = np.concatenate([(error * P).sum(axis=0), error.sum(axis=0)])
        parts = np.concatenate([Q * P, Q], axis=1)
        curvature = -(parts.T @ (w[:, None] * parts))
        weighted = w[:, None] * Q
        i = np.arange(K)
        curvature[i, i] += (weighted * P**2).sum(axis=0)
        curvature[i + K, i + K] += weighted.sum(axis=0)
        curvature[i, i + K] += (weighted * P).sum(axis=0)
        curvature[i + K, i] += (weighted * P).sum(axis=0)
        curvature[np.diag_indices(2 * K)] += 1e-4 * np.maximum(np.diag(curvature), 1e-6)
        direction = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > 1e-3 and not (after := loss_of(theta - length * direction)) < loss:
            length /= 4
        if length <= 1e-3:
            break
        theta, gained = theta - length * direction, loss - after
        loss = after
        if gained <= 1e-6 * loss:
            break
    return theta[:K], theta[K:] - theta[K:].mean()  # a common shift changes nothing


def _check_targets(X: Array, Y: Array) -> None:
    if X.shape[0] != Y.shape[0] or Y.shape[1] < 2:
        raise ValueError(f"Y of shape {Y.shape} does not give every row of X {X.shape} two or more classes")
    if Y.min(initial=0.0) < 0.0 or np.abs(Y.sum(axis=1) - 1.0).max(initial=0.0) > 1e-4:
        raise ValueError("rows of Y must be non-negative and sum to one")
