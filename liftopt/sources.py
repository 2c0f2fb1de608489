"""Where the rows of a stream come from: arrays, .npy, IDX, Parquet and CSV files, dask collections.

A source knows its shape and gives, for a range of rows, a loader: a picklable function without arguments that
reads just those rows. Loaders travel to workers, rows do not (those of arrays in memory excepted), so a lost
chunk is read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from liftopt.readers import idx_layout, is_idx_name, read_idx

Array = npt.NDArray[Any]
Loader = Callable[[], Array]

_PIXEL_RANGE = 255


class ChunkError(ValueError):
    """Rows of a stream are missing, truncated, of another width or dtype, or not finite.

    The message names the chunk, its rows and the file.
    """


class Source(Protocol):
    """Rows that can be read by ranges."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, and the shape of one."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what the loaders return."""

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the columns, where there are any."""

    @property
    def cuts(self) -> Sequence[int]:
        """Rows at which reading may begin without waste, in increasing order (all of them if empty)."""

    def loader(self, start: int, stop: int) -> Loader:
        """Function that reads rows ``start`` to ``stop``."""


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Rows of an array in memory; a loader carries its slice."""

    array: Array
    name: str = "array"
    feature_names: tuple[str, ...] | None = None
    cuts: Sequence[int] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return self.array.dtype

    def loader(self, start: int, stop: int) -> Loader:
        """The slice itself."""
        return partial(np.asarray, self.array[start:stop])


@dataclass(frozen=True)
class FileSource:
    """Rows of one C-ordered array in an uncompressed file (.npy, IDX, memory maps)."""

    path: Path
    stored: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    scale: int = 1
    feature_names: tuple[str, ...] | None = None
    cuts: Sequence[int] = ()

    @property
    def name(self) -> str:
        """Name of the file."""
        return str(self.path)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Native form of the stored dtype; float32 for scaled pixels."""
        return np.dtype(np.float32) if self.scale > 1 else self.stored.newbyteorder("=")

    def loader(self, start: int, stop: int) -> Loader:
        """Map the rows, which are read as they are used and leave memory with the array."""
        return partial(_read_file, self.path, self.stored, self.shape, self.offset, self.scale, start, stop)


@dataclass(frozen=True, eq=False)
class MaskedWeights:
    """Weights of rows, ones where there are no others, with zeros at the sorted rows ``left_out``."""

    weights: Source | None
    shape: tuple[int, ...]
    left_out: Array
    name: str = "sample_weight"
    feature_names: tuple[str, ...] | None = None
    cuts: Sequence[int] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Float64."""
        return np.dtype(np.float64)

    def loader(self, start: int, stop: int) -> Loader:
        """The weights of the rows, masked as they are read."""
        low, high = np.searchsorted(self.left_out, [start, stop])
        own = None if self.weights is None else self.weights.loader(start, stop)
        return partial(_masked, own, stop - start, self.left_out[low:high] - start)


@dataclass(frozen=True, eq=False)
class DaskSource:
    """Rows of a dask array, computed where they are needed."""

    array: Any
    name: str = "dask array"
    feature_names: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(map(int, self.array.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return np.dtype(self.array.dtype)

    @property
    def cuts(self) -> Sequence[int]:
        """Edges of the array's blocks of rows."""
        return [0, *accumulate(map(int, self.array.chunks[0]))]

    def loader(self, start: int, stop: int) -> Loader:
        """The part of the graph that gives the rows, and nothing else of it."""
        (part,) = import_module("dask").optimize(self.array[start:stop])
        return partial(part.compute, scheduler="synchronous")


@dataclass(frozen=True, eq=False)
class ConcatenatedSource:
    """Several sources of equal width, one after the other."""

    parts: tuple[Source, ...]

    def __post_init__(self) -> None:
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.shape[1:] != first.shape[1:]:
                raise ChunkError(
                    f"{part.name} holds rows of shape {part.shape[1:]}, {first.name} of {first.shape[1:]}"
                )
            if part.dtype.kind != first.dtype.kind:
                raise ChunkError(f"{part.name} holds {part.dtype}, {first.name} {first.dtype}")
            if part.feature_names != first.feature_names:
                raise ChunkError(f"{part.name} and {first.name} name their columns differently")

    @property
    def name(self) -> str:
        """First name, and how many follow."""
        return f"{self.parts[0].name} and {len(self.parts) - 1} more"

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows of all parts."""
        return sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Common dtype."""
        return np.result_type(*(part.dtype for part in self.parts))

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Of the parts."""
        return self.parts[0].feature_names

    @property
    def cuts(self) -> Sequence[int]:
        """Edges of the parts, and theirs."""
        edges = []
        for part, start in zip(self.parts, self._starts(), strict=True):
            edges += [start + cut for cut in (part.cuts or (0, part.shape[0]))]
        return sorted(set(edges))

    def loader(self, start: int, stop: int) -> Loader:
        """Loaders of the parts, joined."""
        loaders = []
        for part, begin in zip(self.parts, self._starts(), strict=True):
            low, high = max(start - begin, 0), min(stop - begin, part.shape[0])
            if low < high:
                loaders.append(part.loader(low, high))
        return loaders[0] if len(loaders) == 1 else partial(_joined, loaders)

    def _starts(self) -> list[int]:
        return [0, *accumulate(part.shape[0] for part in self.parts)][:-1]


def as_source(data: Any, name: str = "X") -> Source:
    """Source of an array, a .npy or IDX file, a dask array, or a list of files; tables are read elsewhere.

    Raises
    ------
    ChunkError
        If a file is truncated, or parts of a list do not fit each other.
    ValueError
        If the kind of data or file is unknown.
    """
    if isinstance(data, (str, os.PathLike)):
        return _of_path(Path(data))
    if is_list_of_paths(data):
        return ConcatenatedSource(tuple(as_source(part) for part in data))
    if is_dask(data):
        if np.isnan(data.shape).any():
            raise ValueError(
                f"the dask array {name} does not know its number of rows: call compute_chunk_sizes() first"
            )
        return DaskSource(data, name=name)
    if isinstance(data, np.memmap) and data.mode != "c" and data.flags.c_contiguous and _is_whole(data):
        return FileSource(Path(str(data.filename)), data.dtype, data.shape, data.offset)
    array = np.asanyarray(data)
    if array.ndim == 0 or array.dtype == object:
        raise ValueError(
            f"{name} must be an array, a path or list of paths, or a dask collection, got {data!r}"
        )
    return ArraySource(array, name=name)


def is_list_of_paths(data: Any) -> bool:
    """Whether ``data`` names several files."""
    return (
        isinstance(data, (list, tuple))
        and bool(data)
        and all(isinstance(p, (str, os.PathLike)) for p in data)
    )


def is_dask(data: Any) -> bool:
    """Whether ``data`` is a dask collection (without importing dask)."""
    return type(data).__module__.partition(".")[0] in ("dask", "dask_expr")


def _of_path(path: Path) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".npy":
        return _npy(path)
    if is_idx_name(path):
        if path.suffix == ".gz":  # no part of a compressed file can be read alone
            array = read_idx(path)
            pixels = array.ndim > 1 and array.dtype == np.uint8
            return ArraySource(array / np.float32(_PIXEL_RANGE) if pixels else array, str(path))
        dtype, shape, offset = idx_layout(path)
        pixels = len(shape) > 1 and dtype == np.uint8
        return _checked(FileSource(path, dtype, shape, offset, _PIXEL_RANGE if pixels else 1))
    raise ValueError(f"{path}: streams read .npy, .parquet, .csv and IDX files (...-idx3-ubyte)")


def _npy(path: Path) -> Source:
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[version[0]](stream)
            offset = stream.tell()
    except (ValueError, KeyError) as error:
        raise ChunkError(f"{path} is no .npy file ({error})") from None
    if dtype.hasobject or not shape or (fortran and len(shape) > 1):
        raise ValueError(
            f"{path} holds {dtype} of shape {shape}{' in Fortran order' if fortran else ''}: save a numeric "
            "array of rows with numpy.save(path, numpy.ascontiguousarray(array))"
        )
    return _checked(FileSource(path, dtype, shape, offset))


def _checked(source: FileSource) -> FileSource:
    _refuse_truncated(source.path, source.stored, source.shape, source.offset, source.shape[0])
    return source


def _refuse_truncated(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, stop: int
) -> None:
    """Reading a map past the end of its file would end the process."""
    row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    held = (path.stat().st_size - offset) // max(1, row)
    if held < stop:
        raise ChunkError(f"{path} is truncated: it ends after row {held} of {shape[0]}")


def _masked(weights: Loader | None, count: int, zeros: Array) -> Array:
    """``count`` weights with zeros at some of them."""
    masked = np.ones(count) if weights is None else np.array(weights(), dtype=np.float64)
    masked[zeros] = 0.0
    return masked


def _read_file(
    path: Path,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    offset: int,
    scale: int,
    start: int,
    stop: int,
) -> Array:
    _refuse_truncated(path, dtype, shape, offset, stop)
    row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    rows: Array = np.memmap(path, dtype, "r", offset + start * row, (stop - start, *shape[1:]))
    if scale > 1:
        return rows / np.float32(scale)
    return rows if dtype.isnative else rows.astype(dtype.newbyteorder("="))


def _joined(loaders: Sequence[Loader]) -> Array:
    return np.concatenate([loader() for loader in loaders])


def _is_whole(array: Any) -> bool:
    """Whether a memory map is the one that opened the file, so that its offset is where its rows begin."""
    return not isinstance(array.base, np.ndarray)
