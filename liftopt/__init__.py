"""liftopt: neural networks trained as structured optimisation problems."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

__version__ = _version("liftopt")

if TYPE_CHECKING:
    from liftopt.activations import ACTIVATIONS, Activation, get_activation
    from liftopt.baseline import BackpropClassifier, BackpropRegressor
    from liftopt.fenchel import FenchelClassifier, FenchelRegressor
    from liftopt.hinging import HingingHyperplaneClassifier, HingingHyperplaneRegressor
    from liftopt.layers import AvgPool2d, Conv2d, Dense, Flatten, Normalize
    from liftopt.manifold import ManifoldClassifier, ManifoldRegressor
    from liftopt.network import ModelFileError, Network
    from liftopt.packing import FiniteArray
    from liftopt.refinement import refine
    from liftopt.sources import ChunkError
    from liftopt.spline import SplineClassifier, SplineRegressor
    from liftopt.streams import Stream, stream
    from liftopt.ternary import TernaryClassifier, TernaryRegressor
    from liftopt.threads import limit_threads
    from liftopt.weight_mixing import Mixture, mix_weights
    from liftopt.weight_sampling import PeriodicWeightSampler

# Public names and their modules: imported on first use, so that `import liftopt` stays light.
_EXPORTS = {
    "ACTIVATIONS": "liftopt.activations",
    "Activation": "liftopt.activations",
    "get_activation": "liftopt.activations",
    "AvgPool2d": "liftopt.layers",
    "BackpropClassifier": "liftopt.baseline",
    "BackpropRegressor": "liftopt.baseline",
    "Conv2d": "liftopt.layers",
    "Dense": "liftopt.layers",
    "FenchelClassifier": "liftopt.fenchel",
    "FenchelRegressor": "liftopt.fenchel",
    "Flatten": "liftopt.layers",
    "HingingHyperplaneClassifier": "liftopt.hinging",
    "HingingHyperplaneRegressor": "liftopt.hinging",
    "ManifoldClassifier": "liftopt.manifold",
    "ManifoldRegressor": "liftopt.manifold",
    "ModelFileError": "liftopt.network",
    "Network": "liftopt.network",
    "Mixture": "liftopt.weight_mixing",
    "PeriodicWeightSampler": "liftopt.weight_sampling",
    "Normalize": "liftopt.layers",
    "SplineClassifier": "liftopt.spline",
    "SplineRegressor": "liftopt.spline",
    "ChunkError": "liftopt.sources",
    "Stream": "liftopt.streams",
    "stream": "liftopt.streams",
    "FiniteArray": "liftopt.packing",
    "TernaryClassifier": "liftopt.ternary",
    "TernaryRegressor": "liftopt.ternary",
    "mix_weights": "liftopt.weight_mixing",
    "refine": "liftopt.refinement",
    "limit_threads": "liftopt.threads",
}

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "AvgPool2d",
    "BackpropClassifier",
    "BackpropRegressor",
    "ChunkError",
    "Conv2d",
    "Dense",
    "FiniteArray",
    "FenchelClassifier",
    "FenchelRegressor",
    "Flatten",
    "HingingHyperplaneClassifier",
    "HingingHyperplaneRegressor",
    "ManifoldClassifier",
    "ManifoldRegressor",
    "Mixture",
    "ModelFileError",
    "Network",
    "PeriodicWeightSampler",
    "Normalize",
    "SplineClassifier",
    "SplineRegressor",
    "Stream",
    "TernaryClassifier",
    "TernaryRegressor",
    "get_activation",
    "stream",
    "mix_weights",
    "refine",
    "limit_threads",
]


_MODULES = ("data", "solvers")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"liftopt.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'liftopt' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, *_MODULES])
