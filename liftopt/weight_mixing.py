r"""Coefficients for stored weights of one model: ``min L(sum_j c_j w_j) + rho |c - 1/k|^2`` over the simplex.

``L`` is the mean loss on held-out rows: cross-entropy for class indices, squared error (summed over outputs)
for real targets. For a model linear in its weights the problem is convex and solved exactly; otherwise it is
a problem in k variables solved by Gauss-Newton steps: the outputs are linearised at ``w(c) = sum_j c_j w_j``,
one forward-mode product along each ``w_j - w(c)``, which on the simplex gives

    min over the simplex:  mean loss(sum_j c_j Z_j) + rho |c - 1/k|^2,
    Z_j = outputs(w(c_0)) + d outputs (w_j - w(c_0)),

the convex problem of :mod:`liftopt.solvers.simplex`. Its minimiser is a direction of descent, shortened
until the true loss falls. The start is the better of the uniform mean and the best single weights, so that
neither is lost on the held-out rows; where the gain over the uniform mean is not above its standard error,
that is kept.

The certificate is the Frank-Wolfe gap of the true objective: zero at a stationary point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from liftopt.module_state import evaluating
from liftopt.solvers.simplex import solve_simplex_cross_entropy, solve_simplex_least_squares
from liftopt.solvers.validation import as_count, as_scalar
from liftopt.torch_interop import import_torch

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

_CHUNK = 2048  # held-out rows per forward pass
_SHORTEST = 2.0**-12  # step length below which rounding decides


class Mixture(NamedTuple):
    """Coefficients of stored weights, and what they are worth on the held-out rows.

    Attributes
    ----------
    coefficients : ndarray of shape (k,)
        Those to use.
    kept : {"solution", "uniform"}
        What they are.
    loss, uniform_loss, single_loss : float
        Held-out losses of these, of the uniform mean and of the best single weights.
    gain, gain_error : float
        Gain of the solution over the uniform mean, and its standard error over rows.
    gap : float
        Certificate at the solution.
    n_iter : int
        Linearisations.
    solution : ndarray of shape (k,)
        Coefficients of the solution, kept or not.
    """

    coefficients: Array
    kept: Literal["solution", "uniform"]
    loss: float
    uniform_loss: float
    single_loss: float
    gain: float
    gain_error: float
    gap: float
    n_iter: int
    solution: Array


def mix_weights(
    model: torch.nn.Module,
    snapshots: Sequence[Mapping[str, torch.Tensor]],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    rho: float = 0.0,
    max_iter: int = 10,
    tol: float = 1e-8,
) -> Mixture:
    """Find the convex combination of stored weights with the least held-out loss.

    Parameters
    ----------
    model : torch.nn.Module
        Gives logits (n, classes) or outputs (n, outputs); evaluated without changing it.
    snapshots : sequence of mapping
        Weights by parameter name; parameters that are not named keep the model's values.
    inputs : torch.Tensor
        Held-out rows, drawn like those that matter: the coefficients minimise exactly the loss on them. They
        must not give a final score.
    targets : torch.Tensor
        Class indices (n,) for cross-entropy, else real targets (n, outputs) for squared error.
    rho : float
        Weight of the squared distance of the coefficients from uniform ones.
    max_iter : int
        Largest number of linearisations, each of k forward-mode products.
    tol : float
        Bound on the Frank-Wolfe gap.

    Returns
    -------
    Mixture
        Never worse on the held-out rows than the uniform mean, nor than the best single weights by more than
        the standard error of the gain.

    Raises
    ------
    ValueError
        If there are no snapshots or they do not fit the model, or the targets are of no known kind.
    """
    problem = _Mixing(model, snapshots, inputs, targets, as_scalar("rho", rho, low=0.0))
    k = len(snapshots)
    uniform = np.full(k, 1.0 / k)
    single_losses = [float(problem.losses(vertex).mean()) for vertex in np.eye(k)]
    best = int(np.argmin(single_losses))
    uniform_rows = problem.losses(uniform)
    starts = [uniform, np.eye(k)[best]]
    c = min(starts, key=problem.objective)
    c, gap, n_iter = _descend(problem, c, as_count("max_iter", max_iter), as_scalar("tol", tol, low=0.0))
    rows = problem.losses(c)
    saved = uniform_rows - rows
    error = float(saved.std(ddof=1) / np.sqrt(saved.size)) if saved.size > 1 else np.inf
    keep = bool(saved.mean() > error)
    return Mixture(
        coefficients=c if keep else uniform,
        kept="solution" if keep else "uniform",
        loss=float((rows if keep else uniform_rows).mean()),
        uniform_loss=float(uniform_rows.mean()),
        single_loss=single_losses[best],
        gain=float(saved.mean()),
        gain_error=error,
        gap=gap,
        n_iter=n_iter,
        solution=c,
    )


def _descend(problem: _Mixing, c: Array, max_iter: int, tol: float) -> tuple[Array, float, int]:
    """Gauss-Newton steps with backtracking; coefficients, Frank-Wolfe gap and number of steps."""
    value, outputs = problem.objective(c), problem.linearised(c)
    for n_iter in range(max_iter + 1):
        gap = problem.gap(c, outputs)
        if gap <= tol or n_iter == max_iter:
            break
        target, length = problem.convex_step(c, outputs), 1.0
        reached = problem.objective(target)
        while reached >= value and length > _SHORTEST:
            length /= 2.0
            reached = problem.objective(c + length * (target - c))
        if reached >= value:
            break
        c, value = c + length * (target - c), reached
        outputs = problem.linearised(c)
    return c, gap, n_iter


class _Mixing:
    """The problem of one model, its snapshots and its held-out rows."""

    def __init__(
        self,
        model: torch.nn.Module,
        snapshots: Sequence[Mapping[str, torch.Tensor]],
        inputs: torch.Tensor,
        targets: torch.Tensor,
        rho: float,
    ) -> None:
        self.torch = import_torch()
        if not snapshots:
            raise ValueError("there are no weights to mix")
        self.model, self.rho = model, rho
        self.parts: list[Any] = list(self.torch.split(inputs, _CHUNK))
        self.k = len(snapshots)
        own = {name: value.detach() for name, value in model.named_parameters()}
        names = list(snapshots[0])
        for snapshot in snapshots:
            for name in names:
                if name not in own or name not in snapshot or snapshot[name].shape != own[name].shape:
                    raise ValueError(f"the weights {name!r} of a snapshot do not fit the model")
        self.fixed = {**own, **dict(model.named_buffers())}
        self.stacks = {name: self.torch.stack([s[name] for s in snapshots]) for name in names}
        self.is_class = not targets.is_floating_point()
        if targets.ndim != (1 if self.is_class else 2) or len(targets) != len(inputs) or not len(inputs):
            raise ValueError(
                "targets must be class indices (n,) or real numbers (n, outputs), one row an input row; "
                f"got {tuple(targets.shape)} for {len(inputs)} inputs"
            )
        self.codes = targets.cpu().numpy()

    def weights(self, c: Array) -> dict[str, Any]:
        """``w(c)``, by name."""
        return {
            name: self.torch.tensordot(self.torch.as_tensor(c, dtype=s.dtype, device=s.device), s, 1)
            for name, s in self.stacks.items()
        }

    def outputs(self, weights: Mapping[str, Any], inputs: Any) -> Any:
        return self.torch.func.functional_call(self.model, {**self.fixed, **weights}, (inputs,))

    def losses(self, c: Array) -> Array:
        """Loss of every row at ``w(c)``."""
        weights = self.weights(c)
        with self.torch.no_grad(), evaluating(self.model):
            chunks = [self.outputs(weights, part) for part in self.parts]
        return self.row_losses(self.torch.cat(chunks).double().cpu().numpy())

    def row_losses(self, outputs: Array) -> Array:
        if not self.is_class:
            return np.sum((outputs - self.codes) ** 2, axis=1)
        peak = outputs.max(axis=1, keepdims=True)
        norm = np.log(np.exp(outputs - peak).sum(axis=1)) + peak[:, 0]
        return norm - outputs[np.arange(len(outputs)), self.codes]

    def objective(self, c: Array) -> float:
        """Held-out loss and penalty."""
        return float(self.losses(c).mean()) + self.rho * float(np.sum((c - 1.0 / self.k) ** 2))

    def linearised(self, c: Array) -> Array:
        """``Z`` (k, n, outputs): outputs at ``w(c)`` plus their change along ``w_j - w(c)``."""
        torch, centre = self.torch, self.weights(c)
        models = []
        with torch.no_grad(), evaluating(self.model):
            for j in range(self.k):
                along = {name: stack[j] - centre[name] for name, stack in self.stacks.items()}
                parts = [
                    torch.func.jvp(lambda w, part=part: self.outputs(w, part), (centre,), (along,))
                    for part in self.parts
                ]
                models.append(torch.cat([value + change for value, change in parts]))
        return torch.stack(models).double().cpu().numpy()

    def gap(self, c: Array, outputs: Array) -> float:
        """Frank-Wolfe gap: the linearisation has the gradient of the true objective at ``c``."""
        mixed = np.tensordot(c, outputs, 1)
        if self.is_class:
            residual = np.exp(mixed - mixed.max(axis=1, keepdims=True))
            residual /= residual.sum(axis=1, keepdims=True)
            residual[np.arange(len(mixed)), self.codes] -= 1.0
        else:
            residual = 2.0 * (mixed - self.codes)
        gradient = outputs.reshape(self.k, -1) @ residual.ravel() / len(mixed)
        gradient += 2.0 * self.rho * (c - 1.0 / self.k)
        return max(0.0, float(gradient @ c - gradient.min()))

    def convex_step(self, c: Array, outputs: Array) -> Array:
        """Minimiser of the linearised problem."""
        if self.is_class:
            Y = np.eye(outputs.shape[2])[self.codes]
            found = solve_simplex_cross_entropy(outputs, Y, rho=self.rho, init=c, on_limit="ignore")
        else:
            found = solve_simplex_least_squares(outputs, self.codes, rho=self.rho, on_limit="ignore")
        return np.asarray(found.x)
