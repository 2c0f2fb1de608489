"""Training of networks over a finite value set: float start, layerwise least squares, full-loss search.

    minimise over T_l in C^(m_(l-1) x m_l), a_l, b_l:   sum_n w_n loss(z_n, y_n),   W_l = T_l diag(a_l)

The default pipeline: a float network by a fast method; layerwise discrete least squares with error correction
(:mod:`~liftopt.discrete_stages`); then sweeps of the full loss (:mod:`~liftopt.discrete_search`), scored
against the start's own softened predictions, until held-out rows no longer improve. ``algorithm="literal"``
is the published coordinate loop: weights and biases all in C, no scales, random starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special
from sklearn.utils import check_random_state

from liftopt.activations import ReLU, get_activation
from liftopt.base import (
    NetworkClassifier,
    TrainingData,
    check_layer_sizes,
    holdout_split,
    initial_network,
)
from liftopt.chunks import labels_of
from liftopt.discrete_loop import SearchLoop
from liftopt.discrete_search import Objective
from liftopt.discrete_stages import Stage, quantise_stages, random_stages, with_numbers
from liftopt.input_map import InputMap, standardise, unfold
from liftopt.layers import Dense
from liftopt.network import Network
from liftopt.packing import Packing
from liftopt.recording import Recorder, run_interruptible
from liftopt.repair import start_of_blocks
from liftopt.solvers.least_squares import solve_ridge
from liftopt.solvers.network_search import search_network
from liftopt.solvers.result import Callback, Record
from liftopt.solvers.softmax_search import softmax_origin
from liftopt.solvers.validation import as_count, as_scalar
from liftopt.solvers.value_sets import TERNARY, FiniteWeights, as_values
from liftopt.streams import Stream, as_stream
from liftopt.ternary_stream import fitted_start, quantise_streamed, sample_size

Array = npt.NDArray[Any]
Algorithm = Literal["layerwise", "literal"]
_Quantise = Callable[..., tuple[list[Any], list[Stage]]]

DEFAULT_START = "manifold"
_RANGE_RATIO = 4.0


class DiscreteTraining:
    """Parameters and fit of both estimators; see :class:`~liftopt.TernaryClassifier`."""

    network_: Network
    history_: list[Record]
    n_iter_: int
    _check_training_data: Callable[..., TrainingData]
    _training_data: Callable[..., TrainingData]
    _classes_of: Callable[[Array], Array]
    _set_features: Callable[[Stream], None]

    def __init__(
        self,
        *,
        hidden_layer_sizes: Sequence[int] = (100,),
        values: Sequence[float] = TERNARY,
        init: Network | str | None = None,
        warm_start: bool = False,
        algorithm: Algorithm = "layerwise",
        activation: str = "relu",
        input_map: Literal["auto", "standardise"] | None = "auto",
        temperature: float | None = 1.5,
        n_starts: int = 20,
        max_iter: int = 20,
        tol: float = 1e-6,
        validation_fraction: float = 0.1,
        packing: Packing = "bits",
        random_state: int | np.random.RandomState | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.values = values
        self.init = init
        self.warm_start = warm_start
        self.algorithm = algorithm
        self.activation = activation
        self.input_map = input_map
        self.temperature = temperature
        self.n_starts = n_starts
        self.max_iter = max_iter
        self.tol = tol
        self.validation_fraction = validation_fraction
        self.packing = packing
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.callback = callback
        self.verbose = verbose

    def _fit_any(self, X: Any, y: Any, sample_weight: Any) -> None:
        """Train on arrays, on a stream that fits in memory, or else on its statistics and a sample."""
        rows = as_stream(X, y, sample_weight)
        if rows is None or rows.fits_in_memory:
            self._fit(self._check_training_data(X, y, sample_weight))
        elif self.algorithm == "literal":
            rows.load_for(f"{type(self).__name__} with algorithm='literal'")
        elif isinstance(self.init, str) and self.init == "random":
            rows.load_for(f"{type(self).__name__} with init='random'")
        else:
            self._fit_stream(rows)

    def _fit_stream(self, rows: Stream) -> None:
        """Train on the chunks of a stream and set the fitted attributes."""
        values, tol = self._check_parameters()
        rows.require_target(f"{type(self).__name__}.fit")
        recorder = Recorder.of(self, *rows.identity())
        random_state = recorder.random_state()
        if isinstance(self, NetworkClassifier):
            self.classes_ = self._classes_of(rows.reduce(labels_of, np.union1d, checks_rows=True))
        index = rows.sample_index(sample_size(self, rows), random_state.randint(2**31))
        X, y, weight = rows.take(index)
        data = self._training_data(X, np.asarray(y), weight)
        if weight is not None:
            index, data = index[weight > 0], data.rows(np.flatnonzero(weight > 0))
        self._fit_layerwise(data, values, tol, random_state, recorder, rows, index)
        self._set_features(rows)
        recorder.close()

    def _fit(self, data: TrainingData) -> None:
        """Train on checked data and set the fitted attributes."""
        values, tol = self._check_parameters()
        recorder = Recorder.of(self, data.X, data.target, data.weight)
        random_state = recorder.random_state()
        if self.algorithm == "literal":
            self._fit_literal(data, values, tol, random_state, recorder)
        else:
            self._fit_layerwise(data, values, tol, random_state, recorder)
        recorder.close()

    def _check_parameters(self) -> tuple[Array, float]:
        """Checked value set and tolerance."""
        if self.algorithm not in ("layerwise", "literal"):
            raise ValueError(f"algorithm must be 'layerwise' or 'literal', got {self.algorithm!r}")
        as_count("max_iter", self.max_iter)
        return as_values(self.values), as_scalar("tol", self.tol, low=0.0)

    def _fit_layerwise(
        self,
        data: TrainingData,
        values: Array,
        tol: float,
        random_state: np.random.RandomState,
        recorder: Recorder,
        stream: Stream | None = None,
        index: Array | None = None,
    ) -> None:
        """Train on ``data``, which are the rows ``index`` of the ``stream`` if there is one."""
        seeds = random_state.randint(2**31, size=2)  # drawn first, so that they do not depend on the rows
        rows, held = holdout_split(data, self.validation_fraction, random_state)
        train, held_out = data.rows(random_state.permutation(rows)), data.rows(held)
        if stream is not None and index is not None:
            stream = stream.without(index[held])
        start = self._float_start(train, random_state, stream)
        input_map = self._map(train, start)
        if input_map is not None:
            train = train._replace(X=input_map.transform(train.X))
            if held.size:
                held_out = held_out._replace(X=input_map.transform(held_out.X))
            start = None if start is None else unfold(start, input_map)
        if start is not None:
            train = train._replace(X=train.X.reshape(-1, *start.input_shape))
            held_out = held_out._replace(X=held_out.X.reshape(-1, *start.input_shape))
        softness = self._softness(start, train)
        quantise: _Quantise = partial(quantise_stages, X=train.X, weight=train.weight)
        if stream is not None:
            quantise = partial(quantise_streamed, rows=stream, input_map=input_map)
        lead, stages = self._discrete_start(start, train, values, int(seeds[0]), softness, quantise)
        objective = self._objective(start, train, softness)
        loop = SearchLoop(lead, stages, train, held_out, objective, recorder, tol=tol, seed=int(seeds[1]))
        name = type(self).__name__
        run_interruptible(partial(loop.run, self.max_iter, name), name, recorder)
        self.n_iter_, best = loop.n_iter, loop.best.stages
        stages = [*best[:-1], _sharpened(best[-1], softness or 1.0)]
        self.network_ = _packed_network(lead, stages, self._input_shape(data), input_map, self.packing)

    def _float_start(
        self, train: TrainingData, random_state: np.random.RandomState, stream: Stream | None
    ) -> Network | None:
        """The float network, or None if the search starts without one; of the rows of a stream, if given."""
        hidden = check_layer_sizes(self.hidden_layer_sizes)
        init = self.network_ if self._continues() else self.init
        if stream is None and (init == "random" if isinstance(init, str) else init is None and not hidden):
            return None
        init = DEFAULT_START if init is None else init
        parameters = {"hidden_layer_sizes": hidden, "activation": self.activation}
        if stream is not None and isinstance(init, str):
            init = fitted_start(init, stream, train.task, random_state=random_state, **parameters)
        network = start_of_blocks(init, train, random_state, **(parameters if isinstance(init, str) else {}))
        return None if network is None else network.astype(train.X.dtype)

    def _continues(self) -> bool:
        return self.warm_start and hasattr(self, "network_")

    def _softness(self, start: Network | None, train: TrainingData) -> float | None:
        """Temperature of the start's predictions as targets, None where the labels are fitted."""
        if start is None or train.codes is None or self.temperature is None or self._continues():
            return None
        return as_scalar("temperature", self.temperature, low=0.1)

    def _map(self, train: TrainingData, start: Network | None) -> InputMap | None:
        """Standardisation of the features, if asked for or if their ranges differ widely."""
        if self.input_map not in ("auto", "standardise", None):
            raise ValueError(f"input_map must be 'auto', 'standardise' or None, got {self.input_map!r}")
        if self.input_map is None or (start is not None and not isinstance(start.layers[0], Dense)):
            return None
        ranges = np.ptp(train.X if train.weight is None else train.X[train.weight > 0], axis=0)
        ranges = ranges[ranges > 0]
        if self.input_map == "auto" and (
            ranges.size == 0 or np.quantile(ranges, 0.9) <= _RANGE_RATIO * np.quantile(ranges, 0.1)
        ):
            return None
        return standardise(train.X, train.weight)

    def _discrete_start(
        self,
        start: Network | None,
        train: TrainingData,
        values: Array,
        seed: int,
        softness: float | None,
        quantise: _Quantise,
    ) -> tuple[list[Any], list[Stage]]:
        """Parameter-free layers in front and the stages to search from, those of ``quantise`` for a start."""
        if start is not None:
            lead, stages = quantise(start, values=values)
            return lead, [*stages[:-1], _sharpened(stages[-1], 1.0 / (softness or 1.0))]
        sizes = (train.X.shape[1], *check_layer_sizes(self.hidden_layer_sizes), train.target.shape[1])
        shape = initial_network(sizes, self.activation, train.task, train.X.dtype, check_random_state(seed))
        lead, stages = random_stages(shape, values, np.random.default_rng(seed))
        if self.init is None:  # a linear model starts from zero, or rather from the value nearest to it
            stages = [_linear_start(stages[0], values, train)]
        return lead, stages

    def _objective(self, start: Network | None, train: TrainingData, softness: float | None) -> Objective:
        if train.codes is None:
            spread = np.average(
                (train.target - np.average(train.target, axis=0, weights=train.weight)) ** 2,
                axis=0,
                weights=train.weight,
            )
            return Objective(train.target, train.weight, np.where(spread > 0, spread, 1.0))
        if start is None or softness is None:
            return Objective(train.target, train.weight)
        soft = special.softmax(start.scores(train.X) / softness, axis=1)
        return Objective(soft.astype(train.X.dtype), train.weight)

    def _fit_literal(
        self,
        data: TrainingData,
        values: Array,
        tol: float,
        random_state: np.random.RandomState,
        recorder: Recorder,
    ) -> None:
        """The published loop: every weight and bias in the set, random starts, lowest training loss."""
        if not isinstance(get_activation(self.activation), ReLU):
            raise ValueError(f"the literal algorithm is for activation='relu', got {self.activation!r}")
        if self.init not in (None, "random") or self.warm_start:
            raise ValueError("the literal algorithm starts from random points: leave init and warm_start out")
        input_map = self._map(data, None)
        X = data.X if input_map is None else input_map.transform(data.X)
        mass = data.X.shape[0] if data.weight is None else float(data.weight.sum())
        result = search_network(
            X,
            data.target,
            check_layer_sizes(self.hidden_layer_sizes),
            values,
            loss="softmax" if data.codes is not None else "squared",
            n_starts=as_count("n_starts", self.n_starts),
            threshold=tol * mass,
            weights=data.weight,
            max_iter=self.max_iter,
            random_state=random_state.randint(2**31),
            callback=lambda start, sweep, loss: recorder.add(start=start, sweep=sweep, loss=loss / mass),
            on_limit="warn",
        )
        self.n_iter_ = result.n_iter
        sizes = [data.X.shape[1], *(codes.shape[1] for codes in result.x.codes)]
        template = initial_network(sizes, "relu", data.task, data.X.dtype, random_state)
        stages = [
            Stage(
                layer,
                (),
                FiniteWeights(values, codes[:-1], np.ones(codes.shape[1])),
                values[codes[-1]],
            )
            for layer, codes in zip(template.layers, result.x.codes, strict=True)
            if isinstance(layer, Dense)
        ]
        self.network_ = _packed_network([], stages, None, input_map, self.packing)

    def _input_shape(self, data: TrainingData) -> tuple[int, ...]:
        return self.init.input_shape if isinstance(self.init, Network) else data.X.shape[1:]


def _linear_start(stage: Stage, values: Array, train: TrainingData) -> Stage:
    """Start of a linear model: near zero for classes, discrete ridge regression for numbers."""
    if train.codes is not None:
        origin = softmax_origin(train.X, train.target.shape[1], values, train.weight)
        return Stage(stage.layer, stage.after, origin.weights, origin.bias)
    fitted = solve_ridge(train.X, train.target, alpha=1e-6, relative=True, sample_weight=train.weight).x
    layer = with_numbers(stage.layer, fitted.weight, fitted.intercept)
    return quantise_stages(Network([layer]), train.X, values, train.weight)[1][0]


def _sharpened(stage: Stage, factor: float) -> Stage:
    """``stage`` with its outputs times ``factor``."""
    weights = stage.weights._replace(scale=stage.weights.scale * factor)
    return Stage(stage.layer, stage.after, weights, stage.bias * factor)


def _packed_network(
    lead: list[Any],
    stages: list[Stage],
    input_shape: tuple[int, ...] | None,
    input_map: InputMap | None,
    packing: Packing,
) -> Network:
    """The stages as packed layers, on raw inputs."""
    layers: list[Any] = list(lead)
    for index, stage in enumerate(stages):
        factor = None
        if index == 0 and input_map is not None:
            factor = input_map.factor
            stage = Stage(
                stage.layer,
                stage.after,
                stage.weights,
                stage.bias - (input_map.mean * factor) @ stage.weights.dense(),
            )
        layers += [stage.packed(packing, factor), *stage.after]
    return Network(layers, input_shape)
