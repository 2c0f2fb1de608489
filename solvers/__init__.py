"""Block solvers: arrays in, :class:`~liftopt.solvers.result.Result` out. They know nothing of networks."""

if __name__ != "liftopt.solvers":
    raise ImportError("use liftopt.solvers")

from .result import Measure, Result, Run, SolverError, Status, iterate
from .softmax import AffineMap, solve_softmax_regression

__all__ = [
    "AffineMap",
    "Measure",
    "Result",
    "Run",
    "SolverError",
    "Status",
    "iterate",
    "solve_softmax_regression",
]
