"""One-sided least squares from passes over the rows, which need not fit in memory.

The problem is that of :mod:`liftopt.solvers.margin`. At a classifier ``(W, b)`` with scores F the rows enter
through ``R = Y max(1 - Y F, 0)`` by

    loss = sum w |R|^2,    pulled = X'(w R),    totals = sum w R,

which add over chunks (:class:`Pull`). One majorise-minimise round is ridge regression on the dragged targets,
``W += (gram + alpha I)^-1 (pulled - mean_x totals' - alpha W)``: the Gram matrix is factored once, and a
round costs one pass. The same pass looks at longer steps along this direction, since the Gram matrix of all
rows overestimates the curvature, which only rows inside the margin have; the lowest objective wins.

References
----------
Xiang, Nie, Meng, Pan, Zhang, "Discriminative least squares regression for multiclass classification and
feature selection", IEEE Trans. Neural Networks and Learning Systems 23:1738-1754, 2012 (dragged targets).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .affine import AffineMap
from .least_squares import absolute_penalty
from .linear_system import factor_checked
from .moments import Moments
from .result import Callback, Measure, OnLimit, Result, conclude, iterate
from .validation import Array, as_count, as_scalar

_LENGTHS = (1.0, 3.0, 9.0)  # the first one descends


class Pull(NamedTuple):
    """Sums of a pass at one classifier, with ``R = Y max(1 - Y F, 0)``.

    Attributes
    ----------
    loss : float
        ``sum w |R|^2``.
    pulled : ndarray of shape (d, c)
        ``X'(w R)``, float64.
    totals : ndarray of shape (c,)
        ``sum w R``, float64.
    """

    loss: float
    pulled: Array
    totals: Array


class _State(NamedTuple):
    model: AffineMap
    pull: Pull


def pull_of_rows(X: Array, Y: Array, model: AffineMap, sample_weight: Array | None = None) -> Pull:
    """Sums over the rows of one chunk at one classifier.

    Parameters
    ----------
    X : ndarray of shape (m, d)
        Features; products are taken in their dtype.
    Y : ndarray of shape (m, c)
        Labels -1 and +1, in the dtype of ``X``.
    model : AffineMap
        The classifier.
    sample_weight : ndarray of shape (m,), optional
        Non-negative weights.

    Returns
    -------
    Pull
        4 m d c operations; arrays are not checked.
    """
    scores = X @ model.weight.astype(X.dtype) + model.intercept.astype(X.dtype)
    missing = np.maximum(1.0 - Y * scores, 0.0)
    R = Y * missing
    if sample_weight is not None:
        R *= sample_weight[:, None].astype(R.dtype)
    loss = float(np.einsum("ik,ik->", np.abs(R), missing, dtype=np.float64))
    return Pull(loss, (X.T @ R).astype(np.float64), R.sum(axis=0, dtype=np.float64))


def add_pulls(first: Sequence[Pull], second: Sequence[Pull]) -> list[Pull]:
    """Sums over both sets of rows, at each of the classifiers.

    Parameters
    ----------
    first, second : sequence of Pull
        One a classifier, in the same order.

    Returns
    -------
    list of Pull
        Entry by entry.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    return [
        Pull(a.loss + b.loss, a.pulled + b.pulled, a.totals + b.totals)
        for a, b in zip(first, second, strict=True)
    ]


def solve_margin_passes(
    statistics: Moments,
    measure: Callable[[Sequence[AffineMap]], Sequence[Pull]],
    *,
    alpha: float = 1.0,
    relative: bool = False,
    start: AffineMap | None = None,
    max_iter: int = 100,
    tol: float = 1e-5,
    callback: Callback | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """One-vs-all linear classifiers with squared hinge loss, one pass over the rows a round.

    Parameters
    ----------
    statistics : Moments
        Of the rows and their labels -1 and +1.
    measure : callable
        Makes a pass: the sums of :func:`pull_of_rows` over all rows at each of some classifiers.
    alpha, relative
        Penalty, as in :func:`~liftopt.solvers.solve_margin`.
    start : AffineMap, optional
        Start; zero by default.
    max_iter : int
        Largest number of rounds; there is one pass more.
    tol : float
        As in :func:`~liftopt.solvers.solve_margin`.
    callback : callable, optional
        Called with each history record; a true return value stops.
    on_limit : {"warn", "raise", "ignore"}
        What to do when ``max_iter`` ends the run.

    Returns
    -------
    Result
        ``x`` is an :class:`~liftopt.solvers.AffineMap`. ``info``: ``alpha`` (absolute), ``jitter``.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Notes
    -----
    d^3 / 3 operations once for the factor; a round is one pass (4 n d c operations for each classifier it
    measures) and 2 d^2 c operations.
    """
    penalty = absolute_penalty(statistics.gram, as_scalar("alpha", alpha, low=0.0), relative)
    factor = factor_checked(statistics.gram, penalty)
    scale = float(np.linalg.norm(statistics.cross)) or 1.0

    def objective(state: _State) -> float:
        return state.pull.loss + penalty * float(np.sum(state.model.weight**2))

    def gradient(state: _State) -> Array:
        centred = state.pull.pulled - np.outer(statistics.mean_x, state.pull.totals)
        return centred - penalty * state.model.weight

    def drag(state: _State) -> _State:
        change = factor.solve(gradient(state))
        shift = state.pull.totals / statistics.weight - statistics.mean_x @ change
        trials = [
            AffineMap(state.model.weight + length * change, state.model.intercept + length * shift)
            for length in _LENGTHS
        ]
        return min(map(_State, trials, measure(trials)), key=objective)

    def assess(state: _State) -> Measure:
        balance = float(np.abs(state.pull.totals).max()) / statistics.weight
        steepest = float(np.linalg.norm(gradient(state))) / scale
        return Measure(objective(state), {"stationarity": max(steepest, balance)})

    d, c = statistics.shape
    model = AffineMap(np.zeros((d, c)), np.zeros(c)) if start is None else start
    run = iterate(
        drag,
        _State(model, measure([model])[0]),
        measure=assess,
        max_iter=as_count("max_iter", max_iter, low=0),
        tol=as_scalar("tol", tol, low=0.0),
        callback=callback,
    )
    info = {"alpha": penalty, "jitter": factor.jitter}
    return conclude(run.result(run.state.model, info=info), on_limit)
