"""What a first pass over a stream learns: labels or moments of targets, weights, ranges, a sample."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import column_or_1d

from liftopt.chunks import ChunkRows, chosen_rows
from liftopt.solvers.moments import Moments, moments_of_chunks
from liftopt.streams import Stream

Array = npt.NDArray[Any]


class Survey(NamedTuple):
    """What one pass learns of rows of positive weight.

    ``masses`` holds the weight of every one of ``labels``, ``targets`` the moments of numeric targets;
    ``weight`` and ``n_weights`` their sum and number, ``whole`` whether they are integers; ``low`` and
    ``high`` (d,) the range of the features.
    """

    labels: Array
    masses: Array
    targets: Moments | None
    weight: float
    n_weights: int
    whole: bool
    low: Array
    high: Array
    sample: tuple[ChunkRows, ...]

    @property
    def used_labels(self) -> Array:
        """Labels of rows of positive weight."""
        return self.labels[self.masses > 0.0]

    @property
    def used_rows(self) -> Array:
        """Mask of the sampled rows of positive weight."""
        parts = [np.ones(len(p.X), bool) if p.weight is None else p.weight > 0.0 for p in self.sample]
        return np.concatenate(parts)

    @property
    def rows(self) -> tuple[Array, Array, Array | None]:
        """The sample: features, targets, weights of its rows of positive weight."""
        used = self.used_rows
        X, y = (np.concatenate([np.asarray(part[i]) for part in self.sample])[used] for i in (0, 1))
        if self.sample[0].weight is None:
            return X, y, None
        weight = np.concatenate([np.asarray(part.weight, dtype=np.float64) for part in self.sample])
        return X, y, weight[used]

    def merge(self, other: Survey) -> Survey:
        """Of the rows of both."""
        labels, place = np.unique(np.concatenate([self.labels, other.labels]), return_inverse=True)
        targets = self.targets
        if targets is not None and other.targets is not None:
            targets = targets + other.targets
        return Survey(
            labels,
            np.bincount(place, np.concatenate([self.masses, other.masses]), minlength=labels.size),
            targets if targets is not None else other.targets,
            self.weight + other.weight,
            self.n_weights + other.n_weights,
            self.whole and other.whole,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.sample + other.sample,
        )


def survey(rows: Stream, chosen: Array, *, classify: bool) -> Survey:
    """Make the survey of a stream, with the sorted indices ``chosen`` as sample.

    Raises
    ------
    ValueError
        If no row has weight, or a target is no number.
    """
    found = rows.reduce(partial(_survey_of, classify, chosen), Survey.merge)
    if found.weight <= 0.0:
        raise ValueError("sample_weight is zero for every row")
    return found


def _survey_of(classify: bool, chosen: Array, rows: ChunkRows) -> Survey:
    """Survey of one chunk."""
    y, weight = np.asarray(rows.y), np.ones(rows.X.shape[0])
    if rows.weight is not None:
        weight = np.asarray(rows.weight, dtype=np.float64)
    labels: Array = np.empty(0)
    masses: Array = np.empty(0)
    targets = None
    if classify:
        labels, place = np.unique(column_or_1d(y), return_inverse=True)
        masses = np.bincount(place, weight, minlength=labels.size)
    else:
        numbers = y.reshape(len(y), -1).astype(np.float64)
        targets = moments_of_chunks([(numbers, numbers, None if rows.weight is None else weight)])
    X = rows.X if rows.weight is None else rows.X[weight > 0]
    return Survey(
        labels,
        masses,
        targets,
        float(weight.sum()),
        int(np.count_nonzero(weight)),
        bool((weight == np.round(weight)).all()),
        X.min(axis=0, initial=np.inf).astype(np.float64),
        X.max(axis=0, initial=-np.inf).astype(np.float64),
        (chosen_rows(chosen, rows),),
    )
