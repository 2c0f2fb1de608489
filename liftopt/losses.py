r"""Loss heads: convex functions of the last pre-activation, each with its gradient and its curvature.

A head is ``loss(u, t) = sum_i w_i l(u_i, t_i)`` over rows; ``residual`` is the row gradient ``dl/du``,
``curvature`` the mean Hessian shared by a batch, and ``bound`` a number with ``Hessian <= bound * I``.
Cross-entropy and squares are the Fenchel gaps of softmax and identity; the others are convex surrogates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

Array = npt.NDArray[Any]

_LOGIT = 6.0  # confidence of a first head: fitted rows start with a small loss and a curvature above zero


class Head:
    """A convex loss of the rows ``u`` (n, outputs) with targets ``t`` of the same shape."""

    name: ClassVar[str]
    bound: ClassVar[float] = 1.0

    def losses(self, u: Array, t: Array) -> Array:
        """Loss of every row, shape (n,), float64."""
        raise NotImplementedError

    def residual(self, u: Array, t: Array) -> Array:
        """Gradient of every row's loss with respect to ``u``, a new array."""
        raise NotImplementedError

    def fitting_scores(self, t: Array) -> Array:
        """Scores that serve as least-squares targets of a first linear head."""
        return t

    def curvature(self, u: Array, t: Array) -> Array:
        """Mean Hessian over the rows, shape (outputs, outputs), float64."""
        raise NotImplementedError

    def mean_loss(self, u: Array, t: Array, weight: Array | None = None) -> float:
        """Weighted mean of the row losses."""
        return float(np.average(self.losses(u, t), weights=weight))


@dataclass(frozen=True)
class CrossEntropy(Head):
    """``logsumexp(u) - <t, u>`` for rows ``t`` on the simplex."""

    name: ClassVar[str] = "cross_entropy"
    bound: ClassVar[float] = 0.5

    def losses(self, u: Array, t: Array) -> Array:
        return logsumexp_rows(u) - np.einsum("ij,ij->i", t, u, dtype=np.float64)

    def residual(self, u: Array, t: Array) -> Array:
        p = softmax_rows(u)
        p -= t
        return p

    def fitting_scores(self, t: Array) -> Array:
        return _LOGIT * (t - 1.0 / t.shape[1])

    def curvature(self, u: Array, t: Array) -> Array:
        p = softmax_rows(u).astype(np.float64)
        return np.diag(p.mean(axis=0)) - p.T @ p / p.shape[0]


@dataclass(frozen=True)
class Squared(Head):
    """``|u - t|^2 / 2``."""

    name: ClassVar[str] = "squared"

    def losses(self, u: Array, t: Array) -> Array:
        return 0.5 * ((u - t).astype(np.float64) ** 2).sum(axis=1)

    def residual(self, u: Array, t: Array) -> Array:
        return u - t

    def curvature(self, u: Array, t: Array) -> Array:
        return np.eye(u.shape[1])


@dataclass(frozen=True)
class SquaredHinge(Head):
    """``sum_c max(0, 1 - s_c u_c)^2 / 2`` with signs ``s = 2 t - 1`` of one-hot rows (one against all)."""

    name: ClassVar[str] = "squared_hinge"

    def losses(self, u: Array, t: Array) -> Array:
        return 0.5 * (np.maximum(1 - (2 * t - 1) * u, 0).astype(np.float64) ** 2).sum(axis=1)

    def residual(self, u: Array, t: Array) -> Array:
        signs = 2 * t - 1
        return -signs * np.maximum(1 - signs * u, 0)

    def fitting_scores(self, t: Array) -> Array:
        return 2 * t - 1

    def curvature(self, u: Array, t: Array) -> Array:
        return np.diag(((2 * t - 1) * u < 1).mean(axis=0))


@dataclass(frozen=True)
class Huber(Head):
    """``e^2 / 2`` for ``|e| <= delta``, ``delta |e| - delta^2 / 2`` beyond, summed over ``e = u - t``."""

    delta: float = 1.0
    name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        if not 0.0 < self.delta < np.inf:
            raise ValueError(f"huber needs a finite delta > 0, got {self.delta}")

    def losses(self, u: Array, t: Array) -> Array:
        error = np.abs((u - t).astype(np.float64))
        inner = np.minimum(error, self.delta)
        return (inner * (error - 0.5 * inner)).sum(axis=1)

    def residual(self, u: Array, t: Array) -> Array:
        return np.clip(u - t, -self.delta, self.delta)

    def curvature(self, u: Array, t: Array) -> Array:
        return np.diag((np.abs(u - t) <= self.delta).mean(axis=0))


HEADS: Mapping[str, type[Head]] = {kind.name: kind for kind in (CrossEntropy, Squared, SquaredHinge, Huber)}
CLASSIFICATION_HEADS = ("cross_entropy", "squared_hinge", "squared")
REGRESSION_HEADS = ("squared", "huber")


def get_head(name: str, allowed: tuple[str, ...]) -> Head:
    """Return the head called ``name``.

    Raises
    ------
    ValueError
        If it is not one of ``allowed``; the message lists them.
    """
    if name not in allowed:
        raise ValueError(f"loss must be one of {', '.join(allowed)}, got {name!r}")
    return HEADS[name]()


def logsumexp_rows(u: Array) -> Array:
    """``log sum exp`` of every row, float64."""
    found: Array = logsumexp(u.astype(np.float64, copy=False), axis=1)
    return found


def softmax_rows(u: Array) -> Array:
    """Softmax of every row, a new array."""
    p = u - u.max(axis=1, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(axis=1, keepdims=True)
    return p
