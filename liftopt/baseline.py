"""The baseline: the same networks trained by back-propagation (torch), as fast as a careful user makes it.

Inputs are standardised (or mapped by the damped whitening that the other methods use) and regression
targets scaled to unit variance; both maps are folded exactly into the returned network.
See :mod:`liftopt.backprop` for the descent itself.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from liftopt.activations import get_activation
from liftopt.backprop import Optimizer, Schedule, Settings, descend
from liftopt.base import (
    FEWEST_HELD,
    NetworkClassifier,
    NetworkRegressor,
    TrainingData,
    check_layer_sizes,
    holdout_split,
    initial_network,
    starting_network,
)
from liftopt.input_map import make_input_map, standardise
from liftopt.network import Network
from liftopt.preparation import Frame
from liftopt.recording import Recorder
from liftopt.solvers.result import Callback, Record
from liftopt.torch_interop import import_torch

Array = npt.NDArray[Any]


class _Backprop:
    """Parameters and fit of both estimators; see :class:`BackpropClassifier`."""

    network_: Network
    history_: list[Record]
    n_iter_: int

    def __init__(
        self,
        *,
        hidden_layer_sizes: Sequence[int] = (100,),
        activation: str = "relu",
        optimizer: Optimizer = "adam",
        learning_rate_init: float = 0.01,
        schedule: Schedule = "one_cycle",
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int = 100,
        alpha: float = 1e-4,
        input_noise: float = 0.0,
        input_map: str | Mapping[str, Any] | None = "standardise",
        early_stopping: bool | Literal["auto"] = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        sampling: str | Mapping[str, Any] | None = None,
        init: Network | str | None = None,
        random_state: int | np.random.RandomState | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.optimizer = optimizer
        self.learning_rate_init = learning_rate_init
        self.schedule = schedule
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.alpha = alpha
        self.input_noise = input_noise
        self.input_map = input_map
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.sampling = sampling
        self.init = init
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.callback = callback
        self.verbose = verbose

    def _fit(self, data: TrainingData) -> None:
        """Train on checked data and set the fitted attributes."""
        import_torch()  # before the clock starts
        settings = Settings(
            self.optimizer,
            self.learning_rate_init,
            self.schedule,
            self.batch_size,
            self.max_iter,
            self.alpha,
            self.n_iter_no_change,
            self.tol,
            self.sampling,
            self.input_noise,
        )
        recorder = Recorder.of(self, data.X, data.target, data.weight)
        random_state = recorder.random_state()
        if data.weight is not None:
            data = data.rows(np.flatnonzero(data.weight > 0))
        train, held_out = self._split(data, random_state)
        frame = Frame(
            make_input_map(self.input_map, train.X, train.weight, random_state, start=self._given()),
            None if train.codes is not None else standardise(train.target, train.weight),
        )
        found = descend(
            self._start(train, frame, random_state),
            frame.data(train),
            None if held_out is None else frame.data(held_out),
            settings,
            recorder,
            random_state,
        )
        self.network_ = frame.leave(found.network)
        self.n_iter_ = found.n_iter
        recorder.close()
        if found.warning:
            warnings.warn(f"{type(self).__name__} {found.warning}", ConvergenceWarning, stacklevel=3)

    def _split(
        self, data: TrainingData, random_state: np.random.RandomState
    ) -> tuple[TrainingData, TrainingData | None]:
        """Training and held-out rows."""
        auto = self.early_stopping == "auto"
        too_few = auto and self.validation_fraction * data.X.shape[0] < FEWEST_HELD  # and nothing is drawn
        if not self.early_stopping or too_few:
            return data, None
        rows, held = holdout_split(data, self.validation_fraction, random_state)
        if held.size == 0:
            if auto:
                return data, None
            warnings.warn(
                f"{type(self).__name__}: too few rows to hold any out, early_stopping has no effect",
                ConvergenceWarning,
                stacklevel=4,
            )
            return data, None
        return data.rows(rows), data.rows(held)

    def _given(self) -> Network | None:
        """Network of a warm start or of ``init``, if that is one."""
        if self.warm_start and hasattr(self, "network_"):
            return self.network_
        return self.init if isinstance(self.init, Network) else None

    def _start(self, data: TrainingData, frame: Frame, random_state: np.random.RandomState) -> Network:
        """Network to start from, on mapped inputs and scaled targets."""
        hidden, activation = check_layer_sizes(self.hidden_layer_sizes), get_activation(self.activation)
        init = self._given() or self.init
        start = starting_network(init, data, random_state, hidden_layer_sizes=hidden)
        if start is None:
            width = data.X.shape[1] if frame.input_map is None else frame.input_map.n_components
            sizes = (width, *hidden, data.target.shape[1])
            return initial_network(sizes, activation, data.task, data.X.dtype, random_state)
        return frame.enter(start.astype(data.X.dtype))


class BackpropClassifier(_Backprop, NetworkClassifier):
    """Classifier trained by back-propagation on the cross-entropy (needs torch).

    Parameters
    ----------
    hidden_layer_sizes : sequence of int
        Widths of the hidden layers; ignored when ``init`` or a warm start gives the network.
    activation : str or Activation
        Of the hidden layers, by name from the table of activations.
    optimizer : {"adam", "adamw", "momentum", "sgd", "schedule_free"}
        ``"momentum"`` is SGD with Nesterov's momentum 0.9; ``"schedule_free"`` is Schedule-Free AdamW (needs
        the schedulefree package, and ``schedule="constant"``).
    learning_rate_init : float
        Peak learning rate.
    schedule : {"one_cycle", "cosine", "constant"}
        One cycle warms up over the first quarter, then follows a cosine to zero.
    batch_size : int or "auto"
        Largest number of rows a step; batches of an epoch have nearly equal sizes. ``"auto"`` is the power
        of two next to n / 32, between 64 and 256.
    max_iter : int
        Epochs.
    alpha : float
        Weight decay of the optimiser (decoupled for AdamW).
    input_noise : float
        Standard deviation of normal noise on the mapped inputs, drawn anew for every step.
    input_map : {"standardise", "pca"}, mapping or None
        Map of the inputs during training, folded into the first layer. ``"pca"`` is the damped whitening
        of :func:`liftopt.input_map.make_input_map`; a mapping holds arguments of
        :func:`liftopt.input_map.fit_input_map`.
    early_stopping : bool or "auto"
        Hold out rows, keep the best epoch on them (or the start), and stop when it does not improve;
        ``"auto"`` does so if there are enough rows, without a warning.
    validation_fraction : float
        Share of the rows to hold out.
    n_iter_no_change : int
        Epochs without improvement by ``tol`` that end a run: of the validation score with early stopping,
        of the training loss with ``schedule="constant"``; other schedules run their course.
    tol : float
        Smallest improvement that counts, absolute.
    warm_start : bool
        Start from the network of the previous fit.
    sampling : {"average", "walk", "momentum"}, mapping or None
        Judge and keep averages of the weights in place of the last ones: the mode of
        :class:`liftopt.PeriodicWeightSampler`, or a mapping of its arguments, where ``periods_per_epoch``
        (default 4) stands for the period; by default the last 4 period means, not put back. With
        ``combine=True`` the convex combination of the held means that is best on the held-out rows is judged
        too, at the end.
    init : Network, str or None
        Network to start from (any architecture), or the name of a method to fit first.
    random_state : int, RandomState or None
        For the weights, the hold-out and the order of the rows.
    checkpoint : path-like, optional
        File that keeps the state of the fit; a fit that finds its own there goes on from it, bit by bit as if
        it had never stopped. Deleted when the fit ends, unless that was by Ctrl-C.
    callback : callable, optional
        Called with each epoch's record; a true return value stops the run.
    verbose : bool
        Log each epoch at INFO level.

    Attributes
    ----------
    network_ : Network
        The trained network, on raw inputs.
    history_ : list of dict
        One record an epoch: ``iteration``, ``time``, ``cpu``, ``loss``, ``learning_rate`` and, with early
        stopping, ``validation_score``.
    n_iter_ : int
        Epochs run.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from liftopt import BackpropClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> BackpropClassifier(hidden_layer_sizes=(16,), random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    classes_: Array

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BackpropClassifier:
        """Train on ``X`` (n, d) and labels ``y`` (n,).

        Raises
        ------
        ValueError
            If a parameter is out of range or the data cannot be used.
        ImportError
            If torch is missing; the message names the extra.
        """
        self._fit(self._check_training_data(X, y, sample_weight))
        return self


class BackpropRegressor(_Backprop, NetworkRegressor):
    """Regressor trained by back-propagation on the squared error (needs torch).

    Targets are scaled to unit variance for training. Parameters and attributes are those of
    :class:`BackpropClassifier`, without ``classes_``.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BackpropRegressor:
        """Train on ``X`` (n, d) and targets ``y`` (n,) or (n, outputs).

        Raises
        ------
        ValueError
            If a parameter is out of range or the data cannot be used.
        ImportError
            If torch is missing; the message names the extra.
        """
        self._fit(self._check_training_data(X, y, sample_weight))
        return self
