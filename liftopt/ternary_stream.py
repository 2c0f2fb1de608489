"""Networks over a finite value set from rows that do not fit in memory.

The float start is a fit to the stream by its own method. Layerwise least squares takes its statistics from
all rows, one pass a layer: sums over chunks, which any executor makes with the same bits. The sweeps of the
full loss, which change one unit at a time, visit a sample that fits in memory; rows of it judge them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from liftopt.base import check_layer_sizes
from liftopt.chunks import ChunkRows
from liftopt.discrete_stages import Stage, discrete_regression, regression_rows, run_stage, split_stages
from liftopt.input_map import InputMap
from liftopt.methods import Task, make_estimator
from liftopt.network import Network
from liftopt.solvers.moments import Moments, moments_of_chunks
from liftopt.streams import Stream

Array = npt.NDArray[Any]

_SAMPLE_ROWS = 60_000
_SAMPLE_SHARE = 2  # of the memory limit
_COPIES, _PRODUCTS = 2, 10  # of sampled rows, and of their activations, that exist at a time
_LEAST_SAMPLE = 1000  # rows
_BLOCK_ROWS = 4096  # of which activations exist at a time


def sample_size(estimator: Any, rows: Stream) -> int:
    """Rows that the sweeps visit, as the memory limit allows."""
    width = _COPIES * rows.n_features + _PRODUCTS * sum(check_layer_sizes(estimator.hidden_layer_sizes))
    allowed = rows.memory_limit // _SAMPLE_SHARE // (rows.dtype.itemsize * width)
    return min(_SAMPLE_ROWS, max(_LEAST_SAMPLE, allowed))


def fitted_start(name: str, rows: Stream, task: Task, **parameters: Any) -> Network:
    """Float network of the method ``name``, fitted to the stream."""
    network: Network = make_estimator(name, task, common=parameters).fit(rows).network_
    return network


def quantise_streamed(
    network: Network, values: Array, rows: Stream, input_map: InputMap | None
) -> tuple[list[Any], list[Stage]]:
    """As :func:`~liftopt.discrete_stages.quantise_stages`, for a ``network`` on mapped rows of a stream."""
    lead, layers = split_stages(network)
    stages: list[Stage] = []
    for index, (layer, after) in enumerate(layers):
        before = [(*layers[i], stages[i]) for i in range(index)]
        task = _LayerTask(input_map, network.input_shape, lead, before, layer)
        statistics = rows.reduce(task.moments, Moments.__add__)
        stages.append(Stage(layer, after, *discrete_regression(statistics, values)))
    return lead, stages


class _LayerTask(NamedTuple):
    """Statistics of one layer: what its discrete inputs must give, on the float network's path."""

    input_map: InputMap | None
    shape: tuple[int, ...]
    lead: Sequence[Any]
    before: Sequence[tuple[Any, Any, Stage]]
    layer: Any

    def moments(self, rows: ChunkRows) -> Moments:
        """Of the rows of a chunk."""
        return moments_of_chunks(self._regressions(rows))

    def _regressions(self, rows: ChunkRows) -> Iterator[tuple[Array, ...]]:
        for start in range(0, rows.X.shape[0], _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            X = rows.X[part]
            exact = X if self.input_map is None else self.input_map.transform(X)
            exact = exact.reshape(-1, *self.shape)
            for step in self.lead:
                exact = step(exact)
            discrete = exact
            for layer, after, stage in self.before:
                exact, discrete = run_stage(layer, after, exact), stage(discrete)
            weight = None if rows.weight is None else np.asarray(rows.weight)[part]
            yield from regression_rows(self.layer, exact, discrete, weight)
