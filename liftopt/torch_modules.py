"""Modules that networks need and torch lacks. Importing this imports torch."""

from __future__ import annotations

import torch


class UnitRows(torch.nn.Module):
    """Scale rows to unit Euclidean length; zero rows stay zero."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The scaled rows."""
        return torch.nn.functional.normalize(rows, dim=1)
