"""What both spline estimators share: selection, pruning, refinement, of rows in memory and by passes.

The problem is that of :mod:`liftopt.spline`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state

from liftopt.base import NetworkClassifier, TrainingData, holdout_split
from liftopt.heads import repetitions
from liftopt.recording import Recorder, run_interruptible
from liftopt.scratch import scratch_folder
from liftopt.solvers.hinge import hinge_search
from liftopt.solvers.hinge_basis import HingeBasis
from liftopt.solvers.hinge_grid import choose_hinge_knots
from liftopt.solvers.hinge_passes import PassSearch, pass_search
from liftopt.solvers.hinge_rows import RowSearch
from liftopt.solvers.hinge_search import Interaction
from liftopt.solvers.knots import refine_knots
from liftopt.solvers.pruning import PruningPath
from liftopt.solvers.result import Callback, Record, Result
from liftopt.solvers.row_sums import SumRows, gram_sums, target_sums
from liftopt.solvers.validation import as_count, as_scalar
from liftopt.spline_model import Spline, errors_by_size, path_of
from liftopt.spline_refine import refine_network
from liftopt.spline_report import SplineReport
from liftopt.spline_stream import (
    Frame,
    Passes,
    fold_errors,
    frame_of,
    make_frame,
    products_memory,
    refined_by_sample,
    sample_index,
)
from liftopt.streams import Stream, as_stream
from liftopt.survey import Survey, survey

Array = npt.NDArray[Any]
Pruning = Literal["gcv", "cv", "none"]

_DEFAULT_TERMS = (121, 241)
_HEADS = {"regression": "identity", "classification": "softmax"}
_HELD_OUT = 0.1  # share of the rows that judges gradient epochs


class SplineTraining(SplineReport):
    """Parameters and fit of both estimators; see :class:`~liftopt.SplineRegressor`."""

    _check_training_data: Callable[..., TrainingData]
    _training_data: Callable[..., TrainingData]
    _classes_of: Callable[[Array], Array]
    _set_features: Callable[[Stream], None]

    def __init__(
        self,
        *,
        max_terms: int | None = None,
        max_degree: int = 2,
        interaction: Interaction = "min",
        max_knots: int | None = 64,
        minspan: int | None = None,
        endspan: int | None = None,
        tol: float = 1e-5,
        pruning: Pruning = "gcv",
        penalty: float = 6.0,
        cv: Any = 5,
        refine: bool | int = False,
        n_jobs: int = 1,
        random_state: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> None:
        self.max_terms = max_terms
        self.max_degree = max_degree
        self.interaction = interaction
        self.max_knots = max_knots
        self.minspan = minspan
        self.endspan = endspan
        self.tol = tol
        self.pruning = pruning
        self.penalty = penalty
        self.cv = cv
        self.refine = refine
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.callback = callback
        self.verbose = verbose

    def _fit_any(self, X: Any, y: Any, sample_weight: Any) -> None:
        """Train on arrays, on a stream that fits in memory, or else by passes over its chunks."""
        if self.pruning not in ("gcv", "cv", "none"):
            raise ValueError(f"pruning must be 'gcv', 'cv' or 'none', got {self.pruning!r}")
        rows = as_stream(X, y, sample_weight)
        self.__dict__.pop("network_", None)
        if rows is None or rows.fits_in_memory:
            self._fit_arrays(self._check_training_data(X, y, sample_weight))
        else:
            self._fit_stream(rows)

    def _fit_arrays(self, data: TrainingData) -> None:
        """Set ``spline_`` and ``network_``; refine the network by gradient epochs where asked."""
        epochs = 0 if isinstance(self.refine, bool) else as_count("refine", self.refine)
        recorder = Recorder.of(self, data.X, data.target, data.weight)
        if not epochs:
            self._set_spline(self._fit_spline(data, recorder), data)
        else:
            random_state = check_random_state(self.random_state)
            train, held = holdout_split(data, _HELD_OUT, random_state)
            if not held.size:
                raise ValueError(
                    "refine by epochs holds rows out to choose the best one: it needs 100 rows or more"
                )
            train_data, held_data = data.rows(train), data.rows(held)
            self.spline_ = self._fit_spline(train_data, recorder)
            start = self.spline_.to_network(_HEADS[data.task], dtype=data.X.dtype)
            self.network_, self.refinement_ = refine_network(
                start, train_data, held_data, epochs=epochs, random_state=random_state
            )
        recorder.close()

    def _fit_spline(self, data: TrainingData, recorder: Recorder) -> Spline:
        """Spline of checked data."""
        frame, omega = frame_of(data), repetitions(data.weight)
        X, target = np.asarray(data.X, dtype=np.float64), frame.scaled(data.target)
        n = float(X.shape[0] if omega is None else omega.sum())
        self.result_ = _run(self._search(X, target, omega, recorder), recorder)
        path = path_of(self.result_)
        size = self._size(path, n, lambda: self._fold_errors(data, X, target, omega), recorder)
        basis = self.result_.x
        if self.refine is True and not recorder.interrupted:
            kept, used = basis.subset(path.subset(size)), np.arange(X.shape[0])
            if omega is not None:
                used, omega = np.flatnonzero(omega), omega[omega > 0]
            margin = _margin(used.size)
            refined = refine_knots(kept, X[used], target[used], sample_weight=omega, margin=margin)
            basis, path, size = refined.x, path_of(refined), len(kept)
        return self._with_head(self._spline(basis, path, size, n), frame, data)

    def _fit_stream(self, rows: Stream) -> None:
        """Train by passes over the chunks of a stream and set the fitted attributes."""
        if not isinstance(self.refine, bool):
            rows.load_for(f"{type(self).__name__} with refine={self.refine}")
        rows.require_target(f"{type(self).__name__}.fit")
        recorder = Recorder.of(self, *rows.identity())
        classify = isinstance(self, NetworkClassifier)
        chosen = sample_index(rows, recorder.random_state())
        found = survey(rows, chosen, classify=classify)
        if classify:
            self.classes_ = self._classes_of(found.labels)
        data = self._training_data(*found.rows)
        kept = nullcontext() if self.checkpoint is None else scratch_folder(recorder, self.checkpoint)
        with kept as folder:
            passes = Passes(rows, recorder, folder)
            self._set_spline(self._spline_by_passes(rows, found, data, passes), data)
            self._set_features(rows)
            recorder.close()  # before the files that it names

    def _spline_by_passes(self, rows: Stream, found: Survey, data: TrainingData, passes: Passes) -> Spline:
        """Spline of a surveyed stream; ``data`` are the sample."""
        frame = make_frame(found)
        n, sum_rows = found.weight * frame.unit, passes.over(frame)
        knots = choose_hinge_knots(
            data.X,
            sample_weight=repetitions(data.weight),
            total=n,
            limits=(found.low, found.high),
            **self._knot_settings(),
        )
        plan = {**self._plan(rows.n_features, n), "memory": products_memory(rows, knots)}

        def search(sum_rows: SumRows, callback: Callback | None = None) -> PassSearch:
            return pass_search(sum_rows, knots, callback=callback, **plan)

        recorder = passes.recorder
        self.result_ = _run(search(sum_rows, passes.record), recorder)
        path = path_of(self.result_)
        size = self._size(path, n, lambda: fold_errors(search, passes, frame, rows, self.cv), recorder)
        basis = self.result_.x
        if self.refine and not recorder.interrupted:
            sample = data.X, frame.scaled(data.target), data.weight
            kept = basis.subset(path.subset(size))
            basis, path = refined_by_sample(kept, sample, sum_rows, _margin(data.X.shape[0]))
            size = len(basis)
        return self._with_head(self._spline(basis, path, size, n), frame, data, passes)

    def _set_spline(self, spline: Spline, data: TrainingData) -> None:
        """Set the fitted spline, and the network that equals it where there is one."""
        self.spline_ = spline
        if spline.basis.is_piecewise_linear:
            self.network_ = spline.to_network(_HEADS[data.task], dtype=data.X.dtype)

    def _with_head(
        self,
        spline: Spline,
        frame: Frame,
        data: TrainingData,
        passes: Passes | None = None,
    ) -> Spline:
        """The spline of scaled targets in the units of scores; ``data`` are all rows, or a sample of them."""
        raise NotImplementedError

    def _knot_settings(self) -> dict[str, Any]:
        return {"max_knots": self.max_knots, "minspan": self.minspan, "endspan": self.endspan}

    def _plan(self, n_features: int, n: float) -> dict[str, Any]:
        """Settings of a search among ``n_features`` over rows of total weight ``n``."""
        least, most = _DEFAULT_TERMS
        max_terms = min(max(least, 2 * n_features + 1), most) if self.max_terms is None else self.max_terms
        return {
            "max_terms": min(as_count("max_terms", max_terms), 1 + int(n) // 4),
            "max_degree": self.max_degree,
            "interaction": self.interaction,
            "tol": self.tol,
        }

    def _search(
        self, X: Array, target: Array, omega: Array | None, recorder: Recorder | None = None
    ) -> RowSearch:
        """Forward pass over rows in memory."""
        n = float(X.shape[0] if omega is None else omega.sum())
        return hinge_search(
            X,
            target,
            sample_weight=omega,
            n_jobs=self.n_jobs,
            callback=None if recorder is None else partial(_record, recorder),
            **self._knot_settings(),
            **self._plan(X.shape[1], n),
        )

    def _size(
        self, path: PruningPath, n: float, errors: Callable[[], list[Array]], recorder: Recorder
    ) -> int:
        """Size of the model; ``errors`` are the squared errors out of fold by size, fold by fold."""
        penalty = as_scalar("penalty", self.penalty, low=0.0)
        if self.pruning == "none":
            return path.rss.size
        if self.pruning == "gcv" or recorder.interrupted:
            return int(np.argmin(path.gcv(n, penalty))) + 1
        found = errors()
        common = min(path.rss.size, *(len(error) for error in found))
        return int(np.argmin(np.sum([error[:common] for error in found], axis=0))) + 1

    def _fold_errors(self, data: TrainingData, X: Array, target: Array, omega: Array | None) -> list[Array]:
        """Squared errors out of fold; every fold selects and prunes its own terms."""
        folds = check_cv(self.cv, data.codes, classifier=data.codes is not None)
        if isinstance(self.cv, int):
            folds = type(folds)(self.cv, shuffle=True, random_state=self.random_state)
        errors = []
        for train, test in folds.split(X, data.codes):
            search = self._search(X[train], target[train], None if omega is None else omega[train])
            search.run()
            result = search.result()
            held = X[test], target[test], None if omega is None else omega[test]
            (gram, cross), (_, _, squares) = gram_sums(result.x, *held), target_sums(*held)
            errors.append(errors_by_size(path_of(result), gram, cross, squares))
        return errors

    def _spline(self, basis: HingeBasis, path: PruningPath, size: int, n: float) -> Spline:
        keep = path.subset(size)
        coefficients, factor = path.fit(keep)
        return Spline(basis.subset(keep), coefficients, factor, path, basis, n, float(self.penalty))

    def _scores(self, rows: Array) -> Array:
        """Outputs of the network, or of the spline where no network equals it."""
        return self.network_.scores(rows) if hasattr(self, "network_") else self.spline_(rows)


def _run(search: RowSearch | PassSearch, recorder: Recorder) -> Result:
    """Result of a forward pass, which Ctrl-C may end."""
    run_interruptible(search.run, "the forward pass", recorder)
    if not search.terms:
        raise KeyboardInterrupt
    return search.result()


def _record(recorder: Recorder, step: Record) -> bool:
    return recorder.add(n_terms=step["n_terms"], objective=step["rss"])


def _margin(n_rows: int) -> int:
    """Rows beyond a knot that moves."""
    return max(1, min(10, n_rows // 20))
