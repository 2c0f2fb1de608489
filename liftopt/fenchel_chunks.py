"""Fenchel networks from rows that do not fit in memory: stochastic block steps, chunk by chunk of a stream.

A sample of the stream fixes the maps of inputs and targets and the length of the steps; then every pass
visits all chunks in random order, with steps that fall with the root of the number of chunks seen. Steps
depend on the order of their rows and run in this process. The monotone mode is another module,
:mod:`liftopt.fenchel_parts`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from liftopt.base import TrainingData, score_of
from liftopt.checkpoint import State, random_bits, restore_bits
from liftopt.chunks import labels_of, load_checked
from liftopt.input_map import InputMap
from liftopt.network import Network
from liftopt.recording import Recorder, run_interruptible
from liftopt.streams import Stream

Array = npt.NDArray[Any]

_SAMPLE_ROWS, _JUDGE_ROWS = 5000, 1000
_STEPS, _BATCH = 3000, 250  # least number of block steps, and rows of one, that the default passes make


class StreamState(NamedTuple):
    """What one call of ``partial_fit`` leaves for the next."""

    input_map: InputMap | None
    centre: Array
    scale: Array
    network: Network
    length: float
    chunks: int


def fit_chunks(estimator: Any, rows: Stream, *, classify: bool) -> None:
    """Fit a Fenchel estimator in stochastic mode to the chunks of a stream.

    Raises
    ------
    ValueError
        If the data cannot be used.
    """
    name = type(estimator).__name__
    rows.require_target(f"{name}.fit")
    recorder = Recorder.of(estimator, *rows.identity())
    if classify:
        estimator.classes_ = estimator._classes_of(rows.reduce(labels_of, np.union1d, checks_rows=True))
    passes = ChunkPasses(estimator, rows, recorder, recorder.random_state())
    passes.open()
    run_interruptible(passes.run, name, recorder)
    estimator._set_features(rows)
    recorder.close()


class ChunkPasses:
    """Passes of a Fenchel estimator over the chunks of a stream.

    Parameters
    ----------
    estimator : FenchelClassifier or FenchelRegressor
        Its network follows the chunks.
    rows : Stream
        With targets.
    recorder : Recorder
        Gets a record a chunk.
    random_state : RandomState
        For the sample, the order of the chunks and the steps.
    """

    def __init__(
        self, estimator: Any, rows: Stream, recorder: Recorder, random_state: np.random.RandomState
    ) -> None:
        self.estimator, self.rows, self.recorder = estimator, rows, recorder
        self.random_state = random_state
        found = rows.sample(_SAMPLE_ROWS, random_state.randint(2**31))
        self.sample = self._data(*found)
        self.judge = self.sample.rows(np.arange(0, self.sample.X.shape[0], _SAMPLE_ROWS // _JUDGE_ROWS))
        self.done, self.queue = 0, list[int]()

    def open(self) -> None:
        """Maps, start and step from the sample, or where the checkpoint stands."""
        self.estimator._stream_fit(self.sample, self.random_state)
        state = self.recorder.resumed()
        if state is not None:
            self.restore(state)

    def run(self) -> None:
        """All passes, unless the callback stops."""
        default = max(1, -(-_STEPS * _BATCH // self.rows.n_rows))
        total = (self.estimator.max_iter or default) * len(self.rows.chunks)
        while self.done < total:
            self._step()
            score = score_of(self.estimator.network_, self.judge)
            if self.recorder.add(chunk=self.done, chunks=total, training_score=score):
                return
            self.recorder.save(self.state)

    def state(self) -> State:
        """What the chunks after this one depend on."""
        stream = self.estimator._stream
        parts = None if stream.input_map is None else [stream.input_map.mean, stream.input_map.factor]
        return {
            "stream": {**stream._asdict(), "input_map": parts},
            "network": self.estimator.network_,
            "done": self.done,
            "queue": self.queue,
            "random": random_bits(self.random_state),
        }

    def restore(self, state: State) -> None:
        """Return to a :meth:`state`."""
        parts = state["stream"]["input_map"]
        found = {**state["stream"], "input_map": None if parts is None else InputMap(*parts)}
        self.estimator._stream = self.estimator._stream._replace(**found)
        self.estimator.network_ = state["network"]
        self.done, self.queue = state["done"], list(state["queue"])
        restore_bits(self.random_state, state["random"])

    def _step(self) -> None:
        """One chunk; the order is drawn anew when all have been seen."""
        if not self.queue:
            self.queue = self.random_state.permutation(len(self.rows.chunks)).tolist()
        found = load_checked(self.rows.chunks[self.queue.pop()])
        if found.weight is None or np.any(found.weight > 0):
            self.estimator._stream_fit(self._data(*found[:3]), self.random_state)
        self.done += 1

    def _data(self, X: Array, y: Array | None, weight: Array | None) -> TrainingData:
        data: TrainingData = self.estimator._training_data(np.asarray(X), np.asarray(y), weight)
        weighted: TrainingData = self.estimator._class_weighted(data)
        return weighted
