"""What every method's estimators share: input checks, hold-out split, prediction from a Network, the start.

Every estimator takes a stream of chunks (:func:`liftopt.stream`) in place of arrays: it predicts and scores
chunk by chunk, and loads what it is fitted to if the memory limit allows.

A method's classifier derives from :class:`NetworkClassifier`, its regressor from :class:`NetworkRegressor`;
both only set ``network_`` in ``fit``. A classifier's network has one output a class and a softmax head.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data

from liftopt.activations import Activation, Identity, Softmax, get_activation
from liftopt.chunks import ChunkRows
from liftopt.layers import Dense
from liftopt.methods import Task, make_estimator
from liftopt.network import Network
from liftopt.recording import SurroundedFit
from liftopt.solvers.moments import Moments, moments
from liftopt.solvers.validation import as_count
from liftopt.stream_estimator import StreamEstimator
from liftopt.streams import as_stream

Array = npt.NDArray[Any]


FEWEST_HELD = 10  # rows that can judge anything
MOST_HELD = 5_000  # rows: more would not judge better


class TrainingData(NamedTuple):
    """Checked training input.

    ``X`` (n, d) float32 or float64; ``target`` (n, outputs) in X's dtype: one-hot rows for classification;
    ``codes`` (n,) class indices, or None for regression; ``weight`` (n,) float64, or None for all ones.
    """

    X: Array
    target: Array
    codes: Array | None
    weight: Array | None

    @property
    def task(self) -> Task:
        """Kind of problem."""
        return "regression" if self.codes is None else "classification"

    def rows(self, index: Array) -> TrainingData:
        """The rows of ``index``."""
        return TrainingData(
            self.X[index],
            self.target[index],
            None if self.codes is None else self.codes[index],
            None if self.weight is None else self.weight[index],
        )


class NetworkClassifier(ClassifierMixin, SurroundedFit, StreamEstimator):
    """Prediction from ``network_`` (softmax head) and ``classes_``."""

    network_: Network
    classes_: Array

    def _check_training_data(self, X: Any, y: Any, sample_weight: Any = None) -> TrainingData:
        """Validate, set ``classes_`` and encode the labels; refuses fewer than two classes."""
        X, y, sample_weight = self._loaded(X, y, sample_weight)
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        self.classes_ = self._classes_of(y)
        return self._training_data(X, y, _weights(sample_weight, X))

    def _classes_of(self, y: Array) -> Array:
        """Sorted labels of ``y``, at least two."""
        check_classification_targets(y)
        classes: Array = np.unique(y)
        if classes.size < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least two classes, y holds one class: {classes[0]!r}"
            )
        return classes

    def _training_data(self, X: Array, y: Array, weight: Array | None) -> TrainingData:
        """Training data with the labels ``y``, which are among ``classes_``."""
        codes = np.searchsorted(self.classes_, column_or_1d(y))
        target = np.zeros((X.shape[0], self.classes_.size), dtype=X.dtype)
        target[np.arange(X.shape[0]), codes] = 1
        return TrainingData(X, target, codes, weight)

    def decision_function(self, X: Any) -> Array:
        """Scores before the softmax: (n, classes), or (n,) for two classes (positive: ``classes_[1]``)."""
        return self._by_rows(X, self._decisions)

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities (n, classes); columns follow ``classes_``."""
        return self._by_rows(X, self._probabilities)

    def predict(self, X: Any) -> Array:
        """Most probable class of each row, shape (n,)."""
        return self._by_rows(X, self._labels)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy on rows ``X`` with labels ``y``, or on a stream that holds both."""
        rows = as_stream(X, y, sample_weight)
        if rows is None:
            return float(super().score(X, y, sample_weight))
        return float(self._score_stream(rows, self._judge).mean_x[0])

    def _decisions(self, rows: Array) -> Array:
        scores = self._scores(rows)
        return scores[:, 1] - scores[:, 0] if self.classes_.size == 2 else scores

    def _probabilities(self, rows: Array) -> Array:
        return softmax(self._scores(rows), axis=1)

    def _labels(self, rows: Array) -> Array:
        winners: Array = self.classes_[np.argmax(self._scores(rows), axis=1)]
        return winners

    def _judge(self, rows: ChunkRows) -> Moments:
        """Statistics of the hits."""
        hits = (self._labels(rows.X) == column_or_1d(rows.y)).astype(np.float64)
        return moments(hits[:, None], hits, sample_weight=rows.weight)

    def _scores(self, rows: Array) -> Array:
        """Scores (n, classes) of checked rows, before the softmax."""
        return self.network_.scores(rows)


class NetworkRegressor(RegressorMixin, SurroundedFit, StreamEstimator):
    """Prediction from ``network_`` (identity head); several outputs are allowed."""

    network_: Network
    _one_output: bool

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags

    def _check_training_data(self, X: Any, y: Any, sample_weight: Any = None) -> TrainingData:
        """Validate; the target becomes (n, outputs)."""
        X, y, sample_weight = self._loaded(X, y, sample_weight)
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True)
        return self._training_data(X, y, _weights(sample_weight, X))

    def _training_data(self, X: Array, y: Array, weight: Array | None) -> TrainingData:
        """Training data with numeric targets ``y``."""
        self._one_output = y.ndim == 1
        return TrainingData(X, y.reshape(X.shape[0], -1).astype(X.dtype), None, weight)

    def predict(self, X: Any) -> Array:
        """Predicted targets, shape (n,) or (n, outputs) as in ``fit``."""
        return self._by_rows(X, self._values)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean R2 over the outputs on rows ``X`` with targets ``y``, or on a stream that holds both."""
        rows = as_stream(X, y, sample_weight)
        if rows is None:
            return float(super().score(X, y, sample_weight))
        found = self._score_stream(rows, self._judge)
        errors = np.diag(found.gram) + found.weight * found.mean_x**2
        spread = np.where(found.target_square > 0.0, found.target_square, np.inf)
        return float(np.mean(np.where(errors > 0.0, 1.0 - errors / spread, 1.0)))

    def _values(self, rows: Array) -> Array:
        out = self._scores(rows)
        return out[:, 0] if self._one_output else out

    def _judge(self, rows: ChunkRows) -> Moments:
        """Statistics of the errors (as features) and the targets, float64."""
        target = np.asarray(rows.y, dtype=np.float64).reshape(rows.X.shape[0], -1)
        errors = target - self._scores(rows.X)
        return moments(errors, target, sample_weight=rows.weight, dtype=np.float64)

    def _scores(self, rows: Array) -> Array:
        """Outputs (n, outputs) of checked rows."""
        return self.network_.scores(rows)


def _weights(sample_weight: Any, X: Array) -> Array | None:
    if sample_weight is None:
        return None
    weights: Array = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    if weights.sum() <= 0.0:
        raise ValueError("sample_weight is zero for every row")
    return weights


_held_rows: ContextVar[Array | None] = ContextVar("liftopt_held_rows", default=None)


@contextmanager
def holding_out(rows: Array | None) -> Iterator[None]:
    """Let a fit inside hold out these rows (sorted indices), new to its start; None: as it likes."""
    token = _held_rows.set(rows)
    try:
        yield
    finally:
        _held_rows.reset(token)


def holdout_split(
    data: TrainingData, fraction: float, random_state: np.random.RandomState
) -> tuple[Array, Array]:
    """Indices (train, hold-out) of a random split, stratified by class, every class kept in train.

    Rows of zero weight are not held out: they could not judge anything.
    The hold-out is empty when ``fraction`` is 0 or it would have fewer than ``FEWEST_HELD`` rows: callers
    then have no validation score and must say so. Inside of :func:`holding_out` it is the one given there.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"validation_fraction must be in [0, 1), got {fraction!r}")
    n = data.X.shape[0]
    if fraction == 0.0:  # and no random number is drawn, so that weights equal repetitions
        return np.arange(n), np.empty(0, dtype=np.intp)
    if (given := _held_rows.get()) is not None:
        return np.setdiff1d(np.arange(n), given), given
    groups = np.zeros(n, dtype=np.intp) if data.codes is None else data.codes
    order = random_state.permutation(n)
    order = order[np.argsort(groups[order], kind="stable")]
    counts = np.bincount(groups)
    rank = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    held = rank < np.floor(fraction * counts)[groups[order]]
    if data.weight is not None:
        held &= data.weight[order] > 0
    if held.sum() < FEWEST_HELD:
        return np.arange(n), np.empty(0, dtype=np.intp)
    return np.sort(order[~held]), np.sort(order[held])


@contextmanager
def start_apart(
    init: Network | str | None, data: TrainingData, fraction: float, random_state: np.random.RandomState
) -> Iterator[TrainingData]:
    """Rows for the start of a fit that holds out rows inside of this context.

    Where ``init`` names a method, ``fraction`` of the rows (at most ``MOST_HELD``) is held out of its fit
    too, as in a recipe: it would be judged on rows it has seen. A network, or None, leaves all to the fit.
    """
    if not isinstance(init, str):
        yield data
        return
    train, held = holdout_split(data, min(fraction, MOST_HELD / data.X.shape[0]), random_state)
    with holding_out(held if held.size else None):
        yield data.rows(train)


def score_of(network: Network, data: TrainingData) -> float:
    """Weighted accuracy (classification) or mean R2 over outputs (regression) of ``network`` on ``data``."""
    return score_outputs(network.scores(data.X), data)


def score_outputs(outputs: Array, data: TrainingData) -> float:
    """Score of given ``outputs`` (n, outputs) on ``data``, as :func:`score_of`."""
    if data.codes is not None:
        return float(np.average(outputs.argmax(axis=1) == data.codes, weights=data.weight))
    target = data.target.astype(np.float64)
    centre = np.average(target, axis=0, weights=data.weight)
    spread = np.average((target - centre) ** 2, axis=0, weights=data.weight)
    error = np.average((target - outputs) ** 2, axis=0, weights=data.weight)
    return float(np.mean(1.0 - error / np.maximum(spread, np.finfo(np.float64).tiny ** 0.5)))


def starting_network(
    init: Network | str | None, data: TrainingData, random_state: np.random.RandomState, **parameters: Any
) -> Network | None:
    """Network that ``init`` stands for: itself, the fit of the method it names, or None.

    Of the ``parameters`` (such as ``hidden_layer_sizes``) a named method gets those that it knows; it is left
    out with a warning if a class has no row.

    Raises
    ------
    ValueError
        If its input or output width does not match ``data``, or the name is unknown.
    """
    if init is None:
        return None
    if isinstance(init, str):
        estimator = make_estimator(init, data.task, common={"random_state": random_state, **parameters})
        if data.codes is not None and np.unique(data.codes).size < data.target.shape[1]:
            warnings.warn(
                f"init={init!r} was left out: not every class has a row to train on",
                ConvergenceWarning,
                stacklevel=2,
            )
            return None
        y = data.codes
        if y is None:
            y = data.target[:, 0] if data.target.shape[1] == 1 else data.target
        with holding_out(None):  # rows held out around this fit are none of its business
            init = estimator.fit(data.X, y, sample_weight=data.weight).network_
    if not isinstance(init, Network):
        raise ValueError(f"init must be None, a method name or a Network, got {type(init).__name__}")
    init = _with_head(init, data.task)
    wanted = (data.X.shape[1], data.target.shape[1])
    found = (int(np.prod(init.input_shape)), init.output_shape[0])
    if wanted != found:
        raise ValueError(
            f"init maps {found[0]} features to {found[1]} outputs, the data need {wanted[0]} to {wanted[1]}"
        )
    return init


def _with_head(network: Network, task: Task) -> Network:
    """``network`` with the head of ``task``: logits without a softmax, as torch modules end, get theirs."""
    last = network.layers[-1]
    if not isinstance(last, Dense) or not isinstance(last.activation, (Identity, Softmax)):
        raise ValueError(f"init must end in a Dense layer with a linear or a softmax head, not in {last}")
    head = Dense(last.weight, last.bias, Softmax() if task == "classification" else Identity())
    return Network([*network.layers[:-1], head], network.input_shape, network.metadata)


def check_layer_sizes(hidden_layer_sizes: Any) -> tuple[int, ...]:
    """Widths of the hidden layers as a tuple; a single integer is one layer, an empty sequence none."""
    sizes = (hidden_layer_sizes,) if np.ndim(hidden_layer_sizes) == 0 else tuple(hidden_layer_sizes)
    return tuple(as_count("hidden_layer_sizes", size) for size in sizes)


def initial_network(
    sizes: Sequence[int],
    activation: str | Activation,
    task: Task,
    dtype: npt.DTypeLike,
    random_state: np.random.RandomState,
) -> Network:
    """Random network of the given widths (input first): uniform weights, zero biases.

    The weights are scaled by He's rule, by Glorot's where the activation saturates and in the head.
    """
    kind = get_activation(activation)
    head: Activation = Softmax() if task == "classification" else Identity()
    layers = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        hidden = index < len(sizes) - 2
        rectifies = hidden and not np.isfinite(kind.range).all()
        bound = np.sqrt(6.0 / fan_in if rectifies else 6.0 / (fan_in + fan_out))
        weight = random_state.uniform(-bound, bound, size=(fan_in, fan_out)).astype(dtype)
        layers.append(Dense(weight, np.zeros(fan_out, dtype=dtype), kind if hidden else head))
    return Network(layers)
