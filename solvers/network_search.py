"""The literal method: a ReLU network whose weights and biases all lie in a finite set, by coordinate search.

    minimise over W_l in C^(m_(l-1) x m_l), b_l in C^(m_l):   sum_n loss(z_n, y_n)

``loss`` is the cross-entropy of the softmax (targets on the simplex) or half the squared error. Every sweep
visits every coordinate in cyclic or fresh random order, tries every other value, and keeps the best if the
loss falls by more than ``threshold``. A change is pushed through the network row by row: only rows whose
unit changes are touched, layers before the changed one never, so the change of the loss is exact without a
forward pass. Restarts from random points; the lowest training loss wins.

References
----------
Date, Carothers, Mitchell, Hendler, Magdon-Ismail, "Training Deep Neural Networks with Constrained Learning
Parameters", IEEE ICRC 2020, arXiv 2009.00540.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .result import OnLimit, Result, Status, conclude
from .validation import as_count, as_finite, as_scalar, as_weights
from .value_sets import TERNARY, as_values

Array = npt.NDArray[Any]


class DiscreteNetwork(NamedTuple):
    """Weights ``values[codes[l]]`` of every layer l.

    Attributes
    ----------
    values : ndarray of shape (m,)
        The sorted value set.
    codes : tuple of ndarray of shape (m_(l-1) + 1, m_l)
        Places in ``values``; the last row of each is the bias.
    """

    values: Array
    codes: tuple[Array, ...]


def search_network(
    X: npt.ArrayLike,
    Y: npt.ArrayLike,
    hidden: Sequence[int],
    values: npt.ArrayLike = TERNARY,
    *,
    loss: Literal["softmax", "squared"] = "softmax",
    start: DiscreteNetwork | None = None,
    n_starts: int = 1,
    order: Literal["random", "cyclic"] = "random",
    threshold: float = 1e-9,
    weights: npt.ArrayLike | None = None,
    max_iter: int = 100,
    random_state: int = 0,
    callback: Callable[[int, int, float], bool] | None = None,
    on_limit: OnLimit = "warn",
) -> Result:
    """Train a small fully connected ReLU network with finite-valued weights and biases.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Rows, of comparable feature scales (standardise first: nothing in the network can rescale them).
    Y : array-like of shape (n, k)
        Targets.
    hidden : sequence of int
        Widths of the hidden layers.
    values : array-like of shape (m,)
        The finite set, for weights and biases.
    loss : {"softmax", "squared"}
        Training loss.
    start : DiscreteNetwork, optional
        First starting point; random by default.
    n_starts : int
        Number of starting points, the others random.
    order : {"random", "cyclic"}
        Order of the coordinates in a sweep.
    threshold : float
        Least decrease of the summed loss for a change.
    weights : array-like of shape (n,), optional
        Sample weights.
    max_iter : int
        Largest number of sweeps from each start.
    random_state : int
        Seed of starts and orders.
    callback : callable, optional
        ``callback(start, sweep, loss)`` after every sweep; a true value stops the search.
    on_limit : {"warn", "raise", "ignore"}
        What to do when ``max_iter`` ended the best descent.

    Returns
    -------
    Result
        ``x`` is a :class:`DiscreteNetwork`; status ``local_optimum`` (a whole sweep changed nothing) or
        ``max_iter``; ``history`` holds start, sweep, loss and changes.

    Raises
    ------
    ValueError
        On bad value sets, shapes, NaN entries.

    Notes
    -----
    A sweep tries (m - 1) p changes, p the number of weights; one in layer l costs up to
    O(n times the weights above layer l).
    """
    begin = time.perf_counter()
    rows, targets = as_finite("X", X, ndim=2), as_finite("Y", Y, ndim=2)
    allowed = as_values(values)
    sizes = (rows.shape[1], *(as_count("hidden", width) for width in hidden), targets.shape[1])
    sample = as_weights("weights", weights, rows.shape[0])
    if loss not in ("softmax", "squared") or order not in ("random", "cyclic"):
        raise ValueError(f"unknown loss {loss!r} or order {order!r}")
    as_count("max_iter", max_iter)
    as_scalar("threshold", threshold, low=0.0)
    descent = _Descent(rows, targets, sample, sizes, allowed, loss == "softmax", threshold)
    rng = np.random.default_rng(random_state)
    best: Result | None = None
    records: list[dict[str, Any]] = []
    for index in range(as_count("n_starts", n_starts)):
        codes = descent.random_codes(rng) if start is None or index else descent.padded(start.codes)
        found = descent.run(codes, index, order == "random", max_iter, rng, records, callback)
        best = found if best is None or found.objective < best.objective else best
        if found.status is Status.INTERRUPTED:
            break
    assert best is not None
    message = "changes were still found in the last sweep: increase max_iter" if best.status.is_limit else ""
    outcome = Result(
        best.x,
        best.objective,
        best.status,
        best.n_iter,
        time.perf_counter() - begin,
        history=tuple(records),
        message=message,
    )
    return conclude(outcome, on_limit)


class _Descent:
    """The data and the padded arrays of one network shape."""

    def __init__(
        self,
        X: Array,
        Y: Array,
        weights: Array | None,
        sizes: tuple[int, ...],
        values: Array,
        softmax: bool,
        threshold: float,
    ) -> None:
        self.Y = np.ascontiguousarray(Y, dtype=np.float64)
        self.weights = np.ones(X.shape[0]) if weights is None else weights
        self.sizes, self.values, self.softmax, self.threshold = np.array(sizes), values, softmax, threshold
        depth, widest = len(sizes) - 1, max(sizes)
        self.shape = (depth, widest + 1, widest)
        self.inputs = np.zeros((depth + 1, X.shape[0], widest + 1))
        self.inputs[0, :, : X.shape[1]] = X
        for layer, width in enumerate(sizes):
            self.inputs[layer, :, width] = 1.0  # the input of the biases
        self.coordinates = np.array(
            [
                (layer, i, h)
                for layer in range(depth)
                for i in range(sizes[layer] + 1)
                for h in range(sizes[layer + 1])
            ]
        )

    def random_codes(self, rng: np.random.Generator) -> Array:
        return rng.integers(0, self.values.size, self.shape).astype(np.uint8)

    def padded(self, codes: tuple[Array, ...]) -> Array:
        full = np.zeros(self.shape, dtype=np.uint8)
        for layer, part in enumerate(codes):
            if part.shape != (self.sizes[layer] + 1, self.sizes[layer + 1]):
                raise ValueError(f"start does not fit layer sizes {self.sizes.tolist()}")
            full[layer, : part.shape[0], : part.shape[1]] = part
        return full

    def run(
        self,
        codes: Array,
        index: int,
        shuffle: bool,
        max_iter: int,
        rng: np.random.Generator,
        records: list[dict[str, Any]],
        callback: Callable[[int, int, float], bool] | None,
    ) -> Result:
        """Sweep until nothing changes; ``codes`` is updated in place."""
        from .network_kernels import forward, sweep  # compiled: imported where they are used

        pre = np.zeros_like(self.inputs)
        losses = np.zeros(self.Y.shape[0])
        fixed = (self.values, self.sizes, self.Y, self.weights, self.softmax)
        total = forward(codes, self.inputs, pre, losses, *fixed)
        status, n_iter = Status.MAX_ITER, 0
        while n_iter < max_iter and status is Status.MAX_ITER:
            order = rng.permutation(len(self.coordinates)) if shuffle else np.arange(len(self.coordinates))
            changes, total = sweep(
                codes, self.inputs, pre, losses, total, *fixed, self.coordinates[order], self.threshold
            )
            n_iter += 1
            records.append({"start": index, "iteration": n_iter, "objective": total, "changes": changes})
            if changes == 0:
                status = Status.LOCAL_OPTIMUM
            elif callback is not None and callback(index, n_iter, total):
                status = Status.INTERRUPTED
        parts = tuple(
            codes[layer, : self.sizes[layer] + 1, : self.sizes[layer + 1]].copy()
            for layer in range(len(self.sizes) - 1)
        )
        return Result(DiscreteNetwork(self.values, parts), total, status, n_iter)
