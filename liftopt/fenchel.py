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

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from liftopt.base import NetworkClassifier, NetworkRegressor, TrainingData
from liftopt.fenchel_training import LiftedTraining, Mode
from liftopt.losses import CLASSIFICATION_HEADS, REGRESSION_HEADS
from liftopt.monotone import Order
from liftopt.network import Network
from liftopt.solvers.result import Callback


class FenchelClassifier(LiftedTraining, NetworkClassifier):
    """Classifier trained by block descent on the Fenchel-lifted problem.

    The defaults are meant for all data: nothing has to be tuned.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int
        Widths of the hidden layers; ignored when ``init`` or a warm start gives the network.
    activation : str or Activation
        Of the hidden layers, by name from the table of activations.
    loss : {"auto", "cross_entropy", "squared_hinge", "squared"}
        Head; ``"auto"`` is the squared hinge, one class against the others, in stochastic mode and the
        cross-entropy in monotone mode. The scores of every head but the cross-entropy are scaled to the best
        probabilities on held-out rows.
    mode : {"auto", "stochastic", "monotone"}
        ``"monotone"`` lowers the relaxed objective at every step, over all rows; ``"stochastic"`` takes
        mini-batches and makes no such promise. ``"auto"`` is monotone below 500 rows.
    max_iter : int or None
        Passes over the data, or sweeps over the blocks in monotone mode. None: as many passes as make 2,000
        block steps (12 to 100), or 50 sweeps for every ridge.
    alpha : float or "auto"
        Ridge ``alpha/2 sum |W|^2`` beside the mean loss, on the mapped inputs; ``"auto"`` is 0 in stochastic
        mode, where noise regularises, and a path from 1e-1 to 1e-4 in monotone mode, which ends where
        held-out rows say so (1e-4 if there are none, or more than 5,000 rows).
    multiplier : float or "auto"
        Penalty weight of the lifted constraints; ``"auto"`` is 0.2 for every hidden layer (stochastic) or 1
        (monotone).
    multiplier_schedule : {"fixed", "geometric", "increasing", "augmented"}
        Monotone mode: see :class:`liftopt.monotone.Descent`.
    order : {"parallel", "sequence"}
        Monotone mode: order of the weight blocks.
    step : float
        Stochastic mode: relative length of the weight steps that the opening race starts from; it moves by
        factors of four where short runs say so, so that a value a factor of 16 off does no harm.
    batch_size : int or "auto"
        Stochastic mode; ``"auto"`` is n / 64 within 32 and 250.
    dropout : float
        Largest share of hidden units held at zero, divided by the number of hidden layers; the level rises
        while the held-out loss does.
    input_noise : float
        Standard deviation of noise on mapped inputs; in less than 12 passes, or with k < 50 mapped inputs, it
        rises while the held-out loss does. With k < 50 it is k / 50 of that, and there is no dropout.
    input_map : {"auto", "standardise", "pca"}, mapping or None
        Map of the inputs during training, folded into the first layer. ``"auto"`` is the damped whitening,
        with 95 % of the variance beyond 256 features; a mapping holds arguments of
        :func:`liftopt.input_map.fit_input_map`.
    validation_fraction : float
        Share of the rows held out to choose noise, ridge and the best pass or sweep (at most 5,000 rows, none
        below 10). In stochastic mode they join the others for a few last passes.
    tol : float
        Monotone mode: bound on the largest block residual, see
        :meth:`liftopt.lifted_parts.PartedProblem.measure`.
    class_weight : dict, "balanced" or None
        Weights of the classes, multiplied with ``sample_weight``.
    warm_start : bool
        Start from the network of the previous fit.
    init : Network, str or None
        Network to start from (any architecture, convolutions included), or the name of a method to fit first.
    n_jobs : int
        Monotone mode: threads for parts of some thousand rows.
    random_state : int, RandomState or None
        For the weights, the hold-out, the order of the rows and the noise.
    checkpoint : path-like, optional
        File that keeps the state of the fit; a fit that finds its own there goes on from it, bit by bit as if
        it had never stopped. Deleted when the fit ends, unless that was by Ctrl-C.
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
        Stochastic: hold-out loss, ``validation_score``, training loss, noise level and step a pass.
        Monotone: objective, block residuals, lifted loss, forward loss, their gap, the penalties and
        ``validation_score`` a sweep.
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
        step: float = 0.16,
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
        checkpoint: str | os.PathLike[str] | None = None,
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
            checkpoint=checkpoint,
            callback=callback,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FenchelClassifier:
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
        self._fit_any(X, y, sample_weight)
        return self

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> FenchelClassifier:
        """One stochastic pass over a chunk of a stream, from the network so far.

        The first chunk fixes the input map: it should be typical, and hold some thousand rows if it can.
        Steps fall with the root of the number of chunks.

        Parameters
        ----------
        X : array-like of shape (n, features)
            Chunk.
        y : array-like of shape (n,)
            Labels.
        classes : array-like, optional
            All labels of the stream; read at the first call, by default those of the first chunk.
        sample_weight : array-like of shape (n,), optional
            Non-negative.

        Returns
        -------
        FenchelClassifier
            Itself.

        Raises
        ------
        ValueError
            If a label is not among the classes, or the data cannot be used.
        """
        first = not hasattr(self, "classes_")
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), reset=first)
        check_classification_targets(y)
        known = np.unique(y if classes is None else classes) if first else self.classes_
        if known.size < 2:
            raise ValueError(f"{type(self).__name__} needs at least two classes: pass classes= at first")
        if not np.isin(y, known).all():
            raise ValueError(f"y holds labels that are not among the classes {known}")
        self.classes_ = known
        codes = np.searchsorted(known, y)
        target = np.eye(known.size, dtype=X.dtype)[codes]
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        self._stream_fit(self._class_weighted(TrainingData(X, target, codes, weight)))
        return self

    def _class_weighted(self, data: TrainingData) -> TrainingData:
        if self.class_weight is None or data.codes is None:
            return data
        factors = compute_sample_weight(self.class_weight, self.classes_[data.codes])
        return data._replace(weight=factors if data.weight is None else factors * data.weight)


class FenchelRegressor(LiftedTraining, NetworkRegressor):
    """Regressor trained by block descent on the Fenchel-lifted problem; several outputs are allowed.

    Targets are scaled to unit variance during training, exactly undone in the network. Parameters that are
    not listed are those of :class:`FenchelClassifier`.

    Parameters
    ----------
    loss : {"auto", "squared", "huber"}
        Head; ``"auto"`` is squared, ``"huber"`` bends at one standard deviation of the target.
    step : float
        As in the classifier, half as long by default.

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

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FenchelRegressor:
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
        self._fit_any(X, y, sample_weight)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> FenchelRegressor:
        """One stochastic pass over a chunk of a stream, from the network so far.

        The first chunk fixes the maps of inputs and targets; see :meth:`FenchelClassifier.partial_fit`.

        Parameters
        ----------
        X, y : array-like
            Chunk, as in :meth:`fit`.
        sample_weight : array-like of shape (n,), optional
            Non-negative.

        Returns
        -------
        FenchelRegressor
            Itself.
        """
        if hasattr(self, "network_"):
            validate_data(self, X, reset=False)
        self._stream_fit(self._check_training_data(X, y, sample_weight))
        return self
