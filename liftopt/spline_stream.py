"""Splines from rows that do not fit in memory: passes over the chunks of a stream.

1. A *survey* collects labels or the moments of the targets, the range of every feature, and a sample of rows.
2. The sample fixes the knots that may be tried; sums at the knots are over all rows.
3. Forward selection (:func:`liftopt.solvers.select_hinges_passes`) chooses the terms that it would choose in
   memory with these knots; pruning needs their triangular factor alone.
4. A classifier's softmax regression starts from that of the sample and takes some passes more
   (:func:`liftopt.solvers.solve_softmax_passes`).

Every pass is a sum over chunks, which any executor makes with the same bits. A checkpoint names the files
with the sums of all passes made: a fit that goes on repeats what lies between them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from sklearn.exceptions import ConvergenceWarning

from liftopt.base import TrainingData
from liftopt.chunks import Chunk, ChunkRows
from liftopt.heads import share_root
from liftopt.recording import Recorder, run_interruptible
from liftopt.scratch import read_arrays, write_arrays
from liftopt.solvers.hinge_basis import HingeBasis
from liftopt.solvers.hinge_grid import HingeKnots
from liftopt.solvers.hinge_passes import PassSearch, residual_sums
from liftopt.solvers.knots import refine_knots
from liftopt.solvers.pruning import PruningPath, prune_terms
from liftopt.solvers.result import Record
from liftopt.solvers.row_sums import RowSums, SumRows, add_row_sums, gram_sums, target_sums
from liftopt.solvers.softmax_passes import solve_softmax_passes
from liftopt.spline_model import Spline, errors_by_size, path_of
from liftopt.streams import Stream, show_bytes
from liftopt.survey import Survey

Array = npt.NDArray[Any]
RowArrays = tuple[Array, Array, "Array | None"]

_SAMPLE_ROWS = 50_000
_SAMPLE_SHARE = 16  # of the memory limit
_LEAST_SAMPLE = 1000  # rows
_PRODUCTS_SHARE = 2  # of the memory limit: inner products with the candidates
_COLUMNS = 16  # of a pass, about
_CONSTANT = 1e-14  # spread of a target below which, relatively, it is rounding error


class Frame(NamedTuple):
    """Targets as a solver sees them: ``(y - centre) / spread``, indicators of ``classes`` where there are.

    Weights are multiplied by ``unit``, so that they count repetitions.
    """

    classes: Array | None
    centre: Array
    spread: Array
    unit: float

    def sums(self, task: RowSums, rows: ChunkRows) -> list[Array]:
        """``task`` of the rows of a chunk."""
        y = np.asarray(rows.y)
        numbers = y.reshape(len(y), -1) if self.classes is None else y.reshape(-1, 1) == self.classes
        weight = None if rows.weight is None else rows.weight * self.unit
        return task(rows.X, self.scaled(numbers), weight)

    def scaled(self, numbers: Array) -> Array:
        """Targets (m, R) of numbers, or of class indicators."""
        scaled: Array = (numbers.astype(np.float64) - self.centre) / self.spread
        return scaled


class Passes:
    """Sums over the rows of a stream, in the order in which solvers ask.

    With a checkpoint those made lie in files of ``folder``, and are read where a fit goes on; passes that
    only end an interrupted fit are not among them.
    """

    def __init__(self, rows: Stream, recorder: Recorder, folder: Path | None) -> None:
        self._rows, self.recorder, self._folder = rows, recorder, folder
        state = recorder.resumed()
        self._known: list[str] = [] if state is None else list(state["passes"])
        self._made = 0
        self._past = len(recorder.history)

    def over(self, frame: Frame, chunks: Sequence[Chunk] | None = None) -> SumRows:
        """What a solver calls for a pass over the rows in ``frame``, by default those of all chunks."""
        return partial(self._sum, frame, chunks)

    def record(self, step: Record) -> bool:
        """Add a step of the forward pass to the history, unless it is there from before a checkpoint."""
        if step["iteration"] < self._past:
            return False
        return self.recorder.add(n_terms=step["n_terms"], objective=step["rss"])

    def _sum(self, frame: Frame, chunks: Sequence[Chunk] | None, task: RowSums) -> list[Array]:
        self._made += 1
        if self._folder is not None and self._made <= len(self._known):
            return list(read_arrays(self._folder, self._known[self._made - 1]))
        task_of_chunk = partial(frame.sums, task)
        sums = self._rows.reduce(task_of_chunk, add_row_sums, chunks=chunks, checks_rows=True)
        if self._folder is not None and not self.recorder.interrupted:
            self._known.append(write_arrays(self._folder, ".sums", sums))
            self.recorder.save(lambda: {"passes": self._known})
        return sums


def sample_index(rows: Stream, random_state: np.random.RandomState) -> Array:
    """Rows that choose the knots; they take at most a sixteenth of the memory limit."""
    most = rows.memory_limit // (_SAMPLE_SHARE * rows.n_features * rows.dtype.itemsize)
    size = min(_SAMPLE_ROWS, max(most, _LEAST_SAMPLE))
    return rows.sample_index(size, random_state.randint(2**31))


def products_memory(rows: Stream, knots: HingeKnots) -> float:
    """Bytes that inner products with the candidates may take; refuses knots too many for one pass."""
    memory, needed = rows.memory_limit / _PRODUCTS_SHARE, 2 * _COLUMNS * knots.standard.nbytes
    if needed > memory:
        raise ValueError(
            f"the inner products of a pass with up to {knots.standard.shape[1]} knots for each of "
            f"{rows.n_features} features take about {show_bytes(needed)}, more than half of memory_limit="
            f"{show_bytes(rows.memory_limit)}: lower max_knots or raise memory_limit"
        )
    return memory


def make_frame(found: Survey) -> Frame:
    """Frame of a surveyed stream."""
    unit = 1.0 if found.whole else found.n_weights / found.weight
    if found.targets is None:
        share = found.masses / found.weight
        return Frame(found.labels, share, share_root(share), unit)
    variance = np.diag(found.targets.gram) / found.targets.weight
    return _number_frame(found.targets.mean_x, np.sqrt(variance), unit)


def frame_of(data: TrainingData) -> Frame:
    """Frame of rows in memory, whose weights count repetitions already."""
    target = data.target.astype(np.float64)
    centre = np.average(target, axis=0, weights=data.weight)
    if data.codes is not None:
        return Frame(np.arange(centre.size), centre, share_root(centre), 1.0)
    spread = np.sqrt(np.average((target - centre) ** 2, axis=0, weights=data.weight))
    return _number_frame(centre, spread, 1.0)


def fold_errors(
    search: Callable[..., PassSearch], passes: Passes, frame: Frame, rows: Stream, folds: Any
) -> list[Array]:
    """Squared errors out of fold of every size of model, fold by fold; folds are sets of chunks.

    ``search`` makes a forward pass over given rows.
    """
    chunks = rows.chunks
    if not isinstance(folds, int) or not 2 <= folds <= len(chunks):
        raise ValueError(
            f"cv={folds!r}: folds of a stream beyond memory are sets of its {len(chunks)} chunks: give a "
            "number from 2 to that (a lower memory_limit makes more chunks)"
        )
    errors = []
    for fold in range(folds):
        others = [chunk for index, chunk in enumerate(chunks) if index % folds != fold]
        forward = search(passes.over(frame, others), callback=None)
        forward.run()
        result, judge = forward.result(), passes.over(frame, chunks[fold::folds])
        (gram, cross), (_, _, squares) = judge(partial(gram_sums, result.x)), judge(target_sums)
        errors.append(errors_by_size(path_of(result), gram, cross, squares))
    return errors


def refined_by_sample(
    basis: HingeBasis, rows: RowArrays, sum_rows: SumRows, margin: int
) -> tuple[HingeBasis, PruningPath]:
    """``basis`` with its knots moved by the ``rows`` of a sample, if that lowers the RSS over all rows.

    The path holds the subsets of the result.
    """
    X, Y, omega = rows
    candidates = [basis]
    try:
        candidates.append(refine_knots(basis, X, Y, sample_weight=omega, margin=margin).x)
    except ValueError:  # a term has too few rows there
        warnings.warn(
            f"the sample of {X.shape[0]} rows does not determine every term: knots stay; raise "
            "memory_limit for a larger sample",
            ConvergenceWarning,
            stacklevel=2,
        )
    found = [(candidate, _fitted(candidate, sum_rows)) for candidate in candidates]
    return min(found, key=lambda pair: pair[1].rss[-1])


def refit_softmax(spline: Spline, coefficients: Array, alpha: float, frame: Frame, passes: Passes) -> None:
    """Replace ``coefficients`` (terms, classes), a start, by those of the softmax regression on all rows.

    The ridge is that of :func:`~liftopt.heads.softmax_head`. Classes without weight stay as they are.
    """
    present = frame.centre > 0
    if present.sum() < 2 or len(spline.basis) < 2 or passes.recorder.interrupted:
        return
    assert frame.classes is not None
    indicators = Frame(frame.classes[present], np.zeros(1), np.ones(1), frame.unit)
    _, covariance = spline.moments

    def run() -> None:
        coefficients[:, present] = solve_softmax_passes(
            passes.over(indicators),
            spline.basis,
            coefficients[:, present],
            penalty=alpha * spline.n_samples / 2 * np.maximum(np.diag(covariance), 0.0),
        ).x

    run_interruptible(run, "the softmax regression", passes.recorder)


def _fitted(basis: HingeBasis, sum_rows: SumRows) -> PruningPath:
    """Pruning path of the least-squares fit of ``basis`` to all rows."""
    gram, cross = sum_rows(partial(gram_sums, basis))
    factor = cholesky(gram)
    projections = solve_triangular(factor, cross, trans="T")
    rss, _ = sum_rows(partial(residual_sums, basis, solve_triangular(factor, projections)))
    return prune_terms(factor, projections, float(rss))


def _number_frame(centre: Array, spread: Array, unit: float) -> Frame:
    """Numbers of variance one; constant ones, to rounding, are only centred."""
    return Frame(None, centre, np.where(spread > _CONSTANT * np.abs(centre), spread, 1.0), unit)
