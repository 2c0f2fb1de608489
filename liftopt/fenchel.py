r"""Networks trained on the Fenchel-lifted problem: activations as free blocks, tied by a convex penalty.

The training problem and its relaxation are in :mod:`liftopt.lifted`. Two ways of solving it are offered:

- ``mode="monotone"`` (:mod:`liftopt.monotone`): full-batch block descent, the relaxed objective falls at
  every step; then the head is refitted to its global optimum on the network's true features.
- ``mode="stochastic"`` (:mod:`liftopt.stochastic`): mini-batches whose activation blocks start from the
  forward pass, a second-order activation step, weight steps of self-chosen length. No descent of the
  relaxed objective is claimed; held-out rows decide.

Inputs go through a damped whitening map that is folded exactly into the first layer afterwards.

References
----------
Gu, Askari, El Ghaoui, "Fenchel Lifted Networks: A Lagrange Relaxation of Neural Network Training",
AISTATS 2020, arXiv 1811.08039.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight

from liftopt.base import (
    NetworkClassifier,
    NetworkRegressor,
    Recorder,
    TrainingData,
    check_layer_sizes,
    holdout_split,
    initial_network,
    run_interruptible,
    starting_network,
)
from liftopt.block_steps import BlockTrainer
from liftopt.continuation import Descent, Outcome, descend_lifted
from liftopt.input_map import InputMap, fold, unfold
from liftopt.layers import Dense
from liftopt.lifted import LiftedProblem
from liftopt.linear_maps import channels_last, linear_maps, rebuild
from liftopt.losses import CLASSIFICATION_HEADS, REGRESSION_HEADS, Head, get_head
from liftopt.monotone import Order
from liftopt.network import Network
from liftopt.preparation import affine_outputs, fit_map, mapped, target_moments
from liftopt.solvers.least_squares import solve_ridge
from liftopt.solvers.result import Callback, Record
from liftopt.solvers.validation import as_count, as_scalar
from liftopt.stochastic import Budget, Rows, StochasticRun

Array = npt.NDArray[Any]
Mode = Literal["auto", "stochastic", "monotone"]

_MODES = ("auto", "stochastic", "monotone")
_STOCHASTIC_FROM = 500  # rows
_PASSES = 12, 100
_SWEEPS, _STEPS = 50, 3000  # default budgets: monotone sweeps, stochastic block steps
_WHITEN_FROM, _SHARE = 257, 0.95  # features from which only that share of the variance is kept
_MULTIPLIERS = {"stochastic": 0.2, "monotone": 0.1}
_RIDGE_PATH = (1e-1, 1e-2, 1e-3)  # monotone mode
_START_ROWS = 3000
_NOISE_FROM = 50  # mapped inputs; fewer carry no redundancy that noise could spare
_MOST_HELD = 5_000  # held-out rows
_WIDE_ROWS = 20_000  # up to here the monotone mode works in float64


class _Fenchel:
    """Parameters and fit of both estimators; see :class:`FenchelClassifier`."""

    network_: Network
    history_: list[Record]
    n_iter_: int
    _heads: tuple[str, ...]

    def __init__(
        self,
        *,
        hidden_layer_sizes: Sequence[int] = (100,),
        activation: str = "relu",
        loss: str = "auto",
        mode: Mode = "auto",
        max_iter: int | None = None,
        alpha: float | Literal["auto"] = "auto",
        multiplier: float | Literal["auto"] = "auto",
        multiplier_schedule: str = "fixed",
        order: Order = "parallel",
        step: float = 0.06,
        batch_size: int | Literal["auto"] = "auto",
        dropout: float = 0.2,
        input_noise: float = 0.3,
        input_map: str | Mapping[str, Any] | None = "auto",
        validation_fraction: float = 0.1,
        tol: float = 1e-4,
        warm_start: bool = False,
        init: Network | str | None = None,
        n_jobs: int = 1,
        random_state: int | np.random.RandomState | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.loss = loss
        self.mode = mode
        self.max_iter = max_iter
        self.alpha = alpha
        self.multiplier = multiplier
        self.multiplier_schedule = multiplier_schedule
        self.order = order
        self.step = step
        self.batch_size = batch_size
        self.dropout = dropout
        self.input_noise = input_noise
        self.input_map = input_map
        self.validation_fraction = validation_fraction
        self.tol = tol
        self.warm_start = warm_start
        self.init = init
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.callback = callback
        self.verbose = verbose

    def _fit(self, data: TrainingData) -> None:
        """Train on checked data and set the fitted attributes."""
        self._check_parameters()
        random_state = check_random_state(self.random_state)
        recorder = Recorder(type(self).__name__, self.verbose, self.callback)
        if data.weight is not None:
            data = data.rows(np.flatnonzero(data.weight > 0))
        start = self._given_start(data, random_state)
        input_map = self._fit_input_map(data, start, random_state)
        centre, scale = target_moments(data)
        problem = mapped(data, input_map, centre, scale)
        network = self._start(start, problem, input_map, centre, scale, random_state)
        fit = self._fit_monotone if self._resolved_mode(data, network) == "monotone" else self._fit_stochastic
        trained = fit(network, problem, random_state, recorder)
        trained = affine_outputs(trained.astype(data.X.dtype), scale, centre)
        self.network_ = trained if input_map is None else fold(trained, input_map)
        self.history_ = recorder.history

    def _fit_monotone(
        self, network: Network, data: TrainingData, random_state: np.random.RandomState, recorder: Recorder
    ) -> Network:
        """Full-batch descent of the lifted objective and the refit of the head."""
        rows, held = self._split(data, random_state)
        dtype = np.float64 if rows.size <= _WIDE_ROWS else np.float32
        maps = linear_maps(network.astype(dtype))
        settings = self._descent(held.size > 0)

        def problem_of(index: Array) -> LiftedProblem:
            part = data.rows(index)
            X = channels_last(part.X.astype(dtype, copy=False), network.input_shape)
            target = part.target.astype(dtype, copy=False)
            return LiftedProblem(
                maps,
                self._head(data),
                X,
                target,
                settings.start(len(maps) - 1),
                settings.ridges[0],
                part.weight,
            )

        lifted, unseen = problem_of(rows), problem_of(held)
        start = lifted.forward([part.weight for part in maps], [part.layer.bias for part in maps])
        outcome = Outcome(start, unseen.forward_loss if held.size else None)

        def report(record: Record) -> bool:
            return recorder.add(**{k: v for k, v in record.items() if k not in ("iteration", "time")})

        name = type(self).__name__
        run_interruptible(lambda: descend_lifted(lifted, outcome, settings, report), name)
        self.n_iter_ = max(1, outcome.n_iter)
        return rebuild(network.astype(dtype), maps, outcome.best.weights, outcome.best.biases)

    def _fit_stochastic(
        self, network: Network, data: TrainingData, random_state: np.random.RandomState, recorder: Recorder
    ) -> Network:
        """Mini-batch block steps, the best weights on held-out rows."""
        rows, held = self._split(data, random_state)
        maps = linear_maps(network)
        trainer = BlockTrainer(
            maps,
            self._head(data),
            self._multiplier("stochastic"),
            np.float32,
            0.0 if self.alpha == "auto" else self.alpha,
        )

        def pick(index: Array) -> Rows:
            Z = channels_last(data.X[index].astype(np.float32, copy=False), network.input_shape)
            weight = None if data.weight is None else data.weight[index]
            if weight is not None:
                weight = (weight / weight.mean()).astype(np.float32)
            return Rows(Z, data.target[index].astype(np.float32, copy=False), weight)

        run = StochasticRun(
            trainer,
            pick(rows),
            pick(held),
            self._budget(rows.size, data.X.shape[1]),
            random_state,
            recorder.add,
        )
        run_interruptible(run.fit, type(self).__name__)
        self.n_iter_ = max(1, run.passes)
        return rebuild(network.astype(np.float32), maps, trainer.weights, trainer.biases)

    def _split(self, data: TrainingData, random_state: np.random.RandomState) -> tuple[Array, Array]:
        """Indices of the training and the held-out rows."""
        fraction = self.validation_fraction
        return holdout_split(data, min(fraction, _MOST_HELD / data.X.shape[0]), random_state)

    def _check_parameters(self) -> None:
        """Refuse parameters out of range before any work."""
        if self.mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {self.mode!r}")
        if self.alpha != "auto":
            as_scalar("alpha", self.alpha, low=0.0)
        as_scalar("tol", self.tol, low=0.0)
        as_scalar("step", self.step, low=0.0, strict=True)
        as_scalar("dropout", self.dropout, low=0.0, high=0.9)
        as_scalar("input_noise", self.input_noise, low=0.0, high=1e3)
        if self.multiplier != "auto":
            as_scalar("multiplier", self.multiplier, low=0.0, strict=True)
        if self.max_iter is not None:
            as_count("max_iter", self.max_iter)
        if self.batch_size != "auto":
            as_count("batch_size", self.batch_size)
        if (
            isinstance(self.n_jobs, bool)
            or not isinstance(self.n_jobs, (int, np.integer))
            or self.n_jobs == 0
        ):
            raise ValueError(f"n_jobs must be an integer other than 0, got {self.n_jobs!r}")
        self._descent(True)  # checks the schedule and the order

    def _descent(self, held_out: bool) -> Descent:
        """Settings of the monotone mode; the path of ridges needs held-out rows."""
        path = _RIDGE_PATH if held_out else _RIDGE_PATH[-1:]
        return Descent(
            self._multiplier("monotone"),
            self.multiplier_schedule,
            self.order,
            self.n_jobs,
            _SWEEPS if self.max_iter is None else self.max_iter,
            self.tol,
            path if self.alpha == "auto" else (float(self.alpha),),
        )

    def _multiplier(self, mode: str) -> float:
        return _MULTIPLIERS[mode] if self.multiplier == "auto" else float(self.multiplier)

    def _budget(self, n: int, width: int) -> Budget:
        """Sizes of the stochastic mode for ``n`` training rows of ``width`` mapped inputs."""
        noise = (self.dropout, self.input_noise) if width >= _NOISE_FROM else (0.0, 0.0)
        size = int(np.clip(n // 64, 32, 250)) if self.batch_size == "auto" else self.batch_size
        batches = max(1, n // size)
        passes = int(np.clip(np.ceil(_STEPS / batches), *_PASSES)) if self.max_iter is None else self.max_iter
        return Budget(self.step, size, passes, *noise)

    def _head(self, data: TrainingData) -> Head:
        name = self._heads[0] if self.loss == "auto" else self.loss
        return get_head(name, self._heads)

    def _resolved_mode(self, data: TrainingData, network: Network) -> str:
        """``auto``: full-batch for small data and dense networks."""
        if self.mode != "auto":
            return self.mode
        small = data.X.shape[0] < _STOCHASTIC_FROM and len(network.input_shape) == 1
        return "monotone" if small else "stochastic"

    def _given_start(self, data: TrainingData, random_state: np.random.RandomState) -> Network | None:
        """Network that ``init`` or a warm start gives, on raw inputs."""
        init = self.network_ if self.warm_start and hasattr(self, "network_") else self.init
        hidden = check_layer_sizes(self.hidden_layer_sizes)
        return starting_network(init, data, random_state, hidden_layer_sizes=hidden)

    def _fit_input_map(
        self, data: TrainingData, start: Network | None, random_state: np.random.RandomState
    ) -> InputMap | None:
        """Whitening map; none in front of a convolution."""
        spec = self.input_map
        if start is not None and not isinstance(start.layers[0], Dense):
            if spec not in (None, "auto"):
                raise ValueError("an input map folds into a first Dense layer only: use input_map=None")
            return None
        if isinstance(spec, str) and spec == "auto":
            d = data.X.shape[1]
            spec = {"n_components": _SHARE if d >= _WHITEN_FROM else None, "max_rows": max(2000, 4 * d)}
        return fit_map(spec, data, random_state)

    def _start(
        self,
        start: Network | None,
        data: TrainingData,
        input_map: InputMap | None,
        centre: Array,
        scale: Array,
        random_state: np.random.RandomState,
    ) -> Network:
        """Network to start from on mapped inputs and scaled targets."""
        if start is not None:
            start = affine_outputs(start.astype(data.X.dtype), 1.0 / scale, -centre / scale)
            return start if input_map is None else unfold(start, input_map)
        sizes = (data.X.shape[1], *check_layer_sizes(self.hidden_layer_sizes), data.target.shape[1])
        network = initial_network(sizes, self.activation, data.task, data.X.dtype, random_state)
        return _with_ridge_head(network, data, self._head(data))


def _with_ridge_head(network: Network, data: TrainingData, head: Head) -> Network:
    """``network`` with its head fitted to (scaled) targets on the random features of a few rows."""
    few = data.rows(np.arange(min(_START_ROWS, data.X.shape[0])))
    features = network.hidden(few.X)[-1] if len(network.layers) > 1 else few.X
    weight = few.weight if few.weight is not None and few.weight.sum() > 0 else None
    found = solve_ridge(
        features, head.fitting_scores(few.target), alpha=1e-2, relative=True, sample_weight=weight
    ).x
    last, dtype = network.layers[-1], network.dtype
    assert isinstance(last, Dense)
    fitted = Dense(found.weight.astype(dtype), found.intercept.astype(dtype), last.activation)
    return Network([*network.layers[:-1], fitted], network.input_shape)


class FenchelClassifier(_Fenchel, NetworkClassifier):
    """Classifier trained by block descent on the Fenchel-lifted problem.

    The defaults are meant for all data: nothing has to be tuned.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int
        Widths of the hidden layers; ignored when ``init`` or a warm start gives the network.
    activation : str or Activation
        Of the hidden layers, by name from the table of activations.
    loss : {"auto", "cross_entropy", "squared_hinge", "squared"}
        Head; ``"auto"`` is the cross-entropy.
    mode : {"auto", "stochastic", "monotone"}
        ``"monotone"`` lowers the relaxed objective at every step, over all rows; ``"stochastic"`` takes
        mini-batches and makes no such promise. ``"auto"`` is monotone below 500 rows.
    max_iter : int or None
        Passes over the data, or sweeps over the blocks in monotone mode. None: as many passes as make 3,000
        block steps (12 to 100), or 50 sweeps for every ridge.
    alpha : float or "auto"
        Ridge ``alpha/2 sum |W|^2`` beside the mean loss, on the mapped inputs; ``"auto"`` is 0 in stochastic
        mode, where noise regularises, and a path from 1e-1 to 1e-3 in monotone mode, which ends where
        held-out rows say so (1e-3 if there are none).
    multiplier : float or "auto"
        Penalty weight of the lifted constraints; ``"auto"`` is 0.2 (stochastic) or 0.1 (monotone).
    multiplier_schedule : {"fixed", "geometric", "increasing", "augmented"}
        Monotone mode: see :class:`liftopt.monotone.Descent`.
    order : {"parallel", "sequence"}
        Monotone mode: order of the weight blocks.
    step : float
        Stochastic mode: relative length of the weight steps that the opening race starts from.
    batch_size : int or "auto"
        Stochastic mode; ``"auto"`` is n / 64 within 32 and 250.
    dropout : float
        Largest share of hidden units held at zero, divided by the number of hidden layers; the level rises
        while the held-out loss does.
    input_noise : float
        Largest standard deviation of noise on mapped inputs; the level rises while the held-out loss does.
        Neither noise is used with fewer than 50 mapped inputs.
    input_map : {"auto", "standardise", "pca"}, mapping or None
        Map of the inputs during training, folded into the first layer. ``"auto"`` is the damped whitening,
        with 95 % of the variance beyond 256 features; a mapping holds arguments of
        :func:`liftopt.input_map.fit_input_map`.
    validation_fraction : float
        Share of the rows held out to choose decay, noise and the best pass or sweep (at most 5,000
        rows, none below 10).
    tol : float
        Monotone mode: bound on the largest block residual, see :meth:`liftopt.lifted.LiftedProblem.measure`.
    class_weight : dict, "balanced" or None
        Weights of the classes, multiplied with ``sample_weight``.
    warm_start : bool
        Start from the network of the previous fit.
    init : Network, str or None
        Network to start from (any architecture, convolutions included), or the name of a method to fit first.
    n_jobs : int
        Monotone mode: threads for parallel weight blocks.
    random_state : int, RandomState or None
        For the weights, the hold-out, the order of the rows and the noise.
    callback : callable, optional
        Called with the record of every pass or sweep; a true value stops.
    verbose : bool
        Log every pass or sweep.

    Attributes
    ----------
    network_ : Network
        The trained network on raw inputs.
    classes_ : ndarray
        Labels in the order of the outputs.
    history_ : list of mapping
        Stochastic: hold-out loss and score, training loss, noise level and step a pass. Monotone: objective,
        block residuals, lifted loss, forward loss, their gap and the penalties a sweep.
    n_iter_ : int
        Passes or sweeps done.

    References
    ----------
    Gu, Askari, El Ghaoui, "Fenchel Lifted Networks", AISTATS 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from liftopt import FenchelClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> bool(FenchelClassifier(random_state=0).fit(X, y).score(X, y) > 0.95)
    True
    """

    _heads = CLASSIFICATION_HEADS

    def __init__(
        self,
        *,
        hidden_layer_sizes: Sequence[int] = (100,),
        activation: str = "relu",
        loss: str = "auto",
        mode: Mode = "auto",
        max_iter: int | None = None,
        alpha: float | Literal["auto"] = "auto",
        multiplier: float | Literal["auto"] = "auto",
        multiplier_schedule: str = "fixed",
        order: Order = "parallel",
        step: float = 0.06,
        batch_size: int | Literal["auto"] = "auto",
        dropout: float = 0.2,
        input_noise: float = 0.3,
        input_map: str | Mapping[str, Any] | None = "auto",
        validation_fraction: float = 0.1,
        tol: float = 1e-4,
        class_weight: Mapping[Any, float] | str | None = None,
        warm_start: bool = False,
        init: Network | str | None = None,
        n_jobs: int = 1,
        random_state: int | np.random.RandomState | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            loss=loss,
            mode=mode,
            max_iter=max_iter,
            alpha=alpha,
            multiplier=multiplier,
            multiplier_schedule=multiplier_schedule,
            order=order,
            step=step,
            batch_size=batch_size,
            dropout=dropout,
            input_noise=input_noise,
            input_map=input_map,
            validation_fraction=validation_fraction,
            tol=tol,
            warm_start=warm_start,
            init=init,
            n_jobs=n_jobs,
            random_state=random_state,
            callback=callback,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FenchelClassifier:
        """Train on rows ``X`` (n, features) with labels ``y`` (n,) of any dtype.

        Parameters
        ----------
        X : array-like of shape (n, features)
            Finite; rows of flattened images for a convolutional ``init``.
        y : array-like of shape (n,)
            At least two classes.
        sample_weight : array-like of shape (n,), optional
            Non-negative; in monotone mode an integer weight equals that many copies of the row.

        Returns
        -------
        FenchelClassifier
            Itself.

        Raises
        ------
        ValueError
            If a parameter is out of range or the data cannot be used.
        """
        data = self._check_training_data(X, y, sample_weight)
        self._fit(self._class_weighted(data))
        return self

    def _class_weighted(self, data: TrainingData) -> TrainingData:
        if self.class_weight is None or data.codes is None:
            return data
        factors = compute_sample_weight(self.class_weight, self.classes_[data.codes])
        return data._replace(weight=factors if data.weight is None else factors * data.weight)


class FenchelRegressor(_Fenchel, NetworkRegressor):
    """Regressor trained by block descent on the Fenchel-lifted problem; several outputs are allowed.

    Targets are scaled to unit variance during training, exactly undone in the network.

    Parameters
    ----------
    loss : {"auto", "squared", "huber"}
        Head; ``"auto"`` is squared, ``"huber"`` bends at one standard deviation of the target.
    others
        As in :class:`FenchelClassifier`.

    Attributes
    ----------
    network_ : Network
        The trained network on raw inputs.
    history_, n_iter_
        As in :class:`FenchelClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from liftopt import FenchelRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> bool(FenchelRegressor(alpha=0.1, random_state=0).fit(X, y).score(X, y) > 0.4)
    True
    """

    _heads = REGRESSION_HEADS

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FenchelRegressor:
        """Train on rows ``X`` (n, features) with targets ``y`` (n,) or (n, outputs).

        Parameters
        ----------
        X, y : array-like
            Finite.
        sample_weight : array-like of shape (n,), optional
            Non-negative; in monotone mode an integer weight equals that many copies of the row.

        Returns
        -------
        FenchelRegressor
            Itself.

        Raises
        ------
        ValueError
            If a parameter is out of range or the data cannot be used.
        """
        self._fit(self._check_training_data(X, y, sample_weight))
        return self
