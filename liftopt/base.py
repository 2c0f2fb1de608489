"""What every method's estimators share: input checks, hold-out split, history, prediction from a Network.

A method's classifier derives from :class:`NetworkClassifier`, its regressor from :class:`NetworkRegressor`;
both only set ``network_`` in ``fit``. A classifier's network has one output a class and a softmax head.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from liftopt.activations import Activation, Identity, Softmax, get_activation
from liftopt.layers import Dense
from liftopt.methods import Task, make_estimator
from liftopt.network import Network
from liftopt.solvers.result import Callback, Record
from liftopt.solvers.validation import as_count
from liftopt.threads import threads_of_a_fit

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """No callbacks but our own."""

    def with_callbacks(method: Any) -> Any:
        """Nothing to surround."""
        return method


Array = npt.NDArray[Any]

logger = logging.getLogger("liftopt")


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


class _NetworkEstimator(CallbackSupportMixin, BaseEstimator):
    """What surrounds every ``fit``: the number of threads, and scikit-learn's callbacks where it has them.

    A callback of ``set_callbacks`` sees the fit as one task and each record of the history as a subtask (the
    record is ``estimator.history_[-1]``); it ends the training by a true value at the end of a subtask.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "fit" in cls.__dict__:
            cls.fit = _surrounded(cls.__dict__["fit"])
        if "partial_fit" in cls.__dict__:
            cls.partial_fit = threads_of_a_fit()(cls.__dict__["partial_fit"])


class NetworkClassifier(ClassifierMixin, _NetworkEstimator):
    """Prediction from ``network_`` (softmax head) and ``classes_``."""

    network_: Network
    classes_: Array

    def _check_training_data(self, X: Any, y: Any, sample_weight: Any = None) -> TrainingData:
        """Validate, set ``classes_`` and encode the labels; refuses fewer than two classes."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if self.classes_.size < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least two classes, y holds one class: {self.classes_[0]!r}"
            )
        target = np.zeros((X.shape[0], self.classes_.size), dtype=X.dtype)
        target[np.arange(X.shape[0]), codes] = 1
        return TrainingData(X, target, codes, _weights(sample_weight, X))

    def decision_function(self, X: Any) -> Array:
        """Scores before the softmax: (n, classes), or (n,) for two classes (positive: ``classes_[1]``)."""
        scores = self._scores(self._check_rows(X))
        return scores[:, 1] - scores[:, 0] if self.classes_.size == 2 else scores

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities (n, classes); columns follow ``classes_``."""
        return softmax(self._scores(self._check_rows(X)), axis=1)

    def predict(self, X: Any) -> Array:
        """Most probable class of each row, shape (n,)."""
        best = np.argmax(self._scores(self._check_rows(X)), axis=1)
        winners: Array = self.classes_[best]
        return winners

    def _scores(self, rows: Array) -> Array:
        """Scores (n, classes) of checked rows, before the softmax."""
        return self.network_.scores(rows)

    def _check_rows(self, X: Any) -> Array:
        check_is_fitted(self)
        rows: Array = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return rows


class NetworkRegressor(RegressorMixin, _NetworkEstimator):
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
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True)
        self._one_output = y.ndim == 1
        target = y.reshape(X.shape[0], -1).astype(X.dtype)
        return TrainingData(X, target, None, _weights(sample_weight, X))

    def predict(self, X: Any) -> Array:
        """Predicted targets, shape (n,) or (n, outputs) as in ``fit``."""
        check_is_fitted(self)
        out = self._scores(validate_data(self, X, dtype=(np.float64, np.float32), reset=False))
        return out[:, 0] if self._one_output else out

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


def holdout_split(
    data: TrainingData, fraction: float, random_state: np.random.RandomState
) -> tuple[Array, Array]:
    """Indices (train, hold-out) of a random split, stratified by class, every class kept in train.

    Rows of zero weight are not held out: they could not judge anything.
    The hold-out is empty when ``fraction`` is 0 or it would have fewer than 10 rows: callers then have no
    validation score and must say so.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"validation_fraction must be in [0, 1), got {fraction!r}")
    n = data.X.shape[0]
    if fraction == 0.0:  # and no random number is drawn, so that weights equal repetitions
        return np.arange(n), np.empty(0, dtype=np.intp)
    groups = np.zeros(n, dtype=np.intp) if data.codes is None else data.codes
    order = random_state.permutation(n)
    order = order[np.argsort(groups[order], kind="stable")]
    counts = np.bincount(groups)
    rank = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    held = rank < np.floor(fraction * counts)[groups[order]]
    if data.weight is not None:
        held &= data.weight[order] > 0
    if held.sum() < 10:
        return np.arange(n), np.empty(0, dtype=np.intp)
    return np.sort(order[~held]), np.sort(order[held])


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


def _surrounded(fit: Callable[..., Any]) -> Callable[..., Any]:
    """``fit`` with its number of threads, as the root task of scikit-learn's callbacks."""

    @wraps(fit)
    def surrounded(self: Any, X: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        with threads_of_a_fit():
            root = _root_task(self, X, y)
            fit(self, X, y, *args, **kwargs)
            if root is not None:
                root.call_on_fit_task_end(estimator=self, X=X, y=y, reconstruction_attributes={})
        return self

    return with_callbacks(surrounded)


def _root_task(estimator: Any, X: Any, y: Any) -> Any:
    """Begun task of scikit-learn's callbacks for a fit, None where there are none."""
    if not hasattr(estimator, "_init_callback_context"):
        return None
    root = estimator._init_callback_context(max_subtasks=None)
    return root.call_on_fit_task_begin(estimator=estimator, X=X, y=y)


class Recorder:
    """History of one fit: time-stamped records, passed to the callbacks and to the log.

    Parameters
    ----------
    name : str
        Shown in log lines.
    verbose : int or bool
        Log each record at INFO level (a handler is the application's business).
    callback : callable, optional
        Called with each record; a true return value asks the method to stop.
    """

    def __init__(self, name: str, verbose: int | bool = False, callback: Callback | None = None) -> None:
        self.history: list[Record] = []
        self._name, self._verbose, self._callback = name, verbose, callback
        self._estimator: Any = None
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        if callback is not None and not callable(callback):
            raise ValueError(f"callback must be callable, got {callback!r}")

    @classmethod
    def of(cls, estimator: Any) -> Recorder:
        """Recorder with the estimator's ``verbose`` and ``callback``; its history is ``history_`` at once."""
        recorder = cls(type(estimator).__name__, estimator.verbose, estimator.callback)
        recorder._estimator = estimator
        estimator.history_ = recorder.history
        return recorder

    def add(self, **facts: Any) -> bool:
        """Append a record (with ``iteration``, ``time``, ``cpu``); return whether to stop."""
        record = {
            "iteration": len(self.history),
            "time": time.perf_counter() - self._wall,
            "cpu": time.process_time() - self._cpu,
            **facts,
        }
        self.history.append(record)
        if self._verbose:
            parts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in record.items())
            logger.info("%s %s", self._name, " ".join(parts))
        stop = bool(self._callback(record)) if self._callback else False
        return self._tell_scikit_learn() or stop

    def _tell_scikit_learn(self) -> bool:
        """Begin and end a subtask of the fit; whether a callback of ``set_callbacks`` asks to stop."""
        root = getattr(self._estimator, "_callback_fit_ctx", None)
        if root is None:
            return False
        task = root.subcontext(task_name="iteration").call_on_fit_task_begin(estimator=self._estimator)
        return bool(task.call_on_fit_task_end(estimator=self._estimator))


def run_interruptible(loop: Callable[[], None], name: str) -> None:
    """Run a training loop; on Ctrl-C warn and go on with the best network so far, as scikit-learn does."""
    try:
        loop()
    except KeyboardInterrupt:
        warnings.warn(
            f"{name} was interrupted: the best network so far is kept", ConvergenceWarning, stacklevel=3
        )


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
