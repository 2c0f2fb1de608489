"""Block solvers: arrays in, :class:`~liftopt.solvers.result.Result` out. They know nothing of networks."""

if __name__ != "liftopt.solvers":
    raise ImportError("use liftopt.solvers")

from .affine import AffineMap
from .box_qp import natural_residual, solve_box_qp
from .least_squares import solve_reduced_rank_ridge, solve_ridge, solve_ridge_moments
from .linear_system import SpdFactor, factor_spd
from .margin import solve_margin
from .matching import solve_matching
from .moments import Moments, moments, moments_of_chunks, row_chunks, tree_reduce
from .result import Measure, Result, Run, SolverError, Status, iterate
from .ridge_path import RidgePath, ridge_path, ridge_path_moments, solve_ridge_folds, solve_ridge_path
from .softmax import solve_softmax_regression
from .stiefel import polar_factor, solve_procrustes, solve_stiefel_linear
from .stiefel_quadratic import solve_stiefel_quadratic
from .stiefel_svm import solve_simplex_weights, solve_stiefel_svm
from .targets import (
    Above,
    cross_entropy_above,
    matching_above,
    solve_quadratic_targets,
    solve_targets,
    squares_above,
)

__all__ = [
    "Above",
    "AffineMap",
    "Measure",
    "Moments",
    "Result",
    "RidgePath",
    "Run",
    "SolverError",
    "SpdFactor",
    "Status",
    "cross_entropy_above",
    "factor_spd",
    "iterate",
    "matching_above",
    "moments",
    "moments_of_chunks",
    "natural_residual",
    "polar_factor",
    "ridge_path",
    "ridge_path_moments",
    "row_chunks",
    "solve_box_qp",
    "solve_margin",
    "solve_matching",
    "solve_procrustes",
    "solve_quadratic_targets",
    "solve_reduced_rank_ridge",
    "solve_ridge",
    "solve_ridge_folds",
    "solve_ridge_moments",
    "solve_ridge_path",
    "solve_simplex_weights",
    "solve_softmax_regression",
    "solve_stiefel_linear",
    "solve_stiefel_quadratic",
    "solve_stiefel_svm",
    "solve_targets",
    "squares_above",
    "tree_reduce",
]
