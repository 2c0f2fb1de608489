"""The one table of methods: name -> estimators, used by ``init=``, ``compare`` and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, NamedTuple

Task = Literal["classification", "regression"]


class Method(NamedTuple):
    """Where a method's estimators live, and what sets them up as the method of that name."""

    module: str
    classifier: str
    regressor: str
    parameters: Mapping[str, Any] = {}


METHODS: Mapping[str, Method] = {
    "spline": Method("liftopt.spline", "SplineClassifier", "SplineRegressor"),
    "manifold": Method("liftopt.manifold", "ManifoldClassifier", "ManifoldRegressor"),
    "manifold_paper": Method(
        "liftopt.manifold",
        "ManifoldClassifier",
        "ManifoldRegressor",
        {"activation": "sigmoid", "backward": "low_rank", "input_map": None},
    ),
    "ternary": Method("liftopt.ternary", "TernaryClassifier", "TernaryRegressor"),
    "fenchel": Method("liftopt.fenchel", "FenchelClassifier", "FenchelRegressor"),
    "refine": Method(
        "liftopt.baseline",
        "BackpropClassifier",
        "BackpropRegressor",
        {
            "init": "manifold",
            "input_map": "pca",
            "learning_rate_init": 1e-3,
            "max_iter": 20,
            "early_stopping": "auto",
            "sampling": "walk",
        },
    ),
    "adam": Method("liftopt.baseline", "BackpropClassifier", "BackpropRegressor", {"optimizer": "adam"}),
}


def make_estimator(name: str, task: Task, **parameters: Any) -> Any:
    """Estimator of the method ``name`` for ``task``, unfitted.

    Raises
    ------
    ValueError
        If there is no such method; the message lists the names.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    method = METHODS[name]
    kind = method.classifier if task == "classification" else method.regressor
    return getattr(import_module(method.module), kind)(**(dict(method.parameters) | parameters))
