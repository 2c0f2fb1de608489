r"""Many box-constrained QPs with one Hessian: relaxed Douglas-Rachford splitting (ADMM), mixed precision.

For every row ``c`` of ``C``: ``min 1/2 x'Hx - c'x`` over ``lower <= x <= upper``. With ``z = clip(s)``,

    x = (H + rho I)^-1 (rho (2 z - s) + c),     s <- s + alpha (x - z),

and at the fixed point ``x = z`` solves the problem. One inverse serves all rows, so an iteration is one
matrix product. Three things make it fast:

- *Increments.* With ``s = s0 + ds`` and the float64 residual ``e = rho (z0 - s0) - (H z0 - c)`` at
  ``z0 = clip(s0)``, the iteration in ``ds`` reads ``x - z0 = (H + rho I)^-1 (e + rho (2 dz - ds))``: all its
  terms shrink with the error, so float32 products suffice, and a few float64 products restart it (iterative
  refinement, but through the kinks of the clip).
- *A full working set.* Rows that are solved leave and new ones take their places.
- *rho from a pilot*: a few rows are solved for a few values, and the number of iterations decides.

The relaxation ``alpha`` converges below 2 and is fastest near 2. The natural residual is evaluated in the
precision of ``H`` at the points that are returned, and only when ``|x - z|`` announces that it is small.

References
----------
Lions, Mercier, "Splitting algorithms for the sum of two nonlinear operators", SIAM J. Numer. Anal. 16, 1979.
Giselsson, Boyd, "Linear convergence and metric selection for Douglas-Rachford splitting and ADMM",
IEEE Trans. Automatic Control 62:532-544, 2017.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]

_RELAXATION = 1.85
_WORKING_SET = 512
_BURST = 2  # iterations between two looks at the rows
_ROUND_LIMIT = 1e-5  # what one float32 round can gain before its rounding errors matter
_ROUND_REDUCTION = 3e-4  # what it should gain if another one has to follow
_ROUND_ITERATIONS = 150
_PILOT_ROWS = (16, 128)  # at least and at most, else one row in _PILOT_SHARE
_PILOT_SHARE = 64
_FIRST_RHO = 0.35  # of the mean eigenvalue
_PILOT_ITERATIONS = 300  # of the first value of rho tried; the others may take twice the best so far
_MARGIN = 0.7  # of the tolerance, aimed at
_MAX_QUARTERS = 120  # |log2(rho / first rho)| is at most a quarter of this
_TINY = 1e-100
_PER_SLOT = (
    *("rows", "s0", "z", "base", "e", "ds", "t", "product", "lower", "upper"),
    *("change", "target", "threshold", "n_iter", "round_iter"),
)


class Batch(NamedTuple):
    """Problems in scaled coordinates ``x / scale``: ``H`` (d, d), ``C`` (n, d), bounds (1, d) or (n, d)."""

    H: Array
    C: Array
    lower: Array
    upper: Array
    scale: Array

    def bounds(self, rows: Array) -> tuple[Array, Array]:
        """Bounds of the given rows; (1, d) when all rows share them."""
        lower = self.lower if self.lower.shape[0] == 1 else self.lower[rows]
        upper = self.upper if self.upper.shape[0] == 1 else self.upper[rows]
        return lower, upper

    def product(self, z: Array) -> Array:
        """``H z`` for rows ``z``; the cold start is zero and costs nothing."""
        product: Array = z @ self.H if z.any() else np.zeros_like(z)
        return product


class Outcome(NamedTuple):
    """Scaled solutions (n, d); of each row residual, objective, last ``|x - z|_2``, iterations; ``rho``."""

    z: Array
    residual: Array
    objective: Array
    change: Array
    n_iter: Array
    rho: float


def solve_batched(
    batch: Batch,
    spectrum: tuple[Array, Array],
    start: Array | None,
    *,
    tol: float,
    max_iter: int,
    deadline: float,
    work: npt.DTypeLike = np.float32,
) -> Outcome:
    """Solve every row to ``tol`` or ``max_iter`` iterations, or all of them until ``deadline``.

    Parameters
    ----------
    batch : Batch
        The problems.
    spectrum : pair of arrays (d,) and (d, d)
        Eigenvalues (non-negative) and eigenvectors of ``batch.H``.
    start : ndarray of shape (n, d) or None
        Scaled starting points.
    tol : float
        Bound on each row's natural residual.
    max_iter : int
        Largest number of iterations a row.
    deadline : float
        ``time.perf_counter()`` at which to stop.
    work : dtype
        Precision of the increments.

    Returns
    -------
    Outcome
        Rows above ``tol`` hold the last point.
    """
    precision = np.dtype(work)
    precision = np.dtype(work)
    rho, target = _choose_rho(batch, spectrum, start, tol, precision, deadline)
    active = _WorkingSet(batch, rho, inverse(spectrum, rho).astype(precision), start, tol, max_iter)
    return active.run(target, deadline)


class _WorkingSet:
    """The rows being iterated, in slots; ``rows[slot]`` is -1 when the slot is idle."""

    def __init__(
        self, batch: Batch, rho: float, inverse: Array, start: Array | None, tol: float, max_iter: int
    ) -> None:
        n, d = batch.C.shape
        k, work = min(_WORKING_SET, n), inverse.dtype
        self.batch, self.rho, self.inverse, self.start = batch, rho, inverse, start
        self.tol, self.max_iter, self.first_target = tol, max_iter, 0.0
        residual, objective, change = np.zeros((3, n))
        n_iter = np.zeros(n, dtype=np.intp)
        self.outcome = Outcome(np.empty_like(batch.C), residual, objective, change, n_iter, rho)
        self.next_row = 0
        self.rows = np.full(k, -1)
        self.s0, self.z = np.zeros((2, k, d), dtype=batch.H.dtype)
        self.base, self.e, self.ds, self.t, self.product = (np.zeros((k, d), dtype=work) for _ in range(5))
        self.lower, self.upper = (
            np.repeat(bound[:1], min(k, len(bound)), axis=0).astype(work)
            for bound in (batch.lower, batch.upper)
        )
        self.change, self.target, self.threshold = np.zeros((3, k))
        self.n_iter, self.round_iter = np.zeros((2, k), dtype=np.intp)

    def run(self, first_target: float, deadline: float) -> Outcome:
        """Iterate until every row is stored; ``first_target`` is the ``|x - z|`` that promises ``tol``."""
        self.first_target = first_target
        slots = self.load(np.arange(self.rows.size))
        while self.rows.size:
            while slots.size:
                slots = self.load(self.look(slots))
            if perf_counter() > deadline:
                self.max_iter = 0  # every row is stored as it stands
                slots = np.flatnonzero(self.rows >= 0)
            else:
                slots = self.advance()
        return self.outcome

    def load(self, free: Array) -> Array:
        """Fill free slots with waiting rows and return those slots; the rest go idle."""
        slots = free[: self.batch.C.shape[0] - self.next_row]
        rows = np.arange(self.next_row, self.next_row + slots.size)
        self.next_row += slots.size
        self.rows[free] = -1
        self.rows[slots] = rows
        self.s0[slots] = self._first(rows)
        self.ds[slots] = self.change[slots] = self.n_iter[slots] = 0
        self.target[slots] = self.first_target
        for mine, all_rows in ((self.lower, self.batch.lower), (self.upper, self.batch.upper)):
            if all_rows.shape[0] > 1:
                mine[slots] = all_rows[rows]
        if not slots.size:
            self._drop_idle()
        return slots

    def look(self, slots: Array) -> Array:
        """Restart ``slots`` from exact residuals; store those that are done and return them."""
        batch, outcome, rows = self.batch, self.outcome, self.rows[slots]
        bounds = batch.lower, batch.upper
        z = self.z[: slots.size]
        _fold(slots, rows, *bounds, self.s0, self.ds, self.base, z)
        residual, objective = np.empty((2, slots.size))
        exact = (rows, z, batch.product(z), batch.C, *bounds, batch.scale)
        _certify(slots, *exact, self.rho, self.s0, self.e, self.t, residual, objective)
        self.round_iter[slots] = 0
        seen = (self.change[slots] > 0) & (residual > 0)
        self.target[slots[seen]] = self.change[slots[seen]] * (_MARGIN * self.tol / residual[seen])
        done = (residual <= self.tol) | (self.n_iter[slots] >= self.max_iter)
        finished = rows[done]
        outcome.z[finished], outcome.n_iter[finished] = z[done], self.n_iter[slots[done]]
        outcome.residual[finished], outcome.objective[finished] = residual[done], objective[done]
        outcome.change[finished] = self.change[slots[done]]
        return slots[done]

    def advance(self) -> Array:
        """One burst of iterations; return the slots that ask for exact residuals."""
        rho, alpha = self.t.dtype.type(self.rho), self.t.dtype.type(_RELAXATION)
        for _ in range(_BURST):
            np.matmul(self.t, self.inverse, out=self.product)
            _advance(
                self.product,
                self.ds,
                self.base,
                self.e,
                self.lower,
                self.upper,
                rho,
                alpha,
                self.t,
                self.change,
            )
        self.n_iter += _BURST
        self.round_iter += _BURST
        early = self.round_iter == _BURST
        change = self.change[early]
        last_round = self.target[early] >= _ROUND_LIMIT * change
        self.threshold[early] = np.where(last_round, 0.0, _ROUND_REDUCTION * change)
        ready = self.change <= np.maximum(self.threshold, self.target)
        ready |= (self.round_iter >= _ROUND_ITERATIONS) | (self.n_iter >= self.max_iter)
        return np.flatnonzero(ready & (self.rows >= 0))

    def _first(self, rows: Array) -> Array:
        """The state whose fixed point the start would be: ``z - gradient / rho``, or zero."""
        if self.start is None:
            return np.zeros((1, 1))
        z = np.clip(self.start[rows], *self.batch.bounds(rows))
        return z - (self.batch.product(z) - self.batch.C[rows]) / self.rho

    def _drop_idle(self) -> None:
        """Move the busy slots together once a quarter is idle."""
        busy = self.rows >= 0
        if 4 * np.count_nonzero(busy) > 3 * busy.size:
            return
        for name, array in list(vars(self).items()):
            if name in _PER_SLOT and array.shape[0] == busy.size:  # bounds may be shared
                setattr(self, name, array[busy])


def inverse(spectrum: tuple[Array, Array], rho: float) -> Array:
    """``(H + rho I)^-1`` from the eigendecomposition of ``H``."""
    values, vectors = spectrum
    return (vectors / (values + rho)) @ vectors.T


def _choose_rho(
    batch: Batch,
    spectrum: tuple[Array, Array],
    start: Array | None,
    tol: float,
    work: np.dtype[Any],
    deadline: float,
) -> tuple[float, float]:
    """The ``rho`` of fewest iterations on a pilot, and the ``|x - z|`` at which its rows met ``tol``.

    A walk downhill from a share of the mean curvature, by factors of 2, its square and fourth root.
    """
    n = batch.C.shape[0]
    count = min(n, int(np.clip(n // _PILOT_SHARE, *_PILOT_ROWS)))
    rows = np.linspace(0, n - 1, count).astype(np.intp)
    pilot = Batch(batch.H, batch.C[rows], *batch.bounds(rows), batch.scale)
    pilot_start = None if start is None else start[rows]
    centre = _FIRST_RHO * float(spectrum[0].mean()) or 1.0
    costs: dict[int, float] = {}
    targets: dict[int, float] = {}

    def cost(step: int) -> float:
        if step not in costs:
            limit = 2 * int(min(costs.values(), default=_PILOT_ITERATIONS / 2))
            rho = centre * 2.0 ** (step / 4)
            matrix = inverse(spectrum, rho).astype(work)
            outcome = _WorkingSet(pilot, rho, matrix, pilot_start, tol, limit).run(0.0, deadline)
            excess = np.maximum(np.log10(np.maximum(outcome.residual, _TINY) / tol), 0.0)
            costs[step] = float(np.mean(outcome.n_iter * (1.0 + excess)))
            ratio = outcome.residual / np.maximum(outcome.change, _TINY)
            targets[step] = _MARGIN * tol / max(float(np.quantile(ratio, 0.75)), _TINY)
        return costs[step]

    best = 0
    for stride in (4, 2, 1):
        while True:
            around = min((best, best - stride, best + stride), key=cost)
            if around == best or abs(around) > _MAX_QUARTERS or perf_counter() > deadline:
                break
            best = around
    return centre * 2.0 ** (best / 4), targets[best]


@njit(cache=True, fastmath={"nsz", "nnan"}, inline="always")
def _clip(value: float, low: float, high: float) -> float:  # pragma: no cover - compiled
    raised = value if value > low else low
    return raised if raised < high else high


@njit(cache=True, fastmath={"contract", "reassoc", "nsz", "nnan"}, error_model="numpy")
def _advance(
    product: Array,
    ds: Array,
    base: Array,
    e: Array,
    lower: Array,
    upper: Array,
    rho: float,
    alpha: float,
    t: Array,
    change: Array,
) -> None:  # pragma: no cover - compiled
    """One relaxed step of every row; ``t`` becomes the next right-hand side, ``change`` is ``|x - z|_2``.

    ``dz = clip(base + ds) - clip(base)`` is formed without cancellation. Two short loops and a sum of squares
    keep every loop vectorised.
    """
    n, d = ds.shape
    for i in range(n):
        low = lower[i if lower.shape[0] > 1 else 0]
        high = upper[i if upper.shape[0] > 1 else 0]
        total = product[i, 0] * 0
        for j in range(d):
            z = _clip(base[i, j], low[j], high[j])
            dz = _clip(base[i, j] - z + ds[i, j], low[j] - z, high[j] - z)
            gap = product[i, j] - dz
            total += gap * gap
            ds[i, j] += alpha * gap
        change[i] = np.sqrt(total)
        for j in range(d):
            z = _clip(base[i, j], low[j], high[j])
            dz = _clip(base[i, j] - z + ds[i, j], low[j] - z, high[j] - z)
            t[i, j] = e[i, j] + rho * (dz + dz - ds[i, j])


@njit(cache=True, error_model="numpy")
def _fold(
    slots: Array, rows: Array, lower: Array, upper: Array, s0: Array, ds: Array, base: Array, z: Array
) -> None:  # pragma: no cover - compiled
    """``s0 += ds``, ``ds = 0``, ``base = s0`` in the slots, and ``z = clip(s0)``."""
    for k in range(slots.size):
        i = slots[k]
        low = lower[rows[k] if lower.shape[0] > 1 else 0]
        high = upper[rows[k] if upper.shape[0] > 1 else 0]
        for j in range(s0.shape[1]):
            s = s0[i, j] + ds[i, j]
            s0[i, j] = s
            base[i, j] = s
            ds[i, j] = 0
            z[k, j] = _clip(s, low[j], high[j])


@njit(cache=True, error_model="numpy")
def _certify(
    slots: Array,
    rows: Array,
    z: Array,
    product: Array,
    C: Array,
    lower: Array,
    upper: Array,
    scale: Array,
    rho: float,
    s0: Array,
    e: Array,
    t: Array,
    residual: Array,
    objective: Array,
) -> None:  # pragma: no cover - compiled
    """Residual (unscaled) and objective at ``z`` given ``product = H z``; ``e`` and ``t`` of the slots."""
    for k in range(slots.size):
        i, row = slots[k], rows[k]
        low = lower[row if lower.shape[0] > 1 else 0]
        high = upper[row if upper.shape[0] > 1 else 0]
        worst = value = 0.0
        for j in range(z.shape[1]):
            gradient = product[k, j] - C[row, j]
            moved = _clip(z[k, j] - gradient / (scale[j] * scale[j]), low[j], high[j])
            worst = max(worst, scale[j] * abs(z[k, j] - moved))
            value += 0.5 * z[k, j] * (gradient - C[row, j])
            e[i, j] = t[i, j] = rho * (z[k, j] - s0[i, j]) - gradient
        residual[k] = worst
        objective[k] = value
