"""A hinge search over rows in memory: the orthonormalised terms and the residual are columns of all rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .hinge_grid import HingeKnots, bin_rows
from .hinge_kernels import hinge_column
from .hinge_search import DEPENDENT, Bank, HingeSearch, SearchPlan, Term
from .hinge_support import Support

Array = npt.NDArray[Any]

_REORTHOGONALISE = 1e-2  # squared sine below which one Gram-Schmidt pass loses more than a digit


@dataclass(eq=False, kw_only=True)
class RowBank(Bank):
    """A bank with its ``support``; ``opened`` terms were in the model when it was opened.

    The root bank, the cheapest to sweep and the dearest to orthogonalise, keeps its inner products in
    ``swept``.
    """

    support: Support
    opened: int
    swept: list[Array] = field(default_factory=list)


class RowSearch(HingeSearch[RowBank]):
    """A search over rows ``X`` (n, d), ``Y`` (n, R) with weights ``omega`` (n,).

    ``n_jobs`` threads share the variables of a sweep. ``Q`` (max_terms, n) and ``residual`` (R, n) are
    multiplied by the root of the weights.
    """

    def __init__(
        self, plan: SearchPlan, knots: HingeKnots, X: Array, Y: Array, omega: Array, n_jobs: int
    ) -> None:
        super().__init__(plan, knots, Y.shape[1])
        self.grid, self.omega, self.root_omega = bin_rows(knots, X), omega, np.sqrt(omega)
        self.Q = np.empty((plan.max_terms, X.shape[0]))
        self.residual = self.root_omega * Y.T.astype(np.float64)
        self.n_jobs = n_jobs
        self._map: Callable[..., Any] = map

    def run(self) -> None:
        """The greedy loop."""
        with ThreadPoolExecutor(self.n_jobs) as pool:
            self._map = pool.map if self.n_jobs > 1 else map
            super().run()

    def begin(self) -> None:
        """Take the intercept in, and open its bank."""
        ones = np.ones(self.omega.size)
        self._commit(ones, ())
        self.total = self.rss
        self._open(ones, ())

    def refresh(self, bank: RowBank) -> None:
        """Project the bank off the terms that joined since it was last seen, and find its best candidate."""
        if bank.seen == self.size:
            return
        new = slice(bank.seen, self.size)
        g = self._inner_products(bank.support, self.Q[new])
        late = max(bank.opened - bank.seen, 0)
        bank.alpha -= g[..., late:] @ self.projections[new][late:]
        bank.beta -= np.einsum("vskc,vskc->vsk", g, g)
        bank.gamma -= np.einsum("vkc,vkc->vk", g[:, 0], g[:, 1])
        bank.seen = self.size
        if not bank.hinges:
            bank.swept.append(g)
        bank.rescan(self.plan.pairs)

    def join(self, bank: RowBank, position: int, side: int, knot: int) -> bool:
        """Add one candidate as a term and open its own bank; a dependent one is barred instead."""
        support = bank.support
        child = hinge_column(support.rows, self.grid, int(bank.variables[position]), side, knot)
        if bank.hinges:
            child = child * support.parent if self.plan.product else np.minimum(child, support.parent)
        column = _scatter(child, support.rows, self.omega.size)
        term, parent = self.candidate(bank, position, side, knot)
        bank.floor[position, side, knot] = np.inf
        known = np.concatenate([g[position, side, knot] for g in bank.swept]) if bank.swept else None
        if not self._commit(column, term, known):
            bank.rescan(self.plan.pairs)
            return False
        if len(term) < self.plan.max_degree and self.omega[column > 0].sum() >= 2 * self.knots.endspan:
            self._open(column, parent)
        return True

    def certificate(self) -> tuple[float, Array]:
        """Residual sum of squares of the model and ``Q'E`` (terms, R), from the residual itself."""
        return self.rss, self.Q[: self.size] @ self.residual.T

    def _commit(self, column: Array, term: Term, known: Array | None = None) -> bool:
        """Orthonormalise a column and update the residual; False when it lies in the span of the model.

        ``known`` holds the inner products of the column with the first columns of Q where a sweep gave them.
        """
        m = self.size
        Q = self.Q[:m]
        q = self.root_omega * column
        coefficients = np.concatenate([known, Q[known.size :] @ q]) if known is not None else Q @ q
        centred = before = float(q @ q - (coefficients[0] ** 2 if m else 0.0))
        q -= coefficients @ Q
        left = float(q @ q)
        if left <= _REORTHOGONALISE * before:
            c = Q @ q
            q -= c @ Q
            coefficients += c
            left = float(q @ q)
        if left <= 0.1 * DEPENDENT * centred or left <= 0.0:
            return False
        q /= np.sqrt(left)
        self.Q[m] = q
        self.factor[:m, m] = coefficients
        self.factor[m, m] = np.sqrt(left)
        self.projections[m] = self.residual @ q
        residual = self.residual - np.outer(self.projections[m], q)
        rss = float(np.einsum("rn,rn->", residual, residual))
        self.residual, self.rss = residual, rss
        self.terms.append(term)
        return True

    def _open(self, column: Array, hinges: Term) -> None:
        """Open the bank of a parent with values ``column`` (n,)."""
        support = Support.of(self.grid, self.omega, hinges, column, not self.plan.product)
        if not support.variables.size:
            return
        norms, summands = support.squared_norms(self.grid, self.omega)
        first = self._inner_products(support, self.Q[:1])
        alpha = self._inner_products(support, self.residual)
        mean = first[..., 0]
        bank = RowBank(
            hinges,
            support.variables,
            alpha,
            norms - mean**2,
            -mean[:, 0] * mean[:, 1],
            np.empty(0),
            1,
            support=support,
            opened=self.size,
        )
        bank.bar(support.active(self.grid, self.omega), summands, self.knots.endspan)
        if not hinges:
            bank.swept.append(first)
            bank.rescan(self.plan.pairs)
        self.banks.append(bank)

    def _inner_products(self, support: Support, columns: Array) -> Array:
        """Inner products (V, 2, K, C) of ``columns`` with the candidates; threads share the variables."""
        count = support.variables.size
        pieces = np.array_split(np.arange(count), min(self.n_jobs, count))
        parts = self._map(lambda piece: support.inner_products(self.grid, columns, piece), pieces)
        return np.concatenate(list(parts))


def _scatter(values: Array, rows: Array, n: int) -> Array:
    """Values on the support as a column of all rows."""
    if rows.size == n:
        return values
    column = np.zeros(n)
    column[rows] = values
    return column
