"""Chunks of rows as loaders: ranges that can be read, checked and worked on anywhere.

A chunk is a value that says where its rows are; every error in reading it or working on it names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from liftopt.sources import ChunkError, Loader

Array = npt.NDArray[Any]


class ChunkRows(NamedTuple):
    """Rows of one chunk: ``X`` (m, d) floating, ``y`` and ``weight`` or None, index of the first row."""

    X: Array
    y: Array | None
    weight: Array | None
    start: int


@dataclass(frozen=True, eq=False)
class Chunk:
    """A range of rows that can be loaded anywhere."""

    index: int
    count: int
    start: int
    stop: int
    width: int
    dtype: np.dtype[Any]
    name: str
    loaders: tuple[Loader, Loader | None, Loader | None]

    def __str__(self) -> str:
        return f"chunk {self.index + 1} of {self.count} (rows {self.start} to {self.stop - 1} of {self.name})"

    def load(self) -> ChunkRows:
        """Read the rows and check their shape; whether they are finite is not checked here.

        Raises
        ------
        ChunkError
            If rows are missing, or not of the width and kind that the stream began with; names the chunk.
        """
        try:
            X, y, weight = (None if loader is None else loader() for loader in self.loaders)
        except (ValueError, OSError) as error:
            raise ChunkError(f"{self}: {error}") from error
        assert X is not None
        X = X.reshape(X.shape[0], -1)
        rows = self.stop - self.start
        if X.shape != (rows, self.width):
            raise ChunkError(f"{self}: holds rows of shape {X.shape}, expected {(rows, self.width)}")
        if X.dtype.kind not in "biuf":
            raise ChunkError(f"{self}: holds {X.dtype}, which are no numbers")
        for name, values in (("y", y), ("sample_weight", weight)):
            if values is not None and values.shape[0] != rows:
                raise ChunkError(f"{self}: {name} has {values.shape[0]} entries for {rows} rows")
        return ChunkRows(X.astype(self.dtype, copy=False), y, weight, self.start)


def chunk_ranges(n: int, size: int, cuts: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Ranges of at most ``size`` rows, ending at ``cuts`` where there is one within reach."""
    edges = np.asarray(cuts if len(cuts) else range(0, n + size, size))
    ranges, start = [], 0
    while start < n:
        reach = min(start + size, n)
        below = int(edges[np.searchsorted(edges, reach, side="right") - 1])
        stop = reach if below <= start else below
        ranges.append((start, stop))
        start = stop
    return ranges


class OnChunk:
    """A task on rows as a task on a chunk, whose errors name the chunk."""

    def __init__(self, task: Callable[[ChunkRows], Any], finite: bool = True) -> None:
        self.task, self.finite = task, finite

    def __call__(self, chunk: Chunk) -> Any:
        """Load the rows, check them, and run the task; a ``ValueError`` of it names the chunk too."""
        rows = chunk.load()
        if self.finite:
            _refuse_bad("X", rows.X, chunk)
        _refuse_bad("y", rows.y, chunk)
        _refuse_bad("sample_weight", rows.weight, chunk)
        if rows.weight is not None and np.min(rows.weight) < 0.0:
            raise ChunkError(f"{chunk}: sample_weight must be non-negative")
        try:
            return self.task(rows)
        except ChunkError:
            raise
        except ValueError as error:
            raise ChunkError(f"{chunk}: {error}") from error


def load_checked(chunk: Chunk) -> ChunkRows:
    """Rows of a chunk, all of them finite."""
    rows: ChunkRows = OnChunk(_itself)(chunk)
    return rows


def _refuse_bad(name: str, values: Array | None, chunk: Chunk) -> None:
    """Name the first row that holds NaN or infinity."""
    if values is None or values.dtype.kind != "f" or np.isfinite(np.sum(values)):
        return
    bad = np.flatnonzero(~np.isfinite(values.reshape(values.shape[0], -1)).all(axis=1))
    if bad.size:  # else the sum overflowed
        raise ChunkError(
            f"{chunk}: {name} is NaN or infinite in {bad.size} rows, first in row {chunk.start + bad[0]}"
        )


def _itself(rows: ChunkRows) -> ChunkRows:
    return rows


def chosen_rows(index: Array, rows: ChunkRows) -> ChunkRows:
    """Rows whose global index is in the sorted ``index``."""
    low, high = np.searchsorted(index, [rows.start, rows.start + rows.X.shape[0]])
    own = index[low:high] - rows.start
    y, weight = (None if part is None else np.asarray(part)[own] for part in (rows.y, rows.weight))
    return ChunkRows(np.asarray(rows.X)[own], y, weight, rows.start)


def labels_of(rows: ChunkRows) -> Array:
    """Different labels of a chunk."""
    if rows.y is None:
        raise ValueError("there are no labels")
    return np.unique(rows.y)
