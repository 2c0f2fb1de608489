"""Forward selection of hinge functions from passes over the rows, which need not fit in memory.

The search is that of :mod:`liftopt.solvers.hinge`, with the same choices. What it needs of the rows are sums
that add over chunks: for terms b, targets Y and every candidate column h of some parents

    <b, h>,    <Y, h>,    ||h||^2,    and the number of rows beside each knot.

The inner products with the orthonormalised terms, ``B = Q R``, follow by substitution,

    <Q_m, h> = (<b_m, h> - sum_{k<m} R_km <Q_k, h>) / R_mm,    R_km = <Q_k, b_m>,

where ``b_m``, a candidate of its bank, has brought its own column of R along: a step costs no pass of its own
but for the inner products of its terms with the other candidates. A pass looks ahead: it also sums those of
the terms that are likely to follow (the best candidates of other variables) and of the parents likely to be
asked next. Choices do not depend on that, only the number of passes does.

References
----------
Friedman, "Multivariate adaptive regression splines", Annals of Statistics 1991.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from . import hinge_kernels as kernels
from .hinge_basis import HingeBasis
from .hinge_grid import HingeKnots, bin_rows
from .hinge_search import DEPENDENT, Bank, HingeSearch, Interaction, SearchPlan, Term
from .hinge_support import Support, free_variables
from .result import Callback, Result
from .row_sums import RowSums, SumRows, add_row_sums, row_blocks, target_sums
from .validation import as_scalar

Array = npt.NDArray[Any]

_LIKELY_TERMS = 6  # candidates, with their mirror images, that a pass looks ahead to
_PASS_SHARE = 4  # of the memory for inner products: those of one pass
_LIKELY_PARENTS = 4  # banks that a pass brings up to date


class Sweep(NamedTuple):
    """What a pass sums for the candidates of ``parent``: products with ``columns``; ``opening``: all else."""

    parent: Term
    columns: tuple[Term, ...]
    opening: bool


@dataclass(eq=False, kw_only=True)
class PassBank(Bank):
    """A bank that keeps inner products: with columns to come, ``ahead``, and with those of Q, ``swept``."""

    swept: Array
    active: Array = field(default_factory=lambda: np.empty(0))
    ahead: dict[Term, Array] = field(default_factory=dict)
    is_open: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the inner products."""
        return self.swept[0].nbytes * (self.seen + len(self.ahead))


def select_hinges_passes(
    sum_rows: SumRows,
    knots: HingeKnots,
    *,
    max_terms: int = 61,
    max_degree: int = 1,
    interaction: Interaction = "min",
    pairs: bool = True,
    lazy: bool = True,
    tol: float = 1e-5,
    memory: float = 2**28,
    callback: Callback | None = None,
) -> Result:
    """Select hinge terms greedily by least squares, from passes over the rows.

    Parameters
    ----------
    sum_rows : callable
        Makes a pass: the sums over all chunks of a picklable function of features (m, d), targets (m, R) and
        weights (m,) or None. Targets far from zero cost digits.
    knots : HingeKnots
        Where hinges may bend (:func:`~liftopt.solvers.choose_hinge_knots`, of a sample).
    max_terms, max_degree, interaction, pairs, lazy, tol, callback
        As for :func:`~liftopt.solvers.select_hinges`.
    memory : float
        Bytes that inner products with the candidates of interactions may take. When they are used up, the
        parents of the smallest gain are closed for good, and ``message`` says how many.

    Returns
    -------
    Result
        As of :func:`~liftopt.solvers.select_hinges`, and the same terms where ``memory`` closed no parent.
        ``objective`` and ``residuals["stationarity"]`` come from a last pass at the least-squares
        coefficients; ``info["passes"]`` counts all of them.

    Raises
    ------
    ValueError
        On invalid arguments.

    Notes
    -----
    A pass takes O(n d (C + 1)) operations for C columns, about 14, and a parent more where there are
    interactions. Here, a parent takes ``16 V K (M + R)`` bytes for V variables, K knots and M terms; where
    the rows are, a pass takes that of 4096 rows.
    """
    search = pass_search(
        sum_rows,
        knots,
        max_terms=max_terms,
        max_degree=max_degree,
        interaction=interaction,
        pairs=pairs,
        lazy=lazy,
        tol=tol,
        memory=memory,
        callback=callback,
    )
    search.run()
    return search.result()


def pass_search(
    sum_rows: SumRows,
    knots: HingeKnots,
    *,
    pairs: bool = True,
    lazy: bool = True,
    memory: float = 2**28,
    **plan: Any,
) -> PassSearch:
    """The search of :func:`select_hinges_passes` with these arguments, not yet run; makes the first pass."""
    memory = as_scalar("memory", memory, low=0.0)
    weight, sums, squares = sum_rows(target_sums)
    checked = SearchPlan.checked(float(weight), pairs=pairs, lazy=lazy, **plan)
    return PassSearch(checked, knots, sum_rows, float(weight), sums, float(squares.sum()), memory)


def residual_sums(
    basis: HingeBasis, coefficients: Array, X: Array, Y: Array, weight: Array | None
) -> list[Array]:
    """Residual sum of squares and ``B' Omega E`` (terms, R) of some rows at given ``coefficients``."""
    rss, gradient = np.zeros(()), np.zeros(coefficients.shape)
    for x, y, omega in row_blocks(X, Y, weight):
        B = basis(x)
        E = y - B @ coefficients
        weighted = E * omega[:, None]
        rss = rss + np.einsum("ir,ir->", E, weighted)
        gradient += B.T @ weighted
    return [rss, gradient]


def sweep_sums(
    knots: HingeKnots, product: bool, sweeps: Sequence[Sweep], X: Array, Y: Array, weight: Array | None
) -> list[Array]:
    """Sums of every sweep over some rows, one list after the other: of bins, and what opens a bank."""
    columns = tuple(dict.fromkeys(term for sweep in sweeps for term in (sweep.parent, *sweep.columns)))
    place = {term: index for index, term in enumerate(columns)}
    basis = HingeBasis(columns, knots.scale, product)
    sums: list[list[Array]] = []
    for x, y, omega in row_blocks(X, Y, weight):
        grid, root, design = bin_rows(knots, x), np.sqrt(omega), basis(x).T
        for index, sweep in enumerate(sweeps):
            support = Support.of(grid, omega, sweep.parent, design[place[sweep.parent]], not product)
            vectors = [design[place[term]] for term in sweep.columns] + [*y.T] * sweep.opening
            if len(sums) == index:
                sums.append([*support.empty_bins(grid, len(vectors))])
            support.sum_bins(grid, root * np.array(vectors), (sums[index][0], sums[index][1]))
            if sweep.opening:
                opened = [*support.squared_norms(grid, omega), support.active(grid, omega)]
                known = sums[index][2:]
                sums[index][2:] = add_row_sums(known, opened) if known else opened
    return [array for own in sums for array in own]


class PassSearch(HingeSearch[PassBank]):
    """A search whose rows are reached by passes only; ``passes`` counts them, ``n_closed`` closed parents."""

    def __init__(
        self,
        plan: SearchPlan,
        knots: HingeKnots,
        sum_rows: SumRows,
        weight: float,
        sums: Array,
        squares: float,
        memory: float,
    ) -> None:
        super().__init__(plan, knots, sums.size)
        self._sum_rows, self._memory, self.passes, self.n_closed = sum_rows, memory, 1, 0
        self.factor[0, 0] = np.sqrt(weight)
        self.projections[0] = sums / self.factor[0, 0]
        self.total = self.rss = max(squares - float(self.projections[0] @ self.projections[0]), 0.0)

    def begin(self) -> None:
        """Take the intercept in, and open its bank."""
        self.terms.append(())
        self._open(())

    def certificate(self) -> tuple[float, Array]:
        """Residual sum of squares of the model and ``Q'E`` (terms, R), by a pass."""
        factor, projections = self.factor[: self.size, : self.size], self.projections[: self.size]
        basis, coefficients = self.basis(self.terms), solve_triangular(factor, projections)
        rss, gradient = self._pass(partial(residual_sums, basis, coefficients))
        return float(rss), solve_triangular(factor, gradient, trans="T")

    def result(self) -> Result:
        """The model so far, certified, with the number of ``passes`` that it took."""
        found = super().result()
        message = found.message
        if self.n_closed:
            message += f"; {self.n_closed} parents were closed for want of memory"
        return replace(found, message=message, info={**found.info, "passes": self.passes})

    def refresh(self, bank: PassBank) -> None:
        """Project the bank off the terms that joined since it was last seen, and find its best candidate."""
        if bank.seen == self.size:
            return
        if any(term not in bank.ahead for term in self.terms[bank.seen :]):
            self._sweep(bank)
        for m in range(bank.seen, self.size):
            g = bank.ahead.pop(self.terms[m])
            g = (g - np.tensordot(self.factor[:m, m], bank.swept[:m], 1)) / self.factor[m, m]
            bank.swept[m] = g
            bank.alpha -= g[..., None] * self.projections[m]
            bank.beta -= g**2
            bank.gamma -= g[:, 0] * g[:, 1]
            if m == 0:
                bank.bar(bank.active, bank.floor, self.knots.endspan)
        bank.seen = self.size
        bank.rescan(self.plan.pairs)
        self._close(bank)

    def join(self, bank: PassBank, position: int, side: int, knot: int) -> bool:
        """Add one candidate as a term and open its own bank; a dependent one is barred instead."""
        m, where = self.size, (position, side, knot)
        term, parent = self.candidate(bank, *where)
        coefficients = np.zeros(m)
        coefficients[: bank.seen] = bank.swept[: bank.seen, *where]
        left, projection = bank.beta[where], bank.alpha[where].copy()
        if bank.seen < m:  # its mirror image has just joined
            coefficients[-1] = bank.gamma[position, knot] / self.factor[m - 1, m - 1]
            left -= coefficients[-1] ** 2
            projection -= coefficients[-1] * self.projections[-1 + m]
        least, bank.floor[where] = 0.1 * bank.floor[where], np.inf
        if left <= least or left <= 0.0:
            bank.rescan(self.plan.pairs)
            return False
        self.factor[:m, m], self.factor[m, m] = coefficients, np.sqrt(left)
        self.projections[m] = projection / self.factor[m, m]
        self.rss = max(self.rss - float(self.projections[m] @ self.projections[m]), 0.0)
        self.terms.append(term)
        if len(term) < self.plan.max_degree and bank.active[where] >= 2 * self.knots.endspan:
            self._open(parent)
        return True

    def _open(self, hinges: Term) -> None:
        """Add the bank of a parent, to be filled by a pass."""
        variables = free_variables(self.knots.counts, hinges)
        if not variables.size:
            return
        shape = (variables.size, 2, self.knots.raw.shape[1])
        blank = np.empty(0)
        swept = np.empty((self.plan.max_terms, *shape))
        self.banks.append(PassBank(hinges, variables, blank, blank, blank, blank, 0, swept=swept))

    def _sweep(self, wanted: PassBank) -> None:
        """One pass: what ``wanted`` needs, and what it and the next banks are likely to need."""
        others = sorted((bank for bank in self.banks if bank is not wanted), key=self.worth, reverse=True)
        banks = [wanted, *(others[: _LIKELY_PARENTS - 1] if self.plan.lazy else others)]
        likely = self._likely(banks)
        asked: list[tuple[PassBank, Sweep]] = []
        room = self._memory / _PASS_SHARE
        for bank in banks:
            columns = dict.fromkeys([*self.terms[bank.seen :], *likely])
            bank.ahead = {term: g for term, g in bank.ahead.items() if term in columns}
            missing = tuple(term for term in columns if term not in bank.ahead)
            room -= bank.swept[0].nbytes * len(missing)
            if missing and (bank is wanted or room > 0):
                asked.append((bank, Sweep(bank.hinges, missing, not bank.is_open)))
        sweeps = [sweep for _, sweep in asked]
        sums = iter(self._pass(partial(sweep_sums, self.knots, self.plan.product, sweeps)))
        for bank, sweep in asked:
            bins = next(sums), next(sums)
            products = kernels.from_bins(*bins, self.knots.standard, self.knots.counts, bank.variables)
            bank.ahead |= {term: products[..., c].copy() for c, term in enumerate(sweep.columns)}
            if sweep.opening:
                bank.alpha = products[..., len(sweep.columns) :][..., : self.projections.shape[1]].copy()
                bank.beta, bank.floor, bank.active = (next(sums).copy() for _ in range(3))
                bank.gamma, bank.is_open = np.zeros_like(bank.beta[:, 0]), True

    def _pass(self, task: RowSums) -> list[Array]:
        """Sums over all rows."""
        self.passes += 1
        return self._sum_rows(task)

    def _close(self, kept: PassBank) -> None:
        """Close the parents of the smallest gain where inner products take more than the memory for them."""
        others = sorted((b for b in self.banks if b.hinges and b is not kept), key=self.worth)
        used = sum(b.nbytes for b in others) + kept.nbytes
        for bank in others:
            if used <= self._memory:
                return
            used -= bank.nbytes
            self.banks.remove(bank)
            self.n_closed += 1

    def _likely(self, banks: Sequence[PassBank]) -> list[Term]:
        """Candidates that may soon join: the best of every variable, and their mirror images."""
        found: list[tuple[float, list[Term]]] = []
        for bank in banks:
            if bank.seen == 0:
                continue
            for t in range(bank.variables.size):
                part = slice(t, t + 1)
                gain, _, side, knot = kernels.best_candidate(
                    bank.alpha[part],
                    bank.beta[part],
                    bank.gamma[part],
                    bank.floor[part],
                    self.plan.pairs,
                    DEPENDENT,
                )
                if gain > 0:
                    sides = (0, 1) if self.plan.pairs and bank.is_pair(t, knot) else (side,)
                    worth = gain / bank.gain * self.worth(bank) if bank.gain > 0 else gain
                    found.append((worth, [self.candidate(bank, t, s, knot)[0] for s in sides]))
        found.sort(key=lambda pair: -pair[0])
        return [term for _, terms in found[:_LIKELY_TERMS] for term in terms]
