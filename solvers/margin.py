"""One-sided least squares: one-vs-all linear classifiers with squared hinge loss.

For labels ``Y (n, c)`` in {-1, +1} and weights ``w`` minimises over ``W (d, c)`` and ``b (c,)``

    sum_i w_i sum_k max(1 - y_ik f_ik, 0)^2 + alpha |W|_F^2,     f_i = x_i W + b.

Since ``min_{m >= 0} (f - y - y m)^2 = max(1 - y f, 0)^2`` this is least squares with targets that may be
dragged away from the margin (epsilon-dragging): the convex problem of the L2-loss support vector machine. For
fixed targets ``T = Y max(Y F, 1)`` it is ridge regression with a Gram matrix that does not depend on T, so
every round costs two products with X on one Cholesky factor. Such a round is a majorise-minimise step:
monotone, with or without momentum (:mod:`liftopt.solvers.acceleration`). Newton's method solves ridge
regression on the rows inside the margin, one class at a time, and ends after finitely many steps
(Mangasarian).

The duality gap uses the multipliers ``beta = 2 max(1 - Y F, 0)``, balanced so that ``sum_i w_i beta_i y_i =
0``.

References
----------
Mangasarian, "A finite Newton method for classification", Optimization Methods and Software 2002.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .acceleration import at_rest, descent_step
from .affine import AffineMap
from .least_squares import absolute_penalty, solve_semidefinite
from .linear_system import SpdFactor, factor_checked
from .moments import moments
from .result import Callback, Measure, OnLimit, Result, conclude, iterate
from .validation import Array, as_count, as_finite, as_scalar, as_weights

Method = Literal["accelerated", "dragging", "newton"]
METHODS = ("accelerated", "dragging", "newton")


class Scored(NamedTuple):
    """A linear classifier and its scores on the training rows."""

    coef: Array
    intercept: Array
    scores: Array


@dataclass(frozen=True, eq=False)
class _Problem:
    """Data of the problem and the factor of the centred Gram matrix plus ``alpha I``."""

    X: Array
    Y: Array
    weight: Array
    alpha: float
    mean_x: Array
    factor: SpdFactor
    pull: Array  # centred X'(w Y), the scale of the gradient

    def score(self, coef: Array, intercept: Array) -> Scored:
        kind = self.X.dtype
        return Scored(coef, intercept, self.X @ coef.astype(kind) + intercept.astype(kind))

    def shortfall(self, scores: Array) -> Array:
        """``Y max(1 - Y F, 0)``: what the targets lie ahead of the scores."""
        return self.Y * np.maximum(1.0 - self.Y * scores, 0.0)

    def objective(self, point: Scored) -> float:
        missing = np.maximum(1.0 - self.Y * point.scores, 0.0)
        loss = np.einsum("ik,ik->i", missing, missing)
        return float(np.dot(self.weight.astype(np.float64), loss) + self.alpha * np.sum(point.coef**2))

    def pulled(self, shortfall: Array) -> tuple[Array, Array]:
        """``X'(w R)`` for centred X, and the sums of ``w R``."""
        weighted = shortfall * self.weight[:, None]
        totals = weighted.sum(axis=0, dtype=np.float64)
        return self.X.T @ weighted - np.outer(self.mean_x, totals), totals

    def drag(self, point: Scored) -> Scored:
        """Targets at ``point``, then ridge regression on them: one majorise-minimise step."""
        pulled, totals = self.pulled(self.shortfall(point.scores))
        change = self.factor.solve(pulled - self.alpha * point.coef)
        shift = totals / self.weight.sum(dtype=np.float64) - self.mean_x @ change
        return self.score(point.coef + change, point.intercept + shift)

    def residuals(self, point: Scored) -> dict[str, float]:
        pulled, totals = self.pulled(self.shortfall(point.scores))
        scale = float(np.linalg.norm(self.pull)) or 1.0
        balance = float(np.abs(totals).max()) / float(self.weight.sum(dtype=np.float64))
        return {"stationarity": max(float(np.linalg.norm(pulled - self.alpha * point.coef)) / scale, balance)}

    def gap(self, point: Scored) -> float | None:
        """Objective minus the dual value of balanced multipliers; None without penalty."""
        if self.alpha == 0.0:
            return None
        pulls = self.shortfall(point.scores).astype(np.float64) * self.weight[:, None]
        up, down = np.maximum(pulls, 0.0).sum(axis=0), np.maximum(-pulls, 0.0).sum(axis=0)
        tiny = np.finfo(np.float64).tiny
        balance = np.minimum(up, down)
        pulls *= np.where(pulls > 0.0, balance / np.maximum(up, tiny), balance / np.maximum(down, tiny))
        # pulls = w beta y / 2, so sum w (beta - beta^2 / 4) = sum 2 |pulls| - pulls^2 / w
        own = 2.0 * np.abs(pulls) - pulls**2 / np.where(self.weight > 0.0, self.weight, 1.0)[:, None]
        reach = (self.X.T @ pulls.astype(self.X.dtype)).astype(np.float64)
        objective = self.objective(point)
        # what rounding of the scores and of this product can hide
        hidden = 8.0 * float(np.finfo(self.X.dtype).eps) * objective
        return max(0.0, objective - float(own.sum() - np.sum(reach**2) / self.alpha)) + hidden


def solve_margin(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    alpha: float = 1.0,
    relative: bool = False,
    sample_weight: npt.ArrayLike | None = None,
    method: Method = "accelerated",
    start: AffineMap | None = None,
    max_iter: int = 1000,
    tol: float = 1e-5,
    time_limit: float = np.inf,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """One-vs-all linear classifiers with squared hinge loss, all classes on one factorisation.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Features; products with it run in float32 if it is float32.
    Y : array-like of shape (n, c) or (n,)
        Labels -1 or +1; one dimension stands for one two-class problem.
    alpha : float
        Penalty on the sum of squares (``LinearSVC``'s C is ``1 / (2 alpha)``).
    relative : bool
        Whether ``alpha`` counts in units of ``trace(gram) / d`` of the centred Gram matrix.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights; an integer weight equals that many copies of the row.
    method : {"accelerated", "dragging", "newton"}
        Rounds of dragged targets with or without momentum, or Newton steps (few, and to full precision).
    start : AffineMap, optional
        Start; zero by default.
    max_iter : int
        Largest number of rounds or Newton steps.
    tol : float
        Bound on the larger one of ``|centred X'(w R) - alpha W|_F / |centred X'(w Y)|_F`` and
        ``max|sum w R| / sum w``, where ``R = Y max(1 - Y F, 0)``. float32 reaches about 1e-6.
    time_limit : float
        Wall-clock seconds.
    callback : callable, optional
        Called with each history record; a true return value stops.
    on_limit : {"warn", "raise", "ignore"}
        What to do when a budget ends first.

    Returns
    -------
    Result
        ``x`` is a :class:`~liftopt.solvers.AffineMap`; ``gap`` a certified bound on the distance from the
        minimum (None for ``alpha=0``). ``info``: ``alpha`` (absolute), ``jitter``, ``scores`` (n, c) on the
        rows of X.

    Raises
    ------
    ValueError
        If labels are not -1 or +1, shapes do not match, an entry is not finite, or a setting is out of range.

    Notes
    -----
    Rounds: n d^2 operations for the factor, then 4 n d c each. Newton: up to n d^2 c operations a step.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    problem = _make_problem(X, Y, as_scalar("alpha", alpha, low=0.0), relative, sample_weight)
    origin = problem.score(*_checked_start(start, problem))
    advance = _newton(problem) if method == "newton" else problem.drag
    run = iterate(
        descent_step(advance, problem.objective, momentum=method == "accelerated"),
        at_rest(origin, problem.objective),
        measure=lambda state: Measure(state.objective, problem.residuals(state.point)),
        max_iter=as_count("max_iter", max_iter, low=0),
        tol=as_scalar("tol", tol, low=0.0),
        time_limit=time_limit,
        check_every=1 if method == "newton" else 5,
        stall_after=5,
        stall_rtol=0.1 * float(np.finfo(problem.X.dtype).eps),
        callback=callback,
    )
    point = run.state.point
    info = {"alpha": problem.alpha, "jitter": problem.factor.jitter, "scores": point.scores}
    x = AffineMap(point.coef, point.intercept)
    return conclude(run.result(x, gap=problem.gap(point), info=info), on_limit)


def _make_problem(
    X: npt.ArrayLike, Y: npt.ArrayLike, alpha: float, relative: bool, sample_weight: npt.ArrayLike | None
) -> _Problem:
    X, Y = as_finite("X", X, ndim=2), as_labels(Y)
    statistics = moments(X, Y, sample_weight=sample_weight)
    weight = as_weights("sample_weight", sample_weight, X.shape[0])
    penalty = absolute_penalty(statistics.gram, alpha, relative)
    return _Problem(
        X,
        Y.astype(X.dtype),
        np.ones(X.shape[0], X.dtype) if weight is None else weight.astype(X.dtype),
        penalty,
        statistics.mean_x,
        factor_checked(statistics.gram, penalty),
        statistics.cross,
    )


def as_labels(Y: npt.ArrayLike) -> Array:
    """``Y`` as an (n, c) array of -1 and +1."""
    labels = as_finite("Y", Y)
    if labels.ndim not in (1, 2) or not (np.abs(labels) == 1.0).all():
        raise ValueError("Y must hold labels -1 and +1 in an array of shape (n,) or (n, c)")
    return labels.reshape(labels.shape[0], -1)


def _checked_start(start: AffineMap | None, problem: _Problem) -> AffineMap:
    shape = (problem.X.shape[1], problem.Y.shape[1])
    if start is None:
        return AffineMap(np.zeros(shape), np.zeros(shape[1]))
    coef = as_finite("start.weight", start[0], ndim=2).astype(np.float64)
    intercept = as_finite("start.intercept", start[1], ndim=1).astype(np.float64)
    if coef.shape != shape or intercept.shape != shape[1:]:
        raise ValueError(
            f"start has shapes {coef.shape} and {intercept.shape}, expected {shape} and {shape[1:]}"
        )
    return AffineMap(coef, intercept)


def _newton(problem: _Problem) -> Callable[[Scored], Scored]:
    """Newton step of every class: ridge regression on the rows inside the margin, exact line search."""

    def step(point: Scored) -> Scored:
        coef, intercept = point.coef.copy(), point.intercept.copy()
        for k in range(coef.shape[1]):
            inside = np.flatnonzero(problem.Y[:, k] * point.scores[:, k] < 1.0)
            aim = _ridge_on(problem, inside, k, point)
            length = _line_search(problem, k, point, aim)
            coef[:, k] += length * (aim.weight[:, 0] - coef[:, k])
            intercept[k] += length * (aim.intercept[0] - intercept[k])
        return problem.score(coef, intercept)

    return step


def _ridge_on(problem: _Problem, rows: Array, k: int, point: Scored) -> AffineMap:
    """Ridge regression of label k on some rows; the null classifier where none counts."""
    weight = problem.weight[rows]
    if weight.sum() == 0.0:
        return AffineMap(np.zeros((problem.X.shape[1], 1)), point.intercept[[k]])
    part = moments(problem.X[rows], problem.Y[rows, k], sample_weight=weight, dtype=np.float64)
    coef = solve_semidefinite(part.gram, problem.alpha, part.cross, part.rounding)[0]
    return AffineMap(coef, part.mean_y - part.mean_x @ coef)


def _line_search(problem: _Problem, k: int, point: Scored, aim: AffineMap) -> float:
    """Where between ``point`` (0) and ``aim`` (1) class k is best, by bisection of the slope."""
    label, weight = problem.Y[:, k].astype(np.float64), problem.weight.astype(np.float64)
    margin = 1.0 - label * point.scores[:, k]
    change = label * (aim(problem.X)[:, 0] - point.scores[:, k])
    old, direction = point.coef[:, k], aim.weight[:, 0] - point.coef[:, k]

    def slope(length: float) -> float:
        missing = np.maximum(margin - length * change, 0.0)
        penalty = problem.alpha * float(direction @ (old + length * direction))
        return penalty - float((weight * change) @ missing)

    if slope(1.0) <= 0.0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2.0
        low, high = (middle, high) if slope(middle) <= 0.0 else (low, middle)
    return (low + high) / 2.0
