r"""Closed-form repairs of a network, so that what follows starts well.

:func:`refit_head`      the last layer solved to its global optimum on the features of the others (convex)
:func:`as_dense`        convolution, pooling and flattening as dense layers, exactly: every one is a matrix
:func:`fold_row_scaling`  ``Normalize`` layers as one factor each in the next layer, by least squares

A map of the inputs folds into the first layer by :func:`liftopt.input_map.fold`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.activations import Identity, Softmax
from liftopt.base import TrainingData, starting_network
from liftopt.heads import softmax_head
from liftopt.layers import IDENTITY, AvgPool2d, Conv2d, Dense, Flatten, Layer, Normalize, Shape
from liftopt.network import Network
from liftopt.solvers.least_squares import solve_ridge
from liftopt.solvers.validation import as_finite, as_scalar, as_weights

Array = npt.NDArray[Any]

_REPAIR_ROWS = 10_000  # enough for a start
_BASIS_ROWS = 64  # of the identity that a layer is applied to at a time


def refit_head(
    network: Network,
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    alpha: float = 1e-3,
    sample_weight: npt.ArrayLike | None = None,
) -> Network:
    r"""``network`` with its last layer fitted anew, to the global optimum on the features of the others.

    A softmax head minimises ``mean cross-entropy + alpha / 2 |A|^2`` over standardised features, a linear
    head ``|features A + b - y|^2 + alpha g |A|^2``, ``g`` the mean diagonal of the centred Gram matrix.

    Parameters
    ----------
    network : Network
        Ends in a Dense layer with a softmax or a linear head.
    X : array-like of shape (n, \\*input_shape) or (n, features)
        Rows as the network takes them.
    y : array-like of shape (n,) or (n, outputs)
        For a softmax head the index of each row's output, or probabilities; else the targets.
    alpha : float
        Ridge.
    sample_weight : array-like of shape (n,), optional
        Non-negative weights.

    Returns
    -------
    Network
        In the dtype of ``network``.

    Raises
    ------
    ValueError
        If the head is of another kind, or the data do not fit.

    Notes
    -----
    One pass over the rows, one Cholesky factorisation of the features (ridge) or Newton's method (softmax).
    """
    last = network.layers[-1]
    alpha = as_scalar("alpha", alpha, low=0.0)
    if not isinstance(last, Dense) or not isinstance(last.activation, (Identity, Softmax)):
        raise ValueError(f"only a Dense layer with a linear or a softmax head can be refitted, not {last}")
    data = _training_data(network, X, y, sample_weight, isinstance(last.activation, Softmax))
    features = network.hidden(data.X)[-1] if len(network.layers) > 1 else data.X
    if data.codes is None:
        head = solve_ridge(features, data.target, alpha=alpha, relative=True, sample_weight=data.weight).x
    else:
        head = softmax_head(features, data, alpha)
    dtype = network.dtype
    fitted = Dense(head.weight.astype(dtype), head.intercept.astype(dtype), last.activation)
    return Network([*network.layers[:-1], fitted], network.input_shape, network.metadata)


def as_dense(network: Network) -> Network:
    """Equal network of Dense (and Normalize) layers on flat rows.

    Pooling and flattening join the layer that follows. A convolution of ``s`` inputs and ``t`` outputs
    becomes ``s t`` weights: small images only.

    Parameters
    ----------
    network : Network
        Of any layers.

    Returns
    -------
    Network
        Equal up to rounding, packed weights as numbers.
    """
    shape, layers = network.input_shape, list[Layer]()
    before: Array | None = None  # matrix of the parameter-free layers since the last Dense
    for layer in network.layers:
        following = layer.output_shape(shape)
        if isinstance(layer, (AvgPool2d, Flatten)):
            matrix = _matrix(layer, shape, network.dtype)
            before = matrix if before is None else before @ matrix
        else:
            if isinstance(layer, Normalize) and before is not None:
                layers.append(Dense(before, np.zeros(before.shape[1], before.dtype)))
                before = None
            layers.append(layer if isinstance(layer, Normalize) else _dense(layer, shape, before))
            before = None
        shape = following
    if before is not None:
        layers.append(Dense(before, np.zeros(before.shape[1], before.dtype)))
    return Network(layers, (int(np.prod(network.input_shape)),), network.metadata)


def fold_row_scaling(network: Network, X: npt.ArrayLike) -> Network:
    """``network`` without Normalize layers: each becomes the factor that fits it best on ``X``.

    ``c = sum |x| / sum |x|^2`` minimises ``sum |x / |x| - c x|^2`` over the rows ``x`` that reach the layer,
    and multiplies the weights of the next one. Equal if all rows have one length, close if the lengths vary
    little; :func:`refit_head` does the rest.

    Parameters
    ----------
    network : Network
        Every Normalize layer stands in front of a Dense layer.
    X : array-like of shape (n, features)
        Rows that are typical.

    Returns
    -------
    Network
        Without Normalize layers, in the dtype of ``network``.

    Raises
    ------
    ValueError
        If a Normalize layer is not followed by a Dense layer.
    """
    current = np.asarray(X, dtype=network.dtype).reshape(-1, *network.input_shape)
    factor, layers = 1.0, list[Layer]()
    for layer in network.layers:
        if isinstance(layer, Normalize):
            length = np.linalg.norm(current, axis=1).astype(np.float64)
            factor *= float(length.sum() / max(np.sum(length**2), np.finfo(np.float64).tiny))
            continue
        if factor != 1.0:
            if not isinstance(layer, Dense):
                raise ValueError(f"row scaling folds into a Dense layer only, not into {layer}")
            layer, factor = (
                Dense(layer.weight * network.dtype.type(factor), layer.bias, layer.activation),
                1.0,
            )
        layers.append(layer)
        current = layer(current)
    if factor != 1.0:
        raise ValueError("row scaling folds into the Dense layer after it, but the network ends in Normalize")
    return Network(layers, network.input_shape, network.metadata)


def start_of_blocks(
    init: Network | str | None, data: TrainingData, random_state: np.random.RandomState, **parameters: Any
) -> Network | None:
    """:func:`liftopt.base.starting_network` for methods that cannot train through Normalize layers.

    Those are folded, and the head is refitted on some rows: the start is close to ``init``, not equal to it.
    """
    network = starting_network(init, data, random_state, **parameters)
    if network is None or not any(isinstance(layer, Normalize) for layer in network.layers):
        return network
    some = data.rows(random_state.permutation(data.X.shape[0])[:_REPAIR_ROWS])
    folded = fold_row_scaling(network, some.X)
    target = some.target if some.codes is None else some.codes
    return refit_head(folded, some.X, target, sample_weight=some.weight)


def _dense(layer: Dense | Conv2d, shape: Shape, before: Array | None) -> Dense:
    """Dense layer equal to ``before`` and then ``layer``."""
    if isinstance(layer, Dense):
        weight, bias = layer.weight, layer.bias
    else:
        linear = Conv2d(layer.weight, np.zeros_like(layer.bias), IDENTITY, layer.stride, layer.padding)
        weight = _matrix(linear, shape, layer.bias.dtype)
        bias = np.broadcast_to(layer.bias[:, None, None], layer.output_shape(shape)).reshape(-1).copy()
    return Dense(weight if before is None else before @ weight, bias, layer.activation)


def _matrix(layer: AvgPool2d | Flatten | Conv2d, shape: Shape, dtype: npt.DTypeLike) -> Array:
    """Matrix (inputs, outputs) of a linear layer on flat rows."""
    return np.concatenate([layer(rows).reshape(rows.shape[0], -1) for rows in _basis(shape, dtype)])


def _basis(shape: Shape, dtype: npt.DTypeLike) -> Iterator[Array]:
    """Unit vectors of the given shape, some at a time."""
    size = int(np.prod(shape))
    for start in range(0, size, _BASIS_ROWS):
        count = min(_BASIS_ROWS, size - start)
        yield np.eye(count, size, start, dtype=dtype).reshape(count, *shape)


def _training_data(
    network: Network, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: Any, classes: bool
) -> TrainingData:
    rows = as_finite("X", np.asarray(X, dtype=network.dtype))
    target = np.asarray(y)
    outputs = network.output_shape[0]
    weight = as_weights("sample_weight", sample_weight, rows.shape[0])
    if not classes:
        return TrainingData(rows, as_finite("y", target.reshape(rows.shape[0], -1)), None, weight)
    if target.ndim == 1:
        if not (np.issubdtype(target.dtype, np.integer) and target.min() >= 0 and target.max() < outputs):
            raise ValueError(f"y must hold indices of the {outputs} outputs, or a row of probabilities each")
        target = np.eye(outputs)[target]
    return TrainingData(rows, target, target.argmax(axis=1), weight)
