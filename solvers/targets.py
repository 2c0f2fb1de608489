r"""Activation targets, the value block of lifted training: one strongly convex problem a sample.

Given pre-activations ``u`` (from below), the next layer's map ``v -> v W + b`` and a convex term ``f`` of its
output (loss, or lifted penalty of the next layer),

    min over v:  lam [ Phi*(v) - u'v ] + f(v W + b),

the bracket being the Fenchel gap ``D(v, u)`` up to a constant. With ``f`` of curvature at most ``c`` the
proximal-gradient step

    v <- prox_{s lam Phi*}( v - s (f'(v W + b) W' - lam u) ),     s = 1 / (c |W|_2^2)

descends, and as ``Phi*`` is strongly convex with modulus ``1 / K`` the constant momentum
``(1 - sqrt(q)) / (1 + sqrt(q))``, ``q = (lam / K) / (lam / K + 1 / s)``, accelerates it. A row whose
objective would rise takes the plain step from where it stands and loses its momentum: descent is monotone
row by row.

For squares and an activation whose conjugate is ``v^2 / 2`` on an interval the block is a box QP with one
Hessian for all samples, and for the identity a closed form: :func:`solve_quadratic_targets`.

References
----------
Gu, Askari, El Ghaoui, "Fenchel Lifted Networks", AISTATS 2020, arXiv 1811.08039.
Nesterov, "Introductory Lectures on Convex Optimization", 2004, section 2.2 (constant momentum).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, softmax

from .box_qp import solve_box_qp
from .linear_system import factor_checked
from .result import Callback, Measure, OnLimit, Result, Status, conclude, iterate
from .validation import Array, as_count, as_finite, as_scalar

_ROUNDING = 8.0  # units of rounding by which a row's objective may seem to rise
_STALL_AFTER = 100  # the steps contract on where the objective no longer resolves it


class Above(NamedTuple):
    """The term above a value block, as a function of the next pre-activations (n, k).

    Attributes
    ----------
    value : callable
        (n, k) to one number a row (n,).
    gradient : callable
        (n, k) to (n, k).
    curvature : float
        Bound on the largest eigenvalue of the Hessian of a row.
    """

    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    curvature: float


def cross_entropy_above(Y: Array) -> Above:
    """Softmax cross-entropy as the term above.

    Parameters
    ----------
    Y : ndarray of shape (n, classes)
        Class probabilities.

    Returns
    -------
    Above
        Of curvature 1/2.
    """
    return Above(
        lambda scores: logsumexp(scores, axis=1) - np.einsum("ij,ij->i", scores, Y),
        lambda scores: softmax(scores, axis=1) - Y,
        0.5,
    )


def squares_above(T: Array) -> Above:
    """``|scores - T|^2 / 2`` as the term above.

    Parameters
    ----------
    T : ndarray of shape (n, k)
        Targets of the next pre-activations.

    Returns
    -------
    Above
        Of curvature 1.
    """
    return Above(lambda scores: 0.5 * np.sum((scores - T) ** 2, axis=1), lambda scores: scores - T, 1.0)


def matching_above(
    V: Array,
    phi: Callable[[Array], Array],
    potential: Callable[[Array], Array],
    lam: float = 1.0,
    lipschitz: float = 1.0,
) -> Above:
    """``lam [Phi(scores) - V scores]``: the lifted penalty of the next layer as the term above.

    Parameters
    ----------
    V : ndarray of shape (n, k)
        Targets of the next layer.
    phi, potential : callable
        Its activation and the convex potential ``Phi``, entrywise.
    lam : float
        Its multiplier.
    lipschitz : float
        Lipschitz constant of ``phi``.

    Returns
    -------
    Above
        Of curvature ``lam * lipschitz``.
    """
    return Above(
        lambda scores: lam * np.sum(potential(scores) - V * scores, axis=1),
        lambda scores: lam * (phi(scores) - V),
        lam * lipschitz,
    )


class _Rows(NamedTuple):
    """Values, their predecessors, and the objective of each row."""

    V: Array
    previous: Array
    objective: Array


def solve_targets(
    U: npt.ArrayLike,
    W: npt.ArrayLike,
    b: npt.ArrayLike,
    above: Above,
    prox: Callable[[Array, float], Array],
    conjugate: Callable[[Array], Array],
    *,
    lam: float = 1.0,
    lipschitz: float = 1.0,
    init: npt.ArrayLike,
    max_iter: int = 1000,
    tol: float = 1e-6,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """Minimise the value block of every sample by accelerated proximal-gradient steps.

    Parameters
    ----------
    U : array-like of shape (n, h)
        Pre-activations of the layer.
    W, b : array-like of shape (h, k) and (k,)
        The next layer's map.
    above : Above
        The term above: :func:`cross_entropy_above`, :func:`squares_above`, :func:`matching_above`, or
        your own.
    prox : callable
        ``(y, t) -> argmin_v Phi*(v) + (v - y)^2 / (2 t)``, entrywise.
    conjugate : callable
        ``Phi*``, entrywise.
    lam : float
        Multiplier of the layer's gap, positive.
    lipschitz : float
        Lipschitz constant ``K`` of the activation.
    init : array-like of shape (n, h)
        Start inside the domain of ``Phi*``: the forward activation, or the previous targets.
    max_iter : int
        Largest number of steps; one to three are usual inside training.
    tol : float
        Bound on ``(1 + K / (s lam)) |v - step(v)|_2``, the largest over samples: no sample is further than
        that from its solution.
    callback : callable, optional
        Receives each history record; a true return value stops the solver.
    on_limit : {"warn", "raise", "ignore"}
        What to do when ``max_iter`` ends before ``tol`` is met.

    Returns
    -------
    Result
        ``x``: (n, h); ``objective``: sum over samples (without the constant ``lam Phi(u)``);
        ``info["row_objective"]`` (n,); ``residuals["stationarity"]`` as in ``tol``.

    Raises
    ------
    ValueError
        If shapes do not fit, entries are not finite, or the start is outside the domain.

    Notes
    -----
    A step costs 4 n h k operations and holds three (n, h) arrays. The error falls by
    ``1 - sqrt(q)`` a step; keep ``curvature |W|_2^2 / lam`` at 10 or less.
    """
    block = _Block.build(U, W, b, above, prox, conjugate, lam, lipschitz)
    V = as_finite("init", init, ndim=2).astype(block.U.dtype)
    if V.shape != block.U.shape:
        raise ValueError(f"init has shape {V.shape}, U has {block.U.shape}")
    objective = block.rows(V)
    if not np.isfinite(objective).all():
        raise ValueError("init lies outside the domain of the conjugate: start from the forward activation")
    run = iterate(
        block.step,
        _Rows(V, V, objective),
        measure=block.measure,
        max_iter=as_count("max_iter", max_iter),
        tol=as_scalar("tol", tol, low=0.0),
        stall_after=_STALL_AFTER,
        callback=callback,
    )
    state = run.state
    return conclude(run.result(state.V, info={"row_objective": state.objective}), on_limit)


class _Block(NamedTuple):
    """The problem with its step length and momentum."""

    U: Array
    W: Array
    b: Array
    above: Above
    prox: Callable[[Array, float], Array]
    conjugate: Callable[[Array], Array]
    lam: float
    modulus: float
    length: float
    beta: float

    @classmethod
    def build(
        cls,
        U: npt.ArrayLike,
        W: npt.ArrayLike,
        b: npt.ArrayLike,
        above: Above,
        prox: Callable[[Array, float], Array],
        conjugate: Callable[[Array], Array],
        lam: float,
        lipschitz: float,
    ) -> _Block:
        U, W, b = _checked(U, W, b)
        lam = as_scalar("lam", lam, low=0.0, strict=True)
        modulus = lam / as_scalar("lipschitz", lipschitz, low=0.0, strict=True)
        curvature = above.curvature * squared_norm(W)
        length = 1.0 / max(curvature, 1e-12 * modulus)
        q = float(np.sqrt(modulus / (modulus + 1.0 / length)))
        return cls(U, W, b, above, prox, conjugate, lam, modulus, length, (1.0 - q) / (1.0 + q))

    def rows(self, V: Array) -> Array:
        """Objective of each row, in float64."""
        own = np.sum(self.conjugate(V) - self.U * V, axis=1, dtype=np.float64)
        return self.lam * own + self.above.value(V @ self.W + self.b)

    def plain(self, V: Array) -> Array:
        """One proximal-gradient step from ``V``."""
        back = self.above.gradient(V @ self.W + self.b) @ self.W.T
        moved = V - self.length * (back - self.lam * self.U)
        return self.prox(moved, self.length * self.lam).astype(V.dtype, copy=False)

    def step(self, state: _Rows) -> _Rows:
        """Accelerated step; rows that would rise take the plain one."""
        V = self.plain(state.V + self.beta * (state.V - state.previous))
        objective = self.rows(V)
        previous = state.V
        slack = _ROUNDING * np.finfo(V.dtype).eps * (1.0 + np.abs(state.objective))
        rising = objective > state.objective + slack
        if rising.any():
            V[rising] = self.plain(state.V)[rising]
            objective = self.rows(V)
            previous = np.where(rising[:, None], V, previous)
        return _Rows(V, previous, objective)

    def measure(self, state: _Rows) -> Measure:
        # the step contracts distances by 1 / (1 + s modulus)
        change = np.linalg.norm(state.V - self.plain(state.V), axis=1).max(initial=0.0)
        distance = float(change) * (1.0 + 1.0 / (self.length * self.modulus))
        return Measure(float(state.objective.sum()), {"stationarity": distance})


def solve_quadratic_targets(
    U: npt.ArrayLike,
    W: npt.ArrayLike,
    b: npt.ArrayLike,
    T: npt.ArrayLike,
    *,
    lam: float = 1.0,
    lower: float = -np.inf,
    upper: float = np.inf,
    tol: float = 1e-6,
    on_limit: OnLimit = "warn",
) -> Result:
    """Exact value block below squares.

    ``min lam |v - u|^2 / 2 + |v W + b - t|^2 / 2`` over ``lower <= v <= upper`` for every sample.

    Parameters
    ----------
    U : array-like of shape (n, h)
        Pre-activations of the layer.
    W, b : array-like of shape (h, k) and (k,)
        The next layer's map.
    T : array-like of shape (n, k)
        What it should give.
    lam : float
        Multiplier, positive.
    lower, upper : float
        Range of the activation: (0, inf) for ReLU, (0, 1) for the hard sigmoid; none for the identity, where
        the solution is the closed form ``u + (t - u W - b)(lam I + W'W)^-1 W'``.
    tol : float
        Natural residual, as in :func:`~liftopt.solvers.solve_box_qp`.
    on_limit : {"warn", "raise", "ignore"}
        As there.

    Returns
    -------
    Result
        ``x``: (n, h); for a bounded range that of :func:`~liftopt.solvers.solve_box_qp`, objective included
        (without the constant ``lam |u|^2 / 2 + |b - t|^2 / 2``).

    Raises
    ------
    ValueError
        If shapes do not fit, entries are not finite or ``lam`` is not positive.

    Notes
    -----
    Without bounds h k^2 + k^3 / 3 operations for the factor and O(n k (h + k)) for the samples. Else one box
    QP a sample with a common Hessian (h, h): the cost of :func:`~liftopt.solvers.solve_box_qp`.
    """
    U, W, b = _checked(U, W, b)
    T = as_finite("T", T, ndim=2)
    lam = as_scalar("lam", lam, low=0.0, strict=True)
    C = lam * U + (T - b) @ W.T
    if np.isfinite([lower, upper]).any():
        H = W @ W.T + lam * np.eye(W.shape[0], dtype=W.dtype)
        return solve_box_qp(H, C, lower, upper, tol=tol, init=np.clip(U, lower, upper), on_limit=on_limit)
    factor = factor_checked((W.T @ W).astype(np.float64), lam)
    V = U + factor.solve((T - U @ W - b).T).T @ W.T
    gradient = lam * V + (V @ W) @ W.T - C
    return Result(
        V,
        float(0.5 * np.sum(V * (gradient - C), dtype=np.float64)),
        Status.OPTIMAL,
        residuals={"stationarity": float(np.abs(gradient).max(initial=0.0))},
        message="closed form",
    )


def squared_norm(W: Array) -> float:
    """``|W|_2^2``, from the smaller Gram matrix in float64."""
    W = W.astype(np.float64, copy=False)
    gram = W.T @ W if W.shape[0] > W.shape[1] else W @ W.T
    return float(np.linalg.eigvalsh(gram)[-1]) if gram.size else 0.0


def _checked(U: npt.ArrayLike, W: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Array, Array, Array]:
    U, W, b = as_finite("U", U, ndim=2), as_finite("W", W, ndim=2), as_finite("b", b, ndim=1)
    if U.shape[1] != W.shape[0] or b.shape != W.shape[1:]:
        raise ValueError(f"U {U.shape}, W {W.shape} and b {b.shape} do not fit")
    return U, W.astype(U.dtype, copy=False), b.astype(U.dtype, copy=False)
