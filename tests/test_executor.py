"""Executors: the same bits everywhere, killed workers, workers without the package, the automatic choice."""

import operator
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftopt import executor as module
from liftopt.executor import (
    AutoExecutor,
    DaskExecutor,
    JoblibExecutor,
    SerialExecutor,
    as_executor,
    branches,
    recommended,
    run_pinned,
)
from liftopt.solvers.moments import tree_reduce

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    """Client of two worker processes."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def value_of(item):
    """Products whose sum depends on its order in the last bits."""
    A = np.random.default_rng(item).normal(size=(40, 40)).astype(np.float32)
    return (A @ A.T).sum(axis=0) * np.float32(1.1) ** item


def logged(folder, seconds, item):
    """As :func:`value_of`, slowly, leaving a line in this process's file."""
    with open(os.path.join(folder, f"{os.getpid()}"), "a") as log:
        log.write(f"{item}\n")
    time.sleep(seconds)
    return value_of(item)


def runs_in(folder):
    """Items by process, with repetitions."""
    return {int(path.name): [int(line) for line in path.read_text().split()] for path in folder.iterdir()}


@settings(max_examples=5)
@given(count=st.integers(1, 40))
def test_all_executors_give_the_same_bits(client, count):
    items = list(range(count))
    expected = tree_reduce(operator.add, map(value_of, items))
    serial, dask = SerialExecutor(), DaskExecutor(client)
    assert serial.reduce(value_of, operator.add, items).tobytes() == expected.tobytes()
    assert dask.reduce(value_of, operator.add, items).tobytes() == expected.tobytes()
    for one, other in zip(serial.map(value_of, items), dask.map(value_of, items), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_the_same_bits_whatever_their_number(workers):
    items = list(range(21))
    expected = SerialExecutor().reduce(value_of, operator.add, items)
    found = JoblibExecutor(workers).reduce(value_of, operator.add, items)
    assert found.tobytes() == expected.tobytes()


def test_waves_of_any_size_are_branches_of_one_tree(client, monkeypatch):
    items = list(range(45))
    expected = SerialExecutor().reduce(value_of, operator.add, items)
    for wave in (1, 2, 16):
        monkeypatch.setattr(module, "_WAVE", wave)
        assert DaskExecutor(client).reduce(value_of, operator.add, items).tobytes() == expected.tobytes()


@given(count=st.integers(0, 200), workers=st.integers(1, 20))
def test_branches_are_cut_from_one_tree(count, workers):
    cuts = branches(count, workers)
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(count))
    sizes = [cut.stop - cut.start for cut in cuts]
    assert all(size in (1, 2, 4) and cut.start % size == 0 for size, cut in zip(sizes, cuts, strict=True))
    assert all(size == 1 for size in sizes[-2 * workers + 1 :])
    if count:
        words = list(map(str, range(count)))

        def pair(first: str, second: str) -> str:
            return f"({first} {second})"

        parts = [tree_reduce(pair, words[cut]) for cut in cuts]
        assert tree_reduce(pair, parts, sizes) == tree_reduce(pair, words)


def test_progress_counts_items(client):
    for executor in (SerialExecutor(), JoblibExecutor(2), DaskExecutor(client)):
        seen: list[int] = []
        executor.reduce(abs, operator.add, list(range(40)), seen.append)
        assert seen[-1] == 40
        assert seen == sorted(seen)


def test_killed_workers_twice_cost_their_own_items_only(tmp_path):
    items = list(range(32))
    expected = SerialExecutor().reduce(value_of, operator.add, items)
    killed: list[int] = []

    def kill_one(done: int) -> None:
        """After the first and the second wave; the next one is running then."""
        if len(killed) < 2:
            killed.append(pids[len(killed)])
            os.kill(killed[-1], signal.SIGKILL)

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(module, "_WAVE", 4)
        pids = list(client.run(os.getpid).values())
        task = partial(logged, str(tmp_path), 0.05)
        found = DaskExecutor(client).reduce(task, operator.add, items, kill_one)
    assert len(killed) == 2
    assert found.tobytes() == expected.tobytes()
    runs = runs_in(tmp_path)
    times = Counter(item for own in runs.values() for item in own)
    assert set(times) == set(items)
    lost = {item for pid in killed for item in runs.get(pid, [])}
    assert {item for item, count in times.items() if count > 1} <= lost
    assert sum(times.values()) - len(items) <= len(lost)


def die_once(path, item):
    """Kill this process at item 5, the first time."""
    if item == 5 and not os.path.exists(path):
        with open(path, "w") as mark:
            mark.write("dead")
        os.kill(os.getpid(), signal.SIGKILL)
    return value_of(item)


def test_processes_survive_a_kill(tmp_path):
    items = list(range(9))
    task = partial(die_once, str(tmp_path / "mark"))
    found = JoblibExecutor(2).reduce(task, operator.add, items)
    assert (tmp_path / "mark").exists()
    assert found.tobytes() == SerialExecutor().reduce(value_of, operator.add, items).tobytes()


def test_a_worker_without_the_package_is_named(tmp_path):
    stub = tmp_path / "liftopt"
    stub.mkdir()
    (stub / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'liftopt'\")")
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
    ):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        worker = subprocess.Popen(
            [*command, "--nthreads", "1", "--no-nanny", "--no-dashboard"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            stderr=subprocess.DEVNULL,
        )
        try:
            client.wait_for_workers(1, timeout=60)
            with pytest.raises(
                ImportError, match=r"a dask worker cannot load liftopt.*pip install liftopt=="
            ):
                DaskExecutor(client).reduce(value_of, operator.add, [1, 2])
        finally:
            worker.kill()
            worker.wait()


class Elsewhere:
    """A task of a package that only this process has."""

    def __reduce__(self):
        return import_module, ("package_of_this_process",)

    def __call__(self, item):
        return item


def test_a_process_without_the_package_is_named():
    with pytest.raises(ImportError, match=r"a worker process cannot load liftopt or what a task refers to"):
        JoblibExecutor(2).reduce(Elsewhere(), operator.add, [1, 2])


def test_other_versions_are_refused(client, monkeypatch):
    monkeypatch.setattr("liftopt.__version__", "0.0.1")
    with pytest.raises(RuntimeError, match="workers run others"):
        DaskExecutor(client).reduce(value_of, operator.add, [1, 2])


def test_errors_of_tasks_come_back(client):
    for executor in (SerialExecutor(), JoblibExecutor(2), DaskExecutor(client)):
        with pytest.raises(ZeroDivisionError):
            executor.reduce(partial(operator.truediv, 1.0), operator.add, [1, 2, 0, 3])


def test_reading_is_repeated_but_missing_files_are_not(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    calls: list[str] = []

    def flaky(kind, item):
        calls.append(item)
        if len(calls) < 3:
            raise kind("no")
        return item

    assert run_pinned(partial(flaky, OSError), "a") == "a"
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(FileNotFoundError):
        run_pinned(partial(flaky, FileNotFoundError), "a")
    assert len(calls) == 1


def test_tasks_run_with_one_blas_thread():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def threads(_):
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]

    with threadpoolctl.threadpool_limits(2):
        assert set(run_pinned(threads, 0)) == {1}


def test_the_automatic_choice_pays(client):
    assert isinstance(recommended(1e-3, 100), SerialExecutor)
    assert isinstance(recommended(1.0, 100), DaskExecutor)
    auto = AutoExecutor()
    items = list(range(6))
    expected = SerialExecutor().reduce(value_of, operator.add, items)
    assert auto.reduce(value_of, operator.add, items).tobytes() == expected.tobytes()
    assert [v.tobytes() for v in auto.map(value_of, items)] == [value_of(i).tobytes() for i in items]
    assert list(auto.map(value_of, [])) == []
    with pytest.raises(ValueError, match="no chunk"):
        auto.reduce(value_of, operator.add, [])


def test_the_automatic_choice_hands_over(client, monkeypatch):
    items = list(range(6))
    expected = SerialExecutor().reduce(value_of, operator.add, items)
    for chosen in (DaskExecutor(client), JoblibExecutor(2)):
        monkeypatch.setattr(module, "recommended", lambda seconds, count, chosen=chosen: chosen)
        assert AutoExecutor().reduce(value_of, operator.add, items).tobytes() == expected.tobytes()


def test_specifications(client):
    assert isinstance(as_executor("serial"), SerialExecutor)
    assert isinstance(as_executor("joblib"), JoblibExecutor)
    assert isinstance(as_executor("dask"), DaskExecutor)
    by_client = as_executor(client)
    assert isinstance(by_client, DaskExecutor)
    assert by_client.client is client
    own = SerialExecutor()
    assert as_executor(own) is own
    with pytest.raises(ValueError, match="executor must be one of 'auto', 'serial'"):
        as_executor("spark")


def test_dask_without_a_client_says_how_to_make_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="from distributed import Client"):
        as_executor("dask")
    assert isinstance(recommended(1.0, 1000), JoblibExecutor)
