"""Forward selection of hinge functions (MARS).

Minimises ``sum_i omega_i ||y_i - f(x_i)||^2`` greedily over

    f(x) = c_0 + sum_m c_m B_m(x),    B_m = min (or product) of hinges (s (x_j - t))+ of different variables.

Each step combines a term of the model, the parent, with one hinge and its mirror image: every variable, knot
and sign is tried, and the pair that lowers the residual sum of squares (RSS) most joins. The candidates of a
parent form a bank. It stores, for every candidate column h projected off the model,

    alpha = <E, h>,    beta = ||h||^2 - sum_m <Q_m, h>^2,    gamma = <h_up, h_down>

(E the residual, Q the orthonormalised terms). A new column changes them by its own inner products only: one
sweep over the rows (:mod:`~liftopt.solvers.hinge_kernels`), all knots of a variable at once. Banks
(:mod:`~liftopt.solvers.hinge_banks`) are brought up to date lazily, in the order of their last known gain.

References
----------
Friedman, "Multivariate adaptive regression splines", Annals of Statistics 1991; Friedman, "Fast MARS",
Stanford technical report 110, 1993; Xu, Huang, Wang, "Identification of nonlinear dynamic systems using
adaptive hinging hyperplanes", 2009 (the minimum in place of the product).
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import hinge_kernels as kernels
from .hinge_banks import DEPENDENT, Bank, Search, commit, open_bank, refresh, rescan
from .hinge_basis import Hinge, HingeBasis
from .hinge_grid import make_grid
from .result import Record, Result, Status
from .validation import as_count, as_finite, as_scalar, as_weights

Array = npt.NDArray[Any]
Interaction = Literal["min", "product"]

_PATIENCE = 3
_SHORTER = 0.8  # a longer term must gain more: the data hold many more of them to choose from


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
    start = time.perf_counter()
    X = as_finite("X", X, ndim=2)
    Y = as_finite("Y", Y, ndim=2)
    if X.shape[0] != Y.shape[0] or not X.size or not Y.size:
        raise ValueError(f"X and Y need the same positive number of rows, got shapes {X.shape}, {Y.shape}")
    if interaction not in ("min", "product"):
        raise ValueError(f"interaction must be 'min' or 'product', got {interaction!r}")
    omega = as_weights("sample_weight", sample_weight, X.shape[0])
    if omega is not None and (omega == 0).any():
        X, Y, omega = X[omega > 0], Y[omega > 0], omega[omega > 0]
    omega = np.ones(X.shape[0]) if omega is None else omega
    capacity = max(min(as_count("max_terms", max_terms), int(omega.sum())), 1)
    tol = as_scalar("tol", tol, low=0.0)
    n_jobs = as_count("n_jobs", n_jobs)
    grid = make_grid(X, omega, max_knots, minspan, endspan)
    with ThreadPoolExecutor(n_jobs) as pool:
        search = Search(
            grid.grid,
            omega,
            np.sqrt(omega),
            grid.scale,
            grid.raw_knots,
            np.empty((capacity, X.shape[0])),
            np.sqrt(omega) * Y.T.astype(np.float64),
            np.zeros((capacity, capacity)),
            np.zeros((capacity, Y.shape[1])),
            as_count("max_degree", max_degree),
            interaction == "min",
            pairs,
            lazy,
            grid.endspan,
            pool.map if n_jobs > 1 else map,
            n_jobs,
        )
        total, history, message = _run(search, capacity, tol)
    basis = HingeBasis(tuple(search.terms), grid.scale, interaction == "product")
    m = search.size
    gradient = search.Q[:m] @ search.residual.T
    return Result(
        basis,
        search.rss,
        Status.EXHAUSTED,
        n_iter=len(history),
        time=time.perf_counter() - start,
        residuals={"stationarity": float(np.abs(gradient).max() / np.sqrt(max(total, np.finfo(float).tiny)))},
        history=tuple(history),
        message=message,
        info={"factor": search.factor[:m, :m], "projections": search.projections[:m], "total": total},
    )


def _run(search: Search, capacity: int, tol: float) -> tuple[float, list[Record], str]:
    """The greedy loop; returns the RSS of the intercept, one record a step, and why it stopped."""
    commit(search, np.ones(search.omega.size), ())
    total = rss = search.rss
    everything = np.arange(search.omega.size, dtype=np.int32)
    open_bank(search, (), everything, np.ones(search.omega.size))
    history: list[Record] = []
    idle = 0
    while search.size < capacity:
        if rss <= max(tol, 1e-14) * total:
            return (
                total,
                history,
                f"the residual is below {max(tol, 1e-14):g} of the start; lower tol to go on",
            )
        bank = _winner(search)
        if bank is None:
            return total, history, "no admissible candidate is left"
        added = _grow(search, bank, capacity)
        before, rss = rss, search.rss
        if added:
            history.append({"iteration": len(history), "n_terms": search.size, "rss": rss, "added": added})
        idle = idle + 1 if before - rss <= tol * total else 0
        if tol > 0 and idle >= _PATIENCE:
            return total, history, f"{_PATIENCE} steps in a row gained less than tol = {tol:g}; lower tol"
    return total, history, f"max_terms = {capacity} reached"


def _winner(search: Search) -> Bank | None:
    """The bank with the largest gain, brought up to date; None when no candidate is left."""
    if not search.lazy:
        for bank in search.banks:
            refresh(search, bank)
    while True:
        worth = [bank.gain * _SHORTER ** len(bank.hinges) for bank in search.banks]
        top = max(worth, default=0.0)
        if top <= 0.0:
            return None
        bank = next(
            bank for bank, value in zip(search.banks, worth, strict=True) if value >= top * (1 - kernels.TIE)
        )
        if bank.seen == search.size:
            return bank
        refresh(search, bank)


def _grow(search: Search, bank: Bank, capacity: int) -> int:
    """Add the bank's best hinge, and its mirror image where that is independent; return how many joined."""
    position, side, knot = bank.where
    both = search.pairs and bool((bank.beta[position, :, knot] > bank.floor[position, :, knot]).all())
    if both:
        determinant = bank.beta[position].prod(axis=0)[knot] - bank.gamma[position, knot] ** 2
        both = determinant > DEPENDENT * bank.beta[position, :, knot].prod()
    added = 0
    for this in (side, 1 - side) if both else (side,):
        if search.size < capacity:
            added += _join(search, bank, position, this, knot)
    return added


def _join(search: Search, bank: Bank, position: int, side: int, knot: int) -> bool:
    """Add one candidate as a term and open its own bank; a dependent one is barred instead."""
    j = int(bank.variables[position])
    child = kernels.hinge_column(bank.rows, search.grid, j, side, knot)
    if bank.hinges:
        child = np.minimum(child, bank.parent) if search.use_min else child * bank.parent
    column = _scatter(child, bank.rows, search.omega.size)
    hinge = Hinge(j, 1 - 2 * side, float(search.raw_knots[j, knot]))
    linear = not bank.hinges and side == 0 and knot == 0
    term = (*bank.hinges, hinge._replace(sign=0) if linear else hinge)
    bank.floor[position, side, knot] = np.inf
    known = np.concatenate([g[position, side, knot] for g in bank.swept]) if bank.swept else None
    if not commit(search, column, term, known):
        rescan(bank, search.pairs)
        return False
    if len(term) < search.max_degree:
        rows = np.flatnonzero(column > 0).astype(np.int32)
        if search.omega[rows].sum() >= 2 * search.min_active:
            open_bank(search, (*bank.hinges, hinge), rows, column[rows])
    return True


def _scatter(values: Array, rows: Array, n: int) -> Array:
    """Values on the support as a column of all rows."""
    if rows.size == n:
        return values
    column = np.zeros(n)
    column[rows] = values
    return column
