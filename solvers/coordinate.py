"""Coordinate search over a finite value set for any objective, and the oracle that it is tested against.

    minimise f(t),   t in C^d

A single change replaces one entry, a pair change two. The search is monotone and ends at a point that no
change of the stated kind improves by more than ``threshold``; it never claims a global optimum. With strict
decrease no point is visited twice; with ``threshold > 0`` there are at most ``(f(start) - inf f) /
threshold`` changes.

The objective is evaluated from scratch, so this is for small problems and for checking the structured
searches (:mod:`~liftopt.solvers.gram_search`, :mod:`~liftopt.solvers.softmax_search`,
:mod:`~liftopt.solvers.network_search`), which evaluate the same changes by updates.

References
----------
Date et al., "Training Deep Neural Networks with Constrained Learning Parameters", arXiv 2009.00540.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .result import OnLimit, Result, Status, conclude
from .validation import as_count, as_finite, as_scalar
from .value_sets import TERNARY, as_values

Array = npt.NDArray[Any]
Order = Literal["cyclic", "random", "greedy"]

_ORACLE_LIMIT = 10


def search_coordinates(
    objective: Callable[[Array], float],
    start: npt.ArrayLike,
    values: npt.ArrayLike = TERNARY,
    *,
    order: Order = "random",
    pairs: bool = False,
    kicks: int = 0,
    kick_fraction: float = 0.1,
    threshold: float = 0.0,
    max_iter: int = 100,
    random_state: int = 0,
    on_limit: OnLimit = "warn",
) -> Result:
    """Descend ``objective`` by changing one entry (or two) at a time, with restarts from perturbed points.

    Parameters
    ----------
    objective : callable
        Maps a float64 vector (d,) to a finite number.
    start : array-like of shape (d,)
        Elements of the value set.
    values : array-like of shape (m,)
        The finite set.
    order : {"cyclic", "random", "greedy"}
        Coordinates in order or freshly permuted, each taking its best value; or the best of all changes at
        a time.
    pairs : bool
        When no single change helps, try all changes of two entries.
    kicks : int
        Restarts from the best point with a random share of entries redrawn.
    kick_fraction : float
        That share.
    threshold : float
        A change is accepted if it lowers the objective by more than this.
    max_iter : int
        Largest number of sweeps of each descent.
    random_state : int
        Seed of orders and kicks.
    on_limit : {"warn", "raise", "ignore"}
        What to do when ``max_iter`` ends the last descent.

    Returns
    -------
    Result
        ``x`` (d,), status ``local_optimum`` or ``max_iter``; ``info["moves"]`` is ``"single"`` or ``"pair"``;
        ``history`` holds the objective after every accepted change of the best descent.

    Raises
    ------
    ValueError
        If the value set is bad, ``start`` is not made of its elements, or a setting is out of range.

    Notes
    -----
    A sweep evaluates the objective O(d m) times, a sweep of pairs O(d^2 m^2) times, m values.
    """
    begin = time.perf_counter()
    allowed, t = as_values(values), as_finite("start", start, ndim=1).astype(np.float64)
    if not np.isin(t, allowed).all():
        raise ValueError("start must be made of elements of values")
    if order not in ("cyclic", "random", "greedy"):
        raise ValueError(f"order must be 'cyclic', 'random' or 'greedy', got {order!r}")
    as_count("max_iter", max_iter)
    as_count("kicks", kicks, low=0)
    rng = np.random.default_rng(random_state)
    gain = as_scalar("threshold", threshold, low=0.0)
    descent = _Descent(objective, allowed, order, pairs, gain, max_iter, rng)
    best = descent.run(t)
    for _ in range(kicks):
        kicked = np.where(rng.random(t.size) < kick_fraction, rng.choice(allowed, t.size), best.x)
        other = descent.run(kicked)
        best = other if other.objective < best.objective else best
    finished = best.status is Status.LOCAL_OPTIMUM
    message = "" if finished else "changes were still found in the last sweep: increase max_iter"
    return conclude(
        Result(
            best.x,
            best.objective,
            best.status,
            best.n_iter,
            time.perf_counter() - begin,
            history=best.history,
            message=message,
            info={"moves": "pair" if pairs else "single"},
        ),
        on_limit,
    )


def brute_force(objective: Callable[[Array], float], d: int, values: npt.ArrayLike = TERNARY) -> Result:
    """Global minimum over all ``m^d`` points, for ``d <= 10``: the oracle of the searches.

    Parameters
    ----------
    objective : callable
        Maps a float64 vector (d,) to a number.
    d : int
        Number of coordinates.
    values : array-like of shape (m,)
        The finite set.

    Returns
    -------
    Result
        ``x`` (d,), status ``optimal``; ``m^d`` evaluations.

    Raises
    ------
    ValueError
        If ``d`` exceeds 10.
    """
    begin = time.perf_counter()
    allowed = as_values(values)
    if as_count("d", d) > _ORACLE_LIMIT:
        raise ValueError(f"brute force is limited to {_ORACLE_LIMIT} coordinates, got {d}")
    points = (np.array(point) for point in itertools.product(allowed, repeat=d))
    best, x = min(((objective(point), tuple(point)) for point in points), key=lambda pair: pair[0])
    return Result(np.array(x), float(best), Status.OPTIMAL, time=time.perf_counter() - begin, gap=0.0)


class _Descent:
    """One descent from a start; settings are shared by restarts."""

    def __init__(
        self,
        objective: Callable[[Array], float],
        values: Array,
        order: Order,
        pairs: bool,
        threshold: float,
        max_iter: int,
        rng: np.random.Generator,
    ) -> None:
        self.objective, self.values, self.order, self.pairs = objective, values, order, pairs
        self.threshold, self.max_iter, self.rng = threshold, max_iter, rng

    def run(self, start: Array) -> Result:
        t, loss = start.copy(), float(self.objective(start))
        history = [{"iteration": 0, "objective": loss}]
        for sweep in range(1, self.max_iter + 1):
            changed = False
            for changes in self._neighbourhoods(t.size):
                after, move = self._best(t, changes)
                if after < loss - self.threshold:
                    for j, value in move:
                        t[j] = value
                    loss, changed = after, True
                    history.append({"iteration": sweep, "objective": loss})
            if not changed:
                return Result(t, loss, Status.LOCAL_OPTIMUM, sweep, history=tuple(history))
        return Result(t, loss, Status.MAX_ITER, self.max_iter, history=tuple(history))

    def _neighbourhoods(self, d: int) -> Iterator[list[tuple[int, ...]]]:
        """Groups of coordinate sets; the best change within a group is a candidate."""
        order = self.rng.permutation(d) if self.order == "random" else np.arange(d)
        singles: list[tuple[int, ...]] = [(int(j),) for j in order]
        doubles: list[tuple[int, ...]] = (
            list(itertools.combinations(map(int, order), 2)) if self.pairs else []
        )
        if self.order == "greedy":
            yield singles + doubles
        else:
            yield from ([move] for move in singles + doubles)

    def _best(self, t: Array, groups: list[tuple[int, ...]]) -> tuple[float, list[tuple[int, float]]]:
        best, move = np.inf, []
        trial = t.copy()
        for group in groups:
            for pattern in itertools.product(self.values, repeat=len(group)):
                trial[list(group)] = pattern
                loss = float(self.objective(trial))
                if loss < best:
                    best, move = loss, list(zip(group, pattern, strict=True))
            trial[list(group)] = t[list(group)]
        return best, move
