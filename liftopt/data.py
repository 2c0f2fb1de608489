"""Data sets by name or path: scikit-learn's own, the benchmark sets under ``$LIFTOPT_DATA``, and user files.

:func:`load` returns a :class:`Dataset`, a plain value with raw features. Standard test splits are kept; a
validation split is always taken from the training rows by whoever needs one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from liftopt.methods import Task
from liftopt.readers import Column, columns_of, encode, is_idx_name, read_csv, read_idx, read_npz, target_of

Array = npt.NDArray[Any]

_SKLEARN = ("digits", "iris", "wine", "breast_cancer", "diabetes")
_OPENML = {"mnist": "mnist_784", "fashion_mnist": "Fashion-MNIST"}
_FILES: Mapping[str, str] = {
    "abalone": "abalone/abalone.npz",
    "adult_a9a": "adult_a9a/adult_a9a.npz",
    "boston": "uci_bnn/bostonHousing.npz",
    "california_housing": "california_housing/california_housing.npz",
    "coil20": "faces_objects/coil20.npz",
    "concrete": "uci_bnn/concrete.npz",
    "dna": "dna/dna.npz",
    "energy": "uci_bnn/energy.npz",
    "kin8nm": "uci_bnn/kin8nm.npz",
    "letter": "letter/letter.npz",
    "orl_faces": "faces_objects/orl_faces.npz",
    "power_plant": "uci_bnn/power-plant.npz",
    "satimage": "satimage/satimage.npz",
    "segment": "keel/segment.npz",
    "tiny_imagenet20": "tiny_imagenet20/features_efficientnet_lite0.npz",
    "wine_quality_red": "uci_bnn/wine-quality-red.npz",
    "wine_quality_white": "wine_quality_white/wine_quality_white.npz",
    "yacht": "uci_bnn/yacht.npz",
}
#: every name that :func:`load` knows
NAMES: tuple[str, ...] = (*_SKLEARN, *_OPENML, *_FILES)

_MOST_CLASSES = 50  # an integer target with more distinct values is taken for a quantity
_SPLITS_AT = 60000  # MNIST and Fashion-MNIST: the first rows are the training set
_IDX_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


class Split(NamedTuple):
    """Training and test part, in scikit-learn's order."""

    X_train: Array
    X_test: Array
    y_train: Array
    y_test: Array


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as a value.

    Parameters
    ----------
    name : str
        As loaded, or the file's stem.
    X : ndarray of shape (n, d)
        Raw features, C-contiguous; image pixels are in [0, 1].
    y : ndarray of shape (n,) or (n, outputs)
        Labels as they came (integers or text), or float64 targets.
    task : {"classification", "regression"}
        What ``y`` asks for.
    feature_names : tuple of str
        One a column of ``X``.
    class_names : tuple of str
        Names of the sorted labels; empty for regression.
    splits : tuple of (train, test) index arrays
        The published splits, if any.
    columns : tuple of Column
        How a CSV file's columns became features; empty for other sources.
    """

    name: str
    X: Array
    y: Array
    task: Task
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    splits: tuple[tuple[Array, Array], ...] = ()
    columns: tuple[Column, ...] = ()

    def split(self, test_size: float = 0.2, random_state: int | None = None) -> Split:
        """Training and test rows: the published split where there is one, else a random one.

        Parameters
        ----------
        test_size : float
            Share of test rows of a random split, which is stratified if every class can be on both sides.
        random_state : int, optional
            Seed of a random split; chooses among several published ones (modulo their number).
        """
        if self.splits:
            train, test = self.splits[(random_state or 0) % len(self.splits)]
        else:
            train, test = self._random_split(test_size, random_state)
        return Split(self.X[train], self.X[test], self.y[train], self.y[test])

    def _random_split(self, test_size: float, random_state: int | None) -> tuple[Array, Array]:
        rows = np.arange(self.y.shape[0])
        strata = None
        if self.task == "classification":
            counts = np.unique(self.y, return_counts=True)[1]
            fewest = min(test_size, 1.0 - test_size) * rows.size
            strata = self.y if counts.min() >= 2 and fewest >= counts.size else None
        train, test = train_test_split(rows, test_size=test_size, random_state=random_state, stratify=strata)
        return np.sort(train), np.sort(test)

    def __repr__(self) -> str:
        n, d = self.X.shape
        kind = f"{len(self.class_names)} classes" if self.task == "classification" else "regression"
        return f"Dataset {self.name}: {n} rows, {d} features ({self.X.dtype}), {kind}"


def load(
    source: str | os.PathLike[str],
    *,
    target: str | None = None,
    task: Task | None = None,
    fill_missing: bool = False,
    dtype: npt.DTypeLike = np.float32,
) -> Dataset:
    """Load a data set by name or from a file.

    Parameters
    ----------
    source : str or path-like
        One of :data:`NAMES`, or a path: a CSV file with a header; an NPZ archive with ``X`` and ``y`` (and
        perhaps ``feature_names``, ``class_names``, ``train_idx`` and ``test_idx`` or ``test_mask``); an IDX
        image file beside its label file; or a folder with the four IDX files of MNIST.
    target : str, optional
        The column of a CSV file to predict.
    task : {"classification", "regression"}, optional
        Default: regression for a floating target or one of more than 50 integers, else classification.
    fill_missing : bool
        Fill the missing values of a CSV file: numbers by the median of their column, text by a category of
        its own. Else they are refused.
    dtype : {float32, float64}
        Of ``X``.

    Returns
    -------
    Dataset
        Raw features; nothing is scaled or filled beyond what ``columns`` says.

    Raises
    ------
    ValueError
        If the name is unknown or the file cannot be used; the message says what is wrong where.
    FileNotFoundError
        If there is no such file.
    OSError
        If a set is neither on disk nor can be downloaded; the message says where to put it.

    Examples
    --------
    >>> from liftopt import data
    >>> data.load("iris")
    Dataset iris: 150 rows, 4 features (float32), 3 classes
    """
    if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
    if task not in (None, "classification", "regression"):
        raise ValueError(f"task must be 'classification' or 'regression', got {task!r}")
    if source in NAMES:
        return _finish(_load_named(str(source)), task, dtype)
    path = Path(source)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise FileNotFoundError(f"there is no file {path}")
        raise ValueError(f"unknown data set {source!r}; give a path or one of {', '.join(NAMES)}")
    return _finish(_load_path(path, target, fill_missing), task, dtype)


def data_folder() -> Path:
    """``$LIFTOPT_DATA``, or a folder in the user's cache."""
    if os.environ.get("LIFTOPT_DATA"):
        return Path(os.environ["LIFTOPT_DATA"])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "liftopt"


class _Raw(NamedTuple):
    """What a source gives before dtype and task are settled."""

    name: str
    X: Array
    y: Array
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    splits: tuple[tuple[Array, Array], ...] = ()
    columns: tuple[Column, ...] = ()


def _finish(raw: _Raw, task: Task | None, dtype: npt.DTypeLike) -> Dataset:
    """Check shapes, settle the task, and name what has no name."""
    X, y = np.ascontiguousarray(raw.X.reshape(raw.X.shape[0], -1), dtype=dtype), raw.y
    if X.shape[0] == 0 or y.shape[:1] != X.shape[:1]:
        raise ValueError(f"{raw.name}: X holds {X.shape[0]} rows and y {y.shape[0] if y.ndim else 0}")
    task = task or _task_of(y)
    class_names = raw.class_names
    if task == "classification":
        classes = np.unique(y)
        if classes.size < 2:
            raise ValueError(f"{raw.name}: the target holds one class only ({classes[0]})")
        if len(class_names) != classes.size:
            class_names = tuple(map(str, classes))
    else:
        if y.dtype.kind not in "biuf":
            raise ValueError(f"{raw.name}: a regression target must be numeric, got {y.dtype}")
        y, class_names = y.astype(np.float64), ()
    names = raw.feature_names or tuple(f"x{index}" for index in range(X.shape[1]))
    return Dataset(raw.name, X, y, task, names, class_names, raw.splits, raw.columns)


def _task_of(y: Array) -> Task:
    quantity = y.dtype.kind == "f" or (y.dtype.kind in "iu" and np.unique(y).size > _MOST_CLASSES)
    return "regression" if quantity or y.ndim > 1 else "classification"


def _load_named(name: str) -> _Raw:
    if name in _SKLEARN:
        bunch = getattr(import_module("sklearn.datasets"), f"load_{name}")()
        classes = tuple(map(str, getattr(bunch, "target_names", ())))
        return _Raw(name, bunch.data, bunch.target, tuple(map(str, bunch.feature_names)), classes)
    if name in _OPENML:
        folder = data_folder() / name
        return _load_idx_folder(folder, name) if folder.is_dir() else _download(name)
    path = data_folder() / _FILES[name]
    if not path.exists():
        raise FileNotFoundError(
            f"{name} is not in {data_folder()}: set LIFTOPT_DATA to the folder that holds {_FILES[name]}"
        )
    return _load_npz(path, name)


def _load_path(path: Path, target: str | None, fill_missing: bool) -> _Raw:
    if path.is_dir():
        return _load_idx_folder(path, path.name)
    if path.suffix == ".npz":
        return _load_npz(path, path.stem)
    if is_idx_name(path):
        return _load_idx_pair(path)
    return _load_csv(path, target, fill_missing)


def _load_csv(path: Path, target: str | None, fill_missing: bool) -> _Raw:
    frame = read_csv(path)
    y = target_of(frame, target, path)
    features = frame.drop(columns=[target])
    columns = columns_of(features, path, fill_missing)
    names = tuple(name for column in columns for name in column.feature_names)
    return _Raw(path.stem, encode(features, columns, path), y, names, columns=columns)


def _load_npz(path: Path, name: str) -> _Raw:
    arrays = read_npz(path)
    X, y = arrays["X"], arrays["y"]
    if X.ndim < 2 or X.dtype.kind not in "biuf":
        raise ValueError(f"{path}: X must be a numeric matrix, got shape {X.shape} of {X.dtype}")
    texts = {key: tuple(map(str, arrays.get(key, ()))) for key in ("feature_names", "class_names")}
    splits: tuple[tuple[Array, Array], ...] = ()
    if "train_idx" in arrays and "test_idx" in arrays:
        splits = ((arrays["train_idx"], arrays["test_idx"]),)
    elif "test_mask" in arrays:
        splits = tuple((np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in arrays["test_mask"])
    return _Raw(name, X, y, texts["feature_names"], texts["class_names"], splits)


def _load_idx_folder(folder: Path, name: str) -> _Raw:
    """The four files of MNIST: the standard split is train against t10k."""
    parts = [_idx_file(folder, part) for part in _IDX_PARTS]
    train, train_labels, test, test_labels = (read_idx(part) for part in parts)
    X = np.concatenate([_pixels(train), _pixels(test)])
    rows = np.arange(X.shape[0])
    split = (rows[: train.shape[0]], rows[train.shape[0] :])
    return _Raw(name, X, np.concatenate([train_labels, test_labels]), splits=(split,))


def _idx_file(folder: Path, part: str) -> Path:
    found = sorted(folder.glob(f"{part}-ubyte*"))
    if not found:
        raise FileNotFoundError(f"{folder} lacks the IDX file {part}-ubyte.gz")
    return found[0]


def _load_idx_pair(path: Path) -> _Raw:
    """An image file and the label file that MNIST's names put beside it."""
    labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if labels == path or not labels.exists():
        raise ValueError(
            f"{path}: give an '...images-idx3-ubyte' file with its '...labels-idx1-ubyte' beside it"
        )
    return _Raw(path.name.split("-images")[0], _pixels(read_idx(path)), read_idx(labels))


def _pixels(images: Array) -> Array:
    """Rows of pixels in [0, 1], float32."""
    return images.reshape(images.shape[0], -1).astype(np.float32) / np.float32(255)


def _download(name: str) -> _Raw:
    """MNIST or Fashion-MNIST from OpenML, cached by scikit-learn."""
    fetch_openml = import_module("sklearn.datasets").fetch_openml
    cache = data_folder() / "openml"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a retry; the failure itself is reported below
            bunch = fetch_openml(_OPENML[name], version=1, as_frame=False, data_home=str(cache), n_retries=1)
    except Exception as error:  # network errors of many kinds, reported with the way out
        raise OSError(
            f"{name} is not in {data_folder()} and could not be downloaded from OpenML ({error}). "
            f"Put its four IDX files into {data_folder() / name}, or set LIFTOPT_DATA to the folder above"
        ) from None
    rows = np.arange(bunch.data.shape[0])
    X = bunch.data.astype(np.float32) / np.float32(255)
    return _Raw(name, X, bunch.target.astype(np.uint8), splits=((rows[:_SPLITS_AT], rows[_SPLITS_AT:]),))
