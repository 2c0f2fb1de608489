"""Fenchel networks in monotone mode from rows that do not fit in memory.

A sample of the stream fixes the maps of inputs and targets, the start, the held-out rows and the first
sweeps. Then all rows take over, in parts on disk (:mod:`liftopt.lifted_store`): the sweeps are sums over the
parts, made by the stream's executor with the same bits anywhere.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from liftopt.base import TrainingData
from liftopt.chunks import ChunkRows
from liftopt.continuation import SAMPLE_ROWS
from liftopt.input_map import InputMap
from liftopt.lifted_store import RowStore
from liftopt.preparation import mapped
from liftopt.recording import Recorder
from liftopt.scratch import scratch_folder
from liftopt.streams import Stream

Array = npt.NDArray[Any]

_SAMPLE_SHARE = 2  # of the memory limit
_COPIES, _PRODUCTS = 2, 10  # of sampled rows, and of their activations, that exist at a time
_LEAST_SAMPLE = 1000  # rows


def fit_parts(estimator: Any, rows: Stream, *, classify: bool) -> None:
    """Fit a Fenchel estimator in monotone mode to the chunks of a stream.

    Raises
    ------
    ValueError
        If the data cannot be used.
    """
    rows.require_target(f"{type(estimator).__name__}.fit")
    recorder = Recorder.of(estimator, *rows.identity())
    random_state = recorder.random_state()
    reader = clone(estimator).set_params(callback=None, init=None, random_state=None, checkpoint=None)
    if classify:
        labels, counts = rows.reduce(counted_labels, merged_counts, checks_rows=True)
        estimator.classes_ = reader.classes_ = estimator._classes_of(labels)
        if isinstance(reader.class_weight, str):
            reader.class_weight = dict(zip(labels, counts.sum() / (counts.size * counts), strict=True))
    index = rows.sample_index(_sample_size(estimator, rows), random_state.randint(2**31))
    X, y, weight = rows.take(index)
    sample = reader._class_weighted(estimator._training_data(X, np.asarray(y), weight))
    if sample.weight is not None:
        index, sample = index[sample.weight > 0], sample.rows(np.flatnonzero(sample.weight > 0))
    with scratch_folder(recorder, estimator.checkpoint) as folder:

        def store(*frame: Any) -> RowStore:
            return RowStore(rows, partial(_prepared, reader, *frame), index, folder)

        estimator._fit_framed(sample, recorder, random_state, store)
        estimator._set_features(rows)


def counted_labels(rows: ChunkRows) -> tuple[Array, Array]:
    """Different labels of a chunk, and how often each occurs."""
    return np.unique(np.asarray(rows.y), return_counts=True)


def merged_counts(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Labels and counts of two sets of rows."""
    labels, place = np.unique(np.concatenate([first[0], second[0]]), return_inverse=True)
    return labels, np.bincount(place, np.concatenate([first[1], second[1]])).astype(int)


def _sample_size(estimator: Any, rows: Stream) -> int:
    """Rows that settle the ridge and the first sweeps, as the memory limit allows."""
    width = _COPIES * rows.n_features + _PRODUCTS * int(np.sum(estimator.hidden_layer_sizes))
    allowed = rows.memory_limit // _SAMPLE_SHARE // (rows.dtype.itemsize * width)
    return min(SAMPLE_ROWS, max(_LEAST_SAMPLE, allowed))


def _prepared(
    reader: Any, input_map: InputMap | None, centre: Array, scale: Array, rows: ChunkRows
) -> TrainingData:
    """Mapped training data of a chunk."""
    data = reader._training_data(np.asarray(rows.X), np.asarray(rows.y), rows.weight)
    return mapped(reader._class_weighted(data), input_map, centre, scale)
