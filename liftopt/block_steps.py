r"""Stochastic block descent on the Fenchel-lifted problem: one alternation a mini-batch, forward-initialised.

For a batch with activations ``V_{l+1} = phi(u_l)``, ``u_l = M(V_l) W_l + b_l``, the blocks are

    V-step   min_V  (lam/2) |V - V_l|^2_{1/phi'} + q_l(V)      one Newton step, last hidden layer first
    W-step   min_W  sum D(V_{l+1} + R_l, u_l) + (p_l/2) |W - W_l|^2   one gradient step, trust length

``q_l`` is the second-order model of what follows layer l: gradient ``g_l`` and curvature ``G_l G_l'``,
shared by the batch. Below the head ``G = W F`` with ``F F'`` the mean Hessian of the loss; eliminating the
V-block of layer l carries it one layer down, ``G_{l-1} = W diag(mean phi') G_l (I + G_l' G_l / lam)^(-1/2)``,
so the factor keeps as many columns as the network has outputs, and the Newton step needs one small inverse:

    R_l = -phi' * (lam I + G G')^-1 g,      lam (lam I + G G')^-1 = I - G (lam I + G' G)^-1 G'.

The proximal weight of a W-step is set by length: each neuron moves by ``step`` times its share of the initial
weight norm, relative to the running mean of its gradient norms, divided by the root of the number of hidden
layers, half as far in the head, and with heavy-ball momentum. The units of data, targets and multipliers
cancel, and the steps of early layers do not vanish with depth. The penalty D itself is *not* monotone here;
the forward loss on held-out rows is what is watched.

Rows whose residual is zero (beyond the margin of a hinge) leave every block of the batch as it is: only the
others go through the V- and W-steps, and a batch may lack rows that are known to be of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.activations import ReLU
from liftopt.layers import Conv2d, Dense
from liftopt.linear_maps import LinearMap
from liftopt.losses import Head

Array = npt.NDArray[Any]

_FACTOR_EVERY = 10  # batches between two refreshes of the shared curvature
_MOMENTUM = 0.9
_HEAD_SHARE = 0.5  # length of the head's steps relative to that of hidden layers
_RAW_SHARE = 1.5  # length of the steps of networks with convolutions, whose inputs are not whitened
_SCORED_ROWS = 250  # rows of one forward pass: more at a time leave the cache
_KEPT_BYTES = 31 << 20
_POOL = 4  # batches of random numbers drawn once and reused with shifts
_DENSE = 0.9  # up to this share of rows with a residual, the others are left out of the V- and W-steps


@dataclass
class Noise:
    """Random perturbation of the blocks, which regularises.

    Parameters
    ----------
    rate : float
        Share of hidden units held at zero in each batch at full strength.
    spread : float
        Standard deviation of the noise on mapped inputs at full strength.
    floor : float
        Least strength of the noise on inputs.
    rows : int
        Most rows of a batch.
    random_state : RandomState
        Source of the pools.
    strength : float
        Current level in [0, 1].
    """

    rate: float
    spread: float
    floor: float
    rows: int
    random_state: np.random.RandomState
    strength: float = 1.0

    def __post_init__(self) -> None:
        self._pools: dict[tuple[int, int], Array] = {}
        self._seeds: dict[tuple[int, int], int] = {}

    def state(self) -> dict[str, Any]:
        """Strength, and what the pools were drawn from."""
        return {"strength": self.strength, "seeds": [[*key, seed] for key, seed in self._seeds.items()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Return to a :meth:`state`."""
        self.strength = state["strength"]
        self._pools = {}
        self._seeds = {(width, normal): seed for width, normal, seed in state["seeds"]}

    def jitter(self, Z: Array) -> Array:
        """``Z`` plus noise, a new array."""
        spread = Z.dtype.type(self.spread * max(self.strength, self.floor))
        if spread == 0.0 or Z.ndim != 2:
            return Z
        noisy = self._draw(Z, normal=True) * spread
        noisy += Z
        return noisy

    def kept(self, V: Array) -> Array | None:
        """Factors for ``V``: 0 for units held at zero, the rest scaled up; None for no change."""
        rate = self.rate * self.strength
        if rate == 0.0:
            return None
        return (self._draw(V, normal=False) >= rate) * V.dtype.type(1.0 / (1.0 - rate))

    def _draw(self, like: Array, *, normal: bool) -> Array:
        """Random rows: a shifted view of a pool drawn once, so that a batch costs no generator calls."""
        rows, width = like.shape
        key = (width, int(normal))
        if key not in self._pools:
            if key not in self._seeds:
                self._seeds[key] = int(self.random_state.randint(2**31))
            generator = np.random.default_rng(self._seeds[key])
            size = (_POOL * self.rows * width,)
            draw = generator.standard_normal if normal else generator.random
            self._pools[key] = draw(size, dtype=np.float32).astype(like.dtype, copy=False)
        pool = self._pools[key]
        start = self.random_state.randint(pool.size - rows * width + 1)
        return pool[start : start + rows * width].reshape(rows, width)


class BlockTrainer:
    """Weights and biases of a network under stochastic block steps.

    Parameters
    ----------
    maps : sequence of LinearMap
        The layers; their arrays are the start.
    head : Head
        Loss of the last pre-activation.
    multiplier : float
        Penalty weight ``lam`` of the lifted constraint, relative to one row's loss.
    dtype : dtype
        Arithmetic of the steps.
    alpha : float
        Ridge on the weights.
    """

    def __init__(
        self,
        maps: Sequence[LinearMap],
        head: Head,
        multiplier: float,
        dtype: npt.DTypeLike,
        alpha: float = 0.0,
    ) -> None:
        self.maps, self.head, self.multiplier, self.alpha = maps, head, multiplier, alpha
        self._blocks = [np.vstack([part.weight, part.layer.bias]).astype(dtype) for part in maps]
        self.weights = [block[:-1] for block in self._blocks]
        self.biases = [block[-1] for block in self._blocks]
        depth = max(1, sum(isinstance(part.layer, Dense) for part in maps) - 1)
        share = _RAW_SHARE if any(part.geometry for part in maps) else 1.0
        self._reach = [share * float(np.linalg.norm(W)) / (W.shape[1] * depth) ** 0.5 for W in self.weights]
        self._squares = [np.zeros(W.shape[1]) for W in self.weights]
        self._momenta = [np.zeros_like(block) for block in self._blocks]
        self._gradients = [np.zeros_like(block) for block in self._blocks]
        self._steps = 0
        self._factors: list[tuple[Array, Array] | None] = [None] * len(self.weights)
        self._buffers: list[Array] = [np.empty((0, W.shape[1]), dtype=dtype) for W in self.weights]
        _keep_freed_memory()

    def state(self) -> list[Array]:
        """Copies of everything a step changes."""
        arrays = (*self.weights, *self.biases, *self._squares)
        return [*(array.copy() for array in arrays), np.array(self._steps)]

    def restore(self, state: Sequence[Array]) -> None:
        """Return to ``state``, at rest."""
        *arrays, steps = state
        for array, saved in zip((*self.weights, *self.biases, *self._squares), arrays, strict=True):
            array[...] = saved
        for momentum in self._momenta:
            momentum[...] = 0
        self._steps = int(steps)

    def motion(self) -> dict[str, Any]:
        """What steps carry along beside :meth:`state`: momenta and curvature factors."""
        return {"momenta": self._momenta, "factors": self._factors}

    def set_motion(self, motion: Mapping[str, Any]) -> None:
        """Go on with a :meth:`motion`, whose arrays become its own."""
        self._momenta, self._factors = motion["momenta"], motion["factors"]

    def randomise_head(self, random_state: np.random.RandomState) -> None:
        """Weights of the last layer uniform by Glorot's rule, biases zero."""
        W = self.weights[-1]
        W[...] = random_state.uniform(-1.0, 1.0, size=W.shape) * np.sqrt(6.0 / sum(W.shape))
        self.biases[-1][...] = 0

    @property
    def finite(self) -> bool:
        """Whether all parameters are finite."""
        return all(bool(np.isfinite(array).all()) for array in (*self.weights, *self.biases))

    def scores(self, V: Array) -> Array:
        """Forward pass: the last pre-activation of a batch."""
        if V.shape[0] > _SCORED_ROWS:
            starts = range(0, V.shape[0], _SCORED_ROWS)
            return np.concatenate([self.scores(V[start : start + _SCORED_ROWS]) for start in starts])
        for part, W, b in zip(self.maps, self.weights, self.biases, strict=True):
            u = part.linear(part.arranged(V), W, b)
            V = part.output(u if part is self.maps[-1] else part.activation(u))
        return V

    def step(
        self,
        Z: Array,
        target: Array,
        weight: Array | None,
        length: float,
        noise: Noise,
        batch_size: int | None = None,
    ) -> Array:
        """One alternation on a batch: forward, V-steps from the last layer down, all W-steps.

        Parameters
        ----------
        Z : ndarray of shape (rows, ...)
            Mapped inputs, images channels last.
        target : ndarray of shape (rows, outputs)
            Targets of the head.
        weight : ndarray of shape (rows,), optional
            Row weights with mean near 1.
        length : float
            Relative length of the W-steps.
        noise : Noise
            Perturbation of inputs and hidden units.
        batch_size : int, optional
            Number of rows that the batch stands for, the missing ones having no residual; by default its own.

        Returns
        -------
        ndarray of bool, shape (rows,)
            Whether a row has a residual.
        """
        size = batch_size or Z.shape[0]
        inputs, shapes, slopes = self._forward(noise.jitter(Z), noise)
        signal = self.head.residual(self._scores, target)
        if weight is not None:
            signal *= weight[:, None]
        active = np.any(signal, axis=1)
        found = np.flatnonzero(active)
        if found.size < _DENSE * active.size:
            signal = signal.take(found, axis=0)
            inputs, slopes = _samples(inputs, found, active.size), _samples(slopes, found, active.size)
            shapes = [(found.size, *shape[1:]) for shape in shapes]
        if self._steps % _FACTOR_EVERY == 0 and found.size:
            self._refresh_factors(target, slopes, active.size / size)
        if found.size:
            self._backward(signal, inputs, shapes, slopes, size)
        else:
            for gradient in self._gradients:
                gradient[...] = 0.0
        self._steps += 1
        for layer in range(len(self.maps)):
            self._move(layer, length)
        return active

    def _forward(self, V: Array, noise: Noise) -> tuple[list[Array], list[tuple[int, ...]], list[Array]]:
        """Arranged layer inputs, their shapes as batches, and ``phi'`` at the hidden pre-activations."""
        inputs, shapes, slopes = [], [], []
        last = len(self.maps) - 1
        for layer, part in enumerate(self.maps):
            shapes.append(V.shape)
            inputs.append(part.arranged(V))
            rows = V.shape[0] * int(np.prod(part.output_shape[:-1]))
            u = part.linear(inputs[-1], self.weights[layer], self.biases[layer], self._buffer(layer, rows))
            if layer == last:
                self._scores = u
                break
            if isinstance(part.activation, ReLU):
                slope = u > 0
                V = np.multiply(u, slope, out=u)
            else:
                V, slope = part.activation(u), part.activation.derivative(u)
            kept = noise.kept(V) if isinstance(part.layer, Dense) else None
            if kept is not None:
                V *= kept
                slope = slope * kept
            slopes.append(slope)
            V = part.output(V)
        return inputs, shapes, slopes

    def _backward(
        self,
        signal: Array,
        inputs: list[Array],
        shapes: list[tuple[int, ...]],
        slopes: list[Array],
        size: int,
    ) -> None:
        """Mean gradients of all W-blocks at the V-blocks' Newton targets (``signal`` is ``-lam R``)."""
        signal *= signal.dtype.type(1.0 / size)
        for layer in range(len(self.maps) - 1, -1, -1):
            gradient = self._gradients[layer]
            gradient[:-1], gradient[-1] = self.maps[layer].gradient(inputs[layer], signal)
            if layer == 0:
                break
            g = self.maps[layer].input_gradient(signal, self.weights[layer])
            factor = self._factors[layer]
            if factor is not None:
                g -= (g @ factor[0]) @ factor[1]
            g = self.maps[layer].adjoint(g, shapes[layer])
            signal = g.reshape(-1, self.weights[layer - 1].shape[1])
            signal *= slopes[layer - 1]

    def _refresh_factors(self, target: Array, slopes: list[Array], share: float = 1.0) -> None:
        """Curvature factors of the dense layers above the convolutions, from the head down.

        The scores are those of a ``share`` of the rows, the others having no curvature; the slopes are those
        of the rows with a residual.
        """
        curvature = share * self.head.curvature(self._scores, target)
        if not np.isfinite(curvature).all():  # the caller looks at the weights after the pass
            return
        values, vectors = np.linalg.eigh(curvature)
        G = self.weights[-1].astype(np.float64) @ (vectors * np.sqrt(np.maximum(values, 0.0)))
        eye = self.multiplier * np.eye(G.shape[1])
        for layer in range(len(self.maps) - 1, 0, -1):
            inner = eye + G.T @ G
            dtype = self.weights[layer].dtype
            self._factors[layer] = G.astype(dtype), np.linalg.solve(inner, G.T).astype(dtype)
            if layer == 1 or self.maps[layer].before or isinstance(self.maps[layer - 1].layer, Conv2d):
                break
            values, vectors = np.linalg.eigh(inner)
            passed = G @ (vectors * np.sqrt(self.multiplier / values))
            G = self.weights[layer - 1].astype(np.float64) @ (
                slopes[layer - 1].mean(axis=0)[:, None] * passed
            )

    def _move(self, layer: int, length: float) -> None:
        """W-step: every neuron moves by ``length`` relative to its mean squared gradient, with momentum."""
        gradient, momentum = self._gradients[layer], self._momenta[layer]
        if self.alpha:
            gradient[:-1] += gradient.dtype.type(self.alpha) * self.weights[layer]
        square = np.einsum("ij,ij->j", gradient, gradient).astype(np.float64)
        mean = self._squares[layer]
        mean += (square - mean) / self._steps
        scale = np.maximum(mean, 0.1 * square)
        reach = length * self._reach[layer] * (_HEAD_SHARE if layer == len(self.weights) - 1 else 1.0)
        rate = np.divide(reach, np.sqrt(scale), out=np.zeros_like(scale), where=scale > 0)
        rate *= 1.0 - _MOMENTUM
        gradient *= rate.astype(gradient.dtype)
        momentum *= gradient.dtype.type(_MOMENTUM)
        momentum += gradient
        self._blocks[layer] -= momentum

    def _buffer(self, layer: int, rows: int) -> Array:
        if self._buffers[layer].shape[0] < rows:
            W = self.weights[layer]
            self._buffers[layer] = np.empty((rows, W.shape[1]), dtype=W.dtype)
        return self._buffers[layer][:rows]


def _samples(arrays: list[Array], kept: Array, count: int) -> list[Array]:
    """The rows (one or more a sample) of each array that belong to the ``kept`` ones of ``count`` samples."""
    return [M.reshape(count, -1).take(kept, axis=0).reshape(-1, *M.shape[1:]) for M in arrays]


def _keep_freed_memory() -> None:
    """Have the C library reuse freed arrays instead of returning them to the system after every step.

    glibc raises its thresholds to the largest mapped block freed so far, up to 32 MiB (mallopt(3)). Elsewhere
    nothing happens. Without it, page faults take a quarter of the time of convolutional steps.
    """
    np.empty(_KEPT_BYTES, dtype=np.uint8)
