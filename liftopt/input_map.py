r"""Affine input maps ``Z = (X - mean) P``: standardisation and damped partial PCA whitening, and their fold.

A first layer trained on ``Z`` is a first layer on ``X``: ``Z W + b = X (P W) + (b - mean P W)``, so the map
costs nothing at prediction. A gradient step in ``Z`` is one on ``X`` preconditioned by ``P P'``.

The damped map keeps ``k`` principal components with eigenvalues ``w_j`` and eigenvectors ``v_j`` of the
scaled covariance and sets ``p_j = v_j (w_j + damping * mean(w))^(-exponent)``, scaled to unit mean component
variance. Features are first divided by the geometric mean of their standard deviation and their range: like
the standard deviation it makes the map independent of units, and unlike it, it does not blow up features
that are constant on nearly all rows (the rim of an image).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from sklearn.utils import check_random_state

from liftopt.layers import Conv2d, Dense
from liftopt.network import Network
from liftopt.solvers.validation import as_count, as_scalar

Array = npt.NDArray[Any]

_KEPT_SHARE = 0.9
_KEPT_WHOLE = 256  # up to this many features nothing is gained by dropping components

_JUDGED_ROWS, _NEGLIGIBLE = 1000, 0.01  # whether a map carries a start

_CHUNK_BYTES = 2**20  # rows are centred in a buffer that stays in the cache


@dataclass(frozen=True, eq=False)
class InputMap:
    """The affine map ``Z = (X - mean) P``.

    Parameters
    ----------
    mean : ndarray of shape (d,), float64
        Subtracted first.
    factor : ndarray of shape (d, k) or (d,), float64
        ``P``, or its diagonal.
    """

    mean: Array
    factor: Array

    @classmethod
    def identity(cls, features: int) -> InputMap:
        """The map that changes nothing."""
        return cls(np.zeros(features), np.ones(features))

    @property
    def matrix(self) -> Array:
        """``P`` as a matrix of shape (d, k)."""
        return np.diag(self.factor) if self.factor.ndim == 1 else self.factor

    @property
    def n_components(self) -> int:
        """Number of columns ``k`` of the mapped data."""
        return self.factor.shape[-1]

    def transform(self, X: Array) -> Array:
        """Mapped rows, shape (n, k), in X's floating dtype; chunk by chunk, ``2 n d k`` operations."""
        mean, factor = self.mean.astype(X.dtype), self.factor.astype(X.dtype)
        n, d = X.shape
        out = np.empty((n, self.n_components), dtype=X.dtype)
        size = max(1, min(n, max(64, _CHUNK_BYTES // max(1, d * X.itemsize))))
        centred = np.empty((size, d), dtype=X.dtype)
        for start in range(0, n, size):
            rows = X[start : start + size]
            part, target = centred[: rows.shape[0]], out[start : start + size]
            np.subtract(rows, mean, out=part)
            if factor.ndim == 1:
                np.multiply(part, factor, out=target)
            else:
                np.matmul(part, factor, out=target)
        return out


def make_input_map(
    spec: str | Mapping[str, Any] | None,
    X: Array,
    sample_weight: Array | None = None,
    random_state: int | np.random.RandomState | None = None,
    *,
    start: Network | None = None,
) -> InputMap | None:
    """Input map that an estimator's ``input_map`` parameter stands for.

    Parameters
    ----------
    spec : {"standardise", "pca"}, mapping or None
        ``"pca"`` is the damped whitening with all components of up to 256 features, else 90 % of the
        variance; a mapping holds arguments of :func:`fit_input_map`; None stands for no map.
    X, sample_weight, random_state
        As in :func:`fit_input_map`.
    start : Network, optional
        What training goes on from, on raw rows. All components are kept if it would lose part of its first
        layer otherwise.

    Raises
    ------
    ValueError
        If ``spec`` is none of these.
    """
    if spec is None:
        return None
    if isinstance(spec, str) and spec == "standardise":
        return standardise(X, sample_weight)
    if isinstance(spec, str) and spec == "pca":
        spec = {} if X.shape[1] <= _KEPT_WHOLE else {"n_components": _KEPT_SHARE}
    if isinstance(spec, Mapping):
        found = fit_input_map(X, sample_weight=sample_weight, random_state=random_state, **spec)
        if start is None or _carries(found, start, X):
            return found
        whole = {**spec, "n_components": None}
        return fit_input_map(X, sample_weight=sample_weight, random_state=random_state, **whole)
    raise ValueError(
        "input_map must be 'standardise', 'pca', a mapping of fit_input_map's arguments or None, "
        f"got {spec!r}"
    )


def standardise(X: Array, sample_weight: Array | None = None) -> InputMap:
    """Map every feature to weighted mean 0 and variance 1; constant features to 0.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Finite, floating.
    sample_weight : ndarray of shape (n,), optional
        Non-negative, not all zero; a weight equals a repetition.
    """
    rows, weight = _positive_rows(X, sample_weight)
    mean, deviation, _ = _feature_scales(rows, weight)
    return InputMap(mean, reciprocal(deviation))


def fit_input_map(
    X: Array,
    *,
    n_components: int | float | None = None,
    damping: float = 1.0,
    exponent: float = 0.25,
    sample_weight: Array | None = None,
    max_rows: int = 10000,
    random_state: int | np.random.RandomState | None = None,
) -> InputMap:
    """Damped partial PCA whitening of ``X``.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Finite, floating.
    n_components : int, float or None
        Number of components, or the explained share of the variance in (0, 1); None keeps all. Never more
        than the numerical rank.
    damping : float
        Added to the eigenvalues, in units of their mean; large values mean no whitening.
    exponent : float
        In [0, 1/2]: 0 only rotates, 1/2 with ``damping=0`` whitens fully.
    sample_weight : ndarray of shape (n,), optional
        Non-negative, not all zero; a weight equals a repetition (of at most ``max_rows`` rows).
    max_rows : int
        Larger data are subsampled without replacement for the statistics.
    random_state : int, RandomState or None
        For the subsample only.

    Returns
    -------
    InputMap
        With ``factor`` of shape (d, k). If every feature is constant, ``k = 1`` and Z is zero.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    ``m d^2 + min(m, d)^3`` operations for ``m = min(n, max_rows)`` rows, float64 accumulation.
    """
    damping = as_scalar("damping", damping, low=0.0)
    exponent = as_scalar("exponent", exponent, low=0.0, high=0.5)
    rows, weight = _positive_rows(X, sample_weight)
    if rows.shape[0] > as_count("max_rows", max_rows):
        chosen = check_random_state(random_state).choice(rows.shape[0], max_rows, replace=False)
        chosen.sort()
        rows, weight = rows[chosen], None if weight is None else weight[chosen]
    mean, deviation, spread = _feature_scales(rows, weight)
    scale = reciprocal(np.sqrt(deviation) * np.sqrt(spread))
    variances, directions = _principal_components(rows, weight, mean, scale, n_components)
    if variances.size == 0:
        return InputMap(mean, np.zeros((mean.size, 1)))
    gain = (variances + damping * variances.mean()) ** -exponent
    gain /= np.sqrt(np.mean(variances * gain**2))
    return InputMap(mean, scale[:, None] * directions * gain)


def fold(network: Network, input_map: InputMap) -> Network:
    """Network on raw rows ``X`` equal to ``network`` on ``input_map.transform(X)``.

    The product is taken in float64 and rounded once to the network's dtype.

    Parameters
    ----------
    network : Network
        Starts with a Dense layer; or with a Conv2d layer if the map is one factor and one mean a channel, the
        means zero where the layer pads.
    input_map : InputMap
        Of as many features as ``network`` has inputs.

    Raises
    ------
    ValueError
        If the map does not fold exactly.
    """
    if isinstance(network.layers[0], Conv2d):
        return _fold_into_convolution(network, network.layers[0], input_map)
    first = _first_dense(network)
    factor = input_map.factor
    inner = first.weight.astype(np.float64)
    weight = factor[:, None] * inner if factor.ndim == 1 else factor @ inner
    return _with_first(network, weight, first.bias - input_map.mean @ weight)


def _fold_into_convolution(network: Network, first: Conv2d, input_map: InputMap) -> Network:
    channels = network.input_shape[0]
    mean = input_map.mean.reshape(channels, -1)
    factor = input_map.factor.reshape(channels, -1) if input_map.factor.ndim == 1 else mean[:0]
    if factor.size == 0 or np.ptp(factor, axis=1).any() or np.ptp(mean, axis=1).any():
        raise ValueError("into a convolution folds only a map with one factor and one mean a channel")
    if first.padding and mean.any():
        raise ValueError(
            "a shift does not fold into a convolution with padding: its zeros would be shifted too"
        )
    weight = first.weight.astype(np.float64) * factor[:, 0, None, None]
    bias = first.bias - weight.sum(axis=(2, 3)) @ mean[:, 0]
    dtype = network.dtype
    folded = Conv2d(weight.astype(dtype), bias.astype(dtype), first.activation, first.stride, first.padding)
    return Network([folded, *network.layers[1:]], network.input_shape, network.metadata)


def unfold(network: Network, input_map: InputMap) -> Network:
    """Network on mapped rows that :func:`fold` turns back into ``network``, so that training can go on.

    Exact when the map is invertible or ``network`` was folded from it; otherwise the part of the first
    layer outside the kept components is dropped (least squares in the scaled features).
    """
    first = _first_dense(network)
    weight = first.weight.astype(np.float64)
    bias = first.bias + input_map.mean @ weight
    factor = input_map.factor
    if factor.ndim == 1:
        return _with_first(network, reciprocal(factor)[:, None] * weight, bias)
    balance = reciprocal(np.linalg.norm(factor, axis=1))[:, None]
    inner = np.linalg.lstsq(balance * factor, balance * weight, rcond=None)[0]
    return _with_first(network, inner, bias)


def _carries(input_map: InputMap, network: Network, X: Array) -> bool:
    """Whether the first layer survives :func:`unfold` on some rows, up to a hundredth of its variation."""
    if network.input_shape != X.shape[1:]:
        return True  # it fits nowhere: refused as a start, with the reason
    rows = X[:: max(1, X.shape[0] // _JUDGED_ROWS)]
    before = _first_dense(network).linear(rows)
    after = _first_dense(fold(unfold(network, input_map), input_map)).linear(rows)
    variation = np.linalg.norm(before - before.mean(axis=0))
    return bool(np.linalg.norm(after - before) <= _NEGLIGIBLE * max(variation, np.linalg.norm(before) * 1e-3))


def _first_dense(network: Network) -> Dense:
    first = network.layers[0]
    if not isinstance(first, Dense):
        raise ValueError("an input map folds into a first Dense layer only: use input_map=None")
    return first


def _with_first(network: Network, weight: Array, bias: Array) -> Network:
    dtype = network.dtype
    first = Dense(weight.astype(dtype), bias.astype(dtype), _first_dense(network).activation)
    return Network([first, *network.layers[1:]], None, network.metadata)


def _positive_rows(X: Array, sample_weight: Array | None) -> tuple[Array, Array | None]:
    """Rows of positive weight and their weights."""
    if sample_weight is None:
        return X, None
    used = sample_weight > 0
    return (X, sample_weight) if used.all() else (X[used], sample_weight[used])


def _feature_scales(X: Array, weight: Array | None) -> tuple[Array, Array, Array]:
    """Mean, standard deviation and range of every feature in float64; both spreads 0 where rounding rules.

    Each feature is measured relative to its range, so no square over- or underflows.
    """
    low, high = X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64)
    spread = high - low
    largest = np.maximum(np.abs(low), np.abs(high))
    limits = np.finfo(X.dtype)
    spread[spread <= np.maximum(4.0 * limits.eps * largest, limits.tiny**0.5)] = 0.0
    inverse = reciprocal(spread)
    total = np.zeros(X.shape[1])
    squares = np.zeros(X.shape[1])
    middle = 0.5 * low + 0.5 * high
    for rows in _chunks(*X.shape):
        relative = (X[rows] - middle) * inverse
        mass = np.ones(relative.shape[0]) if weight is None else weight[rows]
        total += mass @ relative
        squares += mass @ relative**2
    count = X.shape[0] if weight is None else weight.sum()
    offset = total / count
    deviation = np.sqrt(np.maximum(squares / count - offset**2, 0.0))
    deviation[deviation <= np.sqrt(np.finfo(np.float64).eps)] = 0.0
    spread[deviation == 0.0] = 0.0
    return middle + offset * spread, deviation * spread, spread


def _principal_components(
    X: Array, weight: Array | None, mean: Array, scale: Array, n_components: int | float | None
) -> tuple[Array, Array]:
    """Leading eigenvalues (k,), decreasing, and eigenvectors (d, k) of the scaled covariance.

    Works in the smaller of the row and the feature space. Signs: the largest entry is positive.
    """
    n, d = X.shape
    mass = np.full(n, 1.0 / n) if weight is None else weight / weight.sum()
    if n < d:
        scaled = (X - mean) * scale * np.sqrt(mass)[:, None]
        gram = scaled @ scaled.T
    else:
        gram = _scaled_covariance(X, mass, mean, scale)
    size = gram.shape[0]
    few = isinstance(n_components, (int, np.integer)) and as_count("n_components", n_components) < size
    values, vectors = eigh(
        gram.astype(X.dtype),
        subset_by_index=[size - n_components, size - 1] if few else None,
        driver="evr" if few else "evd",
    )
    values, vectors = values[::-1].astype(np.float64), vectors[:, ::-1].astype(np.float64)
    kept = _kept(values, n_components, floor=64 * float(np.finfo(X.dtype).eps))
    values, vectors = values[:kept], vectors[:, :kept]
    if n < d:
        vectors = scaled.T @ vectors / np.sqrt(values)
    peaks = vectors[np.abs(vectors).argmax(axis=0), np.arange(kept)]
    return values, vectors * np.where(peaks < 0, -1.0, 1.0)


def _scaled_covariance(X: Array, mass: Array, mean: Array, scale: Array) -> Array:
    """Covariance of ``(X - mean) * scale`` under row masses: chunks in X's dtype, summed in float64."""
    n, d = X.shape
    centre, factor = mean.astype(X.dtype), scale.astype(X.dtype)
    root = np.sqrt(mass * n).astype(X.dtype)[:, None]
    covariance = np.zeros((d, d))
    for rows in _chunks(n, d):
        scaled = (X[rows] - centre) * factor
        scaled *= root[rows]
        covariance += scaled.T @ scaled
    return covariance / n


def _kept(values: Array, n_components: int | float | None, floor: float) -> int:
    """Number of components to keep of decreasing eigenvalues: asked for, and above ``floor * largest``."""
    rank = int(np.sum(values > floor * max(values[0], 0.0)))
    if n_components is None:
        return rank
    if isinstance(n_components, (int, np.integer)):
        return min(rank, int(n_components))
    share = as_scalar("n_components", n_components, low=0.0, high=1.0, strict=True)
    explained = np.cumsum(values[:rank])
    return min(rank, 1 + int(np.searchsorted(explained, share * explained[-1]))) if rank else 0


def reciprocal(values: Array) -> Array:
    """``1 / values`` where positive, 0 elsewhere."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def _chunks(n: int, d: int) -> list[slice]:
    size = max(512, _CHUNK_BYTES // max(1, 8 * d))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
