r"""Manifold networks: closed-form layers from backward targets, ridge regression and a margin head.

Forward, every hidden layer is a ridge regression onto targets for its pre-activations; backward, the targets
of a layer are what its successor would need as input. No gradient of the network is formed. Two settings:

* ``backward="minimum_change"`` (default) asks for the smallest change of each layer's activations, which
  keeps hidden layers at full rank; see :mod:`liftopt.manifold_descent`;
* ``backward="low_rank"`` or ``"transpose"`` is the published cycle, whose targets are functions of the label
  alone, so that hidden layers have rank at most ``classes - 1``; see :mod:`liftopt.manifold_cycle`.
  ``ManifoldClassifier(**PAPER)`` is the published method.

References
----------
Zhang, Jiao, Zhang, Li, "Manifold Neural Network With Non-Gradient Optimization", IEEE TPAMI
45(3):3986-3993, 2023, doi 10.1109/TPAMI.2022.3174574.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from liftopt.activations import Activation, get_activation
from liftopt.base import (
    NetworkClassifier,
    NetworkRegressor,
    TrainingData,
    check_layer_sizes,
    start_apart,
)
from liftopt.heads import HEADS, FitPlan, HeadName
from liftopt.input_map import InputMap, make_input_map
from liftopt.manifold_cycle import TARGETS, fit_cycle
from liftopt.manifold_fit import FULL_PASS_ROWS, fit_descent
from liftopt.manifold_stream import fit_stream, surveyed
from liftopt.network import Network
from liftopt.recording import Recorder
from liftopt.repair import start_of_blocks
from liftopt.solvers.result import Callback, Record
from liftopt.solvers.validation import as_count, as_scalar
from liftopt.streams import Stream, as_stream

Array = npt.NDArray[Any]
Backward = Literal["minimum_change", "low_rank", "transpose"]

#: Parameters of the published method.
PAPER: Mapping[str, Any] = {
    "activation": "sigmoid",
    "backward": "low_rank",
    "alpha": 0.3,
    "input_map": None,
    "max_iter": 50,
}


class _Manifold:
    """Checks and fit of both estimators."""

    network_: Network
    history_: list[Record]
    n_iter_: int
    head: HeadName | None
    # of the classifier or regressor that this is mixed into
    _check_training_data: Callable[..., TrainingData]
    _training_data: Callable[..., TrainingData]
    _classes_of: Callable[[Array], Array]
    _set_features: Callable[[Stream], None]
    classes_: Array

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256,),
        *,
        activation: str | Activation = "leaky_relu",
        backward: Backward = "minimum_change",
        alpha: float | None = None,
        input_map: str | Mapping[str, Any] | None = "pca",
        max_iter: int | None = None,
        tol: float = 1e-3,
        n_iter_no_change: int = 15,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        init: Network | str | None = None,
        random_state: int | np.random.RandomState | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.backward = backward
        self.alpha = alpha
        self.input_map = input_map
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.init = init
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.callback = callback
        self.verbose = verbose

    def _plan(self) -> FitPlan:
        """Checked parameters."""
        if self.backward != "minimum_change" and self.backward not in TARGETS:
            names = ", ".join(repr(name) for name in ("minimum_change", *TARGETS))
            raise ValueError(f"backward must be one of {names}, got {self.backward!r}")
        if self.head is not None and self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(map(repr, HEADS))}, got {self.head!r}")
        return FitPlan(
            self.backward,
            check_layer_sizes(self.hidden_layer_sizes),
            get_activation(self.activation),
            self.head or ("margin" if self.backward == "minimum_change" else "stiefel_svm"),
            None if self.alpha is None else as_scalar("alpha", self.alpha, low=0.0),
            None if self.max_iter is None else as_count("max_iter", self.max_iter),
            as_count("n_iter_no_change", self.n_iter_no_change),
            as_scalar("tol", self.tol, low=0.0),
            as_scalar("validation_fraction", self.validation_fraction, low=0.0, high=0.9),
        )

    def _fit_any(self, X: Any, y: Any, sample_weight: Any) -> None:
        """Train on arrays, on a stream that fits in memory, or else on its chunks."""
        rows = as_stream(X, y, sample_weight)
        if rows is None or rows.fits_in_memory or rows.n_rows <= FULL_PASS_ROWS:
            self._fit(self._check_training_data(X, y, sample_weight))
        elif self.backward != "minimum_change":
            rows.load_for(f"{type(self).__name__} with backward={self.backward!r}")
        else:
            self._fit_stream(rows)

    def _fit_stream(self, rows: Stream) -> None:
        """Train on the chunks of a stream and set the fitted attributes."""
        plan = self._plan()
        rows.require_target(f"{type(self).__name__}.fit")
        recorder = Recorder.of(self, *rows.identity())
        random_state = recorder.random_state()
        classify = isinstance(self, NetworkClassifier)
        found, index = surveyed(rows, classify=classify, random_state=random_state)
        if classify:
            self.classes_ = self._classes_of(found.used_labels)
        data = self._training_data(*found.rows)
        with start_apart(self._init(), data, plan.validation_fraction, random_state) as seen:
            init, spec = self._start(seen, plan, random_state)
            self.network_, self.n_iter_ = fit_stream(
                rows, found, data, index, plan, spec, init, recorder, random_state
            )
        self._set_features(rows)
        recorder.close()

    def _init(self) -> Network | str | None:
        """What to start from: the network of a warm start, else what ``init`` says."""
        return self.network_ if self.warm_start and hasattr(self, "network_") else self.init

    def _start(
        self, data: TrainingData, plan: FitPlan, random_state: np.random.RandomState
    ) -> tuple[Network | None, Any]:
        """Network to start from, and the input map that suits it."""
        init = start_of_blocks(self._init(), data, random_state, hidden_layer_sizes=plan.widths)
        # a foreign network needs every component, or unfolding would lose part of its first layer
        return init, {} if init is not None and self.input_map == "pca" else self.input_map

    def _fit(self, data: TrainingData) -> None:
        """Train on checked data and set the fitted attributes."""
        plan = self._plan()
        recorder = Recorder.of(self, data.X, data.target, data.weight)
        random_state = recorder.random_state()
        if data.weight is not None:
            data = data.rows(np.flatnonzero(data.weight > 0.0))
        fit = fit_descent if self.backward == "minimum_change" else fit_cycle
        with start_apart(self._init(), data, plan.validation_fraction, random_state) as seen:
            init, spec = self._start(seen, plan, random_state)
            input_map = make_input_map(spec, data.X, data.weight, random_state) or InputMap.identity(
                data.X.shape[1]
            )
            self.network_, self.n_iter_ = fit(data, plan, input_map, init, recorder, random_state)
        recorder.close()


class ManifoldClassifier(_Manifold, NetworkClassifier):
    """Classifier of closed-form layers with a one-sided least-squares (margin) head.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int
        Widths of the hidden layers.
    activation : str or Activation
        Of the hidden layers, by name from the table of activations.
    backward : {"minimum_change", "low_rank", "transpose"}
        Rule for the targets of hidden layers; the last two are the published cycle (sigmoid or tanh only).
    head : {"margin", "ridge", "stiefel_svm"}, optional
        Decision layer on the final features: one-sided least squares (the L2-loss support vector machine,
        one-vs-all), ridge regression, or the flexible Stiefel SVM. By default the first, and the last in the
        published cycle.
    alpha : float, optional
        Ridge of the hidden layers relative to the mean diagonal of their input's Gram matrix (the head has
        three times as much); by default it follows the noise seen on held-out rows. In the published cycle it
        is the absolute ridge of every layer, by default 0.3.
    input_map : {"pca", "standardise"}, mapping or None
        Map of the inputs during training, folded exactly into the first layer: damped partial whitening,
        scaling to unit variance, or none. A mapping holds arguments of
        :func:`liftopt.input_map.fit_input_map`.
    max_iter : int, optional
        Sweeps over the rows; the step falls to zero over the second half. By default 60 up to 5000 rows
        (exact passes up to 2000) and 8 to 30 above, in blocks of rows.
    tol : float
        Relative decrease of the held-out loss that counts as progress.
    n_iter_no_change : int
        Sweeps without progress that end the run, counted while the step falls.
    validation_fraction : float
        Share of the rows (at most 3000) that is held out to choose the sweep and the penalties. Below 150
        rows none is held out: the run then ends by its schedule, with penalties for noisy data.
    warm_start : bool
        Start from the network of the previous fit.
    init : Network, str or None
        Network of Dense layers to start from, or the name of a method to fit first.
    random_state : int, RandomState or None
        For the start, the hold-out and the order of the rows.
    checkpoint : path-like, optional
        File that keeps the state of the fit; a fit that finds its own there goes on from it, bit by bit as if
        it had never stopped. Deleted when the fit ends, unless that was by Ctrl-C.
    callback : callable, optional
        Called with the record of each sweep; a true return value stops the run.
    verbose : bool
        Log each sweep at INFO level.

    Attributes
    ----------
    network_ : Network
        On raw inputs, with a softmax head; its temperature is fitted by maximum likelihood.
    classes_ : ndarray of shape (classes,)
        Labels.
    history_ : list of dict
        One record a sweep: ``iteration``, ``time``, ``cpu``, ``loss`` (mean squared residual, held out where
        rows are), ``validation_score`` (accuracy), ``decay``.
    n_iter_ : int
        Sweeps done.

    Notes ----- A sweep costs ``4 n k h + n h^2`` operations for ``k`` mapped inputs and ``h`` units,
    plus ``h^3 / 3`` a block. The sweeps are a heuristic without a promise of descent; held-out rows
    choose among their networks and the linear model, which the network can always represent with ``2
    classes`` units a layer.

    References
    ----------
    Zhang, Jiao, Zhang, Li, "Manifold Neural Network With Non-Gradient Optimization", IEEE TPAMI 45(3), 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from liftopt import ManifoldClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> ManifoldClassifier((32,), random_state=0).fit(X, y).score(X, y) > 0.95
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256,),
        *,
        activation: str | Activation = "leaky_relu",
        backward: Backward = "minimum_change",
        head: HeadName | None = None,
        alpha: float | None = None,
        input_map: str | Mapping[str, Any] | None = "pca",
        max_iter: int | None = None,
        tol: float = 1e-3,
        n_iter_no_change: int = 15,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        init: Network | str | None = None,
        random_state: int | np.random.RandomState | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation=activation,
            backward=backward,
            alpha=alpha,
            input_map=input_map,
            max_iter=max_iter,
            tol=tol,
            n_iter_no_change=n_iter_no_change,
            validation_fraction=validation_fraction,
            warm_start=warm_start,
            init=init,
            random_state=random_state,
            checkpoint=checkpoint,
            callback=callback,
            verbose=verbose,
        )
        self.head = head

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> ManifoldClassifier:
        """Train on ``X`` (n, d) and labels ``y`` (n,), with optional non-negative ``sample_weight`` (n,).

        Raises
        ------
        ValueError
            If a parameter is out of range or the data cannot be used.
        """
        self._fit_any(X, y, sample_weight)
        return self


class ManifoldRegressor(_Manifold, NetworkRegressor):
    """Regressor of closed-form layers with a ridge head; one or several outputs.

    Targets are scaled to unit variance during training. Parameters and attributes are those of
    :class:`ManifoldClassifier`, without ``head`` and ``classes_``; ``validation_score`` is R2.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from liftopt import ManifoldRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> ManifoldRegressor((32,), random_state=0).fit(X, y).score(X, y) > 0.4
    True
    """

    head = "ridge"

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> ManifoldRegressor:
        """Train on ``X`` (n, d) and ``y`` (n,) or (n, outputs), with optional ``sample_weight`` (n,).

        Raises
        ------
        ValueError
            If a parameter is out of range or the data cannot be used.
        """
        self._fit_any(X, y, sample_weight)
        return self
