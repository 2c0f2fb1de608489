r"""The published cycle: low-rank backward targets, ridge layers, and a Stiefel decision layer.

An epoch runs forward once (rows of every hidden activation are scaled to unit length), solves the
decision layer, and then goes down the layers: with ``t_l`` the target for the pre-activation of layer
``l``,

* ``low_rank``:  ``v = (t_l - b_l) (W_l'W_l + eps I)^-1 W_l'``, each unit squashed into the activation's
  range,
  ``t_{l-1} = s^-1(v)`` (ridge pseudo-inverse, minimum norm);
* ``transpose``: ``v = softmax((t_l - b_l) W_l')`` over the samples, ``t_{l-1} = s^-1(v)`` (the released
  code);

``W_{l-1}, b_{l-1}`` follow by ridge regression of ``t_{l-1}`` on that epoch's activations.

Every target is a function of the label alone, hence has at most ``classes`` distinct rows, and every
hidden layer has rank at most ``classes - 1``. The cycle is no descent: the best epoch on held-out rows
is kept.

References
----------
Zhang, Jiao, Zhang, Li, "Manifold Neural Network With Non-Gradient Optimization", IEEE TPAMI 45(3), 2023.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning

from liftopt.activations import Activation
from liftopt.base import TrainingData, holdout_split, score_of
from liftopt.checkpoint import State
from liftopt.heads import FitPlan, fit_head, output_layer, target_moments
from liftopt.input_map import InputMap, fold
from liftopt.layers import Dense, Layer, Normalize
from liftopt.network import Network
from liftopt.recording import Recorder, run_interruptible
from liftopt.solvers.affine import AffineMap
from liftopt.solvers.least_squares import solve_ridge

Array = npt.NDArray[Any]

_MARGIN = 0.05  # squashed targets keep this share of the range away from its ends
_RELATIVE_EPS = 1e-3
_SATURATED = 1e-4
_PAPER_RIDGE = 0.3
_PAPER_EPOCHS = 50


def low_rank_target(target: Array, layer: AffineMap, activation: Activation) -> Array:
    """Pre-activation target of the layer below by ridge pseudo-inverse; rank at most that of ``target``."""
    W = layer.weight
    gram = W.T @ W
    gram[np.diag_indices_from(gram)] += max(
        _RELATIVE_EPS * np.trace(gram) / gram.shape[0], np.finfo(np.float64).tiny
    )
    v = (target - layer.intercept) @ cho_solve(cho_factor(gram, check_finite=False), W.T, check_finite=False)
    return activation.inverse(_squashed(v, activation))


def transpose_target(target: Array, layer: AffineMap, activation: Activation) -> Array:
    """Pre-activation target of the layer below by a softmax over the samples of ``(t - b) W'``."""
    low, high = activation.range
    share = softmax((target - layer.intercept) @ layer.weight.T, axis=0)
    share = np.clip(share, 0.0, 1.0)
    share[share == 0.0] = _SATURATED
    share[share == 1.0] = 1.0 - _SATURATED
    return activation.inverse(low + (high - low) * share)


TARGETS: Mapping[str, Callable[[Array, AffineMap, Activation], Array]] = {
    "low_rank": low_rank_target,
    "transpose": transpose_target,
}


def check_invertible(activation: Activation) -> None:
    """Refuse activations whose inverse the cycle cannot form."""
    if not np.isfinite(activation.range).all() or activation.name == "hard_sigmoid":
        raise ValueError(
            f"backward targets by inversion need activation 'sigmoid' or 'tanh', got {activation.name!r}; "
            "backward='minimum_change' takes any"
        )


def start_layers(
    widths: tuple[int, ...], fan_in: int, random_state: np.random.RandomState
) -> list[AffineMap]:
    """Hidden layers with weights and biases uniform in ``+-1 / sqrt(fan_in)``."""
    layers = []
    for width in widths:
        bound = fan_in**-0.5
        coef = random_state.uniform(-bound, bound, size=(fan_in, width))
        layers.append(AffineMap(coef, random_state.uniform(-bound, bound, size=width)))
        fan_in = width
    return layers


def forward(X: Array, layers: list[AffineMap], activation: Activation) -> list[Array]:
    """Inputs of every layer: ``X`` and the hidden activations with rows of unit length."""
    inputs = [X]
    normalise = Normalize()
    for layer in layers:
        inputs.append(normalise(activation(layer(inputs[-1]))))
    return inputs


def network_layers(layers: list[AffineMap], activation: Activation, dtype: npt.DTypeLike) -> list[Layer]:
    """Hidden layers as network layers, each followed by the row normalisation."""
    parts: list[Layer] = []
    for layer in layers:
        parts.append(Dense(layer.weight.astype(dtype), layer.intercept.astype(dtype), activation))
        parts.append(Normalize())
    return parts


def _squashed(v: Array, activation: Activation) -> Array:
    """Each unit's values mapped affinely into the range, away from its ends; constant units to the middle."""
    low, high = activation.range
    width = high - low
    least, most = v.min(axis=0), v.max(axis=0)
    extent = most - least
    share = np.where(extent > 0.0, (v - least) / np.where(extent > 0.0, extent, 1.0), 0.5)
    return low + width * (_MARGIN + (1.0 - 2.0 * _MARGIN) * share)


class _Cycle:
    """Epochs of the cycle on one set of rows, and the best network so far."""

    def __init__(
        self,
        data: TrainingData,
        plan: FitPlan,
        input_map: InputMap,
        recorder: Recorder,
        random_state: np.random.RandomState,
    ) -> None:
        train, held = holdout_split(data, plan.validation_fraction, random_state)
        self.plan, self.input_map, self.recorder = plan, input_map, recorder
        self.train = data.rows(train)
        self.judge = data.rows(held) if held.size else self.train
        self.key = "validation_score" if held.size else "training_score"
        self.alpha = _PAPER_RIDGE if plan.alpha is None else plan.alpha
        self.centre, self.spread = target_moments(data)
        one_vs_all = 2.0 * self.train.target - 1.0
        scaled = (self.train.target - self.centre) / self.spread
        self.target = scaled if data.codes is None else one_vs_all
        self.X = input_map.transform(self.train.X).astype(np.float64)
        self.layers = start_layers(plan.widths, self.X.shape[1], random_state)
        self.best: tuple[float, Network] | None = None
        self.score = 0.0
        self.n_iter = 0

    def run(self) -> None:
        """Epochs until the layers rest, the callback says so, or ``max_iter`` (with a warning)."""
        state = self.recorder.resumed()
        if state is not None:
            self.restore(state)
        while self.n_iter < (self.plan.max_iter or _PAPER_EPOCHS):
            before = self.layers
            self.epoch()
            change = _relative_change(before, self.layers)
            if self.recorder.add(change=change, **{self.key: self.score}) or change <= self.plan.tol:
                return
            self.recorder.save(self.state)
        warnings.warn(
            f"the cycle still changed its layers by {change:.1e} in epoch {self.n_iter}: increase max_iter",
            ConvergenceWarning,
            stacklevel=2,
        )

    def state(self) -> State:
        """What the epochs after this one depend on."""
        return {"layers": self.layers, "best": self.best, "n_iter": self.n_iter}

    def restore(self, state: State) -> None:
        """Return to a :meth:`state`."""
        self.layers = [AffineMap(*layer) for layer in state["layers"]]
        self.best, self.n_iter = state["best"], state["n_iter"]

    def epoch(self) -> None:
        """Head on the present activations, then all hidden layers from the top down."""
        inputs = forward(self.X, self.layers, self.plan.activation)
        head = fit_head(
            self.plan.head,
            inputs[-1],
            self.target,
            alpha=self.alpha,
            relative=False,
            sample_weight=self.train.weight,
        )
        self.n_iter += 1
        self._keep(head, inputs[-1])
        above, target = head, self.target
        renewed: list[AffineMap] = []
        for A in reversed(inputs[:-1]):
            target = TARGETS[self.plan.backward](target, above, self.plan.activation)
            above = solve_ridge(A, target, alpha=self.alpha, sample_weight=self.train.weight).x
            renewed.append(above)
        self.layers = renewed[::-1]

    def _keep(self, head: AffineMap, features: Array) -> None:
        """The network of this epoch, kept if none before scored better."""
        kind = self.train.X.dtype
        hidden = network_layers(self.layers, self.plan.activation, kind)
        last = output_layer(head, features, self.train, self.centre, self.spread)
        network = fold(Network([*hidden, last]), self.input_map)
        self.score = score_of(network, self.judge)
        if self.best is None or self.score > self.best[0]:
            self.best = (self.score, network)


def fit_cycle(
    data: TrainingData,
    plan: FitPlan,
    input_map: InputMap,
    init: Network | None,
    recorder: Recorder,
    random_state: np.random.RandomState,
) -> tuple[Network, int]:
    """Train on ``data``; return the best network, with ``input_map`` folded in, and the number of epochs."""
    check_invertible(plan.activation)
    if init is not None:
        raise ValueError("the published cycle starts at random: a start needs backward='minimum_change'")
    cycle = _Cycle(data, plan, input_map, recorder, random_state)
    run_interruptible(cycle.run, "the cycle", recorder)
    if cycle.best is None:
        raise KeyboardInterrupt
    return cycle.best[1], cycle.n_iter


def _relative_change(before: list[AffineMap], after: list[AffineMap]) -> float:
    moved = sum(float(np.sum((a.weight - b.weight) ** 2)) for a, b in zip(after, before, strict=True))
    size = sum(float(np.sum(a.weight**2)) for a in after)
    return float(np.sqrt(moved / size)) if size > 0.0 else 0.0
