"""The one table of methods: name -> estimators, used by ``init=``, ``compare`` and the command line.

Names joined by ``+`` are a recipe: methods in a row, each started from the network of the one before.
"""

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
    "hinging": Method("liftopt.hinging", "HingingHyperplaneClassifier", "HingingHyperplaneRegressor"),
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


def method_names(spec: str) -> list[str]:
    """Names of the methods of ``spec``, a method's name or a recipe ``first+second+...``.

    Raises
    ------
    ValueError
        If there is no such method; the message lists the names.
    """
    names = [name.strip() for name in spec.split("+")]
    for name in names:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    return names


def make_estimator(
    spec: str, task: Task, *, common: Mapping[str, Any] | None = None, **parameters: Any
) -> Any:
    """Estimator of a method or a recipe for ``task``, unfitted.

    Parameters
    ----------
    spec : str
        A name of ``METHODS``, or several joined by ``+``: then a :class:`liftopt.recipe.Recipe`.
    task : {"classification", "regression"}
        Which of the method's two estimators.
    common : mapping, optional
        Parameters of which every method gets those that it knows.
    **parameters
        Parameters of the one method named.

    Raises
    ------
    ValueError
        If there is no such method (the message lists the names), or ``parameters`` are given to a recipe.
    """
    names = method_names(spec)
    if len(names) > 1:
        if parameters:
            raise ValueError(f"{', '.join(parameters)}: which method of {spec} is meant?")
        from liftopt.recipe import Recipe

        return Recipe([(name, make_estimator(name, task, common=common)) for name in names])
    method = METHODS[names[0]]
    kind = method.classifier if task == "classification" else method.regressor
    estimator = getattr(import_module(method.module), kind)(**(dict(method.parameters) | parameters))
    known = estimator.get_params()
    return estimator.set_params(**{name: value for name, value in (common or {}).items() if name in known})
