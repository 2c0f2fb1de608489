"""Decision layers on given features, and the temperature that turns their scores into probabilities.

Each head is one block on the last hidden activations: one-sided least squares (margin), ridge regression,
the flexible Stiefel support vector machine, or the softmax regression of the spline methods. What both
settings of the manifold method ask for and share (:class:`FitPlan`, the scaling of targets) stands here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from liftopt.activations import Activation, Identity, Softmax
from liftopt.base import TrainingData
from liftopt.input_map import reciprocal, standardise
from liftopt.layers import Dense
from liftopt.solvers.affine import AffineMap
from liftopt.solvers.least_squares import solve_ridge
from liftopt.solvers.margin import solve_margin
from liftopt.solvers.result import Result
from liftopt.solvers.softmax import solve_softmax_regression
from liftopt.solvers.stiefel_svm import solve_stiefel_svm

Array = npt.NDArray[Any]
HeadName = Literal["margin", "ridge", "stiefel_svm"]

_MARGIN_TOL = 1e-3
_REFINING_ROUNDS = 5  # from a start that a descent has already brought close
_LOG_TEMPERATURE = 6.0
_TEMPERATURE_ROWS = 10_000  # one number needs no more


class FitPlan(NamedTuple):
    """What the estimator asks for; see :class:`liftopt.ManifoldClassifier`."""

    backward: str
    widths: tuple[int, ...]
    activation: Activation
    head: HeadName
    alpha: float | None
    max_iter: int | None
    n_iter_no_change: int
    tol: float
    validation_fraction: float


HEADS: Mapping[str, Callable[..., Result]] = {
    "margin": partial(solve_margin, tol=_MARGIN_TOL, on_limit="ignore"),
    "ridge": solve_ridge,
    "stiefel_svm": partial(solve_stiefel_svm, free_scale=True, on_limit="ignore"),
}


def fit_head(
    name: str,
    features: Array,
    targets: Array,
    *,
    alpha: float,
    relative: bool,
    sample_weight: Array | None = None,
    start: AffineMap | None = None,
) -> AffineMap:
    """Linear decision layer by the block solver ``name``.

    Parameters
    ----------
    name : {"margin", "ridge", "stiefel_svm"}
        Which block; all but ridge need targets -1 and +1.
    features : ndarray of shape (n, h)
        Last hidden activations.
    targets : ndarray of shape (n, c)
        Targets.
    alpha : float
        Ridge.
    relative : bool
        Whether ``alpha`` counts in units of the mean diagonal of the centred Gram matrix of the features.
    sample_weight : ndarray of shape (n,), optional
        Non-negative weights.
    start : AffineMap, optional
        Head that the margin block refines in at most 5 rounds.
    """
    refine = name == "margin" and start is not None
    settings = {"start": start, "max_iter": _REFINING_ROUNDS} if refine else {}
    solved = HEADS[name](
        features, targets, alpha=alpha, relative=relative, sample_weight=sample_weight, **settings
    )
    head: AffineMap = solved.x
    return head


def output_layer(head: AffineMap, features: Array, data: TrainingData, centre: Array, spread: Array) -> Dense:
    """Last layer of the network: softmax at its best temperature, or targets in their own units."""
    coef, intercept = head
    if data.codes is None:
        coef, intercept = coef * spread, intercept * spread + centre
    else:
        every = slice(None, None, -(-data.codes.size // _TEMPERATURE_ROWS))
        weight = None if data.weight is None else data.weight[every]
        scale = temperature(head(features[every]), data.codes[every], weight)
        coef, intercept = coef * scale, intercept * scale
    kind = data.X.dtype
    activation = Identity() if data.codes is None else Softmax()
    return Dense(coef.astype(kind), intercept.astype(kind), activation)


def temperature(scores: Array, codes: Array, weight: Array | None = None) -> float:
    """Scale ``t > 0`` that minimises the mean cross-entropy of ``softmax(t * scores)`` to smoothed labels.

    The own class of a row counts ``(n + 1) / (n + c)``, every other ``1 / (n + c)``: Platt's smoothing for n
    rows, so that separated scores have a finite minimiser too. A convex problem in one variable.
    """
    rows = scores.astype(np.float64)
    mass, classes = float(codes.size if weight is None else weight.sum()), rows.shape[1]
    own = rows[np.arange(codes.size), codes]
    expected = (mass * own + rows.sum(axis=1)) / (mass + classes)

    def cross_entropy(log_scale: float) -> float:
        scale = np.exp(log_scale)
        return float(np.average(logsumexp(scale * rows, axis=1) - scale * expected, weights=weight))

    bounds = (-_LOG_TEMPERATURE, _LOG_TEMPERATURE)
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def target_moments(data: TrainingData) -> tuple[Array, Array]:
    """Weighted mean and standard deviation of every target; 0 and 1 for classes, 1 for constant targets."""
    if data.codes is not None:
        return np.zeros(data.target.shape[1]), np.ones(data.target.shape[1])
    scaling = standardise(data.target, data.weight)
    return scaling.mean, np.where(scaling.factor > 0.0, reciprocal(scaling.factor), 1.0)


def repetitions(weight: Array | None) -> Array | None:
    """Sample weights as repetitions: integers as they are, others scaled to mean one."""
    if weight is None or np.array_equal(weight, np.round(weight)):
        return weight
    return weight * (np.count_nonzero(weight) / weight.sum())


def class_indicators(data: TrainingData) -> Array:
    """Class indicators (n, classes), centred and divided by the root of the class share.

    Their residual sum of squares is that of optimal scoring, summed over all scores.
    """
    target = data.target.astype(np.float64)
    share = np.average(target, axis=0, weights=data.weight)
    return (target - share) / share_root(share)


def share_root(share: Array) -> Array:
    """Root of class shares, 1 for a class without rows: the unit of :func:`class_indicators`."""
    root: Array = np.sqrt(np.where(share > 0, share, 1.0))
    return root


def softmax_head(design: Array, data: TrainingData, alpha: float) -> AffineMap:
    """Softmax regression on the columns of ``design``, for the raw columns.

    Parameters
    ----------
    design : ndarray of shape (n, features)
        Features of the rows of ``data``.
    data : TrainingData
        One-hot targets. A class without weight is never predicted.
    alpha : float
        Ridge: ``mean cross-entropy + alpha / 2 |A|^2`` over standardised columns.
    """
    if data.weight is not None:
        used = np.flatnonzero(data.weight)
        design, data = design[used], data.rows(used)
    omega = repetitions(data.weight)
    total = float(design.shape[0] if omega is None else omega.sum())
    share = np.average(data.target.astype(np.float64), axis=0, weights=omega)
    present = share > 0
    weight = np.zeros((design.shape[1], share.size))
    intercept = np.log(np.maximum(share, np.finfo(np.float64).eps))
    if not design.shape[1] or present.sum() < 2:
        return AffineMap(weight, intercept)
    mean = np.average(design, axis=0, weights=omega)
    spread = np.sqrt(np.average((design - mean) ** 2, axis=0, weights=omega))
    scale = reciprocal(spread)
    target = data.target[:, present].astype(np.float64)
    ridge = alpha * total / 2
    head = solve_softmax_regression((design - mean) * scale, target, ridge=ridge, sample_weight=omega).x
    weight[:, present] = scale[:, None] * head.weight
    intercept[present] = head.intercept - mean @ weight[:, present]
    return AffineMap(weight, intercept)
