"""Runs of the weight-sampling study: many seeds of one setting at once, with averagers along the way.

A member of an :class:`Ensemble` is one network of one seed. The members' weights are stacked (or listed), the
loss is the sum over members of their mean losses, and all optimisers used here work entry by entry: every
member trains as it would alone. What is not put back (period means, EMA, LAWA, SWA, combinations) is read
off the plain trajectory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from liftopt import PeriodicWeightSampler
from liftopt.data import load
from liftopt.input_map import fit_input_map

BATCH, EPOCHS, PERIODS = 64, 4, 6  # rows a step, epochs, periods an epoch
WALK = 6  # period means averaged: one epoch
VALIDATION, HELD_OUT = 1000, 1000  # rows that measure, and rows that choose coefficients
COMPONENTS = 100
POOL = 50_000  # training rows that seeds draw from


@dataclass(frozen=True)
class Case:
    """One setting of the study."""

    data: str
    noise: float
    optimizer: str
    schedule: str
    model: str = "mlp"
    rows: int = 150 * BATCH

    @property
    def steps(self) -> int:
        """Optimiser steps of a run."""
        return EPOCHS * (self.rows // BATCH)

    @property
    def period(self) -> int:
        """Steps of a period."""
        return self.rows // BATCH // PERIODS

    @property
    def name(self) -> str:
        """Short name for tables."""
        network = {"mlp": "784-300-10", "raw": "784-300-10, raw", "lenet": "LeNet-5"}[self.model]
        noise = f", {100 * self.noise:.0f} % noise" if self.noise else ""
        return f"{self.data}{noise}, {network}, {self.optimizer}, {self.schedule}"


@dataclass(frozen=True)
class Rows:
    """Inputs and labels of all parts, shared by the seeds."""

    X: torch.Tensor
    y: torch.Tensor
    parts: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


_CACHE: dict[tuple[str, str], Rows] = {}


def rows_of(case: Case) -> Rows:
    """Data of a case: damped PCA components for "mlp", pixels in [0, 1] otherwise."""
    key = (case.data, "mlp" if case.model == "mlp" else "pixels")
    if key not in _CACHE:
        data = load(case.data)
        train, test = data.splits[0]
        X, X_test = np.asarray(data.X[train], np.float32), np.asarray(data.X[test], np.float32)
        y, y_test = data.y[train].astype(np.int64), data.y[test].astype(np.int64)
        if key[1] == "mlp":
            map_ = fit_input_map(X[:POOL], n_components=COMPONENTS, max_rows=10_000, random_state=0)
            X, X_test = map_.transform(X), map_.transform(X_test)
        elif X.max() > 1:
            X, X_test = X / 255, X_test / 255
        tensors = [torch.from_numpy(a) for a in (X, y, X_test, y_test)]
        middle, end = POOL + VALIDATION, POOL + VALIDATION + HELD_OUT
        _CACHE[key] = Rows(
            tensors[0][:POOL],
            tensors[1][:POOL],
            {
                "validation": (tensors[0][POOL:middle], tensors[1][POOL:middle]),
                "held_out": (tensors[0][middle:end], tensors[1][middle:end]),
                "test": (tensors[2], tensors[3]),
            },
        )
    return _CACHE[key]


class Dense(torch.nn.Module):
    """Stacked two-layer networks."""

    def __init__(self, seeds: Sequence[int], features: int, width: int = 300, classes: int = 10) -> None:
        super().__init__()
        drawn = [np.random.default_rng([seed, 1]) for seed in seeds]

        def stack(fan_in: int, fan_out: int, bound: float) -> torch.nn.Parameter:
            arrays = [rng.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32) for rng in drawn]
            return torch.nn.Parameter(torch.from_numpy(np.stack(arrays)))

        zeros = lambda size: torch.nn.Parameter(torch.zeros(len(seeds), 1, size))  # noqa: E731
        self.w1, self.b1 = stack(features, width, math.sqrt(6 / features)), zeros(width)
        self.w2, self.b2 = stack(width, classes, math.sqrt(6 / (width + classes))), zeros(classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (members, n, classes) of (members, n, features) or of (n, features) for all."""
        return torch.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2

    def member(self, index: int) -> tuple[torch.nn.Module, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """One network alone, and what picks its weights from those of all."""
        width = self.w1.shape[2]
        alone = torch.nn.Sequential(
            torch.nn.Linear(self.w1.shape[1], width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, self.w2.shape[2]),
        )

        def pick(weights: Mapping[str, Any]) -> dict[str, Any]:
            return {
                "0.weight": weights["w1"][index].T,
                "0.bias": weights["b1"][index, 0],
                "2.weight": weights["w2"][index].T,
                "2.bias": weights["b2"][index, 0],
            }

        return alone, pick


class LeNets(torch.nn.Module):
    """LeNet-5 networks with ReLU and average pooling, one after the other."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        nn, members = torch.nn, []
        for seed in seeds:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                members.append(
                    nn.Sequential(
                        nn.Unflatten(1, (1, 28, 28)),
                        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
                        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
                        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
                    )
                )  # fmt: skip
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As :meth:`Dense.forward`."""
        inputs = x if x.ndim == 3 else x.expand(len(self.members), *x.shape)
        return torch.stack([net(part) for net, part in zip(self.members, inputs, strict=True)])

    def member(self, index: int) -> tuple[torch.nn.Module, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """As :meth:`Dense.member`."""
        prefix = f"members.{index}."

        def pick(weights: Mapping[str, Any]) -> dict[str, Any]:
            return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}

        return self.members[index], pick


def ensemble(case: Case, seeds: Sequence[int]) -> Any:
    """Members at their starting weights."""
    return LeNets(seeds) if case.model == "lenet" else Dense(seeds, rows_of(case).X.shape[1])


def batches(case: Case, seeds: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every step's inputs (members, batch, features) and noisy labels: rows, noise and order by seed."""
    rows = rows_of(case)
    chosen, labels = [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 2])
        index = rng.choice(POOL, case.rows, replace=False)
        y = rows.y.numpy()[index].copy()
        flipped = rng.random(case.rows) < case.noise
        y[flipped] = rng.integers(0, 10, int(flipped.sum()))
        chosen.append(index)
        labels.append(y)
    for epoch in range(EPOCHS):
        orders = [np.random.default_rng([seed, 3, epoch]).permutation(case.rows) for seed in seeds]
        for start in range(0, case.rows, BATCH):
            parts = [order[start : start + BATCH] for order in orders]
            index = torch.from_numpy(np.stack([c[p] for c, p in zip(chosen, parts, strict=True)]))
            y = np.stack([label[p] for label, p in zip(labels, parts, strict=True)])
            yield rows.X[index], torch.from_numpy(y)


def make_optimizer(name: str, model: Any, rate: float) -> Any:
    """Optimiser by the study's name."""
    parameters = list(model.parameters())
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, fused=True)
    if name == "momentum":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, fused=True)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=rate, fused=True)
    import schedulefree

    kinds = {
        "schedule-free sgd": lambda: schedulefree.SGDScheduleFree(parameters, lr=rate),
        "schedule-free adam": lambda: schedulefree.AdamWScheduleFree(parameters, lr=rate),
    }
    optimizer = kinds[name]()
    optimizer.train()
    return optimizer


class Controls:
    """Averages that are not put back, along one trajectory: EMA and LAWA of equal window, SWA of the tail."""

    def __init__(self, case: Case, parameters: Sequence[torch.Tensor]) -> None:
        self.parameters, self.case = list(parameters), case
        self.decay = 2.0 / (WALK * case.period + 1)  # mean age of a uniform window of that many steps
        self.ema: list[torch.Tensor] = [p.detach().clone() for p in parameters]
        self.checkpoints: deque[list[torch.Tensor]] = deque(maxlen=WALK)
        self.swa: list[torch.Tensor] = []
        self.swa_count = 0

    def step(self, number: int) -> None:
        """After step ``number`` (from 1)."""
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, max(self.decay, 1.0 / number))
            if number % self.case.period == 0:
                copy = [p.detach().clone() for p in self.parameters]
                self.checkpoints.append(copy)
                if number > self.case.steps // 2:
                    self.swa_count += 1
                    if self.swa_count == 1:
                        self.swa = [p.clone() for p in copy]
                    torch._foreach_lerp_(self.swa, copy, 1.0 / self.swa_count)

    def published(self) -> dict[str, list[torch.Tensor]]:
        """Averages by name."""
        lawa = [torch.stack(group).mean(0) for group in zip(*self.checkpoints, strict=True)]
        found = {"EMA": self.ema, "LAWA": lawa}
        return found | ({"SWA": self.swa} if self.swa_count else {})


@dataclass
class Run:
    """Validation losses (members, checkpoints) by variant, test accuracy (members,) at the end, the means."""

    losses: dict[str, list[np.ndarray]] = field(default_factory=dict)
    accuracy: dict[str, np.ndarray] = field(default_factory=dict)
    means: list[dict[str, torch.Tensor]] = field(default_factory=list)
    model: Any = None

    def curve(self, name: str) -> np.ndarray:
        """Losses of a variant; checkpoints before it exists are NaN."""
        found = np.stack(self.losses[name], axis=1)
        longest = max(len(values) for values in self.losses.values())
        return np.pad(found, ((0, 0), (longest - found.shape[1], 0)), constant_values=np.nan)


def evaluate(model: Any, part: tuple[torch.Tensor, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean cross-entropy and accuracy (members,)."""
    X, y = part
    with torch.no_grad():
        logits = torch.cat([model(chunk) for chunk in X.split(2000)], dim=1)
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), y.expand(logits.shape[0], -1), reduction="none"
        )
    return losses.mean(1).double().numpy(), (logits.argmax(2) == y).double().mean(1).numpy()


def run(
    case: Case,
    seeds: Sequence[int],
    rate: float,
    sampling: Mapping[str, Any] | None = None,
    *,
    controls: bool = False,
    window: int = WALK,
    label: str = "last",
    every: int = 1,
) -> Run:
    """Train all seeds once.

    ``sampling``: arguments of the sampler for a run whose published weights are put back (variant ``label``);
    without it the last iterate is ``label`` and the averages not put back are read off too, with
    ``controls`` also EMA, LAWA and SWA. ``every``: periods between two evaluations.
    """
    model = ensemble(case, seeds)
    optimizer = make_optimizer(case.optimizer, model, rate)
    options: dict[str, Any] = {"period": case.period, "mode": "walk", "reinsert": False, "window": window}
    sampler = PeriodicWeightSampler(model, **(options | dict(sampling or {})))
    kept = Controls(case, list(model.parameters())) if controls else None
    found = Run(model=model)
    for number, (x, y) in enumerate(batches(case, seeds), start=1):
        if case.schedule == "cosine":
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * (number - 1) / case.steps))
        optimizer.zero_grad(set_to_none=True)
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()) * len(seeds)
        loss.backward()
        optimizer.step()
        sampler.step()
        if kept is not None:
            kept.step(number)
        if number % (case.period * every) == 0:
            final = number == case.steps
            for name, weights in _variants(label, model, optimizer, sampler, kept, sampling):
                _measure(case, found, name, model, weights, final)
    found.means = [{k: v.clone() for k, v in mean.items()} for mean in sampler.period_means]
    return found


def _variants(
    label: str, model: Any, optimizer: Any, sampler: Any, kept: Controls | None, sampling: Any
) -> Iterator[tuple[str, list[torch.Tensor] | None]]:
    """Names and weights to evaluate now; None stands for the model as it is."""
    if sampling is not None:
        partly = 0.0 < sampler.policy["reinsert"] < 1.0  # then the weights put back are the method's own
        yield label, None if partly else list(sampler.published.values())
        return
    if hasattr(optimizer, "eval"):
        optimizer.eval()
        yield label, None
        optimizer.train()
        return
    yield label, None
    yield f"{label}: period mean", list(sampler.period_means[-1].values())
    yield f"{label}: {WALK} period means", _mean(sampler.period_means[-WALK:])
    if kept is not None:
        yield from kept.published().items()


def _mean(group: Sequence[Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.stack([weights[name] for weights in group]).mean(0) for name in group[0]]


def _measure(
    case: Case, found: Run, name: str, model: Any, weights: list[torch.Tensor] | None, final: bool
) -> None:
    rows = rows_of(case)
    live = [p.data for p in model.parameters()]
    for parameter, value in zip(model.parameters(), weights or live, strict=True):
        parameter.data = value
    part = rows.parts["validation"]
    if case.model == "lenet":
        part = (part[0][:500], part[1][:500])
    found.losses.setdefault(name, []).append(evaluate(model, part)[0])
    if final:
        test = rows.parts["test"]
        found.accuracy[name] = evaluate(model, (test[0][:4000], test[1][:4000]))[1]
    for parameter, value in zip(model.parameters(), live, strict=True):
        parameter.data = value


def quick(case: Case) -> Case:
    """The case on few rows."""
    return replace(case, rows=60 * BATCH)
