r"""The one table of activations, each as the gradient of a convex potential.

For a non-decreasing continuous activation ``phi`` with potential ``Phi' = phi`` and conjugate ``Phi*``,

    gap(v, u) = Phi*(v) + Phi(u) - u v >= 0,    gap(v, u) = 0  <=>  v = phi(u),

convex in ``v``, convex in ``u``, not jointly. It is what lifted training penalises, and
``prox(y, t) = argmin_v Phi*(v) + (v - y)^2 / (2 t)`` is its proximal step. ``Phi*`` is ``inf`` outside its
domain.

All functions work entrywise on arrays and keep float32; softmax works on rows.

References
----------
Gu, Askari, El Ghaoui, "Fenchel Lifted Networks: A Lagrange Relaxation of Neural Network Training",
AISTATS 2020, arXiv 1811.08039.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[Any]

_NEWTON_STEPS = 60


class Activation:
    """An activation and the convex functions that belong to it.

    Subclasses are frozen dataclasses whose fields are the activation's parameters. To add one, subclass,
    set ``name`` and ``lipschitz`` and implement the five functions; ``prox`` has a generic fallback. All act
    entrywise on arrays of any shape, but for :class:`Softmax`, which acts on rows.

    Attributes
    ----------
    name : str
        Key in the table of activations.
    lipschitz : float
        Lipschitz constant of ``phi``.
    range : tuple of float
        Interval of the values, to which targets are clipped.
    """

    name: ClassVar[str]
    lipschitz: ClassVar[float] = 1.0
    #: open or closed interval of the values, used to clip targets
    range: ClassVar[tuple[float, float]] = (-np.inf, np.inf)

    def __call__(self, u: Array) -> Array:
        """Activation ``phi(u)``."""
        raise NotImplementedError

    def derivative(self, u: Array) -> Array:
        """``phi'(u)`` (the right derivative at kinks is not promised)."""
        raise NotImplementedError

    def potential(self, u: Array) -> Array:
        """Convex potential ``Phi(u)`` with ``Phi' = phi``."""
        raise NotImplementedError

    def conjugate(self, v: Array) -> Array:
        """Fenchel conjugate ``Phi*(v)``, ``inf`` outside its domain."""
        raise NotImplementedError

    def inverse(self, v: Array) -> Array:
        """``phi^-1(v)`` where it exists."""
        raise ValueError(f"{self.name} has no inverse")

    def gap(self, v: Array, u: Array) -> Array:
        """Fenchel gap ``Phi*(v) + Phi(u) - u v``, non-negative, zero exactly at ``v = phi(u)``."""
        return np.maximum(self.conjugate(v) + self.potential(u) - u * v, 0.0)

    def prox(self, y: Array, t: float) -> Array:
        """``argmin_v Phi*(v) + (v - y)^2 / (2 t)``: ``phi(a)`` with ``phi(a) + t a = y``."""
        y = np.asarray(y)
        far = (y - self(np.zeros_like(y))) / t  # phi is monotone, so the root lies between 0 and far
        low, high = np.minimum(far, 0.0), np.maximum(far, 0.0)
        a = far / (1.0 + 1.0 / t)
        for _ in range(_NEWTON_STEPS):
            excess = self(a) + t * a - y
            low = np.where(excess < 0.0, a, low)
            high = np.where(excess > 0.0, a, high)
            newton = a - excess / (self.derivative(a) + t)
            previous, a = a, np.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
            if np.all(np.abs(a - previous) <= 4 * np.finfo(a.dtype).eps * np.abs(a)):
                break
        return self(a)

    def config(self) -> dict[str, Any]:
        """JSON-able description: the name and the parameters."""
        return {"name": self.name, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    def __str__(self) -> str:
        parameters = dataclasses.asdict(self)  # type: ignore[call-overload]
        inside = ", ".join(f"{value:g}" for value in parameters.values())
        return f"{self.name}({inside})" if inside else self.name


def _inside(v: Array, low: float, high: float, value: Array) -> Array:
    """``value`` on [low, high], ``inf`` elsewhere."""
    return np.where((v >= low) & (v <= high), value, np.inf).astype(np.result_type(value), copy=False)


@dataclass(frozen=True)
class Identity(Activation):
    """``phi(u) = u``."""

    name: ClassVar[str] = "identity"

    def __call__(self, u: Array) -> Array:
        return u

    def derivative(self, u: Array) -> Array:
        return np.ones_like(u)

    def potential(self, u: Array) -> Array:
        return u**2 / 2

    def conjugate(self, v: Array) -> Array:
        return v**2 / 2

    def inverse(self, v: Array) -> Array:
        return v

    def prox(self, y: Array, t: float) -> Array:
        return y / (1 + t)


@dataclass(frozen=True)
class ReLU(Activation):
    """``phi(u) = max(u, 0)``."""

    name: ClassVar[str] = "relu"
    range: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def __call__(self, u: Array) -> Array:
        return np.maximum(u, 0)

    def derivative(self, u: Array) -> Array:
        return (u > 0).astype(u.dtype)

    def potential(self, u: Array) -> Array:
        return np.maximum(u, 0) ** 2 / 2

    def conjugate(self, v: Array) -> Array:
        return _inside(v, 0.0, np.inf, v**2 / 2)

    def prox(self, y: Array, t: float) -> Array:
        return np.maximum(y, 0) / (1 + t)


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """``phi(u) = u`` for ``u > 0``, ``slope * u`` below, ``0 < slope <= 1``."""

    slope: float = 0.1
    name: ClassVar[str] = "leaky_relu"

    def __post_init__(self) -> None:
        if not 0.0 < self.slope <= 1.0:
            raise ValueError(f"leaky_relu needs 0 < slope <= 1, got {self.slope}")

    def __call__(self, u: Array) -> Array:
        return np.maximum(u, self.slope * u)

    def derivative(self, u: Array) -> Array:
        return np.where(u > 0, 1, self.slope).astype(u.dtype)

    def potential(self, u: Array) -> Array:
        return u * self(u) / 2

    def conjugate(self, v: Array) -> Array:
        return v * self.inverse(v) / 2

    def inverse(self, v: Array) -> Array:
        return np.minimum(v, v / self.slope)

    def prox(self, y: Array, t: float) -> Array:
        return np.where(y > 0, y / (1 + t), y / (1 + t / self.slope))


@dataclass(frozen=True)
class ELU(Activation):
    """``phi(u) = u`` for ``u > 0``, ``scale * (exp(u) - 1)`` below, ``0 < scale <= 1``."""

    scale: float = 1.0
    name: ClassVar[str] = "elu"

    def __post_init__(self) -> None:
        if not 0.0 < self.scale <= 1.0:
            raise ValueError(f"elu needs 0 < scale <= 1, got {self.scale}")

    def __call__(self, u: Array) -> Array:
        return np.where(u > 0, u, self.scale * np.expm1(np.minimum(u, 0)))

    def derivative(self, u: Array) -> Array:
        return np.where(u > 0, 1, self.scale * np.exp(np.minimum(u, 0))).astype(u.dtype)

    def potential(self, u: Array) -> Array:
        below = np.minimum(u, 0)
        return np.where(u > 0, u**2 / 2, self.scale * (np.expm1(below) - below))

    def conjugate(self, v: Array) -> Array:
        below = np.clip(v, -self.scale, 0)
        negative = self.scale * special.xlog1py(1 + below / self.scale, below / self.scale) - below
        return _inside(v, -self.scale, np.inf, np.where(v >= 0, v**2 / 2, negative))

    def inverse(self, v: Array) -> Array:
        return np.where(v > 0, v, np.log1p(np.minimum(v, 0) / self.scale))


@dataclass(frozen=True)
class Sigmoid(Activation):
    """``phi(u) = 1 / (1 + exp(-u))``."""

    name: ClassVar[str] = "sigmoid"
    lipschitz: ClassVar[float] = 0.25
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, u: Array) -> Array:
        return special.expit(u)

    def derivative(self, u: Array) -> Array:
        return special.expit(u) * special.expit(-u)

    def potential(self, u: Array) -> Array:
        return np.logaddexp(0, u)

    def conjugate(self, v: Array) -> Array:
        return -special.entr(v) - special.entr(1 - v)

    def inverse(self, v: Array) -> Array:
        return special.logit(v)


@dataclass(frozen=True)
class Tanh(Activation):
    """``phi(u) = tanh(u)``."""

    name: ClassVar[str] = "tanh"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __call__(self, u: Array) -> Array:
        return np.tanh(u)

    def derivative(self, u: Array) -> Array:
        return 1 - np.tanh(u) ** 2

    def potential(self, u: Array) -> Array:
        return np.logaddexp(u, -u) - np.log(2).astype(u.dtype)

    def conjugate(self, v: Array) -> Array:
        return -(special.entr(1 + v) + special.entr(1 - v)) / 2

    def inverse(self, v: Array) -> Array:
        return np.arctanh(v)


@dataclass(frozen=True)
class HardSigmoid(Activation):
    """``phi(u) = clip(u, 0, 1)``."""

    name: ClassVar[str] = "hard_sigmoid"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, u: Array) -> Array:
        return np.clip(u, 0, 1)

    def derivative(self, u: Array) -> Array:
        return ((u > 0) & (u < 1)).astype(u.dtype)

    def potential(self, u: Array) -> Array:
        return np.where(u > 1, u - 0.5, np.maximum(np.minimum(u, 1), 0) ** 2 / 2).astype(u.dtype)

    def conjugate(self, v: Array) -> Array:
        return _inside(v, 0.0, 1.0, v**2 / 2)

    def prox(self, y: Array, t: float) -> Array:
        return np.clip(y / (1 + t), 0, 1)


@dataclass(frozen=True)
class SoftThreshold(Activation):
    """``phi(u) = sign(u) * max(|u| - threshold, 0)``."""

    threshold: float = 0.5
    name: ClassVar[str] = "soft_threshold"

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < np.inf:
            raise ValueError(f"soft_threshold needs a finite threshold >= 0, got {self.threshold}")

    def __call__(self, u: Array) -> Array:
        return u - np.clip(u, -self.threshold, self.threshold)

    def derivative(self, u: Array) -> Array:
        return (np.abs(u) > self.threshold).astype(u.dtype)

    def potential(self, u: Array) -> Array:
        return np.maximum(np.abs(u) - self.threshold, 0) ** 2 / 2

    def conjugate(self, v: Array) -> Array:
        return v**2 / 2 + self.threshold * np.abs(v)

    def prox(self, y: Array, t: float) -> Array:
        return (y - np.clip(y, -t * self.threshold, t * self.threshold)) / (1 + t)


@dataclass(frozen=True)
class Softmax(Activation):
    """Row-wise ``exp(u) / sum(exp(u))``; its gap is the Kullback-Leibler divergence.

    For one-hot ``v`` the gap is the cross-entropy. ``potential``, ``conjugate`` and ``gap`` return one
    value a row; there is no entrywise derivative.
    """

    name: ClassVar[str] = "softmax"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, u: Array) -> Array:
        return special.softmax(u, axis=1)

    def derivative(self, u: Array) -> Array:
        raise ValueError(
            "softmax couples the columns: it has no entrywise derivative and serves as a head only"
        )

    def potential(self, u: Array) -> Array:
        return special.logsumexp(u, axis=1)

    def conjugate(self, v: Array) -> Array:
        slack = 1e3 * np.finfo(v.dtype).eps
        on_simplex = (np.abs(v.sum(axis=1) - 1) <= slack) & (v.min(axis=1) >= 0)
        return np.where(on_simplex, -special.entr(np.maximum(v, 0)).sum(axis=1), np.inf)

    def gap(self, v: Array, u: Array) -> Array:
        return np.maximum(self.conjugate(v) + self.potential(u) - (u * v).sum(axis=1), 0.0)

    def prox(self, y: Array, t: float) -> Array:
        """Rows ``v = softmax(a)`` with ``v + t (a - mean) = y`` up to a shift: Newton on the multiplier.

        Entrywise ``v + t log v = y - s``, so ``v = t W(exp((y - s) / t) / t)`` with Lambert's W, and the
        scalar ``s`` of each row makes ``v`` sum to one (convex, decreasing in ``s``: bisection-safe Newton).
        """
        y64 = np.asarray(y, dtype=np.float64)
        low = y64.max(axis=1, keepdims=True) - 1.0  # there v_max >= 1
        high = y64.max(axis=1, keepdims=True) + t * np.log(y64.shape[1])  # there every v <= 1 / columns
        s = low
        for _ in range(_NEWTON_STEPS):
            v = t * special.wrightomega((y64 - s) / t - np.log(t))
            excess = v.sum(axis=1, keepdims=True) - 1.0
            low, high = np.where(excess > 0, s, low), np.where(excess < 0, s, high)
            newton = s + excess / np.sum(v / (t + v), axis=1, keepdims=True)
            s = np.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
        v = t * special.wrightomega((y64 - s) / t - np.log(t))
        return (v / v.sum(axis=1, keepdims=True)).astype(np.asarray(y).dtype)


#: Where names are looked up, also on loading: add an activation of your own here.
ACTIVATIONS: dict[str, type[Activation]] = {
    kind.name: kind
    for kind in (Identity, ReLU, LeakyReLU, ELU, Sigmoid, Tanh, HardSigmoid, SoftThreshold, Softmax)
}


def get_activation(spec: str | Activation | Mapping[str, Any]) -> Activation:
    """Return the activation named, described by a config, or given.

    Parameters
    ----------
    spec : str, Activation or mapping
        A name of :data:`ACTIVATIONS` (with default parameters), an instance, or ``Activation.config()``.

    Returns
    -------
    Activation
        A given instance is returned as it is.

    Raises
    ------
    ValueError
        If the name or a parameter is unknown; the message lists the names.
    """
    if isinstance(spec, Activation):
        return spec
    config: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = config.pop("name", None)
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {spec!r}; choose one of {', '.join(ACTIVATIONS)}")
    try:
        return ACTIVATIONS[name](**config)
    except TypeError:
        raise ValueError(f"activation {name!r} does not take the parameters {config}") from None
