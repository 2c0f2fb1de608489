"""Back-propagation in torch: mini-batch descent on the network's own loss, for any :class:`Network`.

Minimises ``sum_i w_i loss(f(x_i), y_i) / sum_i w_i`` (cross-entropy on logits, or squared error) by SGD,
Nesterov's momentum, Adam, AdamW or Schedule-Free AdamW. Data stay in memory as contiguous tensors; each step
gathers its rows, and fused optimiser kernels update all layers in one call. With periodic weight sampling,
published averages are judged and kept in place of the last weights.

References
----------
Kingma, Ba, "Adam", ICLR 2015. Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
Smith, Topin, "Super-convergence", 2019 (the one-cycle schedule). Defazio et al., "The road less scheduled",
NeurIPS 2024 (Schedule-Free).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from liftopt.activations import Activation, Identity, Softmax
from liftopt.base import TrainingData, score_outputs
from liftopt.checkpoint import State, random_bits, restore_bits
from liftopt.network import Network
from liftopt.recording import Recorder, run_interruptible
from liftopt.solvers.validation import as_count, as_scalar
from liftopt.torch_interop import as_arrays, as_tensors, from_torch, import_torch, to_torch
from liftopt.weight_sampling import PeriodicWeightSampler

Optimizer = Literal["adam", "adamw", "momentum", "sgd", "schedule_free"]
Schedule = Literal["one_cycle", "cosine", "constant"]

_MOMENTUM = 0.9
_WARM_UP = 0.25  # share of the one-cycle schedule, from 1/25 of the peak rate
_EVALUATION_ROWS = 4096
_SAMPLING = {"mode": "walk", "periods_per_epoch": 4, "window": 4, "reinsert": False, "combine": False}


@dataclass(frozen=True)
class Settings:
    """Settings of one descent; checked on construction."""

    optimizer: Optimizer
    learning_rate: float
    schedule: Schedule
    batch_size: int | Literal["auto"]
    max_iter: int
    alpha: float
    n_iter_no_change: int
    tol: float
    sampling: str | Mapping[str, Any] | None = None
    input_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("optimizer", self.optimizer, get_args(Optimizer)),
            ("schedule", self.schedule, get_args(Schedule)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        as_scalar("learning_rate_init", self.learning_rate, low=0.0, strict=True)
        as_scalar("alpha", self.alpha, low=0.0)
        as_scalar("tol", self.tol, low=0.0)
        as_scalar("input_noise", self.input_noise, low=0.0)
        for name in ("batch_size", "max_iter", "n_iter_no_change"):
            if name != "batch_size" or self.batch_size != "auto":
                as_count(name, getattr(self, name))
        if self.optimizer == "schedule_free" and (self.schedule != "constant" or self.sampling is not None):
            raise ValueError(
                "optimizer='schedule_free' averages by itself: use schedule='constant' and sampling=None"
            )

    @property
    def sampling_options(self) -> dict[str, Any] | None:
        """``sampling`` as arguments of the sampler, with ``periods_per_epoch`` and ``combine``."""
        if self.sampling is None:
            return None
        given = {"mode": self.sampling} if isinstance(self.sampling, str) else dict(self.sampling)
        options = _SAMPLING | given
        as_scalar("periods_per_epoch", options["periods_per_epoch"], low=0.0, strict=True)
        return options

    def n_batches(self, n: int) -> int:
        """Steps an epoch for ``n`` rows."""
        if self.batch_size == "auto":
            return math.ceil(n / min(256, max(64, 2 ** round(math.log2(n / 32)))))
        return math.ceil(n / self.batch_size)


class Descent(NamedTuple):
    """What :func:`descend` returns: the network kept, the epochs run, and what to warn of, if anything."""

    network: Network
    n_iter: int
    warning: str


def descend(
    network: Network,
    data: TrainingData,
    held_out: TrainingData | None,
    settings: Settings,
    recorder: Recorder,
    random_state: np.random.RandomState,
) -> Descent:
    """Train ``network`` from its present weights.

    Parameters
    ----------
    network : Network
        Ends in a softmax head (classification) or a linear one; computes in its own dtype.
    data : TrainingData
        Rows as the network takes them.
    held_out : TrainingData, optional
        Judges the start and every epoch: the best is kept, and the run stops when it does not improve any
        more.
        Without it, the last finite epoch is kept, and only the constant schedule stops early, by the loss.
    settings : Settings
        Optimiser, schedule, budgets and weight sampling.
    recorder : Recorder
        Gets ``loss``, ``learning_rate`` and ``validation_score`` of every epoch.
    random_state : RandomState
        Orders the rows.
    """
    run = _Run(network, data, held_out, settings, recorder, random_state)
    run_interruptible(run.loop, "back-propagation", recorder)
    return Descent(run.kept_network(), max(1, run.epoch), run.warning)


class _Run:
    """State of one descent."""

    def __init__(
        self,
        network: Network,
        data: TrainingData,
        held_out: TrainingData | None,
        settings: Settings,
        recorder: Recorder,
        random_state: np.random.RandomState,
    ) -> None:
        self.torch = import_torch()
        self.network, self.held_out, self.settings = network, held_out, settings
        self.recorder, self.random_state = recorder, random_state
        self.module = _logits_module(network)
        self.parameters = list(self.module.parameters())
        self.optimizer = _make_optimizer(self.torch, self.parameters, settings)
        self.X = self._tensor(data.X)
        self.loss = self._make_loss(data)
        self.n_batches = settings.n_batches(data.X.shape[0])
        self.sampler = self._make_sampler()
        self.epoch, self.warning = 0, ""
        self.best, self.idle = -math.inf if held_out is None else self._validation_score(held_out), 0
        self.kept = self._snapshot()

    def loop(self) -> None:
        """Epochs until the schedule ends or a reason to stop."""
        total = self.settings.max_iter
        state = self.recorder.resumed()
        if state is not None:
            self.restore(state)
        while self.epoch < total:
            loss = self._one_epoch()
            if not math.isfinite(loss) or not all(p.isfinite().all() for p in self.parameters):
                self.warning = f"diverged in epoch {self.epoch + 1}: reduce learning_rate_init"
                return
            self.epoch += 1
            facts = {"loss": loss, "learning_rate": self.optimizer.param_groups[0]["lr"]}
            with self._published():
                monitored = -loss
                if self.held_out is not None:
                    monitored = facts["validation_score"] = self._validation_score(self.held_out)
                self._judge(monitored)
            if self.recorder.add(**facts) or self._has_stalled():
                break
            self.recorder.save(self.state)
        else:
            if self.settings.schedule == "constant":
                self.warning = (
                    f"no plateau within max_iter={total} epochs: increase max_iter or use a schedule"
                )
        self._combine()

    def state(self) -> State:
        """What the epochs after this one depend on."""
        return {
            "parameters": as_arrays(self._snapshot()),
            "kept": as_arrays(self.kept),
            "optimizer": as_arrays(self.optimizer.state_dict()),
            "sampler": None if self.sampler is None else as_arrays(self.sampler.state_dict()),
            "counts": [self.epoch, self.best, self.idle],
            "random": random_bits(self.random_state),
        }

    def restore(self, state: State) -> None:
        """Return to a :meth:`state`."""
        optimizer = as_tensors(self.torch, state["optimizer"])
        optimizer["state"] = {int(index): entry for index, entry in optimizer["state"].items()}
        self.optimizer.load_state_dict(optimizer)
        with self.torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(self.torch.from_numpy(value))
        if self.sampler is not None:
            self.sampler.load_state_dict(as_tensors(self.torch, state["sampler"]))
        self.kept = as_tensors(self.torch, state["kept"])
        self.epoch, self.best, self.idle = state["counts"]
        restore_bits(self.random_state, state["random"])

    def kept_network(self) -> Network:
        """Network of the kept epoch, with the head and the metadata of the first one."""
        with self.torch.no_grad():
            for parameter, value in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(value)
        head = [self.torch.nn.Softmax(dim=1)] if _is_softmax(self.network) else []
        trained = from_torch(self.torch.nn.Sequential(*self.module, *head), self.network.input_shape)
        return Network(trained.layers, self.network.input_shape, self.network.metadata)

    def _one_epoch(self) -> float:
        """One pass over the shuffled rows in batches of nearly equal size; returns the mean loss."""
        n, settings, optimizer = self.X.shape[0], self.settings, self.optimizer
        group = optimizer.param_groups[0]
        order = self.torch.from_numpy(self.random_state.permutation(n))
        perturb = self._make_noise()
        total = self.torch.zeros((), dtype=self.torch.float64)
        for index, rows in enumerate(order.tensor_split(self.n_batches)):
            progress = (self.epoch + index / self.n_batches) / settings.max_iter
            group["lr"] = settings.learning_rate * rate_factor(settings.schedule, progress)
            optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.module(perturb(self.X.index_select(0, rows))), rows)
            loss.backward()
            optimizer.step()
            try:
                if self.sampler is not None:
                    self.sampler.step()
            except FloatingPointError:  # nothing has been published yet
                return math.nan
            total += loss.detach() * rows.shape[0]
        return float(total) / n

    def _make_noise(self) -> Callable[[Any], Any]:
        """What adds the input noise of one epoch to its batches, in place."""
        torch, noise = self.torch, self.settings.input_noise
        if noise == 0.0:
            return lambda batch: batch
        generator = torch.Generator().manual_seed(int(self.random_state.randint(2**31)))
        return lambda batch: batch.add_(
            torch.randn(batch.shape, dtype=batch.dtype, generator=generator), alpha=noise
        )

    @contextmanager
    def _published(self) -> Iterator[None]:
        """Context in which the module holds the weights to judge: the averaged ones, if there are any."""
        if self.sampler is not None:
            with self.sampler.averaged():
                yield
        elif self.settings.optimizer == "schedule_free":
            self.optimizer.eval()
            yield
            self.optimizer.train()
        else:
            yield

    def _combine(self) -> None:
        """Judge the best convex combination of the held averages too, if asked to."""
        if self.sampler is None or self.held_out is None or not self.combines or not self.sampler.n_periods:
            return
        target = self.held_out.target if self.held_out.codes is None else self.held_out.codes.astype(np.int64)
        self.sampler.combine(self._tensor(self.held_out.X), self._tensor(target))
        with self._published():
            self._judge(self._validation_score(self.held_out))

    def _make_sampler(self) -> PeriodicWeightSampler | None:
        options = self.settings.sampling_options
        self.combines = bool(options and options.pop("combine"))
        if options is None:
            return None
        period = max(1, round(self.n_batches / options.pop("periods_per_epoch")))
        return PeriodicWeightSampler(self.module, self.optimizer, period=period, **options)

    def _judge(self, monitored: float) -> None:
        """Count epochs without progress; keep the weights if they are the ones to return."""
        self.idle = 0 if monitored > self.best + self.settings.tol else self.idle + 1
        if self.held_out is None or monitored > self.best:
            self.kept = self._snapshot()
        self.best = max(self.best, monitored)

    def _has_stalled(self) -> bool:
        watched = self.held_out is not None or self.settings.schedule == "constant"
        return watched and self.idle >= self.settings.n_iter_no_change

    def _validation_score(self, held_out: TrainingData) -> float:
        with self.torch.inference_mode():
            chunks = self._tensor(held_out.X).split(_EVALUATION_ROWS)
            outputs = self.torch.cat([self.module(chunk) for chunk in chunks]).numpy()
        return score_outputs(outputs, held_out)

    def _snapshot(self) -> list[Any]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _tensor(self, array: Any) -> Any:
        array = np.ascontiguousarray(array)
        return self.torch.from_numpy(array if array.flags.writeable else array.copy())

    def _make_loss(self, data: TrainingData) -> Callable[[Any, Any], Any]:
        """Mean loss of the outputs for given rows; weights are scaled to mean 1 over all rows."""
        functional = self.torch.nn.functional
        if data.codes is None:
            measure, target = functional.mse_loss, self._tensor(data.target)
        else:
            measure, target = functional.cross_entropy, self._tensor(data.codes.astype(np.int64))
        if data.weight is None:
            return lambda outputs, rows: measure(outputs, target.index_select(0, rows))
        weight = self._tensor((data.weight / data.weight.mean()).astype(data.X.dtype))

        def weighted(outputs: Any, rows: Any) -> Any:
            losses = measure(outputs, target.index_select(0, rows), reduction="none")
            return (losses.reshape(rows.shape[0], -1).mean(dim=1) * weight.index_select(0, rows)).mean()

        return weighted


def rate_factor(schedule: Schedule, progress: float) -> float:
    """Learning rate relative to its peak at ``progress`` in [0, 1) of the run."""
    if schedule == "constant":
        return 1.0
    if schedule == "one_cycle":
        if progress < _WARM_UP:
            return 0.04 + 0.96 * progress / _WARM_UP
        progress = (progress - _WARM_UP) / (1.0 - _WARM_UP)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _make_optimizer(torch: Any, parameters: list[Any], settings: Settings) -> Any:
    common: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.alpha}
    if settings.optimizer == "schedule_free":
        optimizer = _import_schedule_free().AdamWScheduleFree(parameters, **common)
        optimizer.train()
        return optimizer
    common["fused"] = True
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, **common)
    if settings.optimizer == "momentum":
        return torch.optim.SGD(parameters, momentum=_MOMENTUM, nesterov=True, **common)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, **common)


def _import_schedule_free() -> Any:
    try:
        import schedulefree
    except ImportError:
        raise ImportError(
            "optimizer='schedule_free' needs the schedulefree package, which is not installed: "
            "pip install 'liftopt[schedule_free]'"
        ) from None
    return schedulefree


def _head_of(network: Network) -> Activation:
    return getattr(network.layers[-1], "activation", Identity())


def _is_softmax(network: Network) -> bool:
    return isinstance(_head_of(network), Softmax)


def _logits_module(network: Network) -> Any:
    """The torch module without its softmax: the loss works on logits."""
    module = to_torch(network)
    return module[:-1] if _is_softmax(network) else module
