"""What the ternary search is measured against: exact rounding alone, straight-through training in torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from liftopt import Conv2d, Dense, Network
from liftopt.solvers import quantize

RATES = (3e-4, 2e-3)
BATCH = 128


class Trained(NamedTuple):
    """A network, the CPU seconds of its run and the learning rate."""

    network: Network
    cpu: float
    rate: float


def with_weights(layer: Any, matrix: Any) -> Any:
    """The Dense or Conv2d layer with weights from a (fan_in, units) matrix."""
    weight = matrix.T.reshape(layer.weight_shape) if isinstance(layer, Conv2d) else matrix
    return type(layer).from_config(
        layer.config(), {"weight": weight.astype(layer.bias.dtype), "bias": layer.bias}
    )


def as_matrix(layer: Any) -> Any:
    """Weights as (fan_in, units)."""
    weight = layer.weight
    return weight.reshape(weight.shape[0], -1).T if isinstance(layer, Conv2d) else weight


def rounded(network: Network) -> Network:
    """Every layer by the exact ternary projection of each unit."""
    layers = [
        with_weights(layer, quantize(as_matrix(layer)).x.dense())
        if isinstance(layer, (Dense, Conv2d))
        else layer
        for layer in network.layers
    ]
    return Network(layers, network.input_shape)


def straight_through(
    start: Network, parts: dict[str, Any], *, budget: float, seed: int, rates: Sequence[float] = RATES
) -> Trained:
    """Fine-tune with ternary forward weights (TWN), straight-through gradients; best rate by validation."""
    X, y = parts["validation"]
    runs = [_train(start, *parts["train"], rate, budget, seed) for rate in rates]
    return max(runs, key=lambda run: float(np.mean(run.network.scores(X).argmax(axis=1) == y)))


def _train(start: Network, X: Any, y: Any, rate: float, budget: float, seed: int) -> Trained:
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    module = start.to_torch()[:-1]  # without the softmax
    latent = [part for part in module if hasattr(part, "weight")]
    rows, labels = torch.from_numpy(np.ascontiguousarray(X)), torch.from_numpy(np.asarray(y, dtype=np.int64))
    optimiser = torch.optim.Adam(module.parameters(), lr=rate)
    begun = time.process_time()
    elapsed = 0.0
    while elapsed < budget:
        for batch in torch.randperm(len(rows)).split(BATCH):
            elapsed = time.process_time() - begun
            if elapsed >= budget:
                break
            optimiser.param_groups[0]["lr"] = rate * 0.5 * (1 + np.cos(np.pi * elapsed / budget))
            loss = torch.nn.functional.cross_entropy(_forward(module, rows[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    spent = time.process_time() - begun
    with torch.no_grad():
        for part in latent:
            part.weight.copy_(_ternary(part.weight))
    return Trained(Network.from_torch(module, start.input_shape), spent, rate)


def _forward(module: Any, batch: Any) -> Any:
    import torch

    for part in module:
        if isinstance(part, torch.nn.Linear):
            batch = torch.nn.functional.linear(batch, _through(part.weight), part.bias)
        elif isinstance(part, torch.nn.Conv2d):
            batch = torch.nn.functional.conv2d(
                batch, _through(part.weight), part.bias, part.stride, part.padding
            )
        else:
            batch = part(batch)
    return batch


def _through(weight: Any) -> Any:
    return weight + (_ternary(weight) - weight).detach()


def _ternary(weight: Any) -> Any:
    """The quantiser of Ternary Weight Networks, one scale a unit."""
    flat = weight.flatten(1)
    kept = flat.abs() > 0.7 * flat.abs().mean(1, keepdim=True)
    scale = (flat.abs() * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
    return (flat.sign() * kept * scale).view_as(weight)
