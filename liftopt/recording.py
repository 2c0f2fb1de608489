"""What surrounds a fit: threads, scikit-learn's callbacks, the history, the checkpoint, Ctrl-C."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from liftopt.checkpoint import Checkpoint, State, fingerprint, random_bits, restore_bits
from liftopt.solvers.result import Callback, Record
from liftopt.threads import threads_of_a_fit

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """No callbacks but our own."""

    def with_callbacks(method: Any) -> Any:
        """Nothing to surround."""
        return method


Array = npt.NDArray[Any]

logger = logging.getLogger("liftopt")


class Interruption:
    """Whether Ctrl-C has ended a training loop."""

    requested = False


_interruption: ContextVar[Interruption | None] = ContextVar("liftopt_interruption", default=None)


@contextmanager
def interruptions() -> Iterator[Interruption]:
    """Context in which Ctrl-C ends the running loop and all that would follow; inner contexts join it."""
    found = _interruption.get() or Interruption()
    token = _interruption.set(found)
    try:
        yield found
    finally:
        _interruption.reset(token)


class SurroundedFit(CallbackSupportMixin):
    """What surrounds every ``fit``: the number of threads, and scikit-learn's callbacks where it has them.

    A callback of ``set_callbacks`` sees the fit as one task and each record of the history as a subtask (the
    record is ``estimator.history_[-1]``); it ends the training by a true value at the end of a subtask.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "fit" in cls.__dict__:
            cls.fit = _surrounded(cls.__dict__["fit"])
        if "partial_fit" in cls.__dict__:
            cls.partial_fit = threads_of_a_fit()(cls.__dict__["partial_fit"])


def _surrounded(fit: Callable[..., Any]) -> Callable[..., Any]:
    """``fit`` with its number of threads, as the root task of scikit-learn's callbacks."""

    @wraps(fit)
    def wrapped(self: Any, X: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        with interruptions(), threads_of_a_fit():
            root = _root_task(self, X, y)
            fit(self, X, y, *args, **kwargs)
            if root is not None:
                root.call_on_fit_task_end(estimator=self, X=X, y=y, reconstruction_attributes={})
        return self

    return with_callbacks(wrapped)


def _root_task(estimator: Any, X: Any, y: Any) -> Any:
    """Begun task of scikit-learn's callbacks for a fit, None where there are none."""
    if not hasattr(estimator, "_init_callback_context"):
        return None
    root = estimator._init_callback_context(max_subtasks=None)
    return root.call_on_fit_task_begin(estimator=estimator, X=X, y=y)


class Recorder:
    """History of one fit: time-stamped records, passed to the callbacks and to the log; its checkpoint.

    Parameters
    ----------
    name : str
        Shown in log lines.
    verbose : int or bool
        Log each record at INFO level (a handler is the application's business).
    callback : callable, optional
        Called with each record; a true return value asks the method to stop.

    Attributes
    ----------
    history : list of mapping
        The records.
    interrupted : bool
        Whether Ctrl-C ended the training.
    """

    def __init__(self, name: str, verbose: int | bool = False, callback: Callback | None = None) -> None:
        self.history: list[Record] = []
        self.interrupted = False
        self._name, self._verbose, self._callback = name, verbose, callback
        self._estimator: Any = None
        self._checkpoint: Checkpoint | None = None
        self._start: State = {}
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        if callback is not None and not callable(callback):
            raise ValueError(f"callback must be callable, got {callback!r}")

    @classmethod
    def of(cls, estimator: Any, *arrays: Array | None) -> Recorder:
        """Recorder with the parameters of an estimator; its history is ``history_`` at once.

        ``arrays`` are the data, by which a checkpoint is recognised.
        """
        recorder = cls(type(estimator).__name__, estimator.verbose, estimator.callback)
        recorder._estimator = estimator
        estimator.history_ = recorder.history
        if getattr(estimator, "checkpoint", None) is not None:
            recorder._checkpoint = Checkpoint(estimator.checkpoint, fingerprint(estimator, *arrays))
        return recorder

    def random_state(self) -> np.random.RandomState:
        """Random numbers of the fit: the estimator's, or those of the fit that left the checkpoint."""
        random_state = check_random_state(self._estimator.random_state)
        if self._checkpoint is not None:
            if self._checkpoint.found is not None:
                random_state = np.random.RandomState()
                restore_bits(random_state, self._checkpoint.found["start"])
            self._start = random_bits(random_state)
        return random_state

    def add(self, **facts: Any) -> bool:
        """Append a record (with ``iteration``, ``time``, ``cpu``); return whether to stop."""
        record = {
            "iteration": len(self.history),
            "time": time.perf_counter() - self._wall,
            "cpu": time.process_time() - self._cpu,
            **facts,
        }
        self.history.append(record)
        if self._verbose:
            parts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in record.items())
            logger.info("%s %s", self._name, " ".join(parts))
        stop = bool(self._callback(record)) if self._callback else False
        return self._tell_scikit_learn() or stop

    def resumed(self) -> State | None:
        """State of the loop to go on from, if the checkpoint holds one."""
        if self._checkpoint is None or self._checkpoint.found is None:
            return None
        self.history[:] = self._checkpoint.found["history"]
        if self.history:
            self._wall -= self.history[-1]["time"]
            self._cpu -= self.history[-1]["cpu"]
        loop: State = self._checkpoint.found["loop"]
        return loop

    def save(self, state: Callable[[], State]) -> None:
        """Offer the state of the loop, from which it would go on as if nothing had happened."""
        if self._checkpoint is not None:
            self._checkpoint.offer(lambda: {"start": self._start, "history": self.history, "loop": state()})

    def close(self) -> None:
        """End of the fit: its checkpoint goes, unless Ctrl-C ended the training."""
        if self._checkpoint is not None and not self.interrupted:
            self._checkpoint.remove()

    def _tell_scikit_learn(self) -> bool:
        """Begin and end a subtask of the fit; whether a callback of ``set_callbacks`` asks to stop."""
        root = getattr(self._estimator, "_callback_fit_ctx", None)
        if root is None:
            return False
        task = root.subcontext(task_name="iteration").call_on_fit_task_begin(estimator=self._estimator)
        return bool(task.call_on_fit_task_end(estimator=self._estimator))


def run_interruptible(loop: Callable[[], None], name: str, recorder: Recorder | None = None) -> None:
    """Run a training loop; on Ctrl-C warn and go on with the best network so far, as scikit-learn does.

    After a Ctrl-C in a loop before it, such as that of its start, it ends before its first step.
    """
    with interruptions() as interruption:
        try:
            if interruption.requested:
                raise KeyboardInterrupt
            loop()
        except KeyboardInterrupt:
            interruption.requested = True
            if recorder is not None:
                recorder.interrupted = True
            warnings.warn(
                f"{name} was interrupted: the best network so far is kept", ConvergenceWarning, stacklevel=4
            )
