"""Where chunks of data are worked on, with the same bits anywhere: this process, others, or a dask cluster.

An executor maps a pure task over items (chunks as loaders, never arrays held elsewhere) and merges the values
pairwise in a tree that depends on their number only (:func:`liftopt.solvers.moments.tree_reduce`). BLAS runs
one thread a task. So neither the executor nor the number of workers changes a bit of the result, and what a
dead worker held is computed again from the items alone. Workers merge whole branches of the tree, large ones
first and single items last: few values travel, and all workers end at about the same time.

``"auto"`` works on the first item here, and hands the others to workers only if the time it took says that
this pays.
"""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, groupby
from typing import Any, TypeVar

from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError
from threadpoolctl import ThreadpoolController

from liftopt.solvers.moments import tree_reduce

Item = TypeVar("Item")
Value = TypeVar("Value")
Task = Callable[[Item], Value]
Merge = Callable[[Value, Value], Value]
Report = Callable[[int], None]

_RETRIES = 3
_START_SECONDS = {"joblib": 1.0, "dask": 0.5}  # before workers return the first values
_ITEM_SECONDS = 0.01  # overhead of sending one item and fetching its value
_WAVE = 8  # items a worker and wave
_BRANCH = 4  # items that one call may merge: with the waves, it bounds what a dead worker can lose


class Executor(ABC):
    """Maps tasks over items and reduces their values in a fixed tree."""

    @abstractmethod
    def map(self, task: Task[Item, Value], items: Sequence[Item]) -> Iterator[Value]:
        """Values of ``task`` in the order of ``items``."""

    def reduce(
        self,
        task: Task[Item, Value],
        merge: Merge[Value],
        items: Sequence[Item],
        report: Report | None = None,
    ) -> Value:
        """Values of ``task``, merged pairwise in the tree that the number of items fixes.

        ``report`` is called with the number of items that are done.
        """
        return tree_reduce(merge, _counted(self.map(task, items), report, [1] * len(items)))


class SerialExecutor(Executor):
    """One item after the other, in this process."""

    def map(self, task: Task[Item, Value], items: Sequence[Item]) -> Iterator[Value]:
        """Values of ``task`` in the order of ``items``."""
        return map(partial(run_pinned, task), items)


class ThreadExecutor(Executor):
    """Threads of this process, for items in its memory; the limit of BLAS threads is the caller's.

    Parameters
    ----------
    n_jobs : int
        Number of threads; -1 for one a core.
    """

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def map(self, task: Task[Item, Value], items: Sequence[Item]) -> Iterator[Value]:
        """Values of ``task`` in the order of ``items``."""
        if self.n_jobs == 1:
            return map(task, items)
        parallel = Parallel(n_jobs=self.n_jobs, prefer="threads", return_as="generator")
        return iter(parallel(delayed(task)(item) for item in items))


class JoblibExecutor(Executor):
    """Worker processes of this machine (loky).

    Parameters
    ----------
    n_jobs : int
        Number of processes; -1 for one a core.
    """

    def __init__(self, n_jobs: int = -1) -> None:
        self.n_jobs = n_jobs

    def map(self, task: Task[Item, Value], items: Sequence[Item]) -> Iterator[Value]:
        """Values of ``task`` in the order of ``items``; a killed worker's items are repeated."""
        return self._called(partial(run_pinned, task), items)

    def reduce(
        self,
        task: Task[Item, Value],
        merge: Merge[Value],
        items: Sequence[Item],
        report: Report | None = None,
    ) -> Value:
        """Values of ``task``, merged in the fixed tree, its branches by the workers."""
        workers = cpu_count() if self.n_jobs < 0 else self.n_jobs
        cuts = branches(len(items), workers)
        values = self._called(partial(_branch, task, merge), [items[cut] for cut in cuts])
        sizes = [cut.stop - cut.start for cut in cuts]
        return tree_reduce(merge, _counted(values, report, sizes), sizes)

    def _called(self, function: Task[Item, Value], items: Sequence[Item]) -> Iterator[Value]:
        """Values of ``function`` in worker processes."""
        done = deaths = 0
        while done < len(items):
            parallel = Parallel(n_jobs=self.n_jobs, return_as="generator", batch_size=1)
            try:
                for value in parallel(delayed(function)(item) for item in items[done:]):
                    done += 1
                    yield value
            except TerminatedWorkerError:
                deaths += 1
                if deaths > _RETRIES:
                    raise
            except BrokenProcessPool as error:
                raise _import_error("a worker process", error) from error


class DaskExecutor(Executor):
    """Workers of a dask cluster, local or on many machines.

    Tasks are pure and their items loaders, so dask recomputes what a dead worker held. Items go out in waves
    of a power of two; the value of a whole wave is fetched here, where no worker's death reaches it, and as
    such waves are branches of the fixed tree, their size changes no bit.

    Parameters
    ----------
    client : distributed.Client, optional
        The cluster; by default the current one.
    """

    def __init__(self, client: Any = None) -> None:
        self.client = client if client is not None else _current_client(required=True)
        self._checked = False

    def map(self, task: Task[Item, Value], items: Sequence[Item]) -> Iterator[Value]:
        """Values of ``task`` in the order of ``items``."""
        size = self._wave_size()
        waves = [items[start : start + size] for start in range(0, len(items), size)]
        for values in self._sent(waves, lambda wave: [self._submit(run_pinned, task, item) for item in wave]):
            yield from values

    def reduce(
        self,
        task: Task[Item, Value],
        merge: Merge[Value],
        items: Sequence[Item],
        report: Report | None = None,
    ) -> Value:
        """Values of ``task``, merged on the workers in the tree that the number of items fixes."""
        size = self._wave_size()
        cuts = branches(len(items), _n_workers(self.client))
        waves = [list(wave) for _, wave in groupby(cuts, lambda cut: cut.start // size)]

        def together(first: Any, second: Any) -> Any:
            return self._submit(run_pinned, merge, first, second)

        def send(wave: list[slice]) -> Any:
            futures = [self._submit(_branch, task, merge, items[cut]) for cut in wave]
            return tree_reduce(together, futures, [cut.stop - cut.start for cut in wave])

        done = [wave[-1].stop - wave[0].start for wave in waves]
        return tree_reduce(merge, _counted(self._sent(waves, send), report, done))

    def _sent(self, waves: Sequence[Any], send: Callable[[Any], Any]) -> Iterator[Any]:
        """Results of every wave that ``send`` submits; the next one is out while one is awaited."""
        self._check_workers()
        waiting: list[Any] = []
        for wave in waves:
            waiting.append(send(wave))
            if len(waiting) == 2:
                yield self.client.gather(waiting.pop(0))
        for futures in waiting:
            yield self.client.gather(futures)

    def _wave_size(self) -> int:
        """Power of two of a few items a worker."""
        return 1 << (_WAVE * max(1, _n_workers(self.client)) - 1).bit_length()

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.submit(function, *arguments, pure=False)

    def _check_workers(self) -> None:
        """Every worker must hold this version of the package, or bits would differ."""
        if self._checked:
            return
        found = self.client.run(_package_version, on_error="return")
        answers = {worker: answer for worker, answer in found.items() if not isinstance(answer, OSError)}
        for answer in answers.values():  # of workers that are not just dying
            if isinstance(answer, BaseException):
                raise _import_error("a dask worker", answer) from answer
        others = {worker: version for worker, version in answers.items() if version != _package_version()}
        if others:
            raise RuntimeError(
                f"this process runs liftopt {_package_version()}, but workers run others: {others}; "
                "install one version everywhere"
            )
        self._checked = True


class AutoExecutor(Executor):
    """The first item here; the others in a dask cluster if there is one, or in processes, where that pays."""

    def map(self, task: Task[Item, Value], items: Sequence[Item]) -> Iterator[Value]:
        """Values of ``task`` in the order of ``items``."""
        if not items:
            return iter(())
        first, rest = self._start(task, items)
        return chain([first], rest.map(task, items[1:]))

    def reduce(
        self,
        task: Task[Item, Value],
        merge: Merge[Value],
        items: Sequence[Item],
        report: Report | None = None,
    ) -> Value:
        """Values of ``task``, merged in the fixed tree."""
        if not items:
            return tree_reduce(merge, ())
        first, rest = self._start(task, items)
        if not isinstance(rest, SerialExecutor):  # workers merge: the first item once more, in its place
            return rest.reduce(task, merge, items, report)
        values = chain([first], rest.map(task, items[1:]))
        return tree_reduce(merge, _counted(values, report, [1] * len(items)))

    def _start(self, task: Task[Item, Value], items: Sequence[Item]) -> tuple[Value, Executor]:
        """Value of the first item, and the executor that the time it took recommends for the others."""
        start = time.perf_counter()
        first = run_pinned(task, items[0])
        return first, recommended(time.perf_counter() - start, len(items) - 1)


def recommended(seconds: float, count: int) -> Executor:
    """Executor for ``count`` items of ``seconds`` each: workers only where they gain more than they cost."""
    client = _current_client(required=False)
    kind = "joblib" if client is None else "dask"
    workers = cpu_count() if client is None else _n_workers(client)
    serial = seconds * count
    parallel = _START_SECONDS[kind] + serial / max(1, workers) + _ITEM_SECONDS * count
    if workers < 2 or parallel >= serial:
        return SerialExecutor()
    return JoblibExecutor() if client is None else DaskExecutor(client)


def as_executor(spec: Any) -> Executor:
    """Executor that an ``executor=`` argument stands for.

    Parameters
    ----------
    spec : {"auto", "serial", "joblib", "dask"}, Executor or distributed.Client
        ``"dask"`` is the current client.

    Raises
    ------
    ValueError
        If it is none of these, or there is no current dask client.
    """
    if isinstance(spec, Executor):
        return spec
    kinds: dict[str, Callable[[], Executor]] = {
        "auto": AutoExecutor,
        "serial": SerialExecutor,
        "joblib": JoblibExecutor,
        "dask": DaskExecutor,
    }
    if isinstance(spec, str) and spec in kinds:
        return kinds[spec]()
    if hasattr(spec, "submit") and hasattr(spec, "scheduler_info"):
        return DaskExecutor(spec)
    raise ValueError(
        f"executor must be one of {', '.join(map(repr, kinds))}, an Executor or a dask client, got {spec!r}"
    )


def branches(count: int, workers: int) -> list[slice]:
    """``count`` items cut into branches of their tree, shorter toward the end so that workers end together.

    A branch is an aligned range of a power of two of items; however items are cut into branches, merging
    them gives the same bits.
    """
    cuts, start = [], 0
    while start < count:
        share = min(_BRANCH, max(1, (count - start) // (2 * max(1, workers))))
        size = 1 << (share.bit_length() - 1)
        while start % size:
            size //= 2
        cuts.append(slice(start, start + size))
        start += size
    return cuts


def _branch(task: Task[Item, Value], merge: Merge[Value], items: Sequence[Item]) -> Value:
    """Merged values of a branch."""
    return tree_reduce(partial(run_pinned, merge), map(partial(run_pinned, task), items))


def run_pinned(task: Callable[..., Value], *items: Any) -> Value:
    """``task`` of ``items`` with one BLAS thread; reading that fails is repeated, missing files are not."""
    with _libraries(len(sys.modules)).limit(limits=1):
        for attempt in range(_RETRIES):
            try:
                return task(*items)
            except (FileNotFoundError, PermissionError, IsADirectoryError):
                raise
            except OSError:
                time.sleep(0.1 * 2**attempt)
        return task(*items)


@lru_cache(maxsize=1)
def _libraries(modules: int) -> ThreadpoolController:
    """The numerical libraries loaded with so many modules: looking for them takes milliseconds."""
    return ThreadpoolController()


def _counted(values: Iterable[Value], report: Report | None, sizes: Sequence[int]) -> Iterator[Value]:
    """``values`` as they come, each of which stands for so many items."""
    done = 0
    for value, size in zip(values, sizes, strict=True):
        done += size
        if report is not None:
            report(done)
        yield value


def _n_workers(client: Any) -> int:
    return len(client.scheduler_info(n_workers=-1)["workers"])


def _package_version() -> str:
    import liftopt

    return liftopt.__version__


def _current_client(*, required: bool) -> Any:
    """The current dask client, if one was made in this process."""
    distributed = sys.modules.get("distributed")
    try:
        if distributed is not None:
            return distributed.default_client()
    except ValueError:
        pass
    if required:
        raise ValueError(
            "executor='dask' needs a client: from distributed import Client; client = Client(address)"
        )
    return None


def _import_error(who: str, error: BaseException) -> ImportError:
    return ImportError(
        f"{who} cannot load liftopt or what a task refers to ({error}): install the same version there "
        f"(pip install liftopt=={_package_version()}), Python {sys.version_info[0]}.{sys.version_info[1]} "
        f"as in process {os.getpid()}"
    )
