"""Ternary networks, and networks over any finite value set, by combinatorial coordinate search.

The problem and the pipeline are those of :mod:`~liftopt.ternary_training`.

References
----------
Date, Carothers, Mitchell, Hendler, Magdon-Ismail, "Training Deep Neural Networks with Constrained Learning
Parameters", IEEE ICRC 2020, arXiv 2009.00540.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531 (softened targets).
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from liftopt.base import NetworkClassifier, NetworkRegressor
from liftopt.ternary_training import DiscreteTraining

Array = npt.NDArray[Any]


class TernaryClassifier(DiscreteTraining, NetworkClassifier):
    """Classifier whose weights come from a finite set, ternary by default, stored in 2 bits (or 1.6) each.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int
        Widths of the hidden layers, ignored when ``init`` is a Network; empty for softmax regression.
    values : sequence of float
        The value set: 2 to 256 different numbers; every output unit has a float scale besides.
    init : Network, str or None
        Float start: a network of Dense, Conv2d, AvgPool2d and Flatten layers; a method's name; ``"random"``
        for random codes; None for the default method (softmax regression starts from zero).
    warm_start : bool
        Start from the network of the previous fit instead, and fit the labels.
    algorithm : {"layerwise", "literal"}
        The pipeline of this module, or the published loop with biases in the set too and no scales.
    activation : str
        Of the hidden layers, when ``init`` is not a Network.
    input_map : {"auto", "standardise"} or None
        Standardise the features (stored as one factor per input). ``"auto"``: if the larger ranges (9th
        decile) exceed four times the smaller ones (1st decile). Convolutions take raw inputs.
    temperature : float or None
        The full-loss search fits the float start's class probabilities at this temperature; None fits the
        labels. Labels are also fitted when there is no float start.
    n_starts : int
        Random starts of the literal algorithm; the lowest training loss wins.
    max_iter : int
        Sweeps over all weights (from each start).
    tol : float
        Least decrease of the mean loss for which a weight is changed.
    validation_fraction : float
        Share of the rows held out to choose the sweep; without one the training loss chooses.
    packing : {"bits", "digits"}
        Storage of codes: whole bits (ternary: 2), or base-m digits (ternary: 1.6 bits).
    random_state : int, RandomState or None
        For the hold-out, the start, and the orders of the search.
    checkpoint : path-like, optional
        File that keeps the state of the layerwise search; a fit that finds its own there goes on from it, bit
        by bit as if it had never stopped. Deleted when the fit ends, unless that was by Ctrl-C.
    callback : callable, optional
        Called with each sweep's record; a true return value stops the search.
    verbose : bool
        Log each sweep at INFO level.

    Attributes
    ----------
    network_ : Network
        The trained network with packed weights, on raw inputs.
    history_ : list of dict
        One record a sweep: ``iteration``, ``time``, ``cpu``, ``loss``, ``validation_score``, ``changes``.
    n_iter_ : int
        Sweeps done (by the best start).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from liftopt import TernaryClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = TernaryClassifier(hidden_layer_sizes=(), random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    """

    classes_: Array

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> TernaryClassifier:
        """Train on ``X`` (n, d) and labels ``y`` (n,), or on a stream.

        Raises
        ------
        ValueError
            If a parameter is out of range or the data cannot be used.
        """
        self._fit_any(X, y, sample_weight)
        return self


class TernaryRegressor(DiscreteTraining, NetworkRegressor):
    """Regressor whose weights come from a finite set, trained on the squared error.

    Parameters and attributes are those of :class:`TernaryClassifier`; ``temperature`` has no effect.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> TernaryRegressor:
        """Train on ``X`` (n, d) and targets ``y`` (n,) or (n, outputs), or on a stream.

        Raises
        ------
        ValueError
            If a parameter is out of range or the data cannot be used.
        """
        self._fit_any(X, y, sample_weight)
        return self
