"""Spline networks: a least-squares hinge spline (MARS), written down exactly as a ReLU network.

    f(x) = c_0 + sum_m c_m B_m(x),      B_m = min of hinges (s (x_j - t))+ of different variables,

minimises the squared error over terms and coefficients: forward selection
(:func:`liftopt.solvers.select_hinges`), backward pruning (:func:`liftopt.solvers.prune_terms`), size by
generalised or by nested cross-validation. The minimum keeps f continuous and piecewise linear, so that the
network of :mod:`liftopt.spline_network` equals it everywhere. A classifier selects the terms by least squares
on scaled class indicators, as flexible discriminant analysis does, and refits the coefficients by softmax
regression.

References
----------
Friedman, "Multivariate adaptive regression splines", Annals of Statistics 1991; Hastie, Tibshirani, Buja,
"Flexible discriminant analysis by optimal scoring", JASA 1994; Mo, Zheng, Wang, Wang, Schewe, "Exploiting
spline models for the training of fully connected layers in neural network", arXiv 2102.06554 (the idea of its
abstract; the construction here is our own).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from liftopt.base import NetworkClassifier, NetworkRegressor, TrainingData
from liftopt.heads import softmax_head
from liftopt.solvers.hinge_search import Interaction
from liftopt.solvers.result import Callback
from liftopt.solvers.validation import as_scalar
from liftopt.spline_model import Spline
from liftopt.spline_stream import Frame, Passes, refit_softmax
from liftopt.spline_training import Pruning, SplineTraining


class SplineRegressor(SplineTraining, NetworkRegressor):
    """Regression by a hinge spline (MARS) that is exactly a ReLU network.

    Parameters
    ----------
    max_terms : int, optional
        Largest number of terms before pruning, intercept included; by default 121, or twice the number of
        features if that is more, at most 241. Never more than a quarter of the rows.
    max_degree : int
        Largest number of variables in a term: 1 is additive.
    interaction : {"min", "product"}
        How the hinges of a term combine. Products are smooth and classical, but no ReLU network equals them:
        then ``network_`` does not exist.
    max_knots : int or None
        Knots tried per variable; None tries every value.
    minspan, endspan : int, optional
        Least rows between knots, and beyond them. By default Friedman's values.
    tol : float
        Share of the variance below which the forward pass ends: when so little is left, or after three steps
        in a row that gained less.
    pruning : {"gcv", "cv", "none"}
        Size by generalised cross-validation; by nested cross-validation, where every fold repeats selection
        and pruning; or all terms.
    penalty : float
        Charge of GCV for each knot. The customary 2 to 3 keeps too many terms of a long forward pass.
    cv : int, splitter or iterable of splits
        Folds for ``pruning="cv"``; an integer shuffles.
    refine : bool or int
        True moves the knots by variable projection (:func:`liftopt.solvers.refine_knots`): the spline keeps
        its form. A number trains the network from the spline for that many gradient epochs (needs torch); a
        tenth of the rows is held out, and the best epoch on them is kept, the spline included.
    n_jobs : int
        Threads, for rows in memory.
    random_state : int, RandomState or None
        For the folds of ``pruning="cv"``, the rows held out by ``refine``, and the sample of a stream.
    checkpoint : path-like, optional
        File that keeps the passes of a fit to a stream beyond memory (other fits keep none), their sums in
        the folder ``<checkpoint>.parts``; a fit that finds its own there goes on from it, bit by bit as if it
        had never stopped. Deleted when the fit ends, unless that was by Ctrl-C.
    callback : callable, optional
        Called with the record of each step of the forward pass; a true return value ends it.
    verbose : bool
        Log each step at INFO level.

    Attributes
    ----------
    spline_ : Spline
        The fitted terms and coefficients.
    network_ : Network
        Equal to the spline to rounding, inside and outside the range of the data; float32 data give float32
        weights. After gradient epochs it has left the spline. A knot at a variable's
        minimum is a linear term, continued as a straight line.
    result_ : Result
        Outcome of the forward pass: trace, reason for stopping.
    history_ : list of dict
        One record a step of the forward pass: ``iteration``, ``time``, ``cpu``, ``n_terms``, ``objective``
        (residual sum of squares of the scaled targets).

    Notes
    -----
    Missing values are refused: impute them in a pipeline, for instance
    ``make_pipeline(SimpleImputer(add_indicator=True), SplineRegressor())``; encode categories with
    ``OneHotEncoder``. Integer ``sample_weight`` counts repetitions; other weights are scaled to mean one.
    O(n d M + n M^2) time for degree 1, O(n d M^2) for more, M terms.

    References
    ----------
    Friedman, "Multivariate adaptive regression splines", Annals of Statistics 1991.

    Examples
    --------
    >>> import numpy as np
    >>> from liftopt import SplineRegressor
    >>> X = np.linspace(-1, 1, 401)[:, None]
    >>> model = SplineRegressor(max_knots=None, minspan=1).fit(X, np.abs(X[:, 0]))
    >>> bool(abs(model.network_(X)[:, 0] - np.abs(X[:, 0])).max() < 1e-9)
    True
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> SplineRegressor:
        """Fit to ``X`` (n, d) and ``y`` (n,) or (n, outputs), or to a stream."""
        self._fit_any(X, y, sample_weight)
        return self

    def _with_head(
        self, spline: Spline, frame: Frame, data: TrainingData, passes: Passes | None = None
    ) -> Spline:
        return spline.rescaled(frame.spread, frame.centre)


class SplineClassifier(SplineTraining, NetworkClassifier):
    """Classification by a hinge spline with a softmax head, exactly a ReLU network.

    The terms are selected by least squares on the class indicators, centred and divided by the square root of
    the class share; their coefficients are then refitted by softmax regression with a ridge on standardised
    terms.

    Parameters
    ----------
    alpha : float
        Ridge: ``mean cross-entropy + alpha / 2 |A|^2`` over standardised terms.
    max_degree : int
        Largest number of variables in a term; interactions help classes less often than they cost time.
    max_terms, interaction, max_knots, minspan, endspan, tol
        As for :class:`SplineRegressor`.
    pruning, penalty, cv, refine, n_jobs, random_state, checkpoint, callback, verbose
        As for :class:`SplineRegressor`.

    Attributes
    ----------
    spline_ : Spline
        Terms and coefficients of the scores before the softmax.
    network_ : Network
        Equal to the spline, with a softmax head.
    classes_ : ndarray
        Class labels.
    result_ : Result
        Outcome of the forward pass.
    history_ : list of dict
        As for :class:`SplineRegressor`.
    """

    def __init__(
        self,
        *,
        alpha: float = 1e-3,
        max_terms: int | None = None,
        max_degree: int = 1,
        interaction: Interaction = "min",
        max_knots: int | None = 64,
        minspan: int | None = None,
        endspan: int | None = None,
        tol: float = 1e-5,
        pruning: Pruning = "gcv",
        penalty: float = 6.0,
        cv: Any = 5,
        refine: bool | int = False,
        n_jobs: int = 1,
        random_state: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            max_terms=max_terms,
            max_degree=max_degree,
            interaction=interaction,
            max_knots=max_knots,
            minspan=minspan,
            endspan=endspan,
            tol=tol,
            pruning=pruning,
            penalty=penalty,
            cv=cv,
            refine=refine,
            n_jobs=n_jobs,
            random_state=random_state,
            checkpoint=checkpoint,
            callback=callback,
            verbose=verbose,
        )
        self.alpha = alpha

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> SplineClassifier:
        """Fit to ``X`` (n, d) and labels ``y`` (n,), or to a stream."""
        as_scalar("alpha", self.alpha, low=0.0, strict=True)
        self._fit_any(X, y, sample_weight)
        return self

    def _with_head(
        self, spline: Spline, frame: Frame, data: TrainingData, passes: Passes | None = None
    ) -> Spline:
        head = softmax_head(spline.basis(data.X)[:, 1:], data, self.alpha)
        coefficients = np.vstack([head.intercept, head.weight])
        if passes is not None:
            refit_softmax(spline, coefficients, self.alpha, frame, passes)
        return spline.with_coefficients(coefficients)
