"""Fair comparison: every method and tuned back-propagation on the same data with the same architecture.

For each repeat (another stratified split, or another seed on a standard split): an entrant with a grid tries
every candidate on part of the training rows and takes the one with the best score on the rest; the chosen
candidate is then fitted on all training rows, which is the fit that is timed, and judged once on the test
rows. Nobody computes its own score. The methods are fitted with their defaults, the baselines are tuned, and
the time of the search is stated apart. Repeats alternate between the methods, so that a busy machine slows
all of them alike; a small untimed fit loads libraries and compiles kernels first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state

from liftopt.comparison import Comparison, Run, StageRun
from liftopt.data import Dataset, Split, load
from liftopt.doctor import environment, versions
from liftopt.entrants import Entrant, entrants
from liftopt.methods import Task
from liftopt.recipe import Stage
from liftopt.recording import interruptions
from liftopt.solvers.validation import as_count
from liftopt.threads import limit_threads

Array = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]

VALIDATION_SHARE = 0.2
_WARM_UP_ROWS = 200
_PACKAGES = ("liftopt", "numpy", "scipy", "scikit-learn", "torch", "numba")


def compare(
    data: Dataset | str | os.PathLike[str],
    *,
    target: str | None = None,
    methods: Sequence[str] | None = None,
    hidden_layer_sizes: Sequence[int] = (300,),
    repeats: int = 3,
    random_state: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Compare methods with tuned back-propagation on one data set.

    Parameters
    ----------
    data : Dataset, str or path-like
        Data set, or what :func:`liftopt.data.load` takes.
    target : str, optional
        Target column, for tables.
    methods : sequence of str, optional
        Names from :data:`liftopt.methods.METHODS`, or recipes of them such as ``"manifold+fenchel"``; default
        all methods. The baselines always take part.
    hidden_layer_sizes : sequence of int
        Given to every method that takes it.
    repeats : int
        Number of splits (or of seeds, on data with a standard split).
    random_state : int
        Seed of the first repeat; the following ones count up.
    threads : int
        Threads of the numerical libraries, for everyone.
    progress : callable, optional
        Called before each fit with (fits done, fits planned, what comes next).

    Returns
    -------
    Comparison
        Of the finished runs; after Ctrl-C ``interrupted`` is set and the unfinished run is left out.

    Raises
    ------
    ValueError
        If a method is unknown or the data cannot be split.
    """
    if not isinstance(data, Dataset):
        data = load(data, target=target)
    repeats = as_count("repeats", repeats)
    hidden = tuple(as_count("hidden_layer_sizes", width) for width in hidden_layer_sizes)
    splits = [data.split(random_state=random_state + repeat) for repeat in range(repeats)]
    bench = _Bench(
        data.task,
        {"hidden_layer_sizes": hidden},
        entrants(methods, splits[0].X_train.shape[0]),
        repeats,
        same_rows=len(data.splits) == 1,
        progress=progress,
    )
    interruption = _Interruption()
    with interruption, interruptions(), limit_threads(threads):
        bench.warm_up(splits[0])
        for repeat, split in enumerate(splits):
            bench.run_repeat(repeat, split, random_state + repeat, interruption)
    return Comparison(
        data=data.name,
        task=data.task,
        methods=tuple(entrant.name for entrant in bench.entrants),
        baselines=bench.tuned,
        runs=tuple(bench.runs),
        skipped=bench.skipped,
        failed=bench.failed,
        interrupted=interruption.requested,
        settings=_settings(data, splits[0], hidden, repeats, random_state)
        | {"grids": {entrant.name: list(entrant.grid) for entrant in bench.entrants if entrant.tuned}},
        environment=_environment(threads),
    )


class _Timed(NamedTuple):
    """What a call returned, and its seconds."""

    value: Any
    wall: float
    cpu: float


def _timed(call: Callable[[], Any]) -> _Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    return _Timed(value, time.perf_counter() - wall, time.process_time() - cpu)


class _Bench:
    """The entrants, and what their runs have given so far."""

    def __init__(
        self,
        task: Task,
        common: Mapping[str, Any],
        entrants: Sequence[Entrant],
        repeats: int,
        *,
        same_rows: bool,
        progress: Progress | None,
    ) -> None:
        self.entrants = entrants
        self.runs: list[Run] = []
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self._task, self._common = task, common
        self._repeats, self._same_rows = repeats, same_rows
        self._searches: dict[str, _Timed] = {}
        self._done = 0
        self._progress = progress

    @property
    def tuned(self) -> tuple[str, ...]:
        """Names of the tuned entrants, the baselines."""
        return tuple(entrant.name for entrant in self.entrants if entrant.tuned)

    @property
    def planned(self) -> int:
        """Number of fits of the entrants that are not skipped."""
        searches = 1 if self._same_rows else self._repeats
        return sum(
            self._repeats * (1 + (e.trace is not None)) + e.tuned * searches * len(e.grid)
            for e in self.entrants
            if e.name not in self.skipped
        )

    def warm_up(self, split: Split) -> None:
        """Fit every entrant on a few rows, so that no timed fit pays for imports and compilation."""
        rows = _few_rows(split, self._task)
        for entrant in self.entrants:
            self._announce(f"loading {entrant.name}")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a handful of rows proves nothing
                    entrant.estimator(self._task, self._common).fit(split.X_train[rows], split.y_train[rows])
            except ImportError as error:
                self.skipped[entrant.name] = str(error)
            except Exception:  # the fit on all rows will show it again and report it
                continue

    def run_repeat(self, repeat: int, split: Split, seed: int, interruption: _Interruption) -> None:
        """One run of every entrant that still takes part."""
        for entrant in self.entrants:
            if interruption.requested:
                return
            if entrant.name in self.skipped or entrant.name in self.failed:
                continue
            try:
                run = self._run(entrant, repeat, split, seed)
            except Exception as error:
                self.failed[entrant.name] = f"{type(error).__name__}: {error}"
                continue
            if not interruption.requested:
                self.runs.append(run)

    def _run(self, entrant: Entrant, repeat: int, split: Split, seed: int) -> Run:
        common = {**self._common, "random_state": seed}
        search = self._search(entrant, split, common, seed)
        candidate, validation_score = search.value
        self._announce(f"{entrant.name}, repeat {repeat + 1}")
        estimator = entrant.estimator(self._task, common, **candidate)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = _timed(lambda: estimator.fit(split.X_train, split.y_train))
        self._done += 1
        shown = estimator
        if entrant.trace is not None:
            self._announce(f"{entrant.name}, curve of repeat {repeat + 1}")
            traced = {**candidate, **entrant.trace}
            shown = self._quiet_fit(entrant, common, traced, split.X_train, split.y_train)
        network = getattr(estimator, "network_", None)
        return Run(
            method=entrant.name,
            repeat=repeat,
            score=self._score(estimator, split.X_test, split.y_test),
            wall=fit.wall,
            cpu=fit.cpu,
            search_wall=search.wall,
            search_cpu=search.cpu,
            validation_score=validation_score,
            parameters=candidate,
            n_parameters=getattr(network, "n_parameters", None),
            nbytes=getattr(network, "nbytes", None),
            n_iter=_plain(getattr(estimator, "n_iter_", None)),
            history=_plain_history(getattr(shown, "history_", ())),
            notes=tuple(dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)),
            stages=tuple(self._stage_run(stage, split) for stage in getattr(estimator, "stages_", ())),
        )

    def _stage_run(self, stage: Stage, split: Split) -> StageRun:
        network = getattr(stage.estimator, "network_", None)
        return StageRun(
            stage.name,
            self._score(stage.estimator, split.X_test, split.y_test),
            stage.wall,
            stage.cpu,
            getattr(network, "n_parameters", None),
            getattr(network, "nbytes", None),
        )

    def _search(self, entrant: Entrant, split: Split, common: Mapping[str, Any], seed: int) -> _Timed:
        """Chosen candidate and its validation score, timed; done once if all repeats have the same rows."""
        if not entrant.tuned:
            return _Timed((entrant.grid[0], None), 0.0, 0.0)
        if entrant.name in self._searches:
            return self._searches[entrant.name]
        search = _timed(lambda: self._select(entrant, split, common, seed))
        if self._same_rows:
            self._searches[entrant.name] = search
        return search

    def _select(
        self, entrant: Entrant, split: Split, common: Mapping[str, Any], seed: int
    ) -> tuple[Mapping[str, Any], float]:
        """Candidate of the grid with the best validation score, and that score."""
        X, X_held, y, y_held = _hold_out(split, self._task, seed)
        scores = []
        for candidate in entrant.grid:
            self._announce(f"{entrant.name}, tuning {_words(candidate)}")
            estimator = self._quiet_fit(entrant, common, candidate, X, y)
            scores.append(self._score(estimator, X_held, y_held))
        best = int(np.argmax(scores))
        return entrant.grid[best], scores[best]

    def _quiet_fit(
        self, entrant: Entrant, common: Mapping[str, Any], candidate: Mapping[str, Any], X: Array, y: Array
    ) -> Any:
        """Fitted estimator; its warnings are left to the fit that counts."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator = entrant.estimator(self._task, common, **candidate).fit(X, y)
        self._done += 1
        return estimator

    def _score(self, estimator: Any, X: Array, y: Array) -> float:
        metric = accuracy_score if self._task == "classification" else r2_score
        return float(metric(y, estimator.predict(X)))

    def _announce(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self.planned, what)


class _Interruption:
    """Context in which the first Ctrl-C stops the running fit and is remembered.

    Methods answer Ctrl-C by returning their best network so far, so the exception alone would not be seen.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> None:
        self._owner = threading.current_thread() is threading.main_thread()
        if self._owner:
            self._previous = signal.signal(signal.SIGINT, self._stop)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if self._owner:
            signal.signal(signal.SIGINT, self._previous)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.requested = True
            return True
        return False

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        raise KeyboardInterrupt


def _hold_out(split: Split, task: Task, seed: int) -> tuple[Array, Array, Array, Array]:
    """X, held-out X, y, held-out y of the training part."""
    training = Dataset("", split.X_train, split.y_train, task, ())
    X, X_held, y, y_held = training.split(VALIDATION_SHARE, seed)
    return X, X_held, y, y_held


def _few_rows(split: Split, task: Task) -> Array:
    """Some rows of every class."""
    order = check_random_state(0).permutation(split.y_train.shape[0])
    if task == "regression":
        return order[:_WARM_UP_ROWS]
    _, codes = np.unique(split.y_train[order], return_inverse=True)
    each = max(2, _WARM_UP_ROWS // (codes.max() + 1))
    return np.concatenate([order[codes == code][:each] for code in range(codes.max() + 1)])


def _settings(
    data: Dataset, split: Split, hidden: tuple[int, ...], repeats: int, seed: int
) -> dict[str, Any]:
    return {
        "hidden_layer_sizes": hidden,
        "repeats": repeats,
        "random_state": seed,
        "validation_share": VALIDATION_SHARE,
        "n_train": int(split.X_train.shape[0]),
        "n_test": int(split.X_test.shape[0]),
        "n_features": int(split.X_train.shape[1]),
        "n_classes": int(np.unique(split.y_train).size) if data.task == "classification" else None,
    }


def _environment(threads: int) -> dict[str, Any]:
    """Machine, versions and threads, without anything that identifies the machine."""
    return {**environment(), "threads": threads, "versions": versions(_PACKAGES)}


def _plain_history(history: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The scalar entries of the records, as plain Python values."""
    return tuple(
        {key: plain for key, value in record.items() if (plain := _plain(value)) is not None}
        for record in history
    )


def _plain(value: Any) -> Any:
    """Plain number or string, or None."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, (bool, int, float, str)) else None


def _words(candidate: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value:g}" for key, value in candidate.items())
