"""The greedy loop of :mod:`~liftopt.solvers.hinge`, whatever the rows are: arrays, or passes over chunks.

The candidates grown from one parent form a bank, with the statistics

    alpha = <E, h>,    beta = ||h||^2 - sum_m <Q_m, h>^2,    gamma = <h_up, h_down>

of every candidate column h projected off the model (E the residual, Q the orthonormalised terms). A step
takes the best candidate of all banks and its mirror image. Banks are brought up to date lazily, in the order
of their last known gain.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from . import hinge_kernels as kernels
from .hinge_basis import Hinge, HingeBasis
from .hinge_grid import HingeKnots
from .result import Callback, Record, Result, Status
from .validation import as_count, as_scalar

Array = npt.NDArray[Any]
Interaction = Literal["min", "product"]
Term = tuple[Hinge, ...]

DEPENDENT = 1e-4  # squared sine of the angle to the model below which a column lies in its span
_CANCELLED = 1e-10  # share of its summands below which a difference of squares is rounding error
_PATIENCE = 3
_SHORTER = 0.8  # a longer term must gain more: the data hold many more of them to choose from


class SearchPlan(NamedTuple):
    """Checked arguments of a search; see :func:`~liftopt.solvers.select_hinges`."""

    max_terms: int
    max_degree: int
    product: bool
    pairs: bool
    lazy: bool
    tol: float
    callback: Callback | None

    @classmethod
    def checked(
        cls,
        weight: float,
        max_terms: int,
        max_degree: int,
        interaction: Interaction,
        pairs: bool,
        lazy: bool,
        tol: float,
        callback: Callback | None,
    ) -> SearchPlan:
        """Plan for rows of a total ``weight``, which bounds the number of terms."""
        if interaction not in ("min", "product"):
            raise ValueError(f"interaction must be 'min' or 'product', got {interaction!r}")
        return cls(
            max(min(as_count("max_terms", max_terms), int(weight)), 1),
            as_count("max_degree", max_degree),
            interaction == "product",
            pairs,
            lazy,
            as_scalar("tol", tol, low=0.0),
            callback,
        )


@dataclass(eq=False)
class Bank:
    """Candidates grown from the parent of ``hinges``: their statistics, and the best of them at ``where``.

    Arrays have shapes (V, 2, K), with R outputs behind for ``alpha`` and without signs for ``gamma``: free
    variables, up and down, knots. Candidates whose ``beta`` is not above ``floor`` are out. The first
    ``seen`` terms of the model are projected off.
    """

    hinges: Term
    variables: Array
    alpha: Array
    beta: Array
    gamma: Array
    floor: Array
    seen: int
    gain: float = np.inf
    where: tuple[int, int, int] = (0, 0, 0)

    def bar(self, active: Array, summands: Array, min_active: float) -> None:
        """Set ``floor`` from the norms beside the mean; bar candidates with too few rows about their knot."""
        self.floor = np.maximum(DEPENDENT * self.beta, _CANCELLED * summands)
        barred = np.any(active < min_active, axis=1)
        # the linear candidate, knot at the minimum, has nothing below it
        barred[:, 0] = active[:, 0, 0] < min_active if self.hinges else False
        self.floor[np.broadcast_to(barred[:, None], active.shape)] = np.inf

    def rescan(self, pairs: bool) -> None:
        """Find the best candidate."""
        gain, *where = kernels.best_candidate(self.alpha, self.beta, self.gamma, self.floor, pairs, DEPENDENT)
        self.gain, self.where = gain, (where[0], where[1], where[2])

    def is_pair(self, position: int, knot: int) -> bool:
        """Whether a candidate and its mirror image are independent of the model and of each other."""
        beta = self.beta[position, :, knot]
        if not (beta > self.floor[position, :, knot]).all():
            return False
        determinant = beta.prod() - self.gamma[position, knot] ** 2
        return bool(determinant > DEPENDENT * beta.prod())


AnyBank = TypeVar("AnyBank", bound=Bank)


class HingeSearch(ABC, Generic[AnyBank]):
    """One forward pass.

    Parameters
    ----------
    plan : SearchPlan
        What to look for.
    knots : HingeKnots
        Where hinges may bend.
    outputs : int
        R.

    Attributes
    ----------
    terms : list of tuple of Hinge
        The model, intercept first.
    factor, projections : ndarray of shape (max_terms, max_terms) and (max_terms, R)
        ``B = Q factor`` and ``Q'Y``, as far as there are terms.
    total, rss : float
        Residual sums of squares of the intercept and of the model.
    """

    def __init__(self, plan: SearchPlan, knots: HingeKnots, outputs: int) -> None:
        self.plan, self.knots = plan, knots
        self.terms: list[Term] = []
        self.banks: list[AnyBank] = []
        self.factor = np.zeros((plan.max_terms, plan.max_terms))
        self.projections = np.zeros((plan.max_terms, outputs))
        self.total = self.rss = 0.0
        self._history: list[Record] = []
        self._message = "interrupted"
        self._start = time.perf_counter()

    @property
    def size(self) -> int:
        """Number of terms in the model."""
        return len(self.terms)

    @abstractmethod
    def begin(self) -> None:
        """Take the intercept in, set ``total``, and open its bank."""

    @abstractmethod
    def refresh(self, bank: AnyBank) -> None:
        """Project the bank off the terms that joined since it was last seen, and find its best candidate."""

    @abstractmethod
    def join(self, bank: AnyBank, position: int, side: int, knot: int) -> bool:
        """Add one candidate as a term and open its own bank; a dependent one is barred instead."""

    @abstractmethod
    def certificate(self) -> tuple[float, Array]:
        """Residual sum of squares of the model and ``Q'E`` (terms, R), from the residual itself."""

    def run(self) -> None:
        """The greedy loop, which may be interrupted between two terms."""
        self.begin()
        self._message = self._loop()

    def _loop(self) -> str:
        """Grow the model; returns why it stopped."""
        plan, least, idle = self.plan, max(self.plan.tol, 1e-14), 0
        while self.size < plan.max_terms:
            if self.rss <= least * self.total:
                return f"the residual is below {least:g} of the start; lower tol to go on"
            bank = self._winner()
            if bank is None:
                return "no admissible candidate is left"
            before = self.rss
            if (added := self._grow(bank)) and self._record(added):
                return "stopped by the callback"
            idle = idle + 1 if before - self.rss <= plan.tol * self.total else 0
            if plan.tol > 0 and idle >= _PATIENCE:
                return f"{_PATIENCE} steps in a row gained less than tol = {plan.tol:g}; lower tol"
        return f"max_terms = {plan.max_terms} reached"

    def result(self) -> Result:
        """The model so far, certified."""
        rss, gradient = self.certificate()
        m = self.size
        steepest = np.abs(gradient).max() / np.sqrt(max(self.total, np.finfo(float).tiny))
        return Result(
            self.basis(self.terms),
            rss,
            Status.EXHAUSTED,
            n_iter=len(self._history),
            time=time.perf_counter() - self._start,
            residuals={"stationarity": float(steepest)},
            history=tuple(self._history),
            message=self._message,
            info={
                "factor": self.factor[:m, :m],
                "projections": self.projections[:m],
                "total": self.total,
            },
        )

    def basis(self, terms: Sequence[Term]) -> HingeBasis:
        """Basis of ``terms``."""
        return HingeBasis(tuple(terms), self.knots.scale, self.plan.product)

    def _record(self, added: int) -> bool:
        """Add the record of a step; whether the callback asks to stop."""
        record = {"iteration": len(self._history), "n_terms": self.size, "rss": self.rss, "added": added}
        self._history.append(record)
        return self.plan.callback is not None and bool(self.plan.callback(record))

    def worth(self, bank: Bank) -> float:
        """Last known gain of a bank, as banks are compared."""
        return float(bank.gain * _SHORTER ** len(bank.hinges))

    def _winner(self) -> AnyBank | None:
        """The bank with the largest gain, brought up to date; None when no candidate is left."""
        if not self.plan.lazy:
            for bank in self.banks:
                self.refresh(bank)
        while True:
            worth = [self.worth(bank) for bank in self.banks]
            top = max(worth, default=0.0)
            if top <= 0.0:
                return None
            least = top * (1 - kernels.TIE)
            bank = next(bank for bank, value in zip(self.banks, worth, strict=True) if value >= least)
            if bank.seen == self.size:
                return bank
            self.refresh(bank)

    def _grow(self, bank: AnyBank) -> int:
        """Add the bank's best hinge, and its mirror image where independent; return how many joined."""
        position, side, knot = bank.where
        both = self.plan.pairs and bank.is_pair(position, knot)
        added = 0
        for this in (side, 1 - side) if both else (side,):
            if self.size < self.plan.max_terms:
                added += self.join(bank, position, this, knot)
        return added

    def candidate(self, bank: Bank, position: int, side: int, knot: int) -> tuple[Term, Term]:
        """Term of a candidate, and the hinges of a parent that it would make.

        They differ for a knot at the minimum: a linear term, but a hinge as a parent.
        """
        j = int(bank.variables[position])
        hinge = Hinge(j, 1 - 2 * side, float(self.knots.raw[j, knot]))
        linear = not bank.hinges and side == 0 and knot == 0
        return (*bank.hinges, hinge._replace(sign=0) if linear else hinge), (*bank.hinges, hinge)
