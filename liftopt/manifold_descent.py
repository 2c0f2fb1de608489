r"""Row-block descent for closed-form networks: full-rank backward targets, ridge steps on shared Grams.

The training problem of a network with hidden activations ``A_l = s(U_l)``, ``U_l = [A_{l-1}, 1] W_l``,
and a linear head ``F = [A_L, 1] B`` is, over all ``W_l`` and ``B``,

    min  (1/n) sum_i w_i |T_i - F_i|^2 + ridge |B|^2 + decay sum_l |W_l|^2 ,

with ``T = Y`` (ridge head) or one-sided ``T = Y max(Y F, 1)``, ``Y = +-1`` (margin head: the L2-loss support
vector machine, one-vs-all). On every block of rows three closed forms follow one another:

1. *head*: ``B`` by ridge on exponentially averaged statistics ``A'A`` and ``A'T``;
2. *backward target* of minimum change, ``min_D proximity |D|^2 + |R - D B|_H^2`` with ``R = T - F`` and
the mean
   curvature ``H = diag(share of rows with R != 0)``: ``D = R (proximity I + B'B H)^-1 B'``; through a
   hidden layer ``D_{l-1} = dU_l (W_l'W_l + eps I)^-1 W_l'``. It is sample-specific, so hidden layers
   have full rank;
3. *ridge layer*: the linearised fit ``min_dW |s'(U) [A, 1] dW - D s'(U)|^2 + decay |W + dW|^2``
majorised by one
   Gram for all units, ``dW = G^-1 (A'(D s'(U)) / n - decay W)``, taken with a step and momentum.

A full pass over all rows at once has exact statistics; blocks see noisy ones, which is far faster for
many rows. The head is optimal given the layers (variable projection), the rest is a heuristic: no
descent is promised, so the caller keeps the best network on held-out rows.

References ---------- Zhang, Jiao, Zhang, Li, "Manifold Neural Network With Non-Gradient Optimization",
IEEE TPAMI 45(3), 2023, whose rank-deficient targets the minimum-change targets replace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from liftopt.activations import Activation, Identity, LeakyReLU, ReLU
from liftopt.head_statistics import HeadStatistics

Array = npt.NDArray[Any]

_HEAD_ROUNDS = 5
_START_RIDGE = 1e-3
_MIDDLE = 1e-2  # scale at which smooth activations are nearly linear
_REFRESH = 8  # blocks between two factorisations of a deeper layer's Gram


@dataclass(frozen=True)
class DescentSettings:
    """Scale-free constants of the descent; the defaults were chosen on held-out rows of several data sets.

    ``step``, ``momentum``: of the ridge-layer update. ``proximity``: weight of the change ``|D|^2`` at
    256 units, proportional to the width. ``damping``: of the layers' input Grams, relative to their mean
    diagonal. ``trust``: largest relative change of the pre-activations in a step. ``clip``: largest
    entry of ``R`` that counts (outliers). ``window``: rows that the running statistics remember, a
    multiple of the width.
    """

    step: float = 4.0
    momentum: float = 0.8
    proximity: float = 0.5
    damping: float = 0.2
    trust: float = 0.1
    clip: float = 2.0
    window: float = 20.0


class Rows(NamedTuple):
    """Mapped inputs with a ones column (n, k + 1), targets (n, c), weights (n, 1) of mean 1 or None."""

    Z: Array
    Y: Array
    weight: Array | None


class Penalty(NamedTuple):
    """Ridge terms relative to the mean diagonal of the Gram matrices: of hidden weights, of the head."""

    decay: float
    ridge: float


class RowBlockDescent:
    """State of the descent: weights with the bias as last row, momenta, head, statistics.

    Parameters
    ----------
    rows : Rows
        Training rows.
    weights : list of ndarray, (fan_in + 1, fan_out)
        Hidden layers at the start; updated in place.
    activation : Activation
        Of the hidden layers.
    one_sided : bool
        Margin targets (``Y`` is +-1) instead of ``Y`` itself.
    block_size : int
        Rows a block; all rows or more means exact full passes.
    penalty : Penalty
        Ridge terms; may be replaced between sweeps.
    settings : DescentSettings
        Constants.
    """

    def __init__(
        self,
        rows: Rows,
        weights: list[Array],
        activation: Activation,
        *,
        one_sided: bool,
        block_size: int,
        penalty: Penalty,
        settings: DescentSettings,
    ) -> None:
        self.rows, self.weights, self.activation, self.one_sided = rows, weights, activation, one_sided
        self.penalty, self.settings = penalty, settings
        n = rows.Z.shape[0]
        self.block_size = min(block_size, n)
        self.full = self.block_size == n
        outputs, width = rows.Y.shape[1], weights[-1].shape[1]
        self._head = HeadStatistics(width + 1, outputs)
        self._memory = 0.0 if self.full else max(0.9, 1.0 - self.block_size / (settings.window * width))
        self._momenta = [np.zeros_like(W) for W in weights]
        self._active = np.ones(outputs)
        self._grams = [
            _mean_gram(rows.Z, rows.weight).astype(np.float64),
            *(np.eye(W.shape[0]) for W in weights[1:]),
        ]
        self._inverses = [self._inverse(gram, rows.Z.dtype) for gram in self._grams]
        self._pulls: list[Array] = []
        self._count = 0
        self.B: Array | None = None

    def sweep(self, order: Array, scale: Callable[[float], float]) -> None:
        """One pass over the rows in ``order``; ``scale(share)`` shrinks the step at a share of the pass."""
        size = self.block_size
        blocks = max(1, order.size // size)
        for block in range(blocks):
            self.step(None if self.full else order[block * size : (block + 1) * size], scale(block / blocks))

    def step(self, index: Array | None, scale: float) -> None:
        """Head, targets and ridge layers on the rows of ``index`` (all rows for None)."""
        block = self.rows if index is None else _take(self.rows, index)
        pre, post = self._forward(block.Z)
        T = block.Y if self.B is None else self._targets(post[-1] @ self.B, block.Y)
        self._head.update(post[-1], T, block.weight, self._memory)
        self.B = self._head.solve(self.penalty.ridge).astype(block.Z.dtype)
        F = post[-1] @ self.B
        R = np.clip(self._targets(F, block.Y) - F, -self.settings.clip, self.settings.clip)
        if self.one_sided:
            share = np.average(R != 0.0, axis=0, weights=None if block.weight is None else block.weight[:, 0])
            self._active = share if self._count == 0 or self.full else 0.9 * self._active + 0.1 * share
        if self._count % _REFRESH == 0 or self.full:
            self._refresh(post, block.weight)
        self._descend(block, pre, post, R, scale)
        self._count += 1

    def solve_head(self) -> None:
        """Head for the present layers on all rows, dragging margin targets a few rounds."""
        A, Y, weight = self.hidden(self.rows.Z), self.rows.Y, self.rows.weight
        self._head.update(A, Y, weight, 0.0)
        self.B = self._head.solve(self.penalty.ridge).astype(A.dtype)
        for _ in range(_HEAD_ROUNDS - 1 if self.one_sided else 0):
            self._head.retarget(A, self._targets(A @ self.B, Y), weight)
            self.B = self._head.solve(self.penalty.ridge).astype(A.dtype)

    def outputs(self, Z: Array) -> Array:
        """Head outputs for mapped rows ``Z`` (with the ones column)."""
        if self.B is None:
            raise ValueError("the descent has not taken a step yet")
        return self.hidden(Z) @ self.B

    def hidden(self, Z: Array) -> Array:
        """Last hidden activations with the ones column, for mapped rows ``Z``."""
        return self._forward(Z)[1][-1]

    def loss(self, Z: Array, Y: Array, weight: Array | None) -> float:
        """Mean squared residual ``|T - F|^2 / c`` on mapped rows."""
        F = self.outputs(Z)
        residual = np.mean((self._targets(F, Y) - F).astype(np.float64) ** 2, axis=1)
        return float(np.average(residual, weights=None if weight is None else weight[:, 0]))

    def restart(self, weights: Sequence[Array], step: float) -> None:
        """Go back to ``weights`` at rest, with a smaller ``step``."""
        for own, old, momentum in zip(self.weights, weights, self._momenta, strict=True):
            own[:] = old
            momentum[:] = 0
        self.settings = replace(self.settings, step=step)
        self._head = HeadStatistics(self.weights[-1].shape[1] + 1, self.rows.Y.shape[1])
        self.B = None
        self._count = 0

    def state(self) -> dict[str, Any]:
        """Everything that a sweep changes, penalty included."""
        return {
            "weights": self.weights,
            "momenta": self._momenta,
            "grams": self._grams,
            "inverses": self._inverses,
            "pulls": self._pulls,
            "active": self._active,
            "count": self._count,
            "B": self.B,
            "step": self.settings.step,
            "penalty": list(self.penalty),
            "head": self._head.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Return to a :meth:`state`, whose arrays become its own."""
        for name in ("weights", "momenta", "grams", "inverses", "pulls"):
            setattr(self, name if name == "weights" else f"_{name}", state[name])
        self._active, self._count, self.B = state["active"], state["count"], state["B"]
        self.settings = replace(self.settings, step=state["step"])
        self.penalty = Penalty(*state["penalty"])
        self._head.restore(state["head"])

    def _targets(self, F: Array, Y: Array) -> Array:
        return Y * np.maximum(Y * F, 1) if self.one_sided else Y

    def _forward(self, Z: Array) -> tuple[list[Array], list[Array]]:
        """Pre-activations, and activations with a ones column, layer by layer."""
        pre, post = [], [Z]
        for W in self.weights:
            U = post[-1] @ W
            A = np.empty((U.shape[0], U.shape[1] + 1), dtype=U.dtype)
            A[:, :-1] = self.activation(U)
            A[:, -1] = 1
            pre.append(U)
            post.append(A)
        return pre, post

    def _descend(self, block: Rows, pre: list[Array], post: list[Array], R: Array, scale: float) -> None:
        """Backward targets from the top, and the ridge step of every layer."""
        settings, B = self.settings, self.B
        assert B is not None
        heads = B[:-1]
        curvature = (heads.T @ heads) * self._active
        proximity = settings.proximity * heads.shape[0] / 256
        gain = np.linalg.inv(curvature + proximity * np.eye(R.shape[1])).astype(R.dtype)
        D = (R @ gain) @ heads.T
        rate = settings.step * scale / len(self.weights)
        for layer in reversed(range(len(self.weights))):
            D *= self.activation.derivative(pre[layer])
            if block.weight is not None:
                D *= block.weight
            W = self.weights[layer]
            change = post[layer].T @ D
            change /= D.shape[0]
            change -= self.penalty.decay * _mean_diagonal(self._grams[layer]) * W
            Q = self._momenta[layer]
            Q *= settings.momentum
            Q += rate * (self._inverses[layer] @ change)
            if layer:
                D = D @ self._pulls[layer - 1]
            size, reference = (_norm(self._grams[layer], V) for V in (Q, W))
            if size > settings.trust * reference > 0.0:
                Q *= settings.trust * reference / size
            W += Q

    def _refresh(self, post: list[Array], weight: Array | None) -> None:
        """Grams of deeper layers' inputs, their inverses, and the pull-back maps."""
        for layer in range(1, len(self.weights)):
            A = post[layer]
            memory = 0.0 if self.full or self._count == 0 else self._memory
            self._grams[layer] = memory * self._grams[layer] + (1 - memory) * _mean_gram(A, weight)
            self._inverses[layer] = self._inverse(self._grams[layer], A.dtype)
        self._pulls = [_pull_back(W[:-1]) for W in self.weights[1:]]

    def _inverse(self, gram: Array, dtype: npt.DTypeLike) -> Array:
        """Inverse of the damped Gram; explicit, because it meets many right-hand sides of one width."""
        # with step * decay in it, the decay contracts even directions that the inputs hardly have
        share = self.settings.damping + self.settings.step * self.penalty.decay
        damped = gram + share * _mean_diagonal(gram) * np.eye(gram.shape[0])
        factor = cho_factor(damped, check_finite=False)
        return cho_solve(factor, np.eye(gram.shape[0]), check_finite=False).astype(dtype)


def initial_weights(
    rows: Rows, widths: Sequence[int], activation: Activation, random_state: np.random.RandomState
) -> list[Array]:
    """He-normal hidden layers whose first 2 c units carry the linear ridge solution forward.

    The first head then already contains the linear model. Where a layer has fewer than 3 c units, it and
    the ones above stay random.
    """
    outputs, fan_in = rows.Y.shape[1], rows.Z.shape[1] - 1
    carried: Array | None = _unit_outputs(rows, _START_RIDGE)
    weights = []
    for width in widths:
        W = random_state.normal(scale=np.sqrt(2.0 / fan_in), size=(fan_in + 1, width))
        W[-1] = 0.0
        if carried is not None and width >= 3 * outputs:
            W[:, : 2 * outputs] = np.hstack([carried, -carried])
            carried = _paired_read_out(outputs, width, activation)
        else:
            carried = None
        weights.append(W.astype(rows.Z.dtype))
        fan_in = width
    return weights


def carry_linear(rows: Rows, widths: Sequence[int], activation: Activation, ridge: float) -> list[Array]:
    """Hidden layers that pass the linear ridge solution through: unit pairs ``s(u) - s(-u)``.

    Exact for activations linear on both sides of 0; others work in their nearly linear middle.
    """
    outputs, fan_in = rows.Y.shape[1], rows.Z.shape[1] - 1
    carried = _unit_outputs(rows, ridge)
    if isinstance(activation, (Identity, ReLU, LeakyReLU)):
        small = 1.0
    else:
        small = _MIDDLE
    weights = []
    for width in widths:
        W = np.zeros((fan_in + 1, width))
        W[:, : 2 * outputs] = small * np.hstack([carried, -carried])
        carried = _paired_read_out(outputs, width, activation, small)
        weights.append(W.astype(rows.Z.dtype))
        fan_in = width
    return weights


def _unit_outputs(rows: Rows, ridge: float) -> Array:
    """Ridge regression of the targets on the inputs, outputs scaled to unit mean square; (k + 1, c)."""
    weighted = rows.Z if rows.weight is None else rows.Z * rows.weight
    gram = (weighted.T @ rows.Z).astype(np.float64)
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / gram.shape[0]
    coef = cho_solve(cho_factor(gram, check_finite=False), weighted.T @ rows.Y, check_finite=False)
    size = np.sqrt(np.einsum("ij,ij->j", coef, gram @ coef) / rows.Z.shape[0])
    return coef / np.maximum(size, np.finfo(np.float64).tiny ** 0.5)


def _paired_read_out(outputs: int, width: int, activation: Activation, at: float = 1.0) -> Array:
    """Matrix (width + 1, c) that reads ``u`` off the pairs ``s(at u), s(-at u)``."""
    one = np.full((1, 1), at)
    gain = float((activation(one) - activation(-one))[0, 0]) or 1.0
    read = np.zeros((width + 1, outputs))
    own = np.arange(outputs)
    read[own, own], read[outputs + own, own] = 1.0 / gain, -1.0 / gain
    return read


def _pull_back(W: Array) -> Array:
    """Minimum-change map ``(W'W + eps I)^-1 W'`` (fan_out, fan_in), ``eps`` the mean eigenvalue of W'W."""
    gram = (W.T @ W).astype(np.float64)
    gram[np.diag_indices_from(gram)] += np.trace(gram) / gram.shape[0]
    return cho_solve(cho_factor(gram, check_finite=False), W.T, check_finite=False).astype(W.dtype)


def _mean_gram(A: Array, weight: Array | None) -> Array:
    """``A' diag(w) A / n``."""
    weighted = A if weight is None else A * weight
    return (weighted.T @ A) / A.shape[0]


def _mean_diagonal(gram: Array) -> float:
    return float(np.trace(gram)) / gram.shape[0]


def _norm(gram: Array, W: Array) -> float:
    """Root of ``tr(W' gram W)``: the size of the pre-activations."""
    return float(np.sqrt(max(np.einsum("ij,ij->", W, gram.astype(W.dtype) @ W), 0.0)))


def _take(rows: Rows, index: Array) -> Rows:
    weight = None if rows.weight is None else rows.weight[index]
    return Rows(rows.Z[index], rows.Y[index], weight)
