"""Who takes part in a comparison: the methods with their defaults, back-propagation with a declared grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from liftopt.methods import METHODS, Task, make_estimator, method_names


@dataclass(frozen=True)
class Entrant:
    """A line of the comparison: a method, its fixed parameters and the candidates it is tuned over.

    ``trace``: parameters of one more, untimed fit whose history is shown, for a method that records no
    validation score unless it gives up training rows.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    grid: Sequence[Mapping[str, Any]] = ({},)
    trace: Mapping[str, Any] | None = None

    @property
    def tuned(self) -> bool:
        """Whether there is something to choose."""
        return len(self.grid) > 1

    def estimator(self, task: Task, common: Mapping[str, Any], **candidate: Any) -> Any:
        """Unfitted estimator; of the ``common`` parameters it gets those it knows."""
        return make_estimator(self.method, task, common=common, **{**self.parameters, **candidate})


def baselines(n: int) -> tuple[Entrant, ...]:
    """Back-propagation on standardised inputs and on the input map of our methods, for ``n`` rows.

    The candidates: two peak rates of the one-cycle schedule, each for a short and a long run.
    """
    grid = [
        {"learning_rate_init": rate, "max_iter": epochs + math.ceil(rows / n)}
        for epochs, rows in ((5, 50_000), (20, 200_000))
        for rate in (3e-3, 1e-2)
    ]
    trace = {"early_stopping": True, "n_iter_no_change": 10**9}  # hold out rows, but run the whole course
    return tuple(
        Entrant(name, "adam", {"input_map": input_map}, grid, trace)
        for name, input_map in (("adam", "standardise"), ("adam, our input map", "pca"))
    )


def entrants(methods: Sequence[str] | None, n: int) -> tuple[Entrant, ...]:
    """The chosen methods and recipes (None: all methods) and the baselines for ``n`` training rows.

    Raises
    ------
    ValueError
        If a name is unknown; the message lists the names.
    """
    tuned = baselines(n)
    chosen = list(METHODS) if methods is None else list(dict.fromkeys(methods))
    for name in chosen:
        method_names(name)
    untuned = [name for name in chosen if name not in {baseline.method for baseline in tuned}]
    return (*(Entrant(name, name) for name in untuned), *tuned)
