"""Estimators that take a stream of chunks in place of arrays: to predict, to score, and to fit what fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from liftopt.chunks import ChunkRows
from liftopt.solvers.moments import Moments
from liftopt.streams import Stream, as_stream

Array = npt.NDArray[Any]


class StreamEstimator(BaseEstimator):
    """What classifiers and regressors share; their own functions of rows are pure and travel to workers."""

    def _loaded(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Arrays as they are; the rows of a stream, if its memory limit allows."""
        rows = as_stream(X, y, sample_weight)
        if rows is None:
            return X, y, sample_weight
        rows.require_target(f"{type(self).__name__}.fit")
        return rows.load_for(type(self).__name__)

    def _set_features(self, rows: Stream) -> None:
        """What scikit-learn remembers of the features."""
        self.n_features_in_ = rows.n_features
        self.__dict__.pop("feature_names_in_", None)
        if rows.feature_names is not None:
            self.feature_names_in_ = np.array(rows.feature_names, dtype=object)

    def _by_rows(self, X: Any, function: Callable[[Array], Array]) -> Array:
        """``function`` of checked rows, chunk by chunk for a stream."""
        check_is_fitted(self)
        rows = as_stream(X)
        if rows is None:
            return function(validate_data(self, X, dtype=(np.float64, np.float32), reset=False))
        self._check_features(rows)
        return np.concatenate(list(rows.map(partial(_of_chunk, function))))

    def _score_stream(self, rows: Stream, judge: Callable[[ChunkRows], Moments]) -> Moments:
        """Merged statistics of the predictions for every chunk."""
        check_is_fitted(self)
        rows.require_target(f"{type(self).__name__}.score")
        self._check_features(rows)
        return rows.reduce(judge, Moments.__add__)

    def _check_features(self, rows: Stream) -> None:
        """Refuse a stream of other features than those of ``fit``."""
        name = type(self).__name__
        if rows.n_features != self.n_features_in_:
            raise ValueError(
                f"X has {rows.n_features} features, but {name} is expecting {self.n_features_in_} features"
            )
        known = getattr(self, "feature_names_in_", None)
        if known is not None and rows.feature_names is not None and tuple(known) != rows.feature_names:
            raise ValueError(f"{name} was fitted to columns of other names, or in another order")


def _of_chunk(function: Callable[[Array], Array], rows: ChunkRows) -> Array:
    return function(np.asarray(rows.X))
