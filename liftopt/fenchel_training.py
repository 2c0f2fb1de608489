"""What the Fenchel estimators share: parameters, maps and start, and one training run in either mode."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_random_state

from liftopt.base import (
    MOST_HELD,
    TrainingData,
    check_layer_sizes,
    holdout_split,
    initial_network,
    score_outputs,
    start_apart,
)
from liftopt.block_steps import BlockTrainer
from liftopt.continuation import Descent, Outcome, descend_lifted, sample_stride
from liftopt.fenchel_chunks import StreamState, fit_chunks
from liftopt.fenchel_parts import fit_parts
from liftopt.heads import target_moments, temperature
from liftopt.input_map import InputMap, fold, make_input_map, unfold
from liftopt.layers import Dense
from liftopt.lifted import LiftedProblem
from liftopt.lifted_parts import PartedProblem, Point, in_parts
from liftopt.lifted_store import RowStore
from liftopt.linear_maps import channels_last, linear_maps, rebuild
from liftopt.losses import CLASSIFICATION_HEADS, CrossEntropy, Head, get_head
from liftopt.monotone import Order
from liftopt.network import Network
from liftopt.preparation import affine_outputs, mapped, with_ridge_head
from liftopt.recording import Recorder, run_interruptible
from liftopt.repair import start_of_blocks
from liftopt.solvers.result import Callback, Record
from liftopt.solvers.validation import as_count, as_scalar
from liftopt.stochastic import Budget, Rows, StochasticRun
from liftopt.streams import as_stream

Array = npt.NDArray[Any]
Mode = Literal["auto", "stochastic", "monotone"]

_MODES = ("auto", "stochastic", "monotone")
_STOCHASTIC_FROM = 500  # rows
_PASSES = 12, 100
_SWEEPS, _STEPS = 50, 2000  # default budgets: monotone sweeps, stochastic block steps
_WHITEN_FROM, _SHARE = 257, 0.95  # features from which only that share of the variance is kept
_MULTIPLIERS = {"stochastic": 0.2, "monotone": 1.0}
_RIDGE_PATH = (1e-1, 1e-2, 1e-3, 1e-4)  # monotone mode; many rows need the last one only
_PATH_ROWS = 5_000
_FIRST_CHUNK = 10  # rows
_NOISE_FROM = 50  # mapped inputs; fewer carry no redundancy that noise could spare
_NOISE_PASSES = 12  # from which on inputs are noisy from the start
_WIDE_ROWS = 20_000  # up to here the monotone mode works in float64


class LiftedTraining:
    """Parameters and fit of both estimators; see :class:`FenchelClassifier`."""

    network_: Network
    history_: list[Record]
    n_iter_: int
    _heads: tuple[str, ...]
    _check_training_data: Callable[..., TrainingData]  # of the classifier or regressor

    def __init__(
        self,
        *,
        hidden_layer_sizes: Sequence[int] = (100,),
        activation: str = "relu",
        loss: str = "auto",
        mode: Mode = "auto",
        max_iter: int | None = None,
        alpha: float | Literal["auto"] = "auto",
        multiplier: float | Literal["auto"] = "auto",
        multiplier_schedule: str = "fixed",
        order: Order = "parallel",
        step: float = 0.08,
        batch_size: int | Literal["auto"] = "auto",
        dropout: float = 0.2,
        input_noise: float = 0.3,
        input_map: str | Mapping[str, Any] | None = "auto",
        validation_fraction: float = 0.1,
        tol: float = 1e-4,
        warm_start: bool = False,
        init: Network | str | None = None,
        n_jobs: int = 1,
        random_state: int | np.random.RandomState | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.loss = loss
        self.mode = mode
        self.max_iter = max_iter
        self.alpha = alpha
        self.multiplier = multiplier
        self.multiplier_schedule = multiplier_schedule
        self.order = order
        self.step = step
        self.batch_size = batch_size
        self.dropout = dropout
        self.input_noise = input_noise
        self.input_map = input_map
        self.validation_fraction = validation_fraction
        self.tol = tol
        self.warm_start = warm_start
        self.init = init
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.callback = callback
        self.verbose = verbose

    def _fit_any(self, X: Any, y: Any, sample_weight: Any) -> None:
        """Train on arrays, on a stream that fits in memory, or else on its chunks."""
        rows = as_stream(X, y, sample_weight)
        self.__dict__.pop("_stream", None)
        if rows is None or rows.fits_in_memory:
            self._fit(self._class_weighted(self._check_training_data(X, y, sample_weight)))
        else:
            self._check_parameters()
            self.__dict__.pop("network_", None)
            fit = fit_parts if self.mode == "monotone" else fit_chunks
            fit(self, rows, classify=self._heads is CLASSIFICATION_HEADS)

    def _class_weighted(self, data: TrainingData) -> TrainingData:
        return data

    def _fit(self, data: TrainingData) -> None:
        """Train on checked data and set the fitted attributes."""
        self._check_parameters()
        recorder = Recorder.of(self, data.X, data.target, data.weight)
        random_state = recorder.random_state()
        if data.weight is not None:
            data = data.rows(np.flatnonzero(data.weight > 0))
        self._fit_framed(data, recorder, random_state)

    def _fit_framed(
        self,
        data: TrainingData,
        recorder: Recorder,
        random_state: np.random.RandomState,
        store: Callable[[InputMap | None, Array, Array], RowStore] | None = None,
    ) -> None:
        """Choose the maps and the start, train, and set the fitted attributes.

        Where the data are a sample, ``store`` opens the store of all rows for these maps.
        """
        with start_apart(self._init(), data, self.validation_fraction, random_state) as seen:
            start = self._given_start(seen, random_state)
            input_map = self._fit_input_map(data, start, random_state)
            centre, scale = target_moments(data)
            problem = mapped(data, input_map, centre, scale)
            mode = self._resolved_mode(data, start)
            network = self._start(start, problem, input_map, centre, scale, random_state, mode)
            if mode == "monotone":
                opened = None if store is None else store(input_map, centre, scale)
                trained = self._fit_monotone(network, problem, random_state, recorder, opened)
            else:
                trained = self._fit_stochastic(network, problem, random_state, recorder)
        trained = affine_outputs(trained.astype(data.X.dtype), scale, centre)
        self.network_ = trained if input_map is None else fold(trained, input_map)
        recorder.close()

    def _fit_monotone(
        self,
        network: Network,
        data: TrainingData,
        random_state: np.random.RandomState,
        recorder: Recorder,
        store: RowStore | None = None,
    ) -> Network:
        """Full-batch descent of the lifted objective and the refit of the head.

        The ``data`` are all rows, or a sample of those that a ``store`` holds.
        """
        rows, held = self._split(data, random_state)
        n = rows.size if store is None else store.n_rows
        dtype = np.float64 if n <= _WIDE_ROWS else np.float32
        maps = linear_maps(network.astype(dtype))
        settings = self._descent(path=held.size > 0 and n <= _PATH_ROWS)

        def problem_of(index: Array) -> LiftedProblem:
            part = data.rows(index)
            X = channels_last(part.X.astype(dtype, copy=False), network.input_shape)
            target = part.target.astype(dtype, copy=False)
            return LiftedProblem(
                maps,
                self._head(data, "monotone"),
                X,
                target,
                settings.start(len(maps) - 1),
                settings.ridges[0],
                part.weight,
            )

        lifted, unseen = problem_of(rows), problem_of(held)
        few, rest = self._spread(lifted)
        if store is not None:
            few, rest = in_parts(lifted, self.n_jobs), store.fill(lifted, held, network.input_shape)
        start = Point(tuple(part.weight for part in maps), tuple(part.layer.bias for part in maps))
        judge, resumed = unseen.forward_loss if held.size else None, recorder.resumed()
        outcome = Outcome(start, judge, recorder.save if store is None else store.saver(recorder, resumed))
        outcome.go_on_from(resumed)

        def report(record: Record) -> bool:
            facts = {k: v for k, v in record.items() if k not in ("iteration", "time")}
            if held.size:
                facts["validation_score"] = score_outputs(unseen.outputs(outcome.point), data.rows(held))
            return recorder.add(**facts)

        name = type(self).__name__
        run_interruptible(lambda: descend_lifted(few, rest, outcome, settings, report), name, recorder)
        self.n_iter_ = max(1, outcome.n_iter)
        trained = rebuild(network.astype(dtype), maps, outcome.best.weights, outcome.best.biases)
        scale = self._confidence(trained, data.rows(held if held.size else rows), lifted.head)
        return affine_outputs(trained, scale, np.zeros(1))

    def _spread(self, problem: LiftedProblem) -> tuple[PartedProblem, PartedProblem | None]:
        """A sample of the rows, and all of them if these are more, in parts."""
        whole = in_parts(problem, self.n_jobs)
        stride = sample_stride(problem.n_rows)
        return (
            (whole, None)
            if stride == 1
            else (in_parts(problem.rows(slice(None, None, stride)), self.n_jobs), whole)
        )

    def _fit_stochastic(
        self, network: Network, data: TrainingData, random_state: np.random.RandomState, recorder: Recorder
    ) -> Network:
        """Mini-batch block steps, the best weights on held-out rows."""
        rows, held = self._split(data, random_state)
        run = self._stochastic_run(network, data, rows, held, random_state, recorder)
        run_interruptible(run.fit, type(self).__name__, recorder)
        scale = self._confidence(
            run.network(network), data.rows(held if held.size else rows), run.trainer.head
        )
        if not recorder.interrupted:
            run_interruptible(run.finish, type(self).__name__, recorder)
        self.n_iter_ = max(1, run.passes)
        return affine_outputs(run.network(network), scale, np.zeros(1))

    def _stochastic_run(
        self,
        network: Network,
        data: TrainingData,
        rows: Array,
        held: Array,
        random_state: np.random.RandomState,
        recorder: Recorder,
    ) -> StochasticRun:
        """Run on the given rows of mapped data, from ``network``."""
        alpha = 0.0 if self.alpha == "auto" else self.alpha
        maps = linear_maps(network)
        multiplier = self._multiplier("stochastic", len(maps) - 1)
        trainer = BlockTrainer(maps, self._head(data, "stochastic"), multiplier, np.float32, alpha)

        def pick(index: Array) -> Rows:
            Z = channels_last(data.X[index].astype(np.float32, copy=False), network.input_shape)
            weight = None if data.weight is None else data.weight[index]
            if weight is not None and weight.size:
                weight = (weight / weight.mean()).astype(np.float32)
            return Rows(Z, data.target[index].astype(np.float32, copy=False), weight)

        budget = self._budget(rows.size, data.X.shape[1])
        unseen = data.rows(held)
        return StochasticRun(
            trainer,
            pick(rows),
            pick(held),
            budget,
            random_state,
            recorder,
            judge=lambda outputs: score_outputs(outputs, unseen),
        )

    def _confidence(self, network: Network, data: TrainingData, head: Head) -> Array:
        """Scale of the outputs with the best probabilities on ``data``; 1 for likelihoods and regression."""
        if data.codes is None or isinstance(head, CrossEntropy):
            return np.ones(1)
        few = data.rows(np.arange(min(MOST_HELD, data.X.shape[0])))
        return np.atleast_1d(temperature(network.scores(few.X), data.codes[: few.X.shape[0]], few.weight))

    def _stream_fit(self, data: TrainingData, random_state: np.random.RandomState | None = None) -> None:
        """One pass over a chunk of a stream; the first chunk fixes the maps of inputs and targets."""
        self._check_parameters()
        random_state = random_state or check_random_state(self.random_state)
        if data.weight is not None:
            data = data.rows(np.flatnonzero(data.weight > 0))
        stream = getattr(self, "_stream", None) or self._open_stream(data, random_state)
        problem = mapped(data, stream.input_map, stream.centre, stream.scale)
        rows, none = np.arange(data.X.shape[0]), np.empty(0, dtype=np.intp)
        run = self._stochastic_run(
            stream.network, problem, rows, none, random_state, Recorder(type(self).__name__)
        )
        run.length = stream.length
        length = run.advance((1 + stream.chunks) ** -0.5, race=stream.chunks == 0)
        inner = run.network(stream.network).astype(data.X.dtype)
        self._stream = stream._replace(network=inner, length=length, chunks=stream.chunks + 1)
        self.n_iter_ = self._stream.chunks
        trained = affine_outputs(inner, stream.scale, stream.centre)
        self.network_ = trained if stream.input_map is None else fold(trained, stream.input_map)

    def _open_stream(self, data: TrainingData, random_state: np.random.RandomState) -> StreamState:
        """State before the first chunk; a fitted network is continued."""
        if data.X.shape[0] < _FIRST_CHUNK:
            raise ValueError(
                f"the first chunk fixes the scale of the inputs and needs at least {_FIRST_CHUNK} rows, "
                f"got {data.X.shape[0]}"
            )
        start = getattr(self, "network_", None) or self._given_start(data, random_state)
        input_map = self._fit_input_map(data, start, random_state)
        centre, scale = target_moments(data)
        problem = mapped(data, input_map, centre, scale)
        network = self._start(start, problem, input_map, centre, scale, random_state, "stochastic")
        return StreamState(input_map, centre, scale, network, self.step, 0)

    def _split(self, data: TrainingData, random_state: np.random.RandomState) -> tuple[Array, Array]:
        """Indices of the training and the held-out rows."""
        fraction = self.validation_fraction
        return holdout_split(data, min(fraction, MOST_HELD / data.X.shape[0]), random_state)

    def _check_parameters(self) -> None:
        """Refuse parameters out of range before any work."""
        if self.mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {self.mode!r}")
        if self.alpha != "auto":
            as_scalar("alpha", self.alpha, low=0.0)
        as_scalar("tol", self.tol, low=0.0)
        as_scalar("step", self.step, low=0.0, strict=True)
        as_scalar("dropout", self.dropout, low=0.0, high=0.9)
        as_scalar("input_noise", self.input_noise, low=0.0, high=1e3)
        if self.multiplier != "auto":
            as_scalar("multiplier", self.multiplier, low=0.0, strict=True)
        if self.max_iter is not None:
            as_count("max_iter", self.max_iter)
        if self.batch_size != "auto":
            as_count("batch_size", self.batch_size)
        if (
            isinstance(self.n_jobs, bool)
            or not isinstance(self.n_jobs, (int, np.integer))
            or self.n_jobs == 0
        ):
            raise ValueError(f"n_jobs must be an integer other than 0, got {self.n_jobs!r}")
        self._descent(path=True)  # checks the schedule and the order

    def _descent(self, *, path: bool) -> Descent:
        """Settings of the monotone mode; a path of ridges needs held-out rows to choose by."""
        ridges = _RIDGE_PATH if path else _RIDGE_PATH[-1:]
        return Descent(
            self._multiplier("monotone"),
            self.multiplier_schedule,
            self.order,
            _SWEEPS if self.max_iter is None else self.max_iter,
            self.tol,
            ridges if self.alpha == "auto" else (float(self.alpha),),
            keeps_ridge=self.alpha != "auto",
        )

    def _multiplier(self, mode: str, hidden: int = 1) -> float:
        """Penalty weight; in stochastic mode it grows with the number of blocks that take their share."""
        if self.multiplier != "auto":
            return float(self.multiplier)
        return _MULTIPLIERS[mode] * (max(1, hidden) if mode == "stochastic" else 1)

    def _budget(self, n: int, width: int) -> Budget:
        """Sizes of the stochastic mode for ``n`` training rows of ``width`` mapped inputs."""
        share = min(1.0, width / _NOISE_FROM)
        noise = (self.dropout if share == 1.0 else 0.0, self.input_noise * share)
        size = int(np.clip(n // 64, 32, 250)) if self.batch_size == "auto" else self.batch_size
        batches = max(1, n // size)
        passes = int(np.clip(np.ceil(_STEPS / batches), *_PASSES)) if self.max_iter is None else self.max_iter
        floor = float(share == 1.0 and passes >= _NOISE_PASSES)
        return Budget(self.step, size, passes, *noise, floor)

    def _head(self, data: TrainingData, mode: str) -> Head:
        """Loss; ``"auto"`` is one with a refit in monotone mode, the margin's in stochastic mode."""
        if self.loss != "auto":
            return get_head(self.loss, self._heads)
        classes = "squared_hinge" if mode == "stochastic" else "cross_entropy"
        return get_head(classes if data.codes is not None else "squared", self._heads)

    def _resolved_mode(self, data: TrainingData, start: Network | None) -> str:
        """``auto``: full-batch for small data and dense networks."""
        if self.mode != "auto":
            return self.mode
        dense = start is None or len(start.input_shape) == 1
        small = data.X.shape[0] < _STOCHASTIC_FROM and dense
        return "monotone" if small else "stochastic"

    def _init(self) -> Network | str | None:
        """What to start from: the network of a warm start, else what ``init`` says."""
        return self.network_ if self.warm_start and hasattr(self, "network_") else self.init

    def _given_start(self, data: TrainingData, random_state: np.random.RandomState) -> Network | None:
        """Network that ``init`` or a warm start gives, on raw inputs."""
        hidden = check_layer_sizes(self.hidden_layer_sizes)
        return start_of_blocks(self._init(), data, random_state, hidden_layer_sizes=hidden)

    def _fit_input_map(
        self, data: TrainingData, start: Network | None, random_state: np.random.RandomState
    ) -> InputMap | None:
        """Whitening map; none in front of a convolution."""
        spec = self.input_map
        if start is not None and not isinstance(start.layers[0], Dense):
            if spec not in (None, "auto"):
                raise ValueError("an input map folds into a first Dense layer only: use input_map=None")
            return None
        if isinstance(spec, str) and spec == "auto":
            d = data.X.shape[1]
            spec = {"n_components": _SHARE if d >= _WHITEN_FROM else None, "max_rows": max(2000, 4 * d)}
        return make_input_map(spec, data.X, data.weight, random_state, start=start)

    def _start(
        self,
        start: Network | None,
        data: TrainingData,
        input_map: InputMap | None,
        centre: Array,
        scale: Array,
        random_state: np.random.RandomState,
        mode: str,
    ) -> Network:
        """Network to start from on mapped inputs and scaled targets."""
        if start is not None:
            start = affine_outputs(start.astype(data.X.dtype), 1.0 / scale, -centre / scale)
            return start if input_map is None else unfold(start, input_map)
        sizes = (data.X.shape[1], *check_layer_sizes(self.hidden_layer_sizes), data.target.shape[1])
        network = initial_network(sizes, self.activation, data.task, data.X.dtype, random_state)
        return with_ridge_head(network, data, self._head(data, mode))
