"""Decision layer on a flexible Stiefel manifold with adaptive sample weights.

Cycles over the blocks of

    min  sum_i a_i |x_i W + b - y_i - y_i m_i|^2 + alpha |W|_F^2 + lam |a|^2
    over W (d, c), b (c,), m >= 0, a >= 0 with sum a = 1,   W'SW = I,   S = Xc' diag(a) Xc + alpha I

for labels in {-1, +1}, Xc centred with the weights a. Each block is closed form: the margins m drag the
targets (:mod:`liftopt.solvers.margin`), a is a simplex projection, and since ``tr(W'SW)`` is constant on the
constraint set, W solves a linear problem in the metric S (:mod:`liftopt.solvers.stiefel`). With fixed a the
objective decreases in every pass. With adaptive a the constraint set moves along and it need not: what is
returned then is a fixed point of the cycle.

References
----------
Zhang, Jiao, Zhang, Li, "Manifold Neural Network With Non-Gradient Optimization", IEEE TPAMI 2023.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .affine import AffineMap
from .least_squares import absolute_penalty
from .linear_system import SpdFactor, factor_checked
from .margin import as_labels
from .moments import Moments, moments
from .result import Callback, Measure, OnLimit, Result, Status, conclude, iterate
from .stiefel import solve_stiefel_linear
from .validation import Array, as_count, as_finite, as_scalar, as_weights


def solve_simplex_weights(losses: npt.ArrayLike, n_active: int) -> Result:
    """Minimise ``a'losses + lam |a|^2`` over the simplex, for ``n_active`` positive weights.

    The smallest losses get ``a_i = max(f_(k+1) - f_i, 0) / (2 lam)``, ``2 lam = k f_(k+1) - sum_{j<=k}
    f_(j)`` for sorted losses f and k = n_active. Losses that tie with ``f_(k+1)`` get nothing; if the k + 1
    smallest all tie, lam is 0 and the tied samples share the weight equally.

    Parameters
    ----------
    losses : array-like of shape (n,)
        Finite.
    n_active : int
        Between 1 and n - 1.

    Returns
    -------
    Result
        ``objective`` is the minimum; ``residuals["primal"]`` = |sum a - 1|. ``info``: ``lam``, ``n_active``
        (positive weights in fact).

    Raises
    ------
    ValueError
        If a loss is not finite or ``n_active`` is out of range.

    Notes
    -----
    O(n log n).
    """
    start = time.perf_counter()
    f = as_finite("losses", losses, ndim=1).astype(np.float64, copy=False)
    k = as_count("n_active", n_active)
    if k >= f.size:
        raise ValueError(f"n_active must be below the number of losses {f.size}, got {k}")
    smallest = np.partition(f, k)[: k + 1]
    threshold = float(smallest[k])
    slack = np.maximum(threshold - f, 0.0)
    total = float(slack.sum())
    # a total at rounding level is a tie
    if total <= 4.0 * k * float(np.finfo(np.float64).eps) * abs(threshold):
        slack = (f <= threshold).astype(np.float64)
        total, lam = float(slack.sum()), 0.0
    else:
        lam = total / 2.0
    weights = slack / total
    return Result(
        weights,
        float(weights @ f + lam * weights @ weights),
        Status.OPTIMAL,
        time=time.perf_counter() - start,
        residuals={"primal": abs(float(weights.sum()) - 1.0)},
        message="closed form",
        info={"lam": lam, "n_active": int((weights > 0.0).sum())},
    )


class _Pass(NamedTuple):
    """Outcome of one pass over the blocks."""

    model: AffineMap
    scores: Array
    weights: Array
    alpha: float
    rank: int
    residuals: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Cycle:
    """The blocks; weights and metric stay those of ``uniform`` unless ``n_active`` is given."""

    X: Array
    Y: Array
    alpha: float
    relative: bool
    n_active: int | None
    free_scale: bool
    uniform: Array
    statistics: Moments
    metric: tuple[SpdFactor, float]

    def start(self) -> _Pass:
        null = AffineMap(np.zeros(self.statistics.shape), np.zeros(self.statistics.shape[1]))
        return _Pass(null, null(self.X), self.uniform, self.metric[1], 0, {"change": np.inf})

    def advance(self, last: _Pass) -> _Pass:
        """One pass: targets, weights, then W and b."""
        targets = self.Y * np.maximum(self.Y * last.scores, 1.0)
        if self.n_active is None:
            weights, (factor, alpha) = self.uniform, self.metric
            pulled = targets * weights[:, None].astype(self.X.dtype)
            mean_x, mean_y = self.statistics.mean_x, pulled.sum(axis=0, dtype=np.float64)
            cross = self.X.T @ pulled - np.outer(mean_x, mean_y)
        else:
            losses = np.sum((targets - last.scores) ** 2, axis=1)
            # rows of weight 0 must not use up active places
            losses[self.uniform == 0.0] = losses.max()
            weights = normalised(self.uniform * solve_simplex_weights(losses, self.n_active).x)
            part = moments(self.X, targets, sample_weight=weights)
            factor, alpha = _metric(part, self.alpha, self.relative)
            cross, mean_x, mean_y = part.cross, part.mean_x, part.mean_y
        linear = solve_stiefel_linear(cross, factor)
        rank = linear.info["rank"]
        # tr(W'SW) = rank and tr(W'C) is the maximum: the objective along sW is least at their quotient
        coef = linear.x * (linear.objective / rank) if self.free_scale and rank else linear.x
        model = AffineMap(coef, mean_y - mean_x @ coef)
        change = float(np.linalg.norm(coef - last.model.weight)) / (float(np.linalg.norm(coef)) or 1.0)
        residuals = {"change": change, "primal": linear.residuals["primal"]}
        return _Pass(model, model(self.X), weights, alpha, rank, residuals)

    def measure(self, state: _Pass) -> Measure:
        missing = np.maximum(1.0 - self.Y * state.scores, 0.0)
        loss = float(state.weights @ np.einsum("ij,ij->i", missing, missing))
        penalty = state.alpha * float(np.sum(state.model.weight**2))
        return Measure(loss + penalty, state.residuals)


def solve_stiefel_svm(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    alpha: float = 1e-3,
    relative: bool = True,
    n_active: int | None = None,
    free_scale: bool = False,
    sample_weight: npt.ArrayLike | None = None,
    max_iter: int = 200,
    tol: float = 1e-3,
    time_limit: float = np.inf,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """One-vs-all classifiers with whitened outputs, dragged targets and adaptive weights.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Features, d >= c.
    Y : array-like of shape (n, c)
        Labels -1 or +1.
    alpha : float
        Ridge term of the metric S, whose weights sum to 1.
    relative : bool
        Whether ``alpha`` counts in units of ``trace(S) / d``.
    n_active : int, optional
        Samples with positive weight, the easiest ones; all with equal weight by default.
    free_scale : bool
        Whether to multiply W by the scale that minimises the objective, which leaves the constraint set.
    sample_weight : array-like of shape (n,), optional
        Non-negative; multiplies the weights, which are then normalised again.
    max_iter : int
        Largest number of passes.
    tol : float
        Bound on the relative change ``|W - W_previous|_F / |W|_F`` of one pass.
    time_limit : float
        Wall-clock seconds.
    callback : callable, optional
        Called with each history record; a true return value stops.
    on_limit : {"warn", "raise", "ignore"}
        What to do when a budget ends first.

    Returns
    -------
    Result
        ``x`` is a :class:`~liftopt.solvers.AffineMap`; ``objective`` the squared hinge loss under the final
        weights plus ``alpha |W|^2``; ``status`` ``local_optimum`` at a fixed point (never ``optimal``).
        ``info``: ``alpha`` (absolute), ``rank`` of W, ``weights`` (n,), ``scores`` (n, c).

    Raises
    ------
    ValueError
        If labels are not -1 or +1, shapes do not match, an entry is not finite, or a setting is out of range.

    Notes
    -----
    n d^2 operations a pass with ``n_active``, else n d^2 once and 4 n d c a pass.
    """
    X = as_finite("X", X, ndim=2)
    Y = as_labels(Y).astype(X.dtype)
    alpha = as_scalar("alpha", alpha, low=0.0)
    own = as_weights("sample_weight", sample_weight, X.shape[0])
    uniform = normalised(np.ones(X.shape[0]) if own is None else own)
    statistics = moments(X, Y, sample_weight=uniform)
    if statistics.shape[0] < statistics.shape[1]:
        raise ValueError(f"X needs at least as many features as Y has columns, got {statistics.shape}")
    metric = _metric(statistics, alpha, relative)
    cycle = _Cycle(X, Y, alpha, relative, n_active, free_scale, uniform, statistics, metric)
    run = iterate(
        cycle.advance,
        cycle.start(),
        measure=cycle.measure,
        max_iter=as_count("max_iter", max_iter),
        tol=as_scalar("tol", tol, low=0.0),
        time_limit=time_limit,
        callback=callback,
    )
    last = run.state
    status = Status.LOCAL_OPTIMUM if run.status is Status.OPTIMAL else run.status
    info = {"alpha": last.alpha, "rank": last.rank, "weights": last.weights, "scores": last.scores}
    return conclude(run.result(last.model, status=status, info=info), on_limit)


def normalised(weights: Array) -> Array:
    """``weights`` over their sum."""
    return weights / weights.sum()


def _metric(statistics: Moments, alpha: float, relative: bool) -> tuple[SpdFactor, float]:
    """Factor of S for statistics whose weights sum to 1, and the absolute penalty."""
    penalty = absolute_penalty(statistics.gram, alpha, relative)
    return factor_checked(statistics.gram, penalty), penalty
