"""Readers of data files: CSV tables, NPZ archives and IDX arrays. None executes code from a file."""

from __future__ import annotations

import csv
import gzip
import math
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_CATEGORIES = 100
_SHOWN = 5


class Column(NamedTuple):
    """One column of a table: its name and, for text, the categories that are one-hot encoded.

    Where missing values are filled, numbers have the value ``fill``, and the empty text is a category.
    """

    name: str
    categories: tuple[str, ...] | None = None
    fill: float | None = None

    @property
    def feature_names(self) -> list[str]:
        """Names of the features that this column gives."""
        if self.categories is None:
            return [self.name]
        return [f"{self.name}={category}" for category in self.categories]

    @property
    def takes_missing(self) -> bool:
        """Whether missing values can be encoded."""
        return self.fill is not None or "" in (self.categories or ())


def read_idx(path: Path) -> Array:
    """Array of an IDX file (``.gz`` or plain), the format of MNIST.

    Raises
    ------
    ValueError
        If the file is truncated or no IDX file.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file ({error})") from None
    dtype, shape, start = _idx_header(raw, path)
    if len(raw) - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path} is truncated or damaged: its size does not fit the shape {shape}")
    return np.frombuffer(raw, dtype=dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def idx_layout(path: Path) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Dtype, shape and offset of the array in an uncompressed IDX file, of which nothing else is read."""
    with path.open("rb") as stream:
        return _idx_header(stream.read(4 + 4 * 255), path)


def _idx_header(raw: bytes, path: Path) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or raw[3] == 0:
        raise ValueError(f"{path} is no IDX file")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise ValueError(f"{path} is truncated or damaged: its header is cut off")
    shape = tuple(np.frombuffer(raw[4:start], dtype=">u4").tolist())
    return np.dtype(_IDX_TYPES[raw[2]]), shape, start


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays of an NPZ archive that holds at least ``X`` (n, ...) and ``y`` (n,); pickles are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and pickle errors: the archive is the user's input
        raise ValueError(f"{path} cannot be read as an NPZ archive of plain arrays ({error})") from None
    if not {"X", "y"} <= set(arrays):
        held = ", ".join(sorted(arrays)) or "nothing"
        raise ValueError(f"{path} needs arrays named X and y, it holds {held}")
    return arrays


def read_csv(path: Path) -> Any:
    """``pandas.DataFrame`` of a CSV file with a header line; the separator is comma, semicolon or tab.

    Raises
    ------
    ValueError
        If the file is empty, has no header, repeats a column name, or its lines do not fit the header.
    ImportError
        If pandas is missing; the message names the extra.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ImportError("reading CSV files needs pandas: pip install 'liftopt[cli]'") from None
    try:
        separator, header = csv_header(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # lines longer than the header
            frame = pd.read_csv(
                path, sep=separator, encoding="utf-8-sig", skipinitialspace=True, index_col=False
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a CSV table ({error})") from None
    frame.columns = header
    if frame.empty:
        raise ValueError(f"{path} has a header, but no rows")
    return frame


def csv_header(path: Path) -> tuple[str, list[str]]:
    """Separator and column names of a CSV file.

    Raises
    ------
    ValueError
        If there is no header, or it repeats a name.
    """
    with path.open(newline="", encoding="utf-8-sig") as stream:
        line = stream.readline()
        separator = max(",;\t", key=line.count)
        stream.seek(0)
        header = [name.strip() for name in next(csv.reader(stream, delimiter=separator), [])]
    _check_header(path, header)
    return separator, header


def target_of(frame: Any, target: str | None, path: Path) -> Array:
    """Values of the column ``target``; missing ones are refused."""
    names = list(frame.columns)
    if target is None:
        raise ValueError(
            f"{path}: name the column to predict (target=, or --target on the command line); "
            f"the columns are {_shown(names)}"
        )
    if target not in names:
        raise ValueError(f"{path} has no column {target!r} to predict; the columns are {_shown(names)}")
    missing = int(frame[target].isna().sum())
    if missing:
        raise ValueError(f"{path}: the target {target!r} is missing in {missing} rows: remove those rows")
    values: Array = frame[target].to_numpy()
    return values.astype(str) if values.dtype == object else values


def columns_of(frame: Any, path: Path, fill_missing: bool = False) -> tuple[Column, ...]:
    """How each column becomes features: numbers as they are, text one-hot by its sorted categories.

    With ``fill_missing``, missing numbers become the column's median, and missing text a category.

    Raises
    ------
    ValueError
        If values are missing and not to be filled, if a column holds nothing else, mixes numbers and text, or
        holds so many different texts that it looks like an identifier.
    """
    if frame.shape[1] == 0:
        raise ValueError(f"{path} has no column besides the target")
    if not fill_missing:
        _refuse_missing(frame, path)
    return tuple(_column_of(frame[name], path, fill_missing) for name in frame.columns)


def encode(frame: Any, columns: Sequence[Column], path: Path) -> Array:
    """Feature matrix (n, features), float64, of a table under a known encoding; other columns are ignored.

    Raises
    ------
    ValueError
        If a column is missing, holds missing or non-numeric values, or a category that was not there in
        training.
    """
    absent = [column.name for column in columns if column.name not in frame.columns]
    if absent:
        raise ValueError(f"{path} lacks the columns {_shown(absent)}")
    _refuse_missing(frame[[column.name for column in columns if not column.takes_missing]], path)
    X = np.hstack([_encode_column(frame[column.name], column, path) for column in columns])
    if not np.isfinite(X).all():
        names = [name for column in columns for name in column.feature_names]
        bad = [names[index] for index in np.flatnonzero(~np.isfinite(X).all(axis=0))]
        raise ValueError(f"{path}: infinite values in {_shown(bad)}: remove those rows or replace the values")
    return X


def columns_to_json(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """JSON-able form of an encoding, to travel in a network's metadata."""
    return [column._asdict() for column in columns]


def columns_from_json(facts: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Inverse of :func:`columns_to_json`."""
    return tuple(
        Column(fact["name"], fact["categories"] and tuple(fact["categories"]), fact.get("fill"))
        for fact in facts
    )


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise ValueError(f"{path} is empty: it needs a header line and rows")
    if all(_is_number(name) for name in header):
        raise ValueError(f"{path} starts with a line of numbers: add a header line that names the columns")
    if "" in header:
        raise ValueError(
            f"{path}: column {header.index('') + 1} of the header has no name (a row index, or a comma at "
            "the end?): name it or remove it"
        )
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{path}: the header repeats {_shown(repeated)}: give every column a name of its own"
        )


def _column_of(values: Any, path: Path, fill_missing: bool) -> Column:
    name = str(values.name)
    known = values[values.notna()]
    if known.empty:
        raise ValueError(f"{path}: column {name!r} holds no value in any row: remove it")
    if values.dtype.kind in "biuf":
        return Column(name, fill=float(known.median()) if fill_missing else None)
    texts = known.astype(str)
    numeric = texts.map(_is_number)
    if numeric.mean() >= 0.5:
        odd = texts[~numeric]
        raise ValueError(
            f"{path}: column {name!r} holds numbers, but also text in {len(odd)} rows, "
            f"such as {odd.iloc[0]!r}: correct those entries, "
            "or leave them empty and have missing values filled"
        )
    if texts.map(lambda text: _is_number(text.replace(",", "."))).mean() >= 0.5:
        raise ValueError(
            f"{path}: column {name!r} holds numbers with a comma, such as {texts.iloc[0]!r}: write a point"
        )
    categories = sorted(_texts(values).unique())
    if len(categories) > _MOST_CATEGORIES:
        raise ValueError(
            f"{path}: column {name!r} holds {len(categories)} different texts in {len(texts)} rows "
            f"(at most {_MOST_CATEGORIES} are one-hot encoded): remove it if it is an identifier or free text"
        )
    return Column(name, tuple(categories))


def _encode_column(values: Any, column: Column, path: Path) -> Array:
    if column.categories is None:
        if values.dtype.kind not in "biuf":
            odd = next(text for text in _texts(values) if text and not _is_number(text))
            raise ValueError(f"{path}: column {column.name!r} must hold numbers, found {odd!r}")
        numbers = values.to_numpy(dtype=np.float64)[:, None]
        return numbers if column.fill is None else np.where(np.isnan(numbers), column.fill, numbers)
    texts = _texts(values).to_numpy()
    hot: Array = texts[:, None] == np.asarray(column.categories, dtype=object)
    unknown = ~hot.any(axis=1)
    if unknown.any():
        raise ValueError(
            f"{path}: column {column.name!r} holds {texts[unknown][0]!r}, which was not there in training "
            f"({_shown(column.categories)})"
        )
    return hot.astype(np.float64)


def _texts(values: Any) -> Any:
    """Values as text, missing ones empty."""
    return values.astype(object).where(values.notna(), "").astype(str)


def _refuse_missing(frame: Any, path: Path) -> None:
    missing = frame.isna().sum()
    missing = missing[missing > 0]
    if len(missing):
        counts = _shown([f"{name} ({count})" for name, count in missing.items()])
        raise ValueError(
            f"{path} has missing values in {counts}: remove those rows, fill them yourself, or train with "
            "--fill-missing (fill_missing=True): numbers by the median, text as a category"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(names: Sequence[Any]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


def is_idx_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file name follows MNIST's convention (``...-idx3-ubyte``, perhaps ``.gz``)."""
    return "-idx" in Path(path).name
