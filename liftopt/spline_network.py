"""Exact conversion of a continuous piecewise-linear spline to a fully connected ReLU network.

Layer 0 holds the distinct hinges ``(s (x_j - t))+``; a linear term takes two units. For hinges h_1, ..., h_k,

    m_i = min(h_1, ..., h_i) = m_{i-1} - (m_{i-1} - h_i)+ ,    m_k = h_1 - sum_i (m_{i-1} - h_i)+ ,

so every further hinge of a term costs one unit in one more layer; minima that are still needed are
non-negative and pass through a unit unchanged. What the finished units add to the outputs travels on as
``z = (z)+ - (-z)+``, two units an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.network import Network, dense_network
from liftopt.solvers.hinge_basis import Hinge, HingeBasis

Array = npt.NDArray[Any]
Term = tuple[Hinge, ...]


def spline_network(
    basis: HingeBasis,
    coefficients: Array,
    head: str = "identity",
    metadata: Mapping[str, Any] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> Network:
    """Network equal to ``basis(X) @ coefficients``.

    Parameters
    ----------
    basis : HingeBasis
        Piecewise linear: degree 1, or interactions by minimum.
    coefficients : ndarray of shape (terms, outputs)
        The intercept's row first.
    head : str
        Activation of the last layer: ``"identity"`` or ``"softmax"``.
    metadata : mapping, optional
        Stored with the network.
    dtype : float64 or float32
        Of the weights, which are computed in float64 and rounded once.

    Raises
    ------
    ValueError
        If a term is a product of hinges: no ReLU network equals it.
    """
    if not basis.is_piecewise_linear:
        raise ValueError(
            "a product of hinges is not piecewise linear and has no exact ReLU form: "
            "fit with interaction='min'"
        )
    terms = list(zip(basis.terms[1:], coefficients[1:], strict=True))
    weights, biases = [], []
    if terms:
        weight, bias, values = _first_layer(basis)
        weights.append(weight)
        biases.append(bias)
        carried = np.sum([np.outer(values[term[:1]], c) for term, c in terms], axis=0)
        for level in range(1, basis.degree):
            weight, values, carried = _next_layer(terms, level, values, carried)
            weights.append(weight)
            biases.append(np.zeros(weight.shape[1]))
    else:
        carried = np.zeros((basis.scale.size, coefficients.shape[1]))
    weights = [weight.astype(dtype) for weight in (*weights, carried)]
    biases = [bias.astype(dtype) for bias in (*biases, coefficients[0])]
    return dense_network(weights, biases, "relu", head, metadata)


def _first_layer(basis: HingeBasis) -> tuple[Array, Array, dict[Term, Array]]:
    """Weight, bias, and every hinge as a combination of the units."""
    hinges = list(dict.fromkeys(hinge for term in basis.terms for hinge in term))
    units = list(
        dict.fromkeys(
            hinge._replace(sign=sign)
            for hinge in hinges
            for sign in ([hinge.sign] if hinge.sign else [1, -1])
        )
    )
    place = {unit: index for index, unit in enumerate(units)}
    weight, bias = np.zeros((basis.scale.size, len(units))), np.zeros(len(units))
    for unit, index in place.items():
        slope = unit.sign / basis.scale[unit.variable]
        weight[unit.variable, index] = slope
        bias[index] = -slope * unit.knot
    values: dict[Term, Array] = {}
    for hinge in hinges:
        value = np.zeros(len(units))
        if hinge.sign:
            value[place[hinge]] = 1.0
        else:
            value[place[hinge._replace(sign=1)]] = 1.0
            value[place[hinge._replace(sign=-1)]] = -1.0
        values[(hinge,)] = value
    return weight, bias, values


def _next_layer(
    terms: list[tuple[Term, Array]], level: int, values: dict[Term, Array], carried: Array
) -> tuple[Array, dict[Term, Array], Array]:
    """Fold hinge ``level`` of every term into its minimum; returns the weight, and both arguments above it.

    ``values`` expresses partial minima and pending hinges by the units below, ``carried`` (units, outputs)
    what the finished units add to the outputs.
    """
    longer = [term for term, _ in terms if len(term) > level]
    folded = list(dict.fromkeys(term[: level + 1] for term in longer))
    pending = [term for term in longer if len(term) > level + 1]
    passed = list(
        dict.fromkeys(
            [term[:level] for term in pending] + [(hinge,) for term in pending for hinge in term[level + 1 :]]
        )
    )
    columns = [values[prefix[:level]] - values[prefix[level:]] for prefix in folded]
    columns += [values[value] for value in passed]
    weight = np.column_stack([*columns, carried, -carried])
    unit = np.eye(weight.shape[1])
    after = {value: unit[len(folded) + index] for index, value in enumerate(passed)}
    excess = {prefix: unit[index] for index, prefix in enumerate(folded)}
    for prefix in {term[: level + 1] for term in pending}:
        after[prefix] = after[prefix[:level]] - excess[prefix]
    outputs = carried.shape[1]
    first = weight.shape[1] - 2 * outputs
    out = (unit[first : first + outputs] - unit[first + outputs :]).T
    for term, c in terms:
        if len(term) > level:
            out = out - np.outer(excess[term[: level + 1]], c)
    return weight, after, out
