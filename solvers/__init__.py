"""Block solvers: arrays in, :class:`~liftopt.solvers.result.Result` out. They know nothing of networks."""

if __name__ != "liftopt.solvers":
    raise ImportError("use liftopt.solvers")

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from .affine import AffineMap
from .box_qp import natural_residual, solve_box_qp
from .coordinate import brute_force, search_coordinates
from .gram_search import search_gram
from .hinge_basis import Hinge, HingeBasis
from .hinging import HingingHyperplanes, fit_hinging_hyperplanes
from .knots import refine_knots
from .least_squares import solve_reduced_rank_ridge, solve_ridge, solve_ridge_moments
from .linear_system import SpdFactor, factor_spd
from .margin import solve_margin
from .margin_passes import Pull, add_pulls, pull_of_rows, solve_margin_passes
from .matching import solve_matching
from .moments import Moments, moments, moments_of_chunks, row_chunks, tree_reduce
from .network_search import DiscreteNetwork, search_network
from .pruning import PruningPath, prune_terms
from .result import Measure, Result, Run, SolverError, Status, iterate
from .ridge_path import RidgePath, ridge_path, ridge_path_moments, solve_ridge_folds, solve_ridge_path
from .row_sums import add_row_sums
from .simplex import solve_simplex_cross_entropy, solve_simplex_least_squares
from .softmax import solve_softmax_regression
from .softmax_passes import solve_softmax_passes
from .softmax_search import DiscreteAffine, SoftmaxSearch, search_softmax
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
from .unit_search import Features, Unit, improve_unit
from .value_sets import FiniteWeights, as_values, quantize

if _TYPE_CHECKING:
    from .hinge import select_hinges
    from .hinge_grid import HingeKnots, choose_hinge_knots
    from .hinge_passes import select_hinges_passes

# Solvers whose kernels numba compiles: imported on first use.
_COMPILED = {
    "HingeKnots": ".hinge_grid",
    "choose_hinge_knots": ".hinge_grid",
    "select_hinges": ".hinge",
    "select_hinges_passes": ".hinge_passes",
}

__all__ = [
    "Above",
    "AffineMap",
    "Hinge",
    "HingeBasis",
    "HingeKnots",
    "HingingHyperplanes",
    "Measure",
    "Moments",
    "PruningPath",
    "Pull",
    "Result",
    "RidgePath",
    "Run",
    "SolverError",
    "SpdFactor",
    "Status",
    "add_pulls",
    "add_row_sums",
    "choose_hinge_knots",
    "cross_entropy_above",
    "factor_spd",
    "fit_hinging_hyperplanes",
    "iterate",
    "matching_above",
    "moments",
    "moments_of_chunks",
    "natural_residual",
    "polar_factor",
    "prune_terms",
    "pull_of_rows",
    "refine_knots",
    "ridge_path",
    "ridge_path_moments",
    "row_chunks",
    "select_hinges",
    "select_hinges_passes",
    "solve_box_qp",
    "solve_margin",
    "solve_margin_passes",
    "solve_matching",
    "solve_procrustes",
    "solve_quadratic_targets",
    "solve_reduced_rank_ridge",
    "solve_ridge",
    "solve_ridge_folds",
    "solve_ridge_moments",
    "solve_ridge_path",
    "solve_simplex_cross_entropy",
    "solve_simplex_least_squares",
    "solve_simplex_weights",
    "solve_softmax_passes",
    "solve_softmax_regression",
    "solve_stiefel_linear",
    "solve_stiefel_quadratic",
    "solve_stiefel_svm",
    "solve_targets",
    "squares_above",
    "tree_reduce",
    "DiscreteAffine",
    "DiscreteNetwork",
    "Features",
    "FiniteWeights",
    "SoftmaxSearch",
    "Unit",
    "as_values",
    "brute_force",
    "improve_unit",
    "quantize",
    "search_coordinates",
    "search_gram",
    "search_network",
    "search_softmax",
]


def __getattr__(name: str) -> _Any:
    if name not in _COMPILED:
        raise AttributeError(f"module 'liftopt.solvers' has no attribute {name!r}")
    return getattr(_import_module(_COMPILED[name], __name__), name)
