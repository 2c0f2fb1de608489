r"""The lifted training problem: activations as biconvex constraints, relaxed by one multiplier a layer.

For layers ``u_l = M_l(V_l) W_l + b_l``, ``V_0 = X``, hidden activations ``phi_l`` and a convex head,

    minimise    head(u_L, T) + (alpha/2) sum_l |W_l|^2
    subject to  D_l(V_{l+1}, u_l) = Phi*(V_{l+1}) + Phi(u_l) - <u_l, V_{l+1}> <= 0,   l < L,

with D >= 0 and D = 0 exactly at ``V_{l+1} = phi(u_l)``, is training itself. Moving ``sum_l lam_l D_l``
into the objective gives the relaxed problem, convex in each V-block and in each W-block. Losses and
penalties are weighted means over the samples.

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
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.linear_maps import LinearMap
from liftopt.losses import Head
from liftopt.solvers.result import Measure

Array = npt.NDArray[Any]


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
    """

    maps: Sequence[LinearMap]
    head: Head
    X: Array
    target: Array
    multipliers: tuple[float, ...]
    alpha: float
    weight: Array | None = None
    _products: dict[int, tuple[Array, Array, Array, Array]] = field(
        default_factory=dict, init=False, repr=False
    )

    def every(self, stride: int) -> LiftedProblem:
        """The problem on every ``stride``-th row."""
        few = slice(None, None, stride)
        weight = None if self.weight is None else self.weight[few]
        return replace(self, X=self.X[few], target=self.target[few], weight=weight)

    @property
    def share(self) -> Array:
        """Weight of every sample in the means, shape (n,), summing to one."""
        n = self.X.shape[0]
        if self.weight is None:
            return np.full(n, 1.0 / n)
        return self.weight / self.weight.sum()

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

    def costs(self, blocks: Blocks) -> list[float]:
        """Weighted mean penalty of every hidden layer (times its multiplier), then the lifted loss."""
        share = self.share
        return [
            float(share @ self.row_cost(layer, self.linear(blocks, layer), self.leaving(blocks, layer)))
            for layer in range(len(self.maps))
        ]

    def ridge(self, weights: Sequence[Array]) -> float:
        """``(alpha/2) sum |W|^2``."""
        return 0.5 * self.alpha * sum(float(np.vdot(W, W)) for W in weights)

    def objective(self, blocks: Blocks) -> float:
        """The relaxed objective."""
        return sum(self.costs(blocks)) + self.ridge(blocks.weights)

    def outputs(self, blocks: Blocks) -> Array:
        """Last pre-activation of the network itself."""
        return self.linear(self.forward(blocks.weights, blocks.biases), len(self.maps) - 1)

    def forward_loss(self, blocks: Blocks) -> float:
        """Mean loss of the network itself, ridge excluded."""
        return float(self.share @ self.row_cost(len(self.maps) - 1, self.outputs(blocks), None))

    def value_gradient(self, blocks: Blocks, layer: int) -> Array:
        """Gradient of a sample's cost beyond ``V = blocks.values[layer]`` with respect to that ``V``."""
        above = layer + 1
        u = self.linear(blocks, above)
        part = self.maps[above]
        G = part.input_gradient(
            self.row_gradient(above, u, self.leaving(blocks, above)), blocks.weights[above]
        )
        return part.adjoint(G, blocks.values[layer].shape)

    def weight_gradient(self, blocks: Blocks, layer: int) -> tuple[Array, Array]:
        """Gradient of the objective with respect to the weights and the bias of ``layer``."""
        part, W = self.maps[layer], blocks.weights[layer]
        R = self.row_gradient(layer, self.linear(blocks, layer), self.leaving(blocks, layer))
        R *= self.row_share(R.shape[0])[:, None].astype(R.dtype)
        dW, db = part.gradient(part.arranged(self.entering(blocks, layer)), R)
        return dW + W.dtype.type(self.alpha) * W, db

    def row_share(self, rows: int) -> Array:
        """:attr:`share` for the rows of a layer (a convolution has one row a position)."""
        return np.repeat(self.share, rows // self.X.shape[0])

    def measure(self, blocks: Blocks) -> Measure:
        """Objective, block residuals and the parts, as reported every sweep.

        The residual ``values`` is the root mean square of ``V - phi(u - gradient / lam)`` over all hidden
        activations, ``weights`` the largest norm of a W-block's gradient.
        """
        *penalties, lifted = self.costs(blocks)
        ridge = self.ridge(blocks.weights)
        forward = self.forward_loss(blocks)
        gradients = [self.weight_gradient(blocks, layer) for layer in range(len(self.maps))]
        steepest = max(float(np.hypot(np.linalg.norm(dW), np.linalg.norm(db))) for dW, db in gradients)
        misfit = [self._value_residual(blocks, layer) for layer in range(len(blocks.values))]
        return Measure(
            lifted + sum(penalties) + ridge,
            {"values": max(misfit, default=0.0), "weights": steepest},
            {
                "lifted_loss": lifted,
                "forward_loss": forward,
                "gap": forward - lifted,
                "penalties": tuple(penalties),
                "ridge": ridge,
            },
        )

    def _value_residual(self, blocks: Blocks, layer: int) -> float:
        u = self.linear(blocks, layer)
        G = self.value_gradient(blocks, layer).reshape(u.shape)
        V = blocks.values[layer].reshape(u.shape)
        return float(
            np.sqrt(np.mean((V - self.maps[layer].activation(u - G / self.multipliers[layer])) ** 2))
        )
