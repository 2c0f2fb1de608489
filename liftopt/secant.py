r"""Limited-memory quasi-Newton directions for parameters in several blocks.

The two-loop recursion of Liu and Nocedal, "On the limited memory BFGS method for large scale optimization",
Mathematical Programming 45 (1989), started from a given inverse Hessian (here the Cholesky factors of the
blocks) that is scaled to the last pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Parts = list[Array]

_MEMORY = 12
_CURVED = 1e-10  # least cosine of a pair


class Located(NamedTuple):
    """Blocks of parameters and the gradient there."""

    point: Parts
    gradient: Parts


class Pairs:
    """Changes of the point with the changes of the gradient, the last of them first; immutable.

    Parameters
    ----------
    last : Located, optional
        Where the gradient was last taken.
    pairs : sequence of (Parts, Parts)
        Steps and gradient changes of positive curvature.
    """

    def __init__(self, last: Located | None = None, pairs: tuple[tuple[Parts, Parts], ...] = ()) -> None:
        self._last, self._pairs = last, pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def state(self) -> dict[str, Any]:
        """The pairs as a tree."""
        return {"last": self._last, "pairs": self._pairs}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Pairs:
        """Inverse of :meth:`state`."""
        last = None if state["last"] is None else Located(*state["last"])
        return cls(last, tuple((step, change) for step, change in state["pairs"]))

    def extended(self, here: Located) -> Pairs:
        """With the pair from the last point to ``here``, if the function curves upward between them."""
        if self._last is None:
            return Pairs(here)
        step = [new - old for new, old in zip(here.point, self._last.point, strict=True)]
        change = [new - old for new, old in zip(here.gradient, self._last.gradient, strict=True)]
        curved = _dot(step, change) > _CURVED * (_dot(step, step) * _dot(change, change)) ** 0.5
        pairs = ((step, change), *self._pairs)[:_MEMORY] if curved else self._pairs
        return Pairs(here, pairs)

    def direction(self, gradient: Parts, inverse: Callable[[Parts], Parts]) -> Parts:
        """Approximate inverse Hessian times ``gradient``; ``inverse`` applies the first approximation."""
        q = [part.copy() for part in gradient]
        shares = []
        for step, change in self._pairs:
            share = _dot(step, q) / _dot(step, change)
            shares.append(share)
            _add(q, -share, change)
        step, change = self._pairs[0]
        scale = _dot(step, change) / _dot(change, inverse(change))
        q = [scale * part for part in inverse(q)]
        for (step, change), share in zip(reversed(self._pairs), reversed(shares), strict=True):
            _add(q, share - _dot(change, q) / _dot(step, change), step)
        return q


def _dot(a: Parts, b: Parts) -> float:
    return float(sum(np.vdot(x, y) for x, y in zip(a, b, strict=True)))


def _add(target: Parts, factor: float, parts: Parts) -> None:
    for own, part in zip(target, parts, strict=True):
        own += factor * part
