r"""The lifted training problem: activations as biconvex constraints, relaxed by one multiplier a layer.

For layers ``u_l = M_l(V_l) W_l + b_l``, ``V_0 = X``, hidden activations ``phi_l`` and a convex head,

    minimise    head(u_L, T) + (alpha/2) sum_l |W_l|^2
    subject to  D_l(V_{l+1}, u_l) = Phi*(V_{l+1}) + Phi(u_l) - <u_l, V_{l+1}> <= 0,   l < L,

with D >= 0 and D = 0 exactly at ``V_{l+1} = phi(u_l)``, is training itself. Moving ``sum_l lam_l D_l``
into the objective gives the relaxed problem, convex in each V-block and in each W-block. Losses and
penalties are weighted means over the samples: a problem may hold a part of them, whose sums then count as
parts of the means over all (:mod:`liftopt.lifted_parts`).

Its *global* minimum is a lower bound on the training optimum, non-decreasing in the multipliers, and vacuous
without the ridge (``alpha = 0``). Block descent reaches a block-stationary point of a non-convex function:
the value it reports certifies nothing. The gap between the forward loss and the lifted loss is what to watch.

References
----------
Gu, Askari, El Ghaoui, "Fenchel Lifted Networks: A Lagrange Relaxation of Neural Network Training",
AISTATS 2020, arXiv 1811.08039.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from liftopt.linear_maps import LinearMap
from liftopt.losses import Head

Array = npt.NDArray[Any]


class Weighted(Protocol):
    """Anything with weights and biases, one of each a layer."""

    @property
    def weights(self) -> tuple[Array, ...]:
        """Weight matrices."""

    @property
    def biases(self) -> tuple[Array, ...]:
        """Biases."""


@dataclass(frozen=True)
class Blocks:
    """A point of the lifted problem: weights, biases and one activation block a hidden layer."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    values: tuple[Array, ...]

    def with_layer(self, layer: int, W: Array, b: Array) -> Blocks:
        """Copy with layer ``layer``'s weights replaced."""
        weights, biases = list(self.weights), list(self.biases)
        weights[layer], biases[layer] = W, b
        return replace(self, weights=tuple(weights), biases=tuple(biases))

    def with_value(self, layer: int, V: Array) -> Blocks:
        """Copy with the activations that leave layer ``layer`` replaced."""
        values = list(self.values)
        values[layer] = V
        return replace(self, values=tuple(values))


@dataclass(frozen=True, eq=False)
class LiftedProblem:
    """Data, layers and penalties of one relaxed training problem.

    Parameters
    ----------
    maps : sequence of LinearMap
        The layers; hidden activations are theirs.
    head : Head
        Loss of the last pre-activation.
    X : ndarray of shape (n, ...)
        Inputs, images channels last.
    target : ndarray of shape (n, outputs)
        Targets of the head.
    multipliers : tuple of float
        ``lam_l > 0`` for every hidden layer.
    alpha : float
        Ridge on the weights (not on the biases).
    weight : ndarray of shape (n,), optional
        Sample weights; a weight equals a repetition.
    total : float, optional
        Weight of all rows in the means, where these are a part of them.
    """

    maps: Sequence[LinearMap]
    head: Head
    X: Array
    target: Array
    multipliers: tuple[float, ...]
    alpha: float
    weight: Array | None = None
    total: float | None = None
    _products: dict[int, tuple[Array, Array, Array, Array]] = field(
        default_factory=dict, init=False, repr=False
    )

    def rows(self, index: slice) -> LiftedProblem:
        """The problem on some of the rows."""
        weight = None if self.weight is None else self.weight[index]
        return replace(self, X=self.X[index], target=self.target[index], weight=weight)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.X.shape[0]

    @property
    def mass(self) -> float:
        """Weight of the rows."""
        return float(self.X.shape[0] if self.weight is None else self.weight.sum())

    @property
    def share(self) -> Array:
        """Weight of every sample in the means, shape (n,); over all samples they sum to one."""
        weight = np.ones(self.X.shape[0]) if self.weight is None else self.weight
        return weight / (self.total or self.mass)

    def load(self) -> LiftedProblem:
        """Itself: rows in memory, as a :class:`liftopt.lifted_parts.Part`."""
        return self

    def opened(self, kept: Any) -> tuple[Array, ...]:
        """Activations that :meth:`keep` kept."""
        return tuple(kept)

    def keep(self, values: tuple[Array, ...]) -> Any:
        """Activations, in memory."""
        return values

    def stored_as(self, problem: LiftedProblem) -> LiftedProblem:
        """``problem``, in memory."""
        return problem

    def head_of(self, point: Weighted) -> LiftedProblem:
        """The convex problem of the last layer on the network's own features."""
        last = len(self.maps) - 1
        passed = self.forward(point.weights, point.biases)
        return replace(self, maps=self.maps[last:], X=self.entering(passed, last), multipliers=())

    def forward(self, weights: Sequence[Array], biases: Sequence[Array]) -> Blocks:
        """The point whose activations are those of the network: every penalty is zero."""
        passed = Blocks(tuple(weights), tuple(biases), ())
        for layer, part in enumerate(self.maps[:-1]):
            V = part.output(part.activation(self.linear(passed, layer)))
            passed = replace(passed, values=(*passed.values, V))
        return passed

    def entering(self, blocks: Blocks, layer: int) -> Array:
        """``V_l``: what enters layer ``layer``."""
        return self.X if layer == 0 else blocks.values[layer - 1]

    def matrix(self, blocks: Blocks, layer: int) -> Array:
        """What layer ``layer`` multiplies by its weights, (rows, fan_in)."""
        return self.maps[layer].matrix(self.entering(blocks, layer))

    def linear(self, blocks: Blocks, layer: int) -> Array:
        """Pre-activation ``u_l`` (rows, fan_out) of layer ``layer`` at the lifted activations.

        Not to be changed in place: the last product of every layer is remembered, as a sweep asks for the
        same one several times.
        """
        V, W, b = self.entering(blocks, layer), blocks.weights[layer], blocks.biases[layer]
        known = self._products.get(layer)
        if known is not None and known[0] is V and known[1] is W and known[2] is b:
            return known[3]
        part = self.maps[layer]
        u = part.linear(part.arranged(V), W, b)
        self._products[layer] = V, W, b, u
        return u

    def row_cost(self, layer: int, u: Array, V: Array | None) -> Array:
        """What layer ``layer`` adds to every sample's objective at pre-activation ``u``: penalty or loss."""
        if layer == len(self.maps) - 1:
            return self.head.losses(u, self.target)
        assert V is not None
        gap = self.maps[layer].activation.gap(V.reshape(u.shape), u)
        return self.multipliers[layer] * gap.reshape(self.X.shape[0], -1).sum(axis=1, dtype=np.float64)

    def row_gradient(self, layer: int, u: Array, V: Array | None) -> Array:
        """Gradient of :meth:`row_cost` with respect to ``u``: ``lam (phi(u) - V)`` or the head's residual."""
        if layer == len(self.maps) - 1:
            return self.head.residual(u, self.target)
        assert V is not None
        return (self.maps[layer].activation(u) - V.reshape(u.shape)) * u.dtype.type(self.multipliers[layer])

    def leaving(self, blocks: Blocks, layer: int) -> Array | None:
        """``V_{l+1}``: the activations that leave layer ``layer``, None for the last."""
        return blocks.values[layer] if layer < len(blocks.values) else None

    def cost(self, blocks: Blocks, layer: int) -> float:
        """Share of the rows in the mean penalty of ``layer`` (times its multiplier), or in the loss."""
        rows = self.row_cost(layer, self.linear(blocks, layer), self.leaving(blocks, layer))
        return float(self.share @ rows)

    def costs(self, blocks: Blocks) -> tuple[float, ...]:
        """:meth:`cost` of every hidden layer, then the lifted loss."""
        return tuple(self.cost(blocks, layer) for layer in range(len(self.maps)))

    def outputs(self, point: Weighted) -> Array:
        """Last pre-activation of the network itself."""
        return self.linear(self.forward(point.weights, point.biases), len(self.maps) - 1)

    def forward_loss(self, point: Weighted) -> float:
        """Mean loss of the network itself, ridge excluded."""
        return float(self.share @ self.row_cost(len(self.maps) - 1, self.outputs(point), None))

    def value_gradient(self, blocks: Blocks, layer: int) -> Array:
        """Gradient of a sample's cost beyond ``V = blocks.values[layer]`` with respect to that ``V``."""
        above = layer + 1
        u = self.linear(blocks, above)
        part = self.maps[above]
        G = part.input_gradient(
            self.row_gradient(above, u, self.leaving(blocks, above)), blocks.weights[above]
        )
        return part.adjoint(G, blocks.values[layer].shape)

    def slope(self, blocks: Blocks, layer: int) -> Array:
        """Gradient of :meth:`cost` by the weights of ``layer``, over that by its bias, float64."""
        part = self.maps[layer]
        R = self.row_gradient(layer, self.linear(blocks, layer), self.leaving(blocks, layer))
        R *= self.row_share(R.shape[0])[:, None].astype(R.dtype)
        return np.vstack(part.gradient(part.arranged(self.entering(blocks, layer)), R)).astype(np.float64)

    def gram(self, blocks: Blocks, layer: int) -> Array:
        """Majorising Hessian of :meth:`cost` in the weights and bias of each neuron of ``layer``, float64."""
        if layer == len(self.maps) - 1:
            bound = self.head.bound
        else:
            bound = self.multipliers[layer] * self.maps[layer].activation.lipschitz
        M = self.matrix(blocks, layer)
        ones = np.hstack([M, np.ones((M.shape[0], 1), dtype=M.dtype)])
        ones *= np.sqrt(self.row_share(M.shape[0]))[:, None].astype(M.dtype)
        return bound * (ones.T @ ones).astype(np.float64)

    def row_share(self, rows: int) -> Array:
        """:attr:`share` for the rows of a layer (a convolution has one row a position)."""
        return np.repeat(self.share, rows // self.X.shape[0])

    def misfit(self, blocks: Blocks, layer: int) -> tuple[float, int]:
        """Sum of squares of ``V - phi(u - gradient / lam)`` over a layer's activations, and their number."""
        u = self.linear(blocks, layer)
        G = self.value_gradient(blocks, layer).reshape(u.shape)
        V = blocks.values[layer].reshape(u.shape)
        rest = V - self.maps[layer].activation(u - G / self.multipliers[layer])
        return float(np.sum(rest**2)), rest.size
