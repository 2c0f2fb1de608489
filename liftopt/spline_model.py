"""The fitted spline as a value: terms, coefficients, and the triangular factor that describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from liftopt.network import Network
from liftopt.solvers.hinge_basis import HingeBasis
from liftopt.solvers.pruning import PruningPath, gcv, prune_terms
from liftopt.solvers.result import Result
from liftopt.spline_network import spline_network

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Spline:
    """``f(x) = basis(x) @ coefficients``.

    Attributes
    ----------
    basis : HingeBasis
        The terms kept, intercept first.
    coefficients : ndarray of shape (terms, outputs)
        In the units of the target.
    factor : ndarray of shape (terms, terms)
        R with ``R'R = B' Omega B`` over the training rows.
    path : PruningPath
        Every subset of ``full_basis`` on the pruning path, for the scaled target.
    full_basis : HingeBasis
        All terms of the forward pass.
    n_samples : float
        Rows, or the sum of their repetitions.
    penalty : float
        Charge of GCV for each knot.
    """

    basis: HingeBasis
    coefficients: Array
    factor: Array
    path: PruningPath
    full_basis: HingeBasis
    n_samples: float
    penalty: float

    def __call__(self, X: npt.ArrayLike) -> Array:
        """Values (n, outputs) on raw rows."""
        return self.basis(np.asarray(X)) @ self.coefficients

    def rescaled(self, spread: Array, centre: Array) -> Spline:
        """The spline of ``centre + spread * f``, output by output."""
        coefficients = self.coefficients * spread
        coefficients[0] += centre
        return self.with_coefficients(coefficients)

    def with_coefficients(self, coefficients: Array) -> Spline:
        """The same terms with other coefficients."""
        return dataclasses.replace(self, coefficients=coefficients)

    def to_network(
        self,
        head: str = "identity",
        metadata: Mapping[str, Any] | None = None,
        dtype: npt.DTypeLike = np.float64,
    ) -> Network:
        """The ReLU network equal to the spline; see :func:`liftopt.spline_network.spline_network`."""
        return spline_network(self.basis, self.coefficients, head, metadata, dtype)

    @property
    def moments(self) -> tuple[Array, Array]:
        """Mean (terms,) and covariance (terms, terms) of the terms over the training rows."""
        scaled = self.factor / np.sqrt(self.n_samples)
        gram = scaled.T @ scaled
        mean = gram[0]
        return mean, gram - np.outer(mean, mean)

    @property
    def deletion_rise(self) -> Array:
        """Relative rise (terms,) of the residual sum of squares when one term goes, the rest refitted."""
        keep = np.array([self.full_basis.terms.index(term) for term in self.basis.terms])
        coefficients, factor = self.path.fit(keep)
        inverse = solve_triangular(factor, np.eye(len(keep)))
        rise = (coefficients**2).sum(axis=1) / (inverse**2).sum(axis=1)
        return rise / max(self.rss, np.finfo(float).tiny)

    @property
    def rss(self) -> float:
        """Residual sum of squares of the least-squares fit, of the scaled target."""
        return float(self.path.rss[len(self.basis) - 1])

    @property
    def r2(self) -> float:
        """Share of the variance explained on the training rows by the least-squares fit."""
        return 1.0 - self.rss / max(float(self.path.rss[0]), np.finfo(float).tiny)

    @property
    def gcv_r2(self) -> float:
        """As :attr:`r2` by generalised cross-validation."""
        score = self.path.gcv(self.n_samples, self.penalty)
        return 1.0 - float(score[len(self.basis) - 1] / max(score[0], np.finfo(float).tiny))

    def gcv_without(self, members: list[int]) -> float:
        """GCV with the terms ``members`` deleted and the rest refitted (scaled target)."""
        keep = [self.full_basis.terms.index(term) for term in self.basis.terms]
        left = np.array([index for position, index in enumerate(keep) if position not in members])
        coefficients, _ = self.path.fit(left)
        explained = np.sum((self.path.factor[:, left] @ coefficients) ** 2)
        rss = self.path.rss[-1] + np.sum(self.path.projections**2) - explained
        return float(gcv(rss, left.size, self.n_samples, self.penalty))


def path_of(result: Result) -> PruningPath:
    """Pruning path of a forward pass."""
    return prune_terms(result.info["factor"], result.info["projections"], result.objective)


def errors_by_size(path: PruningPath, gram: Array, cross: Array, squares: Array) -> Array:
    """Squared errors (M,) of the models on a ``path``, by size, on other rows.

    ``gram`` (M, M), ``cross`` (M, R) and ``squares`` (R,) are their sums of products of terms with each other
    and with the targets, and of squared targets.
    """
    errors = []
    for size in range(1, path.rss.size + 1):
        keep = path.subset(size)
        c, _ = path.fit(keep)
        explained = 2 * cross[keep] - gram[np.ix_(keep, keep)] @ c
        errors.append(squares.sum() - np.sum(c * explained))
    return np.array(errors)
