"""Discrete least squares from sufficient statistics, all columns at once.

    minimise over t_k in C^d, a_k:   sum_k  a_k^2 t_k' H t_k - 2 a_k t_k' c_k + const

with ``H = X'X`` (d, d) and ``c_k = X'u_k``: the data enter through ``H`` and ``c`` only, so the cost after
one pass over the rows does not depend on their number. With the scale eliminated, ``a = p / q``, the
objective is ``-p^2 / q`` with ``p = t'c`` and ``q = t'Ht``; given ``Ht``, any single, paired or blocked
change of ``t`` is scored exactly in O(1), O(1) and O(b^2) per pattern, and an accepted change costs one row
of ``H``.

Three steps, each optional: exact projection (:func:`~liftopt.solvers.value_sets.quantize`), the
error-feedback pass (each entry is rounded, the remaining float weights absorb the error optimally: one
Cholesky factor of ``H^-1`` serves all columns), and descent until no change of the stated kind lowers the
objective.

References
----------
Date et al., "Training Deep Neural Networks with Constrained Learning Parameters", arXiv 2009.00540.
Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023, arXiv 2210.17323 (the feedback pass).
"""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import linalg

from .result import OnLimit, Result, Status, conclude
from .validation import as_count, as_finite, as_scalar, as_square
from .value_sets import TERNARY, FiniteWeights, as_values, nearest_codes, quantize

Array = npt.NDArray[Any]
Moves = Literal["single", "block", "pair"]

FEEDBACK_FACTORS = (1.0, 1.1, 1.25, 1.4)
_BLOCK = 64


def search_gram(
    H: npt.ArrayLike,
    C: npt.ArrayLike,
    values: npt.ArrayLike = TERNARY,
    *,
    start: FiniteWeights | None = None,
    scale: npt.ArrayLike | None = None,
    moves: Moves = "single",
    block: int = 5,
    ridge: float = 1e-3,
    feedback: bool = True,
    max_iter: int = 100,
    tol: float = 1e-9,
    random_state: int = 0,
    on_limit: OnLimit = "warn",
) -> Result:
    """Discrete least squares ``min ||X (t a) - u||^2`` for every column, from ``H = X'X`` and ``C = X'u``.

    Parameters
    ----------
    H : array-like of shape (d, d)
        Gram matrix, symmetric positive semidefinite.
    C : array-like of shape (d, k)
        Right-hand sides.
    values : array-like of shape (m,)
        The finite set.
    start : FiniteWeights, optional
        Where the descent begins; by default the better, per column, of the exact projection of the ridge
        solution and (with ``feedback``) of its error-feedback roundings.
    scale : array-like of shape (k,), optional
        Fixed scales; by default they are free and eliminated in closed form.
    moves : {"single", "block", "pair"}
        Kind of local optimum at the end: no single change helps; no change within the blocks of
        ``block`` coordinates of the last random partition; no change of any two entries.
    block : int
        Size of blocks; all ``m^block`` patterns are tried.
    ridge : float
        Added to the diagonal, relative to its mean, for the float solution that is rounded.
    feedback : bool
        Try the error-feedback pass with several scale factors.
    max_iter : int
        Largest number of sweeps over a column.
    tol : float
        A change is accepted if it lowers the column's objective by more than ``tol`` times its size
        ``p^2 / q``: the bound on the gain of any single change left at the end.
    random_state : int
        Seed of the random partitions.
    on_limit : {"warn", "raise", "ignore"}
        What to do when ``max_iter`` ends the descent.

    Returns
    -------
    Result
        ``x`` is a :class:`FiniteWeights`; ``objective`` the sum over columns of ``a^2 q - 2 a p`` (add
        ``||u||^2`` for the squared error). Status ``local_optimum`` or ``max_iter``; ``residuals["gain"]``
        is the largest relative gain of a single change at ``x``; ``info["moves"]`` says which optimum it is.

    Raises
    ------
    ValueError
        On bad value sets, shapes, NaN entries.

    Notes
    -----
    O(d^3 + d^2 k) to start. A sweep over a column costs O(d m) and O(d) for every accepted change; blocks add
    O(d block m^block), pairs O(d^2 m^2).
    """
    from .gram_kernels import descend, descend_fixed  # compiled: imported where it is used

    begin = time.perf_counter()
    gram, target = as_square("H", H).astype(np.float64), as_finite("C", C, ndim=2).astype(np.float64)
    if target.shape[0] != gram.shape[0]:
        raise ValueError(f"C has {target.shape[0]} rows for H of shape {gram.shape}")
    if moves not in ("single", "block", "pair"):
        raise ValueError(f"moves must be 'single', 'block' or 'pair', got {moves!r}")
    allowed = as_values(values)
    as_count("max_iter", max_iter)
    tol = as_scalar("tol", tol, low=0.0)
    if start is None:
        start = _best_start(gram, target, allowed, as_scalar("ridge", ridge, low=0.0), feedback)
    elif start.codes.shape != target.shape or not np.array_equal(start.values, allowed):
        raise ValueError(f"start must hold codes of shape {target.shape} into the same values")
    codes = np.array(start.codes, dtype=np.uint8, order="F")  # a copy: the search changes it in place
    Ht = np.asfortranarray(gram @ allowed[codes])
    if scale is not None:
        fixed = as_finite("scale", scale, ndim=1).astype(np.float64)
        sweeps, gain = descend_fixed(gram, target, allowed, codes, Ht, fixed, max_iter, tol)
    else:
        kind = {"single": 0, "block": as_count("block", block, low=2), "pair": -1}[moves]
        sweeps, gain = descend(
            gram,
            np.asfortranarray(target),
            allowed,
            codes,
            Ht,
            kind,
            max_iter,
            tol,
            np.random.default_rng(random_state),
        )
        fixed = closed_form_scales(gram, target, allowed[codes])
    t = allowed[codes]
    objective = float((fixed**2 * (t * (gram @ t)).sum(axis=0) - 2 * fixed * (t * target).sum(axis=0)).sum())
    finished = bool(sweeps.max(initial=0) < max_iter)
    outcome = Result(
        FiniteWeights(allowed, np.ascontiguousarray(codes), fixed),
        objective,
        Status.LOCAL_OPTIMUM if finished else Status.MAX_ITER,
        n_iter=int(sweeps.max(initial=0)),
        time=time.perf_counter() - begin,
        residuals={"gain": float(gain.max(initial=0.0))},
        message="" if finished else "changes were still found in the last sweep: increase max_iter",
        info={"moves": moves if scale is None else "single", "sweeps": sweeps},
    )
    return conclude(outcome, on_limit)


def closed_form_scales(H: Array, C: Array, units: Array) -> Array:
    """Optimal scale ``p / q`` of every column of unscaled entries ``units`` (0 where ``q = 0``)."""
    p, q = (units * C).sum(axis=0), (units * (H @ units)).sum(axis=0)
    scales: Array = np.divide(p, q, out=np.zeros_like(p), where=q > 0)
    return scales


def _best_start(H: Array, C: Array, values: Array, ridge: float, feedback: bool) -> FiniteWeights:
    """Per column the best rounding of the ridge solution."""
    d = H.shape[0]
    shift = ridge * max(float(np.trace(H)) / d, np.finfo(np.float64).tiny ** 0.5)
    damped = H + shift * np.eye(d)
    factor = linalg.cho_factor(damped, lower=True)
    W = linalg.cho_solve(factor, C)
    exact: FiniteWeights = quantize(W, values, importance=np.diag(H)).x
    candidates = [exact.codes]
    if feedback:
        upper = linalg.cholesky(linalg.cho_solve(factor, np.eye(d)))
        dead = np.diag(H) <= 0.0
        base = np.where(exact.scale > 0, exact.scale, 1.0)
        candidates += [feedback_round(W, upper, values, base * f, dead) for f in FEEDBACK_FACTORS]
    merits = np.stack([_merit(H, C, values[codes]) for codes in candidates])
    codes = np.stack(candidates)[merits.argmax(axis=0), :, np.arange(C.shape[1])].T
    return FiniteWeights(values, codes, exact.scale)


def _merit(H: Array, C: Array, units: Array) -> Array:
    """``p^2 / q`` of every column: how far the squared error falls."""
    p, q = (units * C).sum(axis=0), (units * (H @ units)).sum(axis=0)
    merit: Array = np.divide(np.maximum(p, 0.0) ** 2, q, out=np.zeros_like(p), where=q > 0)
    return merit


def feedback_round(W: Array, upper: Array, values: Array, scale: Array, dead: Array) -> Array:
    """Codes of ``W`` rounded entry by entry, the error fed to the entries still to come.

    ``upper`` is the upper Cholesky factor of ``H^-1``: after rounding row j, the least-squares optimal
    correction of the later rows is ``-upper[j, later] * error_j / upper[j, j]``. Rows are handled in
    blocks, so that all but the work inside a block is one matrix product; O(d^2 k). ``dead`` rows take the
    value nearest to zero.
    """
    work = W.copy()
    codes = np.empty(W.shape, dtype=np.uint8)
    zero = np.uint8(np.abs(values).argmin())
    for low in range(0, W.shape[0], _BLOCK):
        high = min(low + _BLOCK, W.shape[0])
        errors = np.empty((high - low, W.shape[1]))
        for j in range(low, high):
            codes[j] = zero if dead[j] else nearest_codes(work[j] / scale, values)
            errors[j - low] = (work[j] - values[codes[j]] * scale) / upper[j, j]
            work[j + 1 : high] -= np.outer(upper[j, j + 1 : high], errors[j - low])
        work[high:] -= upper[low:high, high:].T @ errors
    return codes
