"""Methods in a row: each starts from the network that the one before has trained.

A good start is worth more than a long run from a bad one: the closed forms of one method find in seconds what
another then improves, and gradients refine what blocks have built.

Rows that a method holds out to judge itself must be new to its start too. So every method but the first holds
out rows (a tenth, at most 5,000) that none of the methods before it is given.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _num_samples, check_is_fitted

from liftopt.base import MOST_HELD, TrainingData, holding_out, holdout_split
from liftopt.network import Network
from liftopt.recording import interruptions
from liftopt.solvers.result import Record
from liftopt.streams import Stream as DataStream

Array = npt.NDArray[Any]

_HELD_OUT = 0.1


class Stage(NamedTuple):
    """One fitted method of a recipe.

    Attributes
    ----------
    name : str
        Name of the method.
    estimator : object
        Fitted.
    wall, cpu : float
        Seconds since the recipe began.
    """

    name: str
    estimator: Any
    wall: float
    cpu: float


class Recipe(BaseEstimator):
    """Several methods as one estimator, as ``liftopt fit --method manifold+fenchel`` runs them.

    The last method has all rows, the one before it those that the last one does not hold out, and so on.

    Parameters
    ----------
    methods : sequence of (str, estimator)
        Names and estimators in order; all but the first take ``init``.

    Attributes
    ----------
    stages_ : tuple of Stage
        The fitted methods.
    network_ : Network
        That of the last one.
    history_ : list of dict
        Records of all of them, with ``stage``; ``time`` and ``cpu`` count on.
    n_iter_ : int
        Sum of their iterations.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from liftopt.methods import make_estimator
    >>> X, y = load_iris(return_X_y=True)
    >>> common = {"hidden_layer_sizes": (16,), "random_state": 0}
    >>> recipe = make_estimator("manifold+fenchel", "classification", common=common).fit(X, y)
    >>> [stage.name for stage in recipe.stages_]
    ['manifold', 'fenchel']
    """

    stages_: tuple[Stage, ...]
    history_: list[Record]

    def __init__(self, methods: Sequence[tuple[str, Any]]) -> None:
        self.methods = methods

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Recipe:
        """Fit the methods one after the other; after Ctrl-C those that are left are left out.

        Raises
        ------
        ValueError
            If a method cannot start from the network of the one before, or the data cannot be used.
        """
        for name, estimator in self.methods[1:]:
            if "init" not in estimator.get_params():
                raise ValueError(f"{name} does not start from a network: it can only come first in a recipe")
        self.stages_, self.history_ = (), []
        wall, cpu = time.perf_counter(), time.process_time()
        splits = self._splits(X, y, sample_weight)
        with interruptions() as interruption:
            for index, ((name, estimator), (rows, held)) in enumerate(zip(self.methods, splits, strict=True)):
                fitted = clone(estimator)
                if index:
                    fitted.set_params(init=self.network_)
                weight = None if sample_weight is None else _safe_indexing(sample_weight, rows)
                with holding_out(held):
                    fitted.fit(_safe_indexing(X, rows), _safe_indexing(y, rows), sample_weight=weight)
                self._append(Stage(name, fitted, time.perf_counter() - wall, time.process_time() - cpu))
                if interruption.requested:
                    break
        return self

    def _splits(self, X: Any, y: Any, sample_weight: Any) -> list[tuple[Array, Array | None]]:
        """Rows of every method, and which of these it holds out (None: as it likes), in order.

        With rows of zero weight, which methods drop before they split, every method has all rows.
        """
        if isinstance(X, DataStream):
            raise ValueError("a recipe needs rows in memory: stream into its methods one by one, with init=")
        rows = np.arange(_num_samples(X))
        if sample_weight is not None and not np.all(sample_weight):
            return [(rows, None)] * len(self.methods)
        codes = np.unique(y, return_inverse=True)[1] if is_classifier(self.methods[-1][1]) else None
        found: list[tuple[Array, Array | None]] = []
        for _, estimator in reversed(self.methods[1:]):
            part = TrainingData(rows[:, None], rows[:, None], None if codes is None else codes[rows], None)
            random_state = check_random_state(estimator.get_params().get("random_state"))
            train, held = holdout_split(part, min(_HELD_OUT, MOST_HELD / rows.size), random_state)
            found.append((rows, held if held.size else None))
            rows = rows[train]
        return [(rows, None), *reversed(found)]

    def _append(self, stage: Stage) -> None:
        """Take up a fitted stage and its records."""
        wall, cpu = self.stages_[-1][2:] if self.stages_ else (0.0, 0.0)
        for record in getattr(stage.estimator, "history_", ()):
            since = {"time": wall + record["time"], "cpu": cpu + record["cpu"]}
            self.history_.append({**record, **since, "iteration": len(self.history_), "stage": stage.name})
        self.stages_ = (*self.stages_, stage)

    @property
    def network_(self) -> Network:
        """Network of the last stage."""
        network: Network = self._last.network_
        return network

    @property
    def n_iter_(self) -> int:
        """Iterations of all stages."""
        return sum(getattr(stage.estimator, "n_iter_", 1) for stage in self.stages_)

    def predict(self, X: Any) -> Array:
        """Predictions of the last stage."""
        predictions: Array = self._last.predict(X)
        return predictions

    def score(self, X: Any, y: Any) -> float:
        """Accuracy or R2 of the last stage."""
        return float(self._last.score(X, y))

    @property
    def _last(self) -> Any:
        check_is_fitted(self, "stages_")
        return self.stages_[-1].estimator
