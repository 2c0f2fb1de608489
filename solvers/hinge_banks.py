"""Banks of hinge candidates: the state of a forward selection, and its updates by one more column.

The statistics of a bank are those of :mod:`~liftopt.solvers.hinge`:

    alpha = <E, h>,    beta = ||h||^2 - sum_m <Q_m, h>^2,    gamma = <h_up, h_down>

for every candidate column h. ``commit`` adds a column to the model, ``refresh`` brings a bank up to date.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import hinge_kernels as kernels
from .hinge_basis import Hinge

Array = npt.NDArray[Any]

DEPENDENT = 1e-4  # squared sine of the angle to the model below which a column lies in its span
_REORTHOGONALISE = 1e-2  # squared sine below which one Gram-Schmidt pass loses more than a digit
_CANCELLED = 1e-10  # share of its summands below which a difference of squares is rounding error


@dataclass(eq=False)
class Bank:
    """Candidates grown from one parent: its support, and the statistics of the module docstring.

    ``opened`` terms were in the model when the bank was opened, ``seen`` are projected off. The root bank,
    the cheapest to sweep and the dearest to orthogonalise, keeps its inner products in ``swept``.
    """

    hinges: tuple[Hinge, ...]
    rows: Array
    parent: Array
    weight: Array
    variables: Array
    shifted: Array | None
    alpha: Array
    beta: Array
    gamma: Array
    floor: Array
    opened: int
    swept: list[Array]
    seen: int = 1
    gain: float = np.inf
    where: tuple[int, int, int] = (0, 0, 0)


@dataclass(eq=False)
class Search:
    """State of one forward pass: ``Q`` (capacity, n), ``residual`` (R, n), ``factor`` with B = Q' factor."""

    grid: kernels.Grid
    omega: Array
    root_omega: Array
    scale: Array
    raw_knots: Array
    Q: Array
    residual: Array
    factor: Array
    projections: Array
    max_degree: int
    use_min: bool
    pairs: bool
    lazy: bool
    min_active: float
    map: Callable[..., Any]
    n_chunks: int
    terms: list[tuple[Hinge, ...]] = field(default_factory=list)
    banks: list[Bank] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of terms in the model."""
        return len(self.terms)

    @property
    def rss(self) -> float:
        """Residual sum of squares of the model, from the residual itself."""
        return float(np.einsum("rn,rn->", self.residual, self.residual))


def commit(search: Search, column: Array, term: tuple[Hinge, ...], known: Array | None = None) -> bool:
    """Orthonormalise a column and update the residual; False when it lies in the span of the model.

    ``known`` holds the inner products of the column with the first columns of Q where a sweep gave them.
    """
    m = search.size
    Q = search.Q[:m]
    q = search.root_omega * column
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
    search.Q[m] = q
    search.factor[:m, m] = coefficients
    search.factor[m, m] = np.sqrt(left)
    search.projections[m] = search.residual @ q
    search.residual -= np.outer(search.projections[m], q)
    search.terms.append(term)
    return True


def open_bank(search: Search, hinges: tuple[Hinge, ...], rows: Array, parent: Array) -> None:
    """Open the bank of a parent (N,) on its support ``rows``."""
    used = [hinge.variable for hinge in hinges]
    variables = np.setdiff1d(np.flatnonzero(search.grid.counts), used)
    if not variables.size:
        return
    omega = search.omega[rows]
    grid = search.grid
    shifted = None
    if hinges and search.use_min:
        shifted = kernels.shifted_bins(rows, parent, grid, variables)
        weight = np.sqrt(omega)
        norms = kernels.squared_norms(rows, omega, grid, variables)
        summands = norms.copy()
        kernels.subtract_capped(rows, omega, grid, variables, parent, shifted, norms)
    else:
        weight = np.sqrt(omega) * parent
        norms = summands = kernels.squared_norms(rows, weight**2, grid, variables)
    bank = Bank(
        hinges,
        rows,
        parent,
        weight,
        variables,
        shifted,
        alpha=np.empty(0),
        beta=norms,
        gamma=np.empty(0),
        floor=np.empty(0),
        opened=search.size,
        swept=[],
    )
    first = _project(search, bank, search.Q[:1])
    mean = first[..., 0]
    bank.alpha = _project(search, bank, search.residual)
    bank.beta = norms - mean**2
    bank.gamma = -mean[:, 0] * mean[:, 1]
    bank.floor = np.maximum(DEPENDENT * bank.beta, _CANCELLED * summands)
    bank.floor[_barred(search, bank)] = np.inf
    if not hinges:
        bank.swept.append(first)
        rescan(bank, search.pairs)
    search.banks.append(bank)


def _barred(search: Search, bank: Bank) -> Array:
    """Mask (V, 2, K) of the candidates with too little of the support on either side of their knot."""
    active = kernels.support_weight(bank.rows, search.omega[bank.rows], search.grid, bank.variables)
    barred: Array = np.any(active < search.min_active, axis=1)
    # the linear candidate, knot at the minimum, has nothing below it
    barred[:, 0] = active[:, 0, 0] < search.min_active if bank.hinges else False
    return np.broadcast_to(barred[:, None], active.shape)


def refresh(search: Search, bank: Bank) -> None:
    """Project the bank off the columns that joined since it was last seen, and find its best candidate."""
    if bank.seen == search.size:
        return
    new = slice(bank.seen, search.size)
    g = _project(search, bank, search.Q[new])
    late = max(bank.opened - bank.seen, 0)
    bank.alpha -= g[..., late:] @ search.projections[new][late:]
    bank.beta -= np.einsum("vskc,vskc->vsk", g, g)
    bank.gamma -= np.einsum("vkc,vkc->vk", g[:, 0], g[:, 1])
    bank.seen = search.size
    if not bank.hinges:
        bank.swept.append(g)
    rescan(bank, search.pairs)


def rescan(bank: Bank, pairs: bool) -> None:
    """Find the bank's best candidate."""
    gain, *where = kernels.best_candidate(bank.alpha, bank.beta, bank.gamma, bank.floor, pairs, DEPENDENT)
    bank.gain, bank.where = gain, (where[0], where[1], where[2])


def _project(search: Search, bank: Bank, columns: Array) -> Array:
    """Inner products (V, 2, K, C) of ``columns`` with the candidates; threads share the variables."""
    pieces = np.array_split(np.arange(bank.variables.size), min(search.n_chunks, bank.variables.size))

    def sweep(piece: Array) -> Array:
        chosen = bank.variables[piece]
        if bank.shifted is None:
            return kernels.project(bank.rows, bank.weight, columns, search.grid, chosen)
        shifted = bank.shifted[piece]
        return kernels.project_min(bank.rows, bank.weight, columns, search.grid, chosen, bank.parent, shifted)

    return np.concatenate(list(search.map(sweep, pieces)))
