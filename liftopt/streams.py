"""Data as a stream of chunks: what ``fit`` and ``predict`` take where rows do not fit in memory.

    rows = liftopt.stream("train.parquet", target="price", memory_limit="2 GiB", executor="dask")
    ManifoldRegressor().fit(rows).score(rows)

A stream is a value: where the rows are, how much memory a process may take for them, and who works on the
chunks. The size of a chunk follows from ``memory_limit`` and the width of a row alone, so that executors and
numbers of workers change no bit of a result. Statistics are reduced in a fixed tree
(:mod:`liftopt.executor`); methods that need all rows at once load them if they fit, and else say what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from liftopt.chunks import Chunk, ChunkRows, OnChunk, chosen_rows, chunk_ranges, load_checked
from liftopt.executor import Executor, as_executor
from liftopt.solvers.moments import Moments, moments_of_chunks
from liftopt.sources import ChunkError, MaskedWeights, Source, as_source, is_dask
from liftopt.tables import as_table

Array = npt.NDArray[Any]
Value = TypeVar("Value")

_DEFAULT_LIMIT = "1 GiB"
_CHUNK_SHARE = 16  # of the limit: a chunk, its copies and what is computed from it
_COPIES = 4  # of the rows that a fit in memory makes
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Stream:
    """Rows in chunks, with or without targets; made by :func:`stream`.

    Parameters
    ----------
    X : Source
        Features.
    y, weight : Source or None
        Targets and weights, in as many rows.
    memory_limit : int
        Bytes one process may take for data.
    executor : Executor
        Works on the chunks.
    callback : callable or None
        As for :func:`stream`.

    Attributes
    ----------
    n_rows, n_features : int
        Size.
    dtype : dtype
        Of the loaded features: float32 stays, all else becomes float64.
    chunks : tuple of Chunk
        Ranges of rows, in order.
    feature_names : tuple of str or None
        Names of the columns of a table.
    memory_limit : int
        Bytes.
    executor : Executor
        Works on the chunks.
    """

    def __init__(
        self,
        X: Source,
        y: Source | None,
        weight: Source | None,
        memory_limit: int,
        executor: Executor,
        callback: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._X, self._y, self._weight, self._callback = X, y, weight, callback
        self.memory_limit, self.executor = memory_limit, executor
        self.n_rows, self.n_features = X.shape[0], math.prod(X.shape[1:])
        self.dtype = np.dtype(np.float32 if X.dtype == np.float32 else np.float64)
        self.feature_names = X.feature_names
        self.chunks = self._make_chunks()

    @property
    def has_target(self) -> bool:
        """Whether there are targets."""
        return self._y is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all features once loaded."""
        return self.n_rows * self.n_features * self.dtype.itemsize

    @property
    def fits_in_memory(self) -> bool:
        """Whether a method may load all rows: a fit takes about four times their size."""
        return _COPIES * self.nbytes <= self.memory_limit

    def map(self, task: Callable[[ChunkRows], Value]) -> Iterator[Value]:
        """Values of ``task`` for every chunk, in order; NaN and infinite features are refused."""
        for done, value in enumerate(self.executor.map(OnChunk(task), self.chunks), start=1):
            self._report(done)
            yield value

    def reduce(
        self,
        task: Callable[[ChunkRows], Value],
        merge: Callable[[Value, Value], Value],
        *,
        checks_rows: bool = False,
        chunks: Sequence[Chunk] | None = None,
    ) -> Value:
        """Values of ``task`` for every chunk, merged pairwise in a tree that the number of chunks fixes.

        Parameters
        ----------
        task : callable
            Pure function of the :class:`ChunkRows`, picklable for workers.
        merge : callable
            Joins two values.
        checks_rows : bool
            Whether ``task`` itself refuses NaN, so that no pass of its own is spent on that.
        chunks : sequence of Chunk, optional
            Some of :attr:`chunks`, by default all.
        """
        chunks = self.chunks if chunks is None else chunks
        return self.executor.reduce(OnChunk(task, not checks_rows), merge, chunks, self._report)

    def moments(self, *, dtype: npt.DTypeLike | None = None) -> Moments:
        """Sufficient statistics of least squares, for :func:`liftopt.solvers.solve_ridge_moments` and others.

        Parameters
        ----------
        dtype : {float32, float64}, optional
            Of the products of rows; by default that of the rows.

        Raises
        ------
        ValueError
            If there is no numeric target, or a chunk is bad.
        """
        self.require_target("statistics of least squares")
        return self.reduce(partial(_moments_of, dtype), Moments.__add__, checks_rows=True)

    def fold_moments(self, folds: int = 5, *, dtype: npt.DTypeLike | None = None) -> list[Moments]:
        """Statistics of ``folds`` disjoint sets of chunks, for :func:`liftopt.solvers.solve_ridge_folds`.

        ``dtype`` is as for :meth:`moments`.
        """
        if not 2 <= folds <= len(self.chunks):
            raise ValueError(
                f"{folds} folds need as many chunks, the stream has {len(self.chunks)}: lower memory_limit"
            )
        self.require_target("statistics of least squares")
        task = partial(_moments_of, dtype)
        parts = [self.chunks[fold::folds] for fold in range(folds)]
        return [self.reduce(task, Moments.__add__, checks_rows=True, chunks=part) for part in parts]

    def load(self) -> tuple[Array, Array | None, Array | None]:
        """All rows as arrays: features, targets, weights."""
        parts = [load_checked(chunk) for chunk in self.chunks]
        X, y, weight = (
            None if parts[0][i] is None else np.concatenate([np.asarray(part[i]) for part in parts])
            for i in range(3)
        )
        assert X is not None
        return X, y, weight

    def load_for(self, who: str) -> tuple[Array, Array | None, Array | None]:
        """All rows, if the memory limit allows; ``who`` asks for them stands in the message.

        Raises
        ------
        ValueError
            If it does not; the message says what to do.
        """
        if not self.fits_in_memory:
            raise ValueError(
                f"{who} works on all rows at once and needs about {show_bytes(_COPIES * self.nbytes)} for "
                f"{self.n_rows} rows of {self.n_features} features, more than memory_limit="
                f"{show_bytes(self.memory_limit)}: raise memory_limit, fit to a sample "
                "(X, y, weight = rows.sample(100_000)), or use a method that makes passes over chunks "
                "(manifold, fenchel, spline, ternary)"
            )
        return self.load()

    def sample(self, n_rows: int, random_state: int = 0) -> tuple[Array, Array | None, Array | None]:
        """``n_rows`` drawn by ``random_state`` without replacement, in order: features, targets, weights."""
        return self.take(self.sample_index(n_rows, random_state))

    def sample_index(self, n_rows: int, random_state: int = 0) -> Array:
        """Which rows :meth:`sample` of ``n_rows`` takes with this ``random_state``, sorted."""
        rng = np.random.default_rng(random_state)
        return np.sort(rng.choice(self.n_rows, min(n_rows, self.n_rows), replace=False))

    def take(self, index: Array) -> tuple[Array, Array | None, Array | None]:
        """The rows of a sorted ``index``, of which one must have weight: features, targets, weights."""
        parts = list(self.map(partial(chosen_rows, index)))
        X, y, weight = (
            None if parts[0][i] is None else np.concatenate([part[i] for part in parts]) for i in range(3)
        )
        assert X is not None
        if weight is not None and not np.any(weight > 0.0):
            raise ValueError(f"sample_weight is zero for every row, or all {len(X)} taken")
        return X, y, weight

    def without(self, index: Array) -> Stream:
        """The same rows, those of an ``index`` with weight zero: no method learns from them."""
        index = np.unique(index)
        if index.size and not 0 <= index[0] <= index[-1] < self.n_rows:
            raise IndexError(
                f"rows {index[0]} to {index[-1]} are not all among the {self.n_rows} of the stream"
            )
        weight = MaskedWeights(self._weight, (self.n_rows,), index)
        return Stream(self._X, self._y, weight, self.memory_limit, self.executor, self._callback)

    def identity(self) -> tuple[Array, Array]:
        """Arrays that tell this stream from others: its size, and its first and last row."""
        ends = [np.asarray(load_checked(self.chunks[i]).X[i]) for i in (0, -1)]
        return np.array([self.n_rows, self.n_features, len(self.chunks)]), np.stack(ends)

    def require_target(self, who: str) -> None:
        """Refuse a stream without targets, in the name of ``who``."""
        if self._y is None:
            raise ValueError(f"{who} needs targets: give y= or target= to stream()")

    def __repr__(self) -> str:
        return (
            f"Stream of {self.n_rows} rows, {self.n_features} features ({self.dtype}) in {len(self.chunks)} "
            f"chunks, memory_limit {show_bytes(self.memory_limit)}, {type(self.executor).__name__}"
        )

    def _make_chunks(self) -> tuple[Chunk, ...]:
        row = self.n_features * self.dtype.itemsize
        size = self.memory_limit // _CHUNK_SHARE // row
        if size < 1:
            raise ValueError(
                f"memory_limit={show_bytes(self.memory_limit)} is too small for rows of {show_bytes(row)}: a "
                f"chunk takes a sixteenth of it"
            )
        ranges = chunk_ranges(self.n_rows, size, self._X.cuts)
        loaders = (self._X, self._y, self._weight)
        return tuple(
            Chunk(
                index,
                len(ranges),
                start,
                stop,
                self.n_features,
                self.dtype,
                self._X.name,
                tuple(None if s is None else s.loader(start, stop) for s in loaders),  # type: ignore[arg-type]
            )
            for index, (start, stop) in enumerate(ranges)
        )

    def _report(self, done: int) -> None:
        if self._callback is not None:
            self._callback({"chunk": done, "chunks": len(self.chunks)})


def stream(
    X: Any,
    y: Any = None,
    *,
    target: str | None = None,
    sample_weight: Any = None,
    memory_limit: int | str = _DEFAULT_LIMIT,
    executor: Any = "auto",
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Stream:
    """Rows in chunks, for ``fit``, ``predict`` and ``score`` in place of arrays.

    Parameters
    ----------
    X : array, path, list of paths, dask array or dask dataframe
        Features, rows first. Files: ``.npy`` (C order; mapped, never read as a whole), ``.parquet``, ``.csv``
        (with a header), IDX (pixels are scaled to [0, 1]).
    y : as X, optional
        Targets or labels, in as many rows.
    target : str, optional
        Column of a table to predict, in place of ``y``.
    sample_weight : as y, or str, optional
        Non-negative weights; a text names a column of the table.
    memory_limit : int or str
        What one process may take for data, in bytes or as text ("512 MiB", "4 GB"), the libraries themselves
        (about 250 MiB) not counted. A chunk takes at most a sixteenth of it.
    executor : {"auto", "serial", "joblib", "dask"}, distributed.Client or Executor
        Who works on the chunks; see :mod:`liftopt.executor`. It changes no bit of a result.
    callback : callable, optional
        Called with ``{"chunk": done, "chunks": number}`` as the chunks of a pass are done.

    Returns
    -------
    Stream
        A value that may be used any number of times.

    Raises
    ------
    ValueError
        If a file is of no known kind or truncated, sizes do not match, or the limit is too small.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> import numpy as np
    >>> from liftopt import stream
    >>> from liftopt.solvers import solve_ridge_moments
    >>> X = np.arange(20.0).reshape(10, 2)
    >>> rows = stream(X, X @ [1.0, 0.0] + 3.0)
    >>> bool(abs(solve_ridge_moments(rows.moments(), alpha=0.0).x(X)[:, 0] - X[:, 0] - 3.0).max() < 1e-9)
    True
    """
    features, targets, weights = _sources(X, y, target, sample_weight)
    n = features.shape[0]
    for name, source in (("y", targets), ("sample_weight", weights)):
        if source is not None and source.shape[0] != n:
            raise ChunkError(f"X has {n} rows, {name} has {source.shape[0]}")
    if len(features.shape) < 2 or 0 in features.shape:
        raise ValueError(f"X must hold rows of features, got shape {features.shape}")
    return Stream(features, targets, weights, parse_bytes(memory_limit), as_executor(executor), callback)


def as_stream(X: Any, y: Any = None, sample_weight: Any = None) -> Stream | None:
    """The stream that ``fit`` was given, or that of a dask collection; None for anything else.

    Raises
    ------
    ValueError
        If targets or weights stand beside a stream, which holds its own.
    """
    if isinstance(X, Stream):
        if y is not None or sample_weight is not None:
            raise ValueError("a stream holds its own y and sample_weight: give them to stream()")
        return X
    return stream(X, y, sample_weight=sample_weight) if is_dask(X) else None


def parse_bytes(text: int | str) -> int:
    """Number of bytes of a size such as ``"512 MiB"``."""
    if isinstance(text, (int, np.integer)) and not isinstance(text, bool):
        size: float = int(text)
    else:
        match = re.fullmatch(r"\s*([\d.]+)\s*(|[kmg]i?|ti)b?\s*", str(text).lower())
        size = float(match[1]) * _UNITS[match[2]] if match else 0
    if size < 1:
        raise ValueError(f"memory_limit must be a size such as '1 GiB' or a number of bytes, got {text!r}")
    return int(size)


def show_bytes(size: float) -> str:
    """A size as text."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.3g} {unit}"


def _sources(
    X: Any, y: Any, target: str | None, sample_weight: Any
) -> tuple[Source, Source | None, Source | None]:
    """Sources of features, targets and weights."""
    table = as_table(X)
    if table is None:
        if target is not None or isinstance(sample_weight, str):
            raise ValueError("target= and a named sample_weight belong to a table (Parquet, CSV, dataframe)")
        features = as_source(X)
    else:
        named = [name for name in (target, sample_weight) if isinstance(name, str)]
        for name in named:
            if name not in table.columns:
                shown = ", ".join(table.columns[:5])
                raise ValueError(f"{table.name} has no column {name!r}; it begins with {shown}")
        features = table.source([name for name in table.columns if name not in named], single=False)
    if target is not None and table is not None:
        if y is not None:
            raise ValueError("give y= or target=, not both")
        targets: Source | None = table.source([target], single=True)
    else:
        targets = _column(y, "y")
    if isinstance(sample_weight, str) and table is not None:
        return features, targets, table.source([sample_weight], single=True)
    return features, targets, _column(sample_weight, "sample_weight")


def _column(data: Any, name: str) -> Source | None:
    if data is None:
        return None
    if is_dask(data) and hasattr(data, "to_dask_array"):
        data = data.to_dask_array(lengths=True)
    return as_source(data, name)


def _moments_of(dtype: npt.DTypeLike | None, rows: ChunkRows) -> Moments:
    """Statistics of a chunk, one leaf of the tree; all of its rows may have weight zero."""
    assert rows.y is not None
    return moments_of_chunks([(rows.X, rows.y, rows.weight)], dtype=dtype)
