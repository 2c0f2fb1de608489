"""Candidates grown from one parent term, as inner products over the rows on which the parent is positive.

A parent p >= 0 combines with every hinge h of the variables it does not use to ``p h`` or ``min(p, h)``. What
a search needs of these columns are their inner products with given vectors, their squared norms, and how many
rows have them positive: sums over rows, by the sweeps of :mod:`~liftopt.solvers.hinge_kernels`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import hinge_kernels as kernels
from .hinge_basis import Hinge

Array = npt.NDArray[Any]


class Support(NamedTuple):
    """Where a parent is positive: ``rows``, its values ``parent`` there (N,), free ``variables`` (V,).

    ``weight`` (N,) multiplies vectors before a sweep. ``shifted`` holds the bins (V, 2, N) of ``x -+ p`` for
    minima, None for products.
    """

    rows: Array
    parent: Array
    weight: Array
    variables: Array
    shifted: Array | None

    @classmethod
    def of(
        cls, grid: kernels.Grid, omega: Array, hinges: tuple[Hinge, ...], column: Array, use_min: bool
    ) -> Support:
        """Support of the parent with these ``hinges`` and values ``column`` (n,)."""
        rows = np.flatnonzero(column > 0).astype(np.int32)
        parent, root = column[rows], np.sqrt(omega[rows])
        variables = free_variables(grid.counts, hinges)
        if hinges and use_min:
            return cls(rows, parent, root, variables, kernels.shifted_bins(rows, parent, grid, variables))
        return cls(rows, parent, root * parent, variables, None)

    def empty_bins(self, grid: kernels.Grid, width: int) -> tuple[Array, Array]:
        """Zeros to which :meth:`sum_bins` of ``width`` columns adds: of bins, and of bins of ``x -+ p``."""
        return kernels.empty_bins(grid, self.variables, self.shifted, width)

    def sum_bins(self, grid: kernels.Grid, columns: Array, bins: tuple[Array, Array]) -> None:
        """Add the bin sums of ``columns`` (C, n), which are multiplied by the root of the rows' weights."""
        kernels.sum_bins(self.rows, self.weight, columns, grid, self.variables, bins[0])
        if self.shifted is not None:
            kernels.sum_shifted_bins(
                self.rows, self.weight, columns, grid, self.variables, self.parent, self.shifted, bins[1]
            )

    def inner_products(self, grid: kernels.Grid, columns: Array, piece: Array | None = None) -> Array:
        """Inner products (V, 2, K, C) of ``columns`` with the candidates of a ``piece`` of the variables."""
        part = self
        if piece is not None:
            shifted = None if self.shifted is None else self.shifted[piece]
            part = self._replace(variables=self.variables[piece], shifted=shifted)
        bins = part.empty_bins(grid, columns.shape[0])
        part.sum_bins(grid, columns, bins)
        products = kernels.from_bins(*bins, grid.knots, grid.counts, part.variables)
        return products[..., : columns.shape[0]]

    def squared_norms(self, grid: kernels.Grid, omega: Array) -> tuple[Array, Array]:
        """Squared norms (V, 2, K) of the candidates, and the largest summand in each."""
        if self.shifted is None:
            norms = kernels.squared_norms(self.rows, self.weight**2, grid, self.variables)
            return norms, norms
        own = omega[self.rows]
        summands = kernels.squared_norms(self.rows, own, grid, self.variables)
        norms = summands.copy()
        kernels.subtract_capped(self.rows, own, grid, self.variables, self.parent, self.shifted, norms)
        return norms, summands

    def active(self, grid: kernels.Grid, omega: Array) -> Array:
        """Weight (V, 2, K) of the support strictly above and strictly below each knot."""
        return kernels.support_weight(self.rows, omega[self.rows], grid, self.variables)


def free_variables(counts: Array, hinges: tuple[Hinge, ...]) -> Array:
    """Variables (V,) that have knots and are not among the ``hinges``."""
    return np.setdiff1d(np.flatnonzero(counts), [hinge.variable for hinge in hinges])
