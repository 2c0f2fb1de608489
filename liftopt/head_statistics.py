"""Exponentially averaged statistics of a ridge head, for a descent over blocks of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

Array = npt.NDArray[Any]


class HeadStatistics:
    """Running means of ``A'wA`` and ``A'wT`` in float64, and the ridge head they give."""

    def __init__(self, width: int, outputs: int) -> None:
        self._gram = np.zeros((width, width))
        self._cross = np.zeros((width, outputs))
        self._mass = 0.0

    def update(self, A: Array, T: Array, weight: Array | None, memory: float) -> None:
        """Forget all but ``memory`` of the past and add the means over this block."""
        weighted = A if weight is None else A * weight
        share = (1.0 - memory) / A.shape[0]
        self._gram *= memory
        self._gram += share * (weighted.T @ A)
        self._cross *= memory
        self._cross += share * (weighted.T @ T)
        self._mass = memory * self._mass + 1.0 - memory

    def retarget(self, A: Array, T: Array, weight: Array | None) -> None:
        """Other targets for the rows of an :meth:`update` without memory."""
        weighted = A if weight is None else A * weight
        self._cross = (weighted.T @ T).astype(np.float64) / A.shape[0]

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`update` changes."""
        return {"gram": self._gram, "cross": self._cross, "mass": self._mass}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Return to a :meth:`state`."""
        self._gram, self._cross, self._mass = state["gram"], state["cross"], state["mass"]

    def solve(self, ridge: float) -> Array:
        """Head ``B`` (width, outputs); the bias row (the last) carries a negligible penalty."""
        gram = self._gram / self._mass
        penalty = ridge * np.trace(gram) / gram.shape[0]
        diagonal = np.full(gram.shape[0], penalty)
        diagonal[-1] *= 1e-3
        gram[np.diag_indices_from(gram)] += diagonal
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        return cho_solve(factor, self._cross / self._mass, check_finite=False)
