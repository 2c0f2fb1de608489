"""Parts of the lifted problem in files, for rows and activations that do not fit in memory.

The rows of a stream are mapped once and written in parts, beside each other in one folder; every step of the
descent writes the activations of a part to a new file, whose name it returns. No file is ever changed, so a
task that is done again after a worker's death gives the same bits, and a checkpoint needs the names only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from liftopt.base import TrainingData
from liftopt.checkpoint import State
from liftopt.chunks import ChunkRows
from liftopt.lifted import LiftedProblem
from liftopt.lifted_parts import PartedProblem
from liftopt.linear_maps import LinearMap, channels_last
from liftopt.losses import Head
from liftopt.recording import Recorder
from liftopt.scratch import read_arrays, write_arrays
from liftopt.streams import Stream

Array = npt.NDArray[Any]

_ROWS, _VALUES = ".rows", ".values"
_PART_SHARE = 16  # of the memory limit: rows, activations, and what is computed from them


@dataclass(frozen=True)
class StoredRows:
    """A :class:`~liftopt.lifted_parts.Part` whose rows and activations lie in files of ``folder``."""

    folder: str
    file: str
    n_rows: int
    mass: float
    maps: Sequence[LinearMap]
    head: Head
    multipliers: tuple[float, ...]
    alpha: float
    total: float | None = None

    def load(self) -> LiftedProblem:
        """Read the rows."""
        X, target, *weight = read_arrays(self.folder, self.file)
        penalties = self.multipliers, self.alpha
        return LiftedProblem(
            self.maps, self.head, X, target, *penalties, weight[0] if weight else None, self.total
        )

    def opened(self, kept: str) -> tuple[Array, ...]:
        """Read activations."""
        return read_arrays(self.folder, kept) if kept else ()

    def keep(self, values: tuple[Array, ...]) -> str:
        """Write activations."""
        return write_arrays(self.folder, _VALUES, values) if values else ""

    def stored_as(self, problem: LiftedProblem) -> StoredRows:
        """The rows of ``problem``, written beside these."""
        return store_rows(self.folder, problem)


class RowStore:
    """The rows of a stream as parts of a lifted problem.

    Parameters
    ----------
    rows : Stream
        With targets.
    prepare : callable
        Pure function of the rows of a chunk: its :class:`~liftopt.base.TrainingData`, mapped.
    index : ndarray
        Rows of the stream that serve as a sample, sorted.
    folder : path-like
        Where files go; workers must reach it.
    """

    def __init__(
        self, rows: Stream, prepare: Callable[[ChunkRows], TrainingData], index: Array, folder: Path
    ) -> None:
        self.n_rows = rows.n_rows
        self._rows, self._prepare, self._index, self._folder = rows, prepare, index, folder

    def fill(self, like: LiftedProblem, held: Array, shape: tuple[int, ...]) -> PartedProblem:
        """All rows but the ``held`` ones of the sample, as problems ``like`` that of the sample.

        ``shape`` is the shape of an input.
        """
        for path in self._folder.glob(f"*{_ROWS}"):  # of a fit that did not end
            path.unlink()
        blank = replace(like, X=like.X[:0], target=like.target[:0], weight=None)
        width = like.X[0].size + sum(int(np.prod(part.output_shape)) for part in like.maps)
        size = max(1, self._rows.memory_limit // _PART_SHARE // (width * like.X.itemsize))
        task = partial(_store_chunk, self._prepare, self._index[held], blank, shape, size, str(self._folder))
        parts = [part for found in self._rows.map(task) for part in found]
        total = sum(part.mass for part in parts)
        return PartedProblem(tuple(replace(part, total=total) for part in parts), self._rows.executor)

    def saver(self, recorder: Recorder, resumed: State | None) -> Callable[[Callable[[], State]], None]:
        """What follows a sweep: a checkpoint, and the end of files that neither it nor the descent needs."""
        pinned = [] if resumed is None else [_names(resumed)]  # by the checkpoints that may be on disk

        def save(make: Callable[[], State]) -> None:
            state = make()

            def pin() -> State:
                pinned.append(_names(state))
                return state

            recorder.save(pin)
            needed = _names(state).union(*pinned[-2:])
            for path in self._folder.glob(f"*{_VALUES}"):
                if path.name not in needed:
                    path.unlink()

        return save


def store_rows(folder: str, problem: LiftedProblem) -> StoredRows:
    """Write the rows of ``problem``."""
    arrays = [problem.X, problem.target, *([] if problem.weight is None else [problem.weight])]
    return StoredRows(
        folder,
        write_arrays(folder, _ROWS, arrays),
        problem.n_rows,
        problem.mass,
        problem.maps,
        problem.head,
        problem.multipliers,
        problem.alpha,
        problem.total,
    )


def _store_chunk(
    prepare: Callable[[ChunkRows], TrainingData],
    held: Array,
    blank: LiftedProblem,
    shape: tuple[int, ...],
    size: int,
    folder: str,
    rows: ChunkRows,
) -> list[StoredRows]:
    """Rows of a chunk that count and are not held out, in parts of at most ``size``."""
    data = prepare(rows)
    used = ~np.isin(np.arange(rows.start, rows.start + data.X.shape[0]), held)
    if data.weight is not None:
        used &= data.weight > 0
    data = data.rows(np.flatnonzero(used))
    X = channels_last(data.X.astype(blank.X.dtype, copy=False), shape)
    target = data.target.astype(blank.X.dtype, copy=False)
    problem = replace(blank, X=X, target=target, weight=data.weight)
    return [
        store_rows(folder, problem.rows(slice(start, start + size)))
        for start in range(0, problem.n_rows, size)
    ]


def _names(state: State) -> set[str]:
    """Files with activations that a state of the descent needs."""
    return {kept for kept in state["descent"]["point"][2] if isinstance(kept, str)}
