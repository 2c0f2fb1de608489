"""Forward selection of hinge functions (MARS).

Minimises ``sum_i omega_i ||y_i - f(x_i)||^2`` greedily over

    f(x) = c_0 + sum_m c_m B_m(x),    B_m = min (or product) of hinges (s (x_j - t))+ of different variables.

Each step combines a term of the model, the parent, with one hinge and its mirror image: every variable, knot
and sign is tried, and the pair that lowers the residual sum of squares (RSS) most joins. The candidates of a
parent form a bank. It stores, for every candidate column h projected off the model,

    alpha = <E, h>,    beta = ||h||^2 - sum_m <Q_m, h>^2,    gamma = <h_up, h_down>

(E the residual, Q the orthonormalised terms). A new column changes them by its own inner products only: one
sweep over the rows (:mod:`~liftopt.solvers.hinge_kernels`), all knots of a variable at once. The loop stands
in :mod:`~liftopt.solvers.hinge_search`.

References
----------
Friedman, "Multivariate adaptive regression splines", Annals of Statistics 1991; Friedman, "Fast MARS",
Stanford technical report 110, 1993; Xu, Huang, Wang, "Identification of nonlinear dynamic systems using
adaptive hinging hyperplanes", 2009 (the minimum in place of the product).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .hinge_grid import choose_hinge_knots
from .hinge_rows import RowSearch
from .hinge_search import Interaction, SearchPlan
from .result import Callback, Result
from .validation import as_count, as_finite, as_weights

Array = npt.NDArray[Any]


def select_hinges(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    max_terms: int = 61,
    max_degree: int = 1,
    interaction: Interaction = "min",
    max_knots: int | None = 64,
    minspan: int | None = None,
    endspan: int | None = None,
    pairs: bool = True,
    lazy: bool = True,
    tol: float = 1e-5,
    n_jobs: int = 1,
    callback: Callback | None = None,
) -> Result:
    """Select hinge terms greedily by least squares.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Finite. Constant columns are never used.
    Y : array-like of shape (n, R)
        Targets sharing one basis. Scale its columns alike: the largest variance dominates the choice.
    sample_weight : array-like of shape (n,), optional
        Repetitions: their sum is the sample size. Rows of weight 0 are ignored.
    max_terms : int
        Largest number of terms, intercept included.
    max_degree : int
        Largest number of hinges in a term.
    interaction : {"min", "product"}
        How hinges of a term combine.
    max_knots : int or None
        Knots tried per variable, at evenly spaced ranks; None tries every value. Sums at the knots are exact.
    minspan, endspan : int or None
        Least rows between two knots, and between a knot and either end of the data (or, within the support of
        a parent, on either side of the knot). None takes Friedman's values for a run of noise at level 0.05.
    pairs : bool
        Judge a hinge together with its mirror image; otherwise alone, adding one term a step.
    lazy : bool
        Bring up to date only the parents whose last known gain could win. False updates all of them in every
        step, which costs more and rarely changes the choice.
    tol : float
        Stop when RSS falls below ``tol`` times its start, or after three steps in a row that gain less.
    n_jobs : int
        Threads that share the variables of a sweep.
    callback : callable, optional
        Receives the record of each step; a true return value ends the search.

    Returns
    -------
    Result
        ``x`` is the :class:`HingeBasis`, ``objective`` the RSS, ``history`` one record a step, ``message``
        the reason for stopping; ``status`` is ``exhausted``: the search is greedy. ``info`` holds ``factor``
        (terms, terms), upper triangular with ``B' Omega B = factor' factor``, ``projections`` (terms, R) with
        ``factor c = projections`` for the least-squares coefficients c, and ``total``, RSS of the intercept.
        ``residuals["stationarity"]`` is the largest inner product of the residual with an orthonormalised
        term, relative to ``sqrt(total)``.

    Raises
    ------
    ValueError
        On invalid arguments; the message names the remedy.

    Notes
    -----
    O(n d M + n M^2) time for degree 1, O(n d M^2) for more, M terms. Memory beside the data: 8 n M + 9 n d
    bytes, and for ``"min"`` of degree > 1 up to 2 n d M bytes more.
    """
    search = hinge_search(
        X,
        Y,
        sample_weight=sample_weight,
        max_terms=max_terms,
        max_degree=max_degree,
        interaction=interaction,
        max_knots=max_knots,
        minspan=minspan,
        endspan=endspan,
        pairs=pairs,
        lazy=lazy,
        tol=tol,
        n_jobs=n_jobs,
        callback=callback,
    )
    search.run()
    return search.result()


def hinge_search(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    max_knots: int | None = 64,
    minspan: int | None = None,
    endspan: int | None = None,
    n_jobs: int = 1,
    pairs: bool = True,
    lazy: bool = True,
    **plan: Any,
) -> RowSearch:
    """The search of :func:`select_hinges` with these arguments, not yet run."""
    X = as_finite("X", X, ndim=2)
    Y = as_finite("Y", Y, ndim=2)
    if X.shape[0] != Y.shape[0] or not X.size or not Y.size:
        raise ValueError(f"X and Y need the same positive number of rows, got shapes {X.shape}, {Y.shape}")
    omega = as_weights("sample_weight", sample_weight, X.shape[0])
    if omega is not None and (omega == 0).any():
        X, Y, omega = X[omega > 0], Y[omega > 0], omega[omega > 0]
    omega = np.ones(X.shape[0]) if omega is None else omega
    checked = SearchPlan.checked(float(omega.sum()), pairs=pairs, lazy=lazy, **plan)
    knots = choose_hinge_knots(X, sample_weight=omega, max_knots=max_knots, minspan=minspan, endspan=endspan)
    return RowSearch(checked, knots, X, Y, omega, as_count("n_jobs", n_jobs))
