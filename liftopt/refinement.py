"""Gradient refinement of any network: ``refine(network, X, y)``.

A network that structured methods have built starts a mini-batch descent on its own loss
(:mod:`liftopt.backprop`) with periodic weight sampling (:mod:`liftopt.weight_sampling`). The start is judged
on the held-out rows too, so that the result is not worse there.
"""

from __future__ import annotations

from typing import Any

from liftopt.activations import Softmax
from liftopt.layers import Conv2d, Dense
from liftopt.methods import make_estimator
from liftopt.network import Network
from liftopt.packing import FiniteArray


def refine(network: Network, X: Any, y: Any, *, sample_weight: Any = None, **parameters: Any) -> Network:
    """Train ``network`` on by gradients, from its present weights.

    Parameters
    ----------
    network : Network
        On raw rows; a softmax head means classification, a linear one regression. Any layers but packed ones.
    X : array-like of shape (n, features)
        Rows.
    y : array-like of shape (n,) or (n, outputs)
        Labels (the sorted ones belong to the outputs, and each must occur), or targets.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights of the rows.
    **parameters
        Of :class:`liftopt.BackpropClassifier`. Defaults that differ: ``learning_rate_init=1e-3``,
        ``max_iter=20``, ``early_stopping="auto"``, ``sampling="walk"``, and ``input_map="pca"`` where the
        first layer is dense, else None.

    Returns
    -------
    Network
        The best epoch on the held-out rows, or the start if none is better.

    Raises
    ------
    ValueError
        If the data do not fit the network, a parameter is out of range, or weights are packed codes of a
        finite value set, which gradient steps would leave.
    ImportError
        If torch is missing; the message names the extra.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from liftopt import ManifoldClassifier, refine
    >>> X, y = load_iris(return_X_y=True)
    >>> start = ManifoldClassifier(hidden_layer_sizes=(8,), random_state=0).fit(X, y).network_
    >>> refine(start, X, y, max_iter=2, random_state=0).output_shape
    (3,)
    """
    if not isinstance(network, Network):
        raise ValueError(f"network must be a Network, got {type(network).__name__}")
    for index, layer in enumerate(network.layers):
        if isinstance(layer, (Dense, Conv2d)) and isinstance(layer.stored, FiniteArray):
            raise ValueError(
                f"layer {index} stores codes of a finite value set, which gradient steps would leave: refine "
                "the network first, then search with TernaryClassifier(init=network)"
            )
    last = network.layers[-1]
    head = last.activation if isinstance(last, Dense) else None
    task: Any = "classification" if isinstance(head, Softmax) else "regression"
    if not isinstance(network.layers[0], Dense):
        parameters = {"input_map": None, **parameters}
    estimator = make_estimator("refine", task, **{**parameters, "init": network})
    refined: Network = estimator.fit(X, y, sample_weight=sample_weight).network_
    return refined
