"""Hinging hyperplanes: a linear function and K oblique hinges, exactly a ReLU network of one hidden layer.

    f(x) = c_0 + x A + sum_k (x d_k + b_k)+ c_k

is fitted by least squares, hinge by hinge (:func:`liftopt.solvers.fit_hinging_hyperplanes`). In the network
every hinge is a unit, and the linear part of an output travels through two: ``z = (z)+ - (-z)+``. A
classifier selects the hinges by least squares on scaled class indicators and refits linear part and
coefficients by softmax regression, which is convex.

References
----------
Breiman, "Hinging hyperplanes for regression, classification, and function approximation", IEEE Trans. Inf.
Theory 1993.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.base import NetworkClassifier, NetworkRegressor, TrainingData
from liftopt.heads import class_indicators, repetitions, softmax_head, target_moments
from liftopt.input_map import InputMap, fit_input_map, standardise
from liftopt.network import Network, dense_network
from liftopt.solvers.hinging import HingingHyperplanes, fit_hinging_hyperplanes
from liftopt.solvers.result import Result
from liftopt.solvers.validation import as_count, as_scalar

Array = npt.NDArray[Any]


class _HingingEstimator:
    """Parameters and the least-squares fit, shared by regressor and classifier."""

    hyperplanes_: HingingHyperplanes
    result_: Result
    n_iter_: int
    network_: Network

    def __init__(
        self,
        *,
        n_hinges: int = 32,
        n_components: int | None = 32,
        alpha: float = 1e-3,
        max_iter: int = 200,
        tol: float = 1e-3,
        random_state: Any = None,
    ) -> None:
        self.n_hinges = n_hinges
        self.n_components = n_components
        self.alpha = alpha
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def _input_map(self, data: TrainingData) -> InputMap:
        """Standardisation, or the leading principal components of wide data."""
        if self.n_components is None or data.X.shape[1] <= as_count("n_components", self.n_components):
            return standardise(data.X, data.weight)
        return fit_input_map(
            data.X,
            n_components=self.n_components,
            sample_weight=data.weight,
            random_state=self.random_state,
        )

    def _least_squares(self, data: TrainingData, rows: Array, target: Array) -> HingingHyperplanes:
        """Fit of ``target`` (n, outputs) on standardised rows."""
        omega = repetitions(data.weight)
        total = float(rows.shape[0] if omega is None else omega.sum())
        self.result_ = fit_hinging_hyperplanes(
            rows,
            target,
            n_hinges=self.n_hinges,
            ridge=as_scalar("alpha", self.alpha, low=0.0, strict=True) * total,
            sample_weight=omega,
            max_iter=self.max_iter,
            tol=self.tol,
        )
        self.n_iter_ = self.result_.n_iter
        model: HingingHyperplanes = self.result_.x
        return model


def hinging_network(
    model: HingingHyperplanes, head: str = "identity", dtype: npt.DTypeLike = np.float64
) -> Network:
    """Network equal to ``model``: one hidden layer with a unit a hinge, and two an output.

    Parameters
    ----------
    model : HingingHyperplanes
        With K hinges and R outputs.
    head : str
        Activation of the last layer: ``"identity"`` or ``"softmax"``.
    dtype : float64 or float32
        Of the weights.
    """
    eye = np.eye(model.intercept.size)
    weights = [
        np.column_stack([model.slopes, model.linear, -model.linear]),
        np.vstack([model.outer, eye, -eye]),
    ]
    biases = [np.append(model.offsets, np.zeros(2 * model.intercept.size)), model.intercept]
    return dense_network([w.astype(dtype) for w in weights], [b.astype(dtype) for b in biases], "relu", head)


def _on_raw_rows(model: HingingHyperplanes, scaling: InputMap) -> HingingHyperplanes:
    """The function of raw rows that equals ``model`` on mapped ones."""
    matrix = scaling.matrix
    slopes, linear = matrix @ model.slopes, matrix @ model.linear
    return HingingHyperplanes(
        model.intercept - scaling.mean @ linear,
        linear,
        slopes,
        model.offsets - scaling.mean @ slopes,
        model.outer,
    )


class HingingHyperplaneRegressor(_HingingEstimator, NetworkRegressor):
    """Regression by hinging hyperplanes, exactly a ReLU network of one hidden layer.

    The oblique sibling of :class:`liftopt.SplineRegressor`: hinges may use all variables at once.

    Parameters
    ----------
    n_hinges : int
        Largest number of hinges; 0 is ridge regression. They join in pairs while generalised cross-validation
        approves, and each keeps ``2 (d + 1)`` rows on either side.
    n_components : int or None
        Wider data are reduced to so many principal components (see :func:`liftopt.input_map.fit_input_map`),
        which the network's first layer takes in. None keeps all features.
    alpha : float
        Ridge in units of the mean squared error, on slopes of standardised variables and targets.
    max_iter : int
        Largest number of sweeps; each adds two hinges while there is room, and moves all.
    tol : float
        Stop when three sweeps in a row lower the objective by less than ``tol`` relatively.
    random_state : int, RandomState or None
        For the rows that the principal components of more than 10000 rows are computed from.

    Attributes
    ----------
    hyperplanes_ : HingingHyperplanes
        The fitted function of raw rows.
    network_ : Network
        Equal to it to rounding, everywhere; float32 data give float32 weights.
    result_ : Result
        Outcome of the fit on standardised data: history, residual, reason for stopping.
    n_iter_ : int
        Sweeps.

    Notes
    -----
    Integer ``sample_weight`` counts repetitions; other weights are scaled to mean one. A sweep costs
    O(n K d (d + 32) + K d^3) for K hinges and d mapped features. The problem is not convex: the result is a
    local optimum.

    References
    ----------
    Breiman, "Hinging hyperplanes for regression, classification, and function approximation", IEEE Trans.
    Inf. Theory 1993.

    Examples
    --------
    >>> import numpy as np
    >>> from liftopt import HingingHyperplaneRegressor
    >>> X = np.random.default_rng(0).normal(size=(300, 3))
    >>> y = np.abs(X.sum(axis=1))
    >>> model = HingingHyperplaneRegressor(n_hinges=1, alpha=1e-9).fit(X, y)
    >>> bool(model.score(X, y) > 0.999)
    True
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> HingingHyperplaneRegressor:
        """Fit to ``X`` (n, d) and ``y`` (n,) or (n, outputs)."""
        data = self._check_training_data(X, y, sample_weight)
        scaling = self._input_map(data)
        centre, spread = target_moments(data)
        rows = scaling.transform(data.X.astype(np.float64))
        model = _on_raw_rows(self._least_squares(data, rows, (data.target - centre) / spread), scaling)
        self.hyperplanes_ = model._replace(
            intercept=model.intercept * spread + centre,
            linear=model.linear * spread,
            outer=model.outer * spread,
        )
        self.network_ = hinging_network(self.hyperplanes_, dtype=data.X.dtype)
        return self


class HingingHyperplaneClassifier(_HingingEstimator, NetworkClassifier):
    """Classification by hinging hyperplanes with a softmax head, exactly a ReLU network.

    The hinges are selected by least squares on the class indicators, centred and divided by the square root
    of the class share; linear part and coefficients are then refitted by softmax regression.

    Parameters
    ----------
    n_hinges, n_components, max_iter, tol, random_state
        As for :class:`HingingHyperplaneRegressor`.
    alpha : float
        Ridge of the least-squares fit as there, and of the head:
        ``mean cross-entropy + alpha / 2 |A|^2`` over standardised variables and hinges.

    Attributes
    ----------
    hyperplanes_ : HingingHyperplanes
        The scores before the softmax, as a function of raw rows.
    network_ : Network
        Equal to it to rounding, with a softmax head.
    classes_ : ndarray
        Class labels.
    result_ : Result
        Outcome of the selection by least squares.
    n_iter_ : int
        Its sweeps.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> HingingHyperplaneClassifier:
        """Fit to ``X`` (n, d) and labels ``y`` (n,)."""
        data = self._check_training_data(X, y, sample_weight)
        scaling = self._input_map(data)
        rows = scaling.transform(data.X.astype(np.float64))
        model = self._least_squares(data, rows, class_indicators(data))
        head = softmax_head(np.column_stack([rows, model.hinges(rows)]), data, self.alpha)
        linear, outer = np.split(head.weight, [rows.shape[1]])
        model = model._replace(intercept=head.intercept, linear=linear, outer=outer)
        self.hyperplanes_ = _on_raw_rows(model, scaling)
        self.network_ = hinging_network(self.hyperplanes_, "softmax", data.X.dtype)
        return self
