"""What every block solver returns, and the one loop that every iterative solver runs in.

A block solver minimises one mathematical sub-problem: arrays in, :class:`Result` out. Iterative solvers
supply a ``step`` (state to state) and a ``measure`` (state to objective and residuals); :func:`iterate`
owns the loop, the budgets, the finiteness check, the history and the reason for stopping. Residuals are
always those of the state that is returned, never of an earlier iterate.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

import numpy as np

State = TypeVar("State")
OnLimit = Literal["warn", "raise", "ignore"]
Record = Mapping[str, Any]
Callback = Callable[[Record], bool | None]


class Status(StrEnum):
    """Why a solver stopped. The set is closed; heuristics never say ``optimal``.

    Attributes
    ----------
    OPTIMAL
        The residuals meet ``tol``, and prove a global optimum.
    LOCAL_OPTIMUM
        A stationary point, or no change of the stated kind helps.
    EXHAUSTED
        A greedy search came to its end.
    MAX_ITER, TIME_LIMIT, STALLED
        A budget ended, or progress did: the point is usable, a residual may exceed ``tol``.
    INTERRUPTED
        The callback asked for it.
    DIVERGED, NONFINITE, INFEASIBLE, UNBOUNDED, SOLVER_ERROR
        Failures: the point must not be used.
    """

    OPTIMAL = "optimal"
    LOCAL_OPTIMUM = "local_optimum"
    EXHAUSTED = "exhausted"
    MAX_ITER = "max_iter"
    TIME_LIMIT = "time_limit"
    STALLED = "stalled"
    INTERRUPTED = "interrupted"
    DIVERGED = "diverged"
    NONFINITE = "nonfinite"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    SOLVER_ERROR = "solver_error"

    @property
    def is_failure(self) -> bool:
        """Whether the returned point must not be used."""
        return self in _FAILURES

    @property
    def is_limit(self) -> bool:
        """Whether a budget ended the run: the point is usable, its residual may exceed ``tol``."""
        return self in _ADVICE

    @property
    def advice(self) -> str:
        """What to change after a limit, else empty."""
        return _ADVICE.get(self, "")


_FAILURES = frozenset(
    {Status.DIVERGED, Status.NONFINITE, Status.INFEASIBLE, Status.UNBOUNDED, Status.SOLVER_ERROR}
)
_ADVICE = {
    Status.MAX_ITER: "increase max_iter or loosen tol",
    Status.TIME_LIMIT: "increase time_limit or loosen tol",
    Status.STALLED: "tol is below what the arithmetic can resolve: loosen it or use float64",
}


@dataclass(frozen=True)
class Measure:
    """Objective and residuals of one state.

    Attributes
    ----------
    objective : float
        Its value; one that is not finite ends the run.
    residuals : mapping of str to float
        The largest is compared with ``tol``.
    info : mapping
        Joins the history record.
    """

    objective: float
    residuals: Mapping[str, float] = field(default_factory=dict)
    info: Record = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """Largest residual (``inf`` when none is stated, so that ``tol`` is never met by accident)."""
        return max(self.residuals.values(), default=np.inf)

    @property
    def is_usable(self) -> bool:
        """Whether the objective is finite and no residual is NaN."""
        return bool(np.isfinite(self.objective)) and not any(map(np.isnan, self.residuals.values()))


@dataclass(frozen=True)
class Result:
    """Outcome of a block solver.

    Attributes
    ----------
    x : object
        The solution: an array, or a small named tuple of arrays.
    objective : float
        Objective value at ``x``.
    status : Status
        Why the solver stopped.
    n_iter : int
        Iterations used; 0 for closed forms.
    time : float
        Wall-clock seconds.
    residuals : mapping of str to float
        Optimality and feasibility residuals, computed at ``x``: distances, never negative.
    gap : float or None
        Certified upper bound on the distance of ``objective`` from the optimum, where one is known.
    history : tuple of mapping
        One record per measured iteration: ``iteration``, ``time``, ``objective``, residuals, extras.
    message : str
        What happened, and what to change if it did not converge.
    info : mapping
        Solver-specific by-products (multipliers, ranks, jitter, ...), named in the solver's docstring.
    """

    x: Any
    objective: float
    status: Status
    n_iter: int = 0
    time: float = 0.0
    residuals: Mapping[str, float] = field(default_factory=dict)
    gap: float | None = None
    history: tuple[Record, ...] = ()
    message: str = ""
    info: Record = field(default_factory=dict)

    def __post_init__(self) -> None:
        if negative := [name for name, value in self.residuals.items() if value < 0.0]:
            raise ValueError(f"a residual is a distance, but {', '.join(negative)} is negative")

    @property
    def success(self) -> bool:
        """Whether the point meets what the solver promises (a budget that ran out does not)."""
        return self.status in (Status.OPTIMAL, Status.LOCAL_OPTIMUM, Status.EXHAUSTED)


class SolverError(RuntimeError):
    """A block could not be solved.

    Parameters
    ----------
    result : Result
        What was reached; kept as the attribute ``result``.
    """

    def __init__(self, result: Result) -> None:
        super().__init__(f"{result.status}: {result.message}")
        self.result = result


def conclude(result: Result, on_limit: OnLimit = "warn") -> Result:
    """Return ``result``, or speak up: failures raise, exhausted budgets follow ``on_limit``.

    Parameters
    ----------
    result : Result
        What the solver is about to return.
    on_limit : {"warn", "raise", "ignore"}
        What to do when ``max_iter`` or ``time_limit`` ended the run or progress stalled above ``tol``.
        ``"ignore"`` is for callers that look at ``result.status`` themselves.

    Raises
    ------
    SolverError
        If the status is a failure, or a limit with ``on_limit="raise"``.
    """
    if on_limit not in ("warn", "raise", "ignore"):
        raise ValueError(f"on_limit must be 'warn', 'raise' or 'ignore', got {on_limit!r}")
    if result.status.is_failure or (result.status.is_limit and on_limit == "raise"):
        raise SolverError(result)
    if result.status.is_limit and on_limit == "warn":
        from sklearn.exceptions import ConvergenceWarning  # here, since scikit-learn takes long to import

        warnings.warn(f"{result.status}: {result.message}", ConvergenceWarning, stacklevel=3)
    return result


@dataclass(frozen=True)
class Run(Generic[State]):
    """What :func:`iterate` returns.

    Attributes
    ----------
    state : object
        The last state whose objective was finite.
    measure : Measure
        Of that state.
    status : Status
        The reason for stopping.
    n_iter : int
        Steps taken to ``state``.
    time : float
        Wall-clock seconds.
    history : tuple of mapping
        One record a measure.
    """

    state: State
    measure: Measure
    status: Status
    n_iter: int
    time: float
    history: tuple[Record, ...]

    @property
    def message(self) -> str:
        """One sentence on the reason for stopping, with the advice that belongs to it."""
        advice = self.status.advice
        reached = f"largest residual {self.measure.worst:.2e} after {self.n_iter} iterations"
        return f"{reached}; {advice}" if advice else reached

    def result(self, x: Any, **changes: Any) -> Result:
        """Wrap the run as a :class:`Result` for solution ``x``, with ``changes`` of its fields."""
        fields: dict[str, Any] = {
            "objective": self.measure.objective,
            "status": self.status,
            "n_iter": self.n_iter,
            "time": self.time,
            "residuals": dict(self.measure.residuals),
            "history": self.history,
            "message": self.message,
        }
        return Result(x, **(fields | changes))


def iterate(
    step: Callable[[State], State],
    state: State,
    *,
    measure: Callable[[State], Measure],
    max_iter: int,
    tol: float = 0.0,
    time_limit: float = np.inf,
    check_every: int = 1,
    stall_after: int | None = None,
    stall_rtol: float = 0.0,
    callback: Callback | None = None,
    past: Sequence[Record] = (),
) -> Run[State]:
    """Run ``step`` until the largest residual is at most ``tol`` or a budget ends.

    Parameters
    ----------
    step : callable
        Maps a state to the next one and leaves its argument usable.
    state : object
        The start; it is measured too, so that a solved problem costs no step.
    measure : callable
        Maps a state to its :class:`Measure`.
    max_iter : int
        Largest number of steps.
    tol : float
        Compared with the largest residual of the measure.
    time_limit : float
        Wall-clock seconds, looked at after every measured step.
    check_every : int
        Steps between two measures (the last step is always measured).
    stall_after : int, optional
        Stop with ``stalled`` after this many measures in a row that did not improve the best objective.
    stall_rtol : float
        Relative improvement of the best objective that counts as progress.
    callback : callable, optional
        Called with each history record; a true return value stops the run.
    past : sequence of mapping
        Records of a run (with ``check_every=1``) that goes on from ``state``, whose own record is not among
        them.

    Returns
    -------
    Run
        The last state whose objective was finite; never an unmeasured one.
    """
    start = time.perf_counter()
    history: list[Record] = list(past)
    stalled = _Stall(stall_after, stall_rtol)
    for record in past:
        stalled.at(record["objective"])
    seen, n_iter = measure(state), len(past)
    while True:
        elapsed = time.perf_counter() - start
        record = {"iteration": n_iter, "time": elapsed, "objective": seen.objective}
        history.append({**record, **seen.residuals, **seen.info})
        asked_to_stop = callback is not None and bool(callback(history[-1]))
        reasons = {
            Status.NONFINITE: not seen.is_usable,
            Status.OPTIMAL: seen.worst <= tol,
            Status.INTERRUPTED: asked_to_stop,
            Status.STALLED: stalled.at(seen.objective),
            Status.MAX_ITER: n_iter >= max_iter,
            Status.TIME_LIMIT: elapsed >= time_limit,
        }
        status = next((status for status, holds in reasons.items() if holds), None)
        if status is not None:
            return Run(state, seen, status, n_iter, elapsed, tuple(history))
        following, burst = state, min(check_every, max_iter - n_iter)
        for _ in range(burst):
            following = step(following)
        n_iter += burst
        measured = measure(following)
        if not measured.is_usable:
            elapsed = time.perf_counter() - start
            return Run(state, seen, Status.NONFINITE, n_iter, elapsed, tuple(history))
        state, seen = following, measured


class _Stall:
    """Counts measures in a row that did not improve the best objective by ``rtol`` relative."""

    def __init__(self, after: int | None, rtol: float) -> None:
        self._after, self._rtol = after, rtol
        self._best, self._idle = np.inf, 0

    def at(self, objective: float) -> bool:
        threshold = self._best - self._rtol * abs(self._best) if np.isfinite(self._best) else np.inf
        self._idle = 0 if objective < threshold else self._idle + 1
        self._best = min(self._best, objective)
        return self._after is not None and self._idle >= self._after
