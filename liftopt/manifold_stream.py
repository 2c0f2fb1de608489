"""Manifold networks from rows that do not fit in memory: passes over the chunks of a stream.

1. A *survey* collects labels or the moments of the targets, and a sample of rows.
2. The sample fixes the input map and the start, holds rows out, and judges. The hidden layers follow by
   row-block descent (:mod:`liftopt.manifold_fit`), whose sweeps visit whole chunks in random order, at most a
   million rows a sweep.
3. The decision layer is solved on *all* rows from statistics of their last hidden activations: ridge
   regression after one pass, the margin head after some passes more.

Passes 1 and 3 are sums over chunks, which any executor makes with the same bits. Sweeps depend on the order
of their rows, run in this process, and read a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from liftopt.base import TrainingData, holdout_split
from liftopt.checkpoint import State
from liftopt.chunks import Chunk, ChunkRows, load_checked
from liftopt.heads import FitPlan, output_layer
from liftopt.input_map import InputMap, fold, make_input_map, unfold
from liftopt.layers import Dense
from liftopt.manifold_descent import Rows, initial_weights
from liftopt.manifold_fit import (
    HOLD_OUT_MOST,
    UNKNOWN_NOISE,
    Solution,
    SweepSearch,
    hidden_weights,
    mapped_problem,
    penalty_for,
)
from liftopt.network import Network
from liftopt.recording import Recorder, run_interruptible
from liftopt.solvers.affine import AffineMap
from liftopt.solvers.least_squares import solve_ridge_moments
from liftopt.solvers.margin_passes import Pull, add_pulls, pull_of_rows, solve_margin_passes
from liftopt.solvers.moments import Moments, moments_of_chunks, tree_reduce
from liftopt.streams import Stream
from liftopt.survey import Survey, survey

Array = npt.NDArray[Any]

_SWEEP_ROWS = 1_000_000
_SAMPLE_ROWS = 20_000
_SAMPLE_SHARE = 16  # of the memory limit
_LEAST_SAMPLE = 1000  # rows
_BLOCK_ROWS = 8192  # of which hidden activations exist at a time
_MARGIN_TOL, _MARGIN_ROUNDS = 1e-3, 10


class Frame(NamedTuple):
    """Maps of rows and targets: ``classes`` of labels, or ``centre`` and ``spread`` of numbers."""

    input_map: InputMap
    classes: Array | None
    centre: Array
    spread: Array

    def targets(self, y: Array, dtype: npt.DTypeLike) -> Array:
        """Targets (m, c): -1 and +1 for labels, scaled numbers else."""
        if self.classes is not None:
            return np.where(np.asarray(y).reshape(-1, 1) == self.classes, 1.0, -1.0).astype(dtype)
        numbers = np.asarray(y).reshape(-1, self.centre.size)
        return ((numbers - self.centre) / self.spread).astype(dtype)


class Features(NamedTuple):
    """Last hidden activations of rows, and their statistics, as picklable functions."""

    frame: Frame
    layers: tuple[Dense, ...]

    def of(self, X: Array) -> Array:
        """Activations (m, h) of raw rows."""
        A = self.frame.input_map.transform(X)
        for layer in self.layers:
            A = layer(A)
        return A

    def moments(self, rows: ChunkRows, dtype: npt.DTypeLike | None = None) -> Moments:
        """Statistics of least squares, with products in ``dtype`` (that of the rows by default)."""
        return moments_of_chunks(self._blocks(rows), dtype=dtype)

    def pulls(self, models: Sequence[AffineMap], rows: ChunkRows) -> list[Pull]:
        """Statistics of the margin head at each of ``models``."""
        parts = ([pull_of_rows(A, T, model, w) for model in models] for A, T, w in self._blocks(rows))
        return tree_reduce(add_pulls, parts)

    def _blocks(self, rows: ChunkRows) -> Iterator[tuple[Array, Array, Array | None]]:
        """Activations, targets and weights of a few thousand rows at a time."""
        assert rows.y is not None
        for start in range(0, rows.X.shape[0], _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            A = self.of(rows.X[part])
            weight = None if rows.weight is None else rows.weight[part]
            yield A, self.frame.targets(rows.y[part], A.dtype), weight


def surveyed(stream: Stream, *, classify: bool, random_state: np.random.RandomState) -> tuple[Survey, Array]:
    """Survey of a stream, with the indices of the weighted rows in its sample.

    The sample has at most 20,000 rows and takes at most a sixteenth of the memory limit.
    """
    most = stream.memory_limit // (_SAMPLE_SHARE * stream.n_features * stream.dtype.itemsize)
    size = int(min(stream.n_rows, _SAMPLE_ROWS, most))
    if size < min(_LEAST_SAMPLE, stream.n_rows):
        raise ValueError(
            f"memory_limit leaves room for {size} sampled rows, {_LEAST_SAMPLE} are needed: raise it"
        )
    chosen = np.sort(random_state.choice(stream.n_rows, size, replace=False))
    found = survey(stream, chosen, classify=classify)
    return found, chosen[found.used_rows]


def fit_stream(
    stream: Stream,
    found: Survey,
    data: TrainingData,
    index: Array,
    plan: FitPlan,
    spec: Any,
    init: Network | None,
    recorder: Recorder,
    random_state: np.random.RandomState,
) -> tuple[Network, int]:
    """Train on a stream; return the network on raw inputs and the number of sweeps.

    Parameters
    ----------
    stream : Stream
        Rows with targets.
    found : Survey
        Of the stream.
    data, index : TrainingData, ndarray
        The sampled rows (of positive weight), and where they are in the stream.
    plan : FitPlan
        What the estimator asks for; the heads are "margin" and "ridge".
    spec : object
        Input map, as for :func:`~liftopt.input_map.make_input_map`; fitted to the sample.
    init : Network, optional
        Start, on raw inputs.
    recorder, random_state
        Of the fit.

    Raises
    ------
    ValueError
        If the head needs all rows at once.
    """
    if plan.head == "stiefel_svm":
        raise ValueError("head='stiefel_svm' needs all rows at once: use 'margin' or 'ridge'")
    input_map = make_input_map(spec, data.X, data.weight, random_state) or InputMap.identity(data.X.shape[1])
    frame = _frame(found, input_map, data)
    held_rows = min(plan.validation_fraction * stream.n_rows, HOLD_OUT_MOST, data.X.shape[0] / 4)
    train, held = holdout_split(data, held_rows / data.X.shape[0], random_state)
    problem = mapped_problem(data, input_map, frame.centre, frame.spread, train, held)
    problem = problem._replace(mass=found.weight)
    if init is None:
        activation = plan.activation
        weights = initial_weights(problem.part(train), plan.widths, activation, random_state)
    else:
        weights, activation = hidden_weights(unfold(init, input_map), data.X.dtype)
    solution = Solution([], None, penalty_for(plan, UNKNOWN_NOISE, problem), 1)
    if weights:
        rows = SweptRows(stream, frame, index[held], found.weight / stream.n_rows)
        search = StreamSearch(rows, problem, weights, activation, plan, recorder, random_state)
        run_interruptible(search.run, "the descent", recorder)
        solution = search.solution()
    layers = tuple(Dense(W[:-1].copy(), W[-1].copy(), activation) for W in solution.weights)
    features = Features(frame, layers)
    head = _Head(stream, features, plan.head, solution)
    if not recorder.interrupted:
        run_interruptible(head.run, "the decision layer", recorder)
    last = output_layer(head.model, features.of(data.X), data, frame.centre, frame.spread)
    return fold(Network([*layers, last]), input_map), solution.n_iter


class SweptRows(NamedTuple):
    """What the sweeps visit: a stream without the held-out rows; weights are divided by ``mean_weight``."""

    stream: Stream
    frame: Frame
    held: Array
    mean_weight: float

    def load(self, chunk: Chunk) -> Rows:
        """Mapped training rows of a chunk."""
        found = load_checked(chunk)
        assert found.y is not None
        keep = np.ones(found.X.shape[0], dtype=bool)
        low, high = np.searchsorted(self.held, [chunk.start, chunk.stop])
        keep[self.held[low:high] - chunk.start] = False
        if found.weight is not None:
            keep &= found.weight > 0.0
        X = found.X[keep]
        Z = np.ones((X.shape[0], self.frame.input_map.n_components + 1), dtype=X.dtype)
        Z[:, :-1] = self.frame.input_map.transform(X)
        weight = None
        if found.weight is not None:
            weight = (found.weight[keep] / self.mean_weight).astype(X.dtype)[:, None]
        return Rows(Z, self.frame.targets(found.y[keep], X.dtype), weight)


class StreamSearch(SweepSearch):
    """Sweeps over the chunks of a stream, judged on held-out rows of the sample.

    A sweep visits whole chunks of together a million rows, or all of them; the next one goes on where it
    ended.
    """

    def __init__(self, swept: SweptRows, *arguments: Any) -> None:
        self.swept = swept
        self.queue: list[int] = []
        super().__init__(*arguments)

    @property
    def n_rows(self) -> int:
        """Number of training rows of the stream."""
        return self.swept.stream.n_rows - self.swept.held.size

    def pass_over_rows(self, scale: Callable[[float], float]) -> None:
        """One sweep of the descent; ``scale`` shrinks the step at a share of it."""
        own, chunks = self.descent.rows, self._next_chunks()
        for position, chunk in enumerate(chunks):
            self.descent.rows = self.swept.load(chunk)
            order = self.random_state.permutation(self.descent.rows.Z.shape[0])
            if order.size:
                self.descent.sweep(order, partial(_share_of, scale, position, len(chunks)))
        self.descent.rows = own

    def state(self) -> State:
        """What the sweeps after this one depend on."""
        return {**super().state(), "queue": list(self.queue)}

    def restore(self, state: State) -> None:
        """Return to a :meth:`state`."""
        super().restore(state)
        self.queue = list(state["queue"])

    def _next_chunks(self) -> list[Chunk]:
        """Chunks of the next sweep; the order of all is drawn anew when they are used up."""
        chunks, rows = [], 0
        while rows < min(_SWEEP_ROWS, self.n_rows):
            if not self.queue:
                self.queue = self.random_state.permutation(len(self.swept.stream.chunks)).tolist()
            chunks.append(self.swept.stream.chunks[self.queue.pop()])
            rows += chunks[-1].stop - chunks[-1].start
        return chunks


class _Head:
    """Decision layer on the features of all rows; until it is solved, the one that the descent left."""

    def __init__(self, stream: Stream, features: Features, name: str, solution: Solution) -> None:
        self.stream, self.features, self.name, self.solution = stream, features, name, solution
        B = solution.head
        self.start = None if B is None else AffineMap(B[:-1].astype(np.float64), B[-1].astype(np.float64))

    @property
    def model(self) -> AffineMap:
        """The decision layer so far."""
        if self.start is None:
            raise KeyboardInterrupt
        return self.start

    def run(self) -> None:
        """One pass for the statistics; the margin head makes some more."""
        statistics = self.stream.reduce(self.features.moments, Moments.__add__)
        ridge = self.solution.penalty.ridge
        if self.name == "ridge":
            found = solve_ridge_moments(statistics, alpha=ridge, relative=True, on_limit="ignore")
            if found.status.is_limit:  # float32 products do not determine the coefficients
                exact = partial(self.features.moments, dtype=np.float64)
                statistics = self.stream.reduce(exact, Moments.__add__)
                found = solve_ridge_moments(statistics, alpha=ridge, relative=True)
            self.start = found.x
            return
        self.start = solve_margin_passes(
            statistics,
            lambda models: self.stream.reduce(partial(self.features.pulls, models), add_pulls),
            alpha=ridge,
            relative=True,
            start=self.start,
            max_iter=_MARGIN_ROUNDS,
            tol=_MARGIN_TOL,
            on_limit="ignore",
        ).x


def _frame(found: Survey, input_map: InputMap, data: TrainingData) -> Frame:
    """Maps of rows and targets from the survey."""
    outputs = data.target.shape[1]
    if found.targets is None:
        return Frame(input_map, found.used_labels, np.zeros(outputs), np.ones(outputs))
    centre = found.targets.mean_x
    spread = np.sqrt(np.diag(found.targets.gram) / found.targets.weight)
    negligible = spread <= np.sqrt(np.finfo(np.float64).eps) * np.abs(centre)
    return Frame(input_map, None, centre, np.where(negligible | (spread == 0.0), 1.0, spread))


def _share_of(scale: Callable[[float], float], position: int, count: int, share: float) -> float:
    """Scale at a share of the chunk in place ``position`` of ``count``."""
    return scale((position + share) / count)
