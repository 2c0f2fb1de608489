"""Tables as sources of a stream: Parquet and CSV files (pyarrow) and dask dataframes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from liftopt.readers import csv_header
from liftopt.sources import ChunkError, ConcatenatedSource, DaskSource, Loader, Source, is_dask

Array = npt.NDArray[Any]

_SUFFIXES = (".parquet", ".csv")
_INDEXED_ROWS = 1024  # rows of a CSV file between two remembered positions
_SCANNED_BYTES = 2**24


class Table(Protocol):
    """Named columns of equal length."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""

    def source(self, columns: Sequence[str], *, single: bool) -> Source:
        """Rows of these columns: (n, columns) floats, or (n,) of any kind for a ``single`` one."""


@dataclass(frozen=True)
class _TableSource:
    """Columns of a file: ``read(start, stop)`` gives the rows."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    feature_names: tuple[str, ...]
    cuts: Sequence[int]
    read: Callable[[int, int], Array] = field(repr=False)

    def loader(self, start: int, stop: int) -> Loader:
        return partial(self.read, start, stop)


class ParquetTable:
    """A Parquet file; a chunk reads the row groups that it meets."""

    def __init__(self, path: Path) -> None:
        parquet = _pyarrow("parquet")
        try:
            with parquet.ParquetFile(path) as file:
                self._schema = file.schema_arrow
                groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
            if isinstance(error, FileNotFoundError):
                raise
            raise ChunkError(f"{path} is truncated or no Parquet file ({error})") from None
        self._path, self._edges = path, [0, *accumulate(groups)]
        self.name, self.columns = str(path), tuple(self._schema.names)

    def source(self, columns: Sequence[str], *, single: bool) -> Source:
        """Rows of these columns."""
        kinds = [np.dtype(self._schema.field(name).type.to_pandas_dtype()) for name in columns]
        dtype = kinds[0] if single else _float_type(self.name, columns, kinds)
        n = self._edges[-1]
        read = partial(_read_parquet, self._path, tuple(columns), self._edges, None if single else dtype)
        return _TableSource(
            self.name, (n,) if single else (n, len(columns)), dtype, tuple(columns), self._edges, read
        )


class _CsvLayout(NamedTuple):
    """How to read a CSV file: ``positions`` of every 1024th row, the end of the file last."""

    path: Path
    separator: str
    header: tuple[str, ...]
    positions: Array
    n_rows: int


class CsvTable:
    """A CSV file with a header; the positions of some of its rows are found once, in one pass."""

    def __init__(self, path: Path) -> None:
        separator, header = csv_header(path)
        self.name, self.columns = str(path), tuple(header)
        self._layout = _CsvLayout(path, separator, self.columns, *_row_positions(path))
        if not self._layout.n_rows:
            raise ValueError(f"{path} has a header, but no rows")

    def source(self, columns: Sequence[str], *, single: bool) -> Source:
        """Rows of these columns; those of features are read as float64."""
        n, kind = self._layout.n_rows, np.dtype(np.float64)
        if single:  # as its first rows are
            kind = _read_csv(self._layout, tuple(columns), None, True, 0, min(n, _INDEXED_ROWS)).dtype
        read = partial(_read_csv, self._layout, tuple(columns), kind, single)
        return _TableSource(self.name, (n,) if single else (n, len(columns)), kind, tuple(columns), (), read)


class DaskTable:
    """A dask dataframe."""

    name = "dask dataframe"

    def __init__(self, frame: Any) -> None:
        self._frame, self.columns = frame, tuple(map(str, frame.columns))
        self._lengths = tuple(map(int, frame.map_partitions(len).compute()))

    def source(self, columns: Sequence[str], *, single: bool) -> Source:
        """Rows of these columns."""
        kinds = [np.dtype(self._frame.dtypes[name]) for name in columns]
        dtype = kinds[0] if single else _float_type(self.name, columns, kinds)
        part = self._frame[columns[0]] if single else self._frame[list(columns)]
        array = part.to_dask_array(lengths=self._lengths)
        return DaskSource(array if single else array.astype(dtype), self.name, tuple(columns))


class _Tables:
    """Several tables of the same columns, one after the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        first = tables[0]
        for table in tables[1:]:
            if table.columns != first.columns:
                raise ChunkError(f"{table.name} and {first.name} name their columns differently")
        self._tables, self.columns = tables, first.columns
        self.name = f"{first.name} and {len(tables) - 1} more"

    def source(self, columns: Sequence[str], *, single: bool) -> Source:
        return ConcatenatedSource(tuple(table.source(columns, single=single) for table in self._tables))


def as_table(data: Any) -> Table | None:
    """Table of a Parquet or CSV file, a list of them, or a dask dataframe; None for anything else."""
    if is_dask(data):
        return DaskTable(data) if hasattr(data, "to_dask_array") and hasattr(data, "columns") else None
    if isinstance(data, (list, tuple)) and data:
        tables = [as_table(part) for part in data] if all(map(_is_table_path, data)) else []
        return _Tables([table for table in tables if table is not None]) if tables else None
    if not _is_table_path(data):
        return None
    path = Path(data)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    return ParquetTable(path) if path.suffix == ".parquet" else CsvTable(path)


def _is_table_path(data: Any) -> bool:
    return isinstance(data, (str, os.PathLike)) and Path(data).suffix in _SUFFIXES


def _pyarrow(module: str) -> ModuleType:
    try:
        return import_module(f"pyarrow.{module}")
    except ImportError:
        raise ImportError(
            "streams of Parquet and CSV files need pyarrow: pip install 'liftopt[stream]'"
        ) from None


def _float_type(name: str, columns: Sequence[str], kinds: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """Float32 for float32 columns, else float64; columns that hold no numbers are refused."""
    odd = [column for column, kind in zip(columns, kinds, strict=True) if kind.kind not in "biuf"]
    if odd:
        raise ChunkError(
            f"{name}: column {odd[0]!r} holds no numbers: encode it, or name it as target= if it is what "
            "to predict"
        )
    narrow = all(kind in (np.float16, np.float32) for kind in kinds)
    return np.dtype(np.float32 if narrow else np.float64)


def _read_parquet(
    path: Path,
    columns: tuple[str, ...],
    edges: Sequence[int],
    dtype: np.dtype[Any] | None,
    start: int,
    stop: int,
) -> Array:
    groups = [i for i in range(len(edges) - 1) if edges[i] < stop and edges[i + 1] > start]
    try:
        with _pyarrow("parquet").ParquetFile(path) as file:
            table = file.read_row_groups(groups, columns=list(columns), use_threads=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ChunkError(f"{path} is truncated or damaged ({error})") from None
    return _to_array(table.slice(start - edges[groups[0]], stop - start), columns, dtype)


def _read_csv(
    layout: _CsvLayout,
    columns: tuple[str, ...],
    dtype: np.dtype[Any] | None,
    single: bool,
    start: int,
    stop: int,
) -> Array:
    first, last = start // _INDEXED_ROWS, -(-stop // _INDEXED_ROWS)
    with layout.path.open("rb") as stream:
        stream.seek(layout.positions[first])
        data = stream.read(int(layout.positions[last] - layout.positions[first]))
    csv = _pyarrow("csv")
    try:
        table = csv.read_csv(
            _pyarrow("lib").BufferReader(data),
            csv.ReadOptions(column_names=list(layout.header), use_threads=False),
            csv.ParseOptions(delimiter=layout.separator),
            csv.ConvertOptions(
                include_columns=list(columns),
                column_types=None if dtype is None else dict.fromkeys(columns, _arrow_type(dtype)),
            ),
        )
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise ChunkError(f"{layout.path} cannot be read as such a table ({error})") from None
    expected = min(last * _INDEXED_ROWS, layout.n_rows) - first * _INDEXED_ROWS
    if table.num_rows != expected:
        raise ChunkError(f"{layout.path} holds {table.num_rows} rows in {expected} lines: remove blank lines")
    part = table.slice(start - first * _INDEXED_ROWS, stop - start)
    return _to_array(part, columns, None if single else dtype)


def _arrow_type(dtype: np.dtype[Any]) -> Any:
    lib = _pyarrow("lib")
    return lib.string() if dtype.kind in "UO" else getattr(lib, str(dtype), lib.float64)()


def _to_array(table: Any, columns: Sequence[str], dtype: np.dtype[Any] | None) -> Array:
    """Matrix of ``dtype``, or the values of the one column."""
    if dtype is None:
        values: Array = table.column(columns[0]).to_numpy()
        return values.astype(str) if values.dtype == object else values
    out = np.empty((table.num_rows, len(columns)), dtype=dtype)
    for index, name in enumerate(columns):
        out[:, index] = table.column(name).to_numpy()
    return out


def _row_positions(path: Path) -> tuple[Array, int]:
    """Position of every 1024th row after the header, the end of the file last, and the number of rows."""
    found: list[int] = []
    count = -1  # the header ends with the first line
    last = 0
    for offset, ends in _line_ends(path):
        numbers = np.arange(count + 1, count + 1 + ends.size)  # of the row that begins after each line end
        chosen = numbers % _INDEXED_ROWS == 0
        found += (offset + ends[chosen] + 1).tolist()
        count += ends.size
        last = offset + int(ends[-1]) + 1 if ends.size else last
    size = path.stat().st_size
    n_rows = count + (last < size)  # the last line may lack its end
    kept = [position for position in found if position < size]
    return np.array([*kept, size], dtype=np.int64), n_rows


def _line_ends(path: Path) -> Iterator[tuple[int, Array]]:
    """Blocks of the file: where they begin, and the line ends within."""
    offset = 0
    with path.open("rb") as stream:
        while block := stream.read(_SCANNED_BYTES):
            yield offset, np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
            offset += len(block)
