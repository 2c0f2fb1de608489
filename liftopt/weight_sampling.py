r"""Periodic sampling over the weights of a run: averages of every period, published, combined or put back.

An optimiser gives weights ``w_1, w_2, ...``. Every ``period`` steps, the weights sampled in the period,
evenly spaced and its last ones among them, are averaged. With ``q = window``,

    mean_p      = average of the samples of period p            (a running mean: one copy of the weights)
    published_p = mean_p                                        mode="average"
                  (mean_p + ... + mean_{p-q+1}) / q             mode="walk"
                  kappa published_{p-1} + (1 - kappa) mean_p    mode="momentum", kappa = momentum
    live        = (1 - a) live at the start of p + a published_p            a = reinsert; 0 leaves it alone

Putting the average back damps the noise of the last iterate and, to first order, shortens the step to the
centroid of the samples; it must be judged against a smaller rate with the same average not put back.
Sampling and restarting are deterministic: every period is covered by evenly spaced samples.

References
----------
Tripathi, Liu, Kurup, Shah, Dhar, "Improving model training by periodic sampling over weight distributions",
arXiv 1905.05774, 2020. Izmailov et al., "Averaging weights leads to wider optima and better generalization",
UAI 2018. Kaddour, "Stop wasting my time! Saving days of ImageNet and BERT training with latest weight
averaging", 2022, arXiv 2209.14981. Zhang et al., "Lookahead optimizer: k steps forward, 1 step back",
NeurIPS 2019.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from sklearn.exceptions import ConvergenceWarning

from liftopt.module_state import batch_norms, check_signature, exchange, refreshed, signature, trainable
from liftopt.period_means import PeriodMeans
from liftopt.solvers.validation import as_count, as_scalar
from liftopt.torch_interop import import_torch

if TYPE_CHECKING:
    import torch

    from liftopt.weight_mixing import Mixture

Mode = Literal["average", "walk", "momentum"]
InnerState = Literal["keep", "reset"]

_SAMPLES = 10  # a period by default: neighbouring steps are alike, and sampling all of them costs time
_FORMAT = 1


class PeriodicWeightSampler:
    """Averages the weights of a torch model over periods of a run, whatever the optimiser.

    Call :meth:`step` after every ``optimizer.step()``, or once attach it by
    ``optimizer.register_step_post_hook(lambda *_: sampler.step())``. The learning rate is never touched.

    Parameters
    ----------
    model : torch.nn.Module
        Its trainable parameters are averaged, each once however often it is used; frozen ones and buffers
        are left alone.
    optimizer : torch.optim.Optimizer, optional
        Needed where its state is to be cleared: for ``inner_state="reset"``, and to go on after a
        divergence.
    period : int
        Steps of a period.
    window : int
        Period means that are held: those that ``mode="walk"`` averages and :meth:`combine` weighs.
    mode : {"average", "walk", "momentum"}
        What is published at the end of a period: its mean, the average of the last ``window`` means, or an
        exponential average of the means. Before ``window`` periods are over, of those there are.
    reinsert : bool or float
        Put the published weights back into training at the end of every period; a fraction moves only that
        far from where the period began (one more copy of the weights).
    every : int, optional
        Steps between two samples, counted back from the end of the period; by default such that a period
        has about 10. ``every=period`` samples its last weights only.
    momentum : float
        Share of the last published weights in the new ones, for ``mode="momentum"``.
    start : int
        Steps before the first period.
    inner_state : {"keep", "reset"}
        What happens to the optimiser's state when weights are put back.

    Attributes
    ----------
    n_steps : int
        Steps counted.
    n_periods : int
        Periods completed.

    Raises
    ------
    ValueError
        If a setting is out of range, no parameter is trainable, or two parameters share their memory
        without being the same object.

    Notes
    -----
    A sample costs three memory accesses per weight. Memory: ``window + 1`` copies of the trainable weights
    (float32 at least); evaluation exchanges pointers. The module is never copied.

    Examples
    --------
    >>> import torch
    >>> from liftopt import PeriodicWeightSampler
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> sampler = PeriodicWeightSampler(model, period=4)
    >>> for _ in range(8):
    ...     loss = model(torch.ones(3, 2)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     period_ended = sampler.step()
    >>> with sampler.averaged():
    ...     output = model(torch.ones(1, 2))
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        period: int,
        window: int = 1,
        mode: Mode = "average",
        reinsert: bool | float = True,
        every: int | None = None,
        momentum: float = 0.5,
        start: int = 0,
        inner_state: InnerState = "keep",
    ) -> None:
        self._torch = import_torch()
        period = as_count("period", period)
        default = max(1, period // _SAMPLES)
        self.policy: Mapping[str, Any] = {
            "period": period,
            "window": as_count("window", window),
            "mode": _choice("mode", mode, get_args(Mode)),
            "reinsert": as_scalar("reinsert", reinsert, low=0.0, high=1.0),
            "every": default if every is None else as_count("every", every),
            "momentum": as_scalar("momentum", momentum, low=0.0, high=1.0),
            "start": as_count("start", start, low=0),
            "inner_state": _choice("inner_state", inner_state, get_args(InnerState)),
        }
        if self.policy["every"] > period:
            raise ValueError(f"every must not exceed the period of {period} steps, got {every}")
        self._model, self._optimizer = model, optimizer
        self._check_optimizer()
        self._names, self._live = trainable(self._torch, model)
        self._signature = signature(self._names, self._live)
        self._means = PeriodMeans(self._live, window)
        self.n_steps = self.n_periods = 0
        self._shares: list[float] | None = None  # of a combination; by mode else
        self._origin: list[Any] = []
        self._begin_period()

    def step(self) -> bool:
        """Count one step of the optimiser, sample if it is due; return whether a period ended.

        Raises
        ------
        ValueError
            If the model's trainable parameters are no longer those of the start.
        FloatingPointError
            If the weights are not finite before any period has ended.
        """
        self.n_steps += 1
        done = self.n_steps - self.policy["start"]
        if done <= 0:
            self._begin_period()
            return False
        left = -done % self.policy["period"]
        if left % self.policy["every"] == 0:
            if any(p.shape != shape for p, (_, shape, _) in zip(self._live, self._signature, strict=True)):
                self._check_model()
            self._means.sample()
        if left == 0:
            self._end_period()
        return left == 0

    @property
    def published(self) -> dict[str, torch.Tensor]:
        """Published weights by parameter name, copies; empty before the first period has ended."""
        return self._named(self._published(), copy=True) if self._means.held else {}

    @property
    def period_means(self) -> list[dict[str, torch.Tensor]]:
        """The held means by parameter name, oldest first: views that a later period overwrites."""
        return [self._named(mean, copy=False) for mean in self._means.held]

    @contextmanager
    def averaged(self, refresh: Iterable[Any] | None = None) -> Iterator[torch.nn.Module]:
        """Context in which the model holds the published weights; the live ones return at its end.

        The values must not be changed inside. Before the first period has ended nothing is exchanged.

        Parameters
        ----------
        refresh : iterable of inputs, optional
            Batches from which BatchNorm statistics are formed anew (cumulative, without gradient, other
            layers in evaluation mode). The live statistics return at the end too.

        Raises
        ------
        ValueError
            If the model has BatchNorm statistics and no batches are given: statistics of averaged weights
            are not the average of statistics. An empty list says that the live ones shall be used.
        """
        torch, norms = self._torch, batch_norms(self._torch, self._model)
        if norms and refresh is None:
            raise ValueError(
                "the model has BatchNorm statistics, which belong to the live weights: pass refresh=batches "
                "to form those of the averaged weights, or refresh=[] to use the live ones"
            )
        values = self._published() if self._means.held else [parameter.data for parameter in self._live]
        with ExitStack() as stack:
            live = [parameter.data for parameter in self._live]
            stack.callback(exchange, self._live, live)
            exchange(self._live, [value.to(own.dtype) for value, own in zip(values, self._live, strict=True)])
            if norms and refresh is not None:
                stack.enter_context(refreshed(torch, self._model, norms, refresh))
            yield self._model

    def combine(self, inputs: torch.Tensor, targets: torch.Tensor, *, rho: float = 0.0) -> Mixture:
        """Weigh the held means by their loss on held-out data, and publish the mixture.

        See :func:`liftopt.weight_mixing.mix_weights`. The next period's end publishes by ``mode`` again.

        Parameters
        ----------
        inputs, targets : torch.Tensor
            Held-out rows, and class indices (n,) or real targets (n, outputs).
        rho : float
            Weight of the squared distance from the uniform mean.

        Raises
        ------
        ValueError
            Before the first period has ended.
        """
        from liftopt.weight_mixing import mix_weights

        if not self._means.held:
            raise ValueError("no period has ended yet: there is nothing to combine")
        found = mix_weights(self._model, self.period_means, inputs, targets, rho=rho)
        self._shares = found.coefficients.tolist()
        return found

    def put_back(self) -> None:
        """Copy the published weights into the live ones, in place; clear the optimiser's state if asked to.

        BatchNorm statistics stay those of training, which follow the new weights within a few batches.
        """
        if self._means.held:
            self._copy_to_live(self._published())
            self._begin_period()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, beside the model's and the optimiser's own state."""
        return {
            "format": _FORMAT,
            "policy": dict(self.policy),
            "parameters": self._signature,
            "n_steps": self.n_steps,
            "n_periods": self.n_periods,
            "origin": self._means.placed(self._origin),
            "shares": self._shares,
            **self._means.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; model and optimiser are restored by their own.

        Raises
        ------
        ValueError
            If the state was saved under other settings or from a model of other parameters.
        """
        if state.get("format") != _FORMAT:
            raise ValueError(f"not a state of this version: format {state.get('format')!r}, not {_FORMAT}")
        for key, own in self.policy.items():
            if state["policy"].get(key) != own:
                raise ValueError(
                    f"the state was saved with {key}={state['policy'].get(key)!r}, this sampler has {own!r}"
                )
        check_signature("the saved state", state["parameters"], self._signature)
        self._means.load_state_dict(state)
        self._origin, self._shares = self._means.placed(state["origin"]), state["shares"]
        self.n_steps, self.n_periods = state["n_steps"], state["n_periods"]

    def _end_period(self) -> None:
        self._check_model()
        if not self._means.is_finite():
            self._recover()
            return
        self._means.close(self.policy["momentum"] if self.policy["mode"] == "momentum" else 0.0)
        self._shares = None
        self.n_periods += 1
        if self.policy["reinsert"] > 0.0:
            self.put_back()
        else:
            self._begin_period()

    def _begin_period(self) -> None:
        """Remember where the period begins, if weights are put back in part."""
        if 0.0 < self.policy["reinsert"] < 1.0:
            self._origin = self._means.wide_copies()

    def _copy_to_live(self, values: list[Any]) -> None:
        torch = self._torch
        with torch.no_grad():
            if self._origin:
                values = torch._foreach_lerp(self._origin, values, self.policy["reinsert"])
            torch._foreach_copy_(self._live, values)
        if self.policy["inner_state"] == "reset" and self._optimizer is not None:
            self._optimizer.state.clear()

    def _recover(self) -> None:
        """Back to the last published weights when the run has diverged."""
        if not self._means.held:
            raise FloatingPointError(
                f"weights are not finite by step {self.n_steps}, before a period has ended: there are none "
                "to go back to; reduce the learning rate"
            )
        self._means.drop()
        with self._torch.no_grad():
            self._torch._foreach_copy_(self._live, self._published())
        if self._optimizer is not None:
            self._optimizer.state.clear()
        self._begin_period()
        state = "cleared" if self._optimizer is not None else "not cleared (pass optimizer= for that)"
        warnings.warn(
            f"weights are not finite by step {self.n_steps}: the last published ones were put back, the "
            f"optimiser's state was {state}; reduce the learning rate",
            ConvergenceWarning,
            stacklevel=4,
        )

    def _published(self) -> list[Any]:
        """Published weights; the held tensors themselves where no sum is needed."""
        held = self._means.held
        if self._shares is not None:
            return self._means.combination(self._shares)
        if self.policy["mode"] == "walk":
            return self._means.combination([1.0 / len(held)] * len(held))
        return held[-1]

    def _named(self, values: list[Any], *, copy: bool) -> dict[str, Any]:
        return {
            name: value.to(own.dtype, copy=copy)
            for name, value, own in zip(self._names, values, self._live, strict=True)
        }

    def _check_model(self) -> None:
        """The parameters are still the objects of the start, in their shapes."""
        names, live = trainable(self._torch, self._model)
        check_signature("the model at this step", signature(names, live), self._signature)
        if any(new is not old for new, old in zip(live, self._live, strict=True)):
            raise ValueError("the model's parameters were replaced by new objects: make a new sampler")

    def _check_optimizer(self) -> None:
        reset = self.policy["inner_state"] == "reset"
        if reset and self._optimizer is None:
            raise ValueError("inner_state='reset' needs the optimizer whose state is to be cleared")
        stale = isinstance(self._optimizer, self._torch.optim.LBFGS) and self.policy["reinsert"] > 0.0
        if stale and not reset:
            raise ValueError("LBFGS keeps pairs of the weights that were left: use inner_state='reset'")


def _choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value
