"""Running means over periods of a run: the one that grows, and the last ones that are complete."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from liftopt.torch_interop import import_torch


class PeriodMeans:
    """Means of the values that ``parameters`` take, in float32 at least: means in half precision stall.

    Parameters
    ----------
    parameters : sequence of torch.Tensor
        Sampled where they lie.
    window : int
        Complete means that are held; memory is ``window + 1`` copies.
    """

    def __init__(self, parameters: Sequence[Any], window: int) -> None:
        self._torch, self._parameters = import_torch(), list(parameters)
        self._count = 0
        self._mean: list[Any] = []
        self.held: deque[list[Any]] = deque(maxlen=window)

    def sample(self) -> None:
        """``mean += (w - mean) / count``, all parameters in one call."""
        torch = self._torch
        self._count += 1
        with torch.no_grad():
            if not self._mean:
                self._mean = self.wide_copies()
            elif self._count == 1:
                torch._foreach_copy_(self._mean, self._parameters)
            else:
                values = [p.to(m.dtype) for p, m in zip(self._parameters, self._mean, strict=True)]
                torch._foreach_lerp_(self._mean, values, 1.0 / self._count)

    def is_finite(self) -> bool:
        """Whether the growing mean is."""
        return all(bool(value.isfinite().all()) for value in self._mean)

    def close(self, carry: float) -> None:
        """Hold the grown mean, with the share ``carry`` of the last held one; its oldest makes room."""
        if carry and self.held:
            self._torch._foreach_lerp_(self._mean, self.held[-1], carry)
        spare = self.held[0] if len(self.held) == self.held.maxlen else []
        self.held.append(self._mean)
        self._mean, self._count = spare, 0

    def drop(self) -> None:
        """Forget the growing mean."""
        self._mean, self._count = [], 0

    def combination(self, shares: Sequence[float]) -> list[Any]:
        """Sum of the held means, oldest first, with the given shares; a single one is not copied."""
        if len(shares) == 1:
            return self.held[0]
        total = self._torch._foreach_mul(self.held[0], shares[0])
        for mean, share in zip(list(self.held)[1:], shares[1:], strict=True):
            self._torch._foreach_add_(total, mean, alpha=share)
        return list(total)

    def wide_copies(self) -> list[Any]:
        """The parameters as they are now."""
        wide = self._torch.float32
        return [p.detach().to(self._torch.promote_types(p.dtype, wide), copy=True) for p in self._parameters]

    def placed(self, values: Sequence[Any]) -> list[Any]:
        """Copies of ``values`` where the parameters lie; none if there are none."""
        return [v.to(p.device, copy=True) for v, p in zip(values, self._parameters, strict=False)]

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything."""
        means = [self.placed(mean) for mean in self.held]
        return {"count": self._count, "mean": self.placed(self._mean), "means": means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._count, self._mean = state["count"], self.placed(state["mean"])
        self.held = deque(map(self.placed, state["means"]), maxlen=self.held.maxlen)
