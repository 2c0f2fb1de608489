"""Bases of hinge functions: the value that :func:`liftopt.solvers.select_hinges` finds.

A hinge is ``(s (x_j - t) / scale_j)+`` with ``s = +1`` (up) or ``-1`` (down); sign 0 stands for the unclipped
``(x_j - t) / scale_j``. A term combines hinges of different variables by their minimum, which keeps it
continuous and piecewise linear, or by their product, as classical MARS does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Hinge(NamedTuple):
    """One hinge ``(sign (x_j - t))+`` of one variable.

    Attributes
    ----------
    variable : int
        Column j.
    sign : {1, -1, 0}
        Up, down, or 0 for the unclipped ``x_j - t``.
    knot : float
        t, in raw units.
    """

    variable: int
    sign: int
    knot: float


@dataclass(frozen=True, eq=False)
class HingeBasis:
    """Terms over ``n_features`` variables; the first is the intercept.

    Parameters
    ----------
    terms : sequence of tuple of Hinge
        The hinges of each term; the intercept has none.
    scale : ndarray of shape (n_features,)
        Unit of each variable. A minimum compares hinges of different variables, so units matter there.
    product : bool
        Combine hinges by product instead of minimum.
    """

    terms: tuple[tuple[Hinge, ...], ...]
    scale: Array
    product: bool = False

    def __len__(self) -> int:
        return len(self.terms)

    @property
    def degree(self) -> int:
        """Largest number of hinges in a term."""
        return max(len(term) for term in self.terms)

    @property
    def is_piecewise_linear(self) -> bool:
        """Whether an exact ReLU network exists: no product of two hinges."""
        return not self.product or self.degree <= 1

    def hinge(self, X: Array, hinge: Hinge) -> Array:
        """Values (n,) of ``hinge`` on raw rows ``X`` (n, n_features)."""
        z = (X[:, hinge.variable].astype(np.float64) - hinge.knot) / self.scale[hinge.variable]
        return z if hinge.sign == 0 else np.maximum(hinge.sign * z, 0.0)

    def term(self, X: Array, index: int) -> Array:
        """Values (n,) of the term at ``index`` on raw rows ``X`` (n, n_features)."""
        hinges = [self.hinge(X, hinge) for hinge in self.terms[index]]
        if not hinges:
            return np.ones(X.shape[0])
        return np.multiply.reduce(hinges) if self.product else np.minimum.reduce(hinges)

    def __call__(self, X: Array) -> Array:
        """Design matrix (n, terms) of raw rows (n, n_features), float64."""
        X = np.asarray(X)
        design = np.empty((X.shape[0], len(self)), order="F")
        for index in range(len(self)):
            design[:, index] = self.term(X, index)
        return design

    def subset(self, keep: Sequence[int] | Array) -> HingeBasis:
        """The terms at the positions ``keep``."""
        return HingeBasis(tuple(self.terms[int(index)] for index in keep), self.scale, self.product)

    def variables_of(self, index: int) -> tuple[int, ...]:
        """Sorted variables of the term at ``index``."""
        return tuple(sorted(hinge.variable for hinge in self.terms[index]))
