"""Executors: two processes against one, killed workers, and the cost of dask on small data.

Claims: 1.8 times the speed with two single-threaded processes on a compute-bound chunk map; the bits of the
undisturbed run when a worker is killed twice, and no more than its own chunks computed again; the automatic
choice leaves small data in this process. The cost model of ``docs/distributed.md`` is checked against them
on one and two workers.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from common import measure, median_iqr, parse_arguments, write_record  # isort: skip

import numpy as np
import psutil
from distributed import Client, LocalCluster

from liftopt import SplineRegressor, stream
from liftopt.chunks import ChunkRows
from liftopt.executor import (
    AutoExecutor,
    DaskExecutor,
    Executor,
    JoblibExecutor,
    SerialExecutor,
    branches,
)
from liftopt.solvers import Moments, moments
from liftopt.streams import Stream

FEATURES, TERMS = 512, 11
SEED = 0
REPEATS = 5
NOTES = [
    "One BLAS thread a process; best of five repeats, orders alternated. Chunks of 32,000 rows, as under the "
    "default memory limit; statistics are 2 MiB each, of up to four chunks merged where they arise.",
    "joblib, one and two dask workers are measured one after the other, without idle clusters beside; "
    "speed-ups are against serial passes of the same rounds, times of serial from those of joblib.",
    "Busiest CPU: seconds of the process (this one or a worker) that took most; the speed-up that it allows "
    "does not depend on who else uses the machine, the one by the wall clock does.",
    "Statistics pass: float32 moments of 512 features and one target from memory-mapped files.",
    "Model: chunks * CPU seconds a chunk / workers + branches * (seconds to send an empty task + seconds to "
    "carry and merge d^2 float64 numbers). Seconds a chunk are those of the serial pass, the others measured "
    "apart.",
    "Equal bits: the Gram matrix of every run against that of the serial one.",
]

FIT_NOTES = [
    f"SplineRegressor(max_degree=1, max_terms={TERMS}) on the same rows: survey, knots of the sample, "
    "and passes of the selection; better of two fits each.",
]
SMALL_NOTES = ["Arrays in memory, float64, 32 features, about 20 chunks; a cluster of two workers is there."]
KILL_NOTES = ["SIGKILL after the first and after the second wave of chunks; dask restarts the workers."]


def write_rows(folder: Path, count: int) -> None:
    """Features and targets in two files."""
    rng = np.random.default_rng(SEED)
    X = np.lib.format.open_memmap(folder / "X.npy", "w+", np.float32, (count, FEATURES))
    for start in range(0, count, 50_000):
        X[start : start + 50_000] = rng.standard_normal((min(50_000, count - start), FEATURES), np.float32)
    np.save(folder / "y.npy", np.asarray(X[:, 0] + X[:, 1]))


def rows_of(folder: Path, executor: Executor, chunk_rows: int, callback: Any = None) -> Stream:
    """The files in chunks of so many rows."""
    limit = 16 * chunk_rows * FEATURES * 4
    files = folder / "X.npy", folder / "y.npy"
    return stream(*files, memory_limit=limit, executor=executor, callback=callback)


def nothing(item: int) -> int:
    """Task without work."""
    return item


def logged(folder: str, rows: ChunkRows) -> Moments:
    """Statistics of a chunk, leaving a line in this process's file."""
    with open(os.path.join(folder, str(os.getpid())), "a") as log:
        log.write(f"{rows.start}\n")
    return moments(rows.X, np.asarray(rows.y))


def scaling(folder: Path, cases: dict[str, Executor], chunk_rows: int, repeats: int) -> list[dict[str, Any]]:
    """Time of the statistics pass by each executor, and whether the bits agree."""
    streams = {name: rows_of(folder, executor, chunk_rows) for name, executor in cases.items()}
    expected = streams["serial"].moments().gram.tobytes()
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    same = dict.fromkeys(cases, True)
    for repeat in range(repeats + 1):  # the first round warms workers and page cache
        for name in list(cases) if repeat % 2 else list(cases)[::-1]:
            found, busiest = busiest_process(streams[name].moments)
            same[name] &= found.value.gram.tobytes() == expected
            if repeat:
                runs[name].append((found.wall, busiest))
    wall, cpu = ({name: min(run[i] for run in found) for name, found in runs.items()} for i in (0, 1))
    chunks = len(streams["serial"].chunks)
    a_chunk, a_merge = cpu["serial"] / chunks, merge_seconds()
    rows = []
    for name in cases:
        workers, sent = workers_of(name), overhead(cases[name])
        sends = len(branches(chunks, workers)) if workers > 1 or name.startswith("dask") else 0
        apart = chunks * a_chunk / workers + sends * (sent + a_merge)
        rows.append(
            {
                "executor": name,
                "chunks": chunks,
                "wall_s": wall[name],
                "speed_up_wall": wall["serial"] / wall[name],
                "busiest_cpu_s": cpu[name],
                "speed_up_cpu": cpu["serial"] / cpu[name],
                "modelled_s": apart,
                "modelled_speed_up": chunks * a_chunk / apart,
                "ms_a_chunk_sent": 1e3 * sent,
                "same_bits": same[name],
            }
        )
    return rows


def busiest_process(function: Callable[[], Any]) -> tuple[Any, float]:
    """What :func:`measure` finds, and the CPU seconds of the process, child or not, that took most."""
    me = psutil.Process()
    before = {process.pid: _cpu(process) for process in (me, *me.children(recursive=True))}
    found = measure(function)
    after = {process.pid: _cpu(process) for process in (me, *me.children(recursive=True))}
    return found, max(after[pid] - before.get(pid, 0.0) for pid in after)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def merge_seconds() -> float:
    """CPU seconds to merge two Gram matrices and carry one to another process."""
    one = moments(np.ones((4, FEATURES), np.float32), np.ones(4))
    return min(measure(lambda: pickle.loads(pickle.dumps(one + one, protocol=5))).cpu for _ in range(20))


def overhead(executor: Executor) -> float:
    """Wall seconds an item of a map that does nothing."""
    items = list(range(200))
    list(executor.map(nothing, items))
    return min(measure(lambda: list(executor.map(nothing, items))).wall for _ in range(3)) / len(items)


def workers_of(name: str) -> int:
    """Number of workers in a case's name."""
    return int(name.split()[1]) if " " in name else 1


def kills(folder: Path, chunk_rows: int) -> dict[str, Any]:
    """A pass with two workers of which each is killed once, against the undisturbed one."""
    expected = rows_of(folder, SerialExecutor(), chunk_rows).moments()
    killed: list[int] = []
    with cluster(2) as client, tempfile.TemporaryDirectory() as logs:
        pids = list(client.run(os.getpid).values())

        def kill(progress: dict[str, Any]) -> None:
            """After each of the first two waves; the next one is running then."""
            if len(killed) < 2:
                killed.append(pids[len(killed)])
                os.kill(killed[-1], signal.SIGKILL)

        data = rows_of(folder, DaskExecutor(client), chunk_rows, kill)
        found = measure(lambda: data.reduce(partial(logged, logs), Moments.__add__))
        runs = {int(path.name): path.read_text().split() for path in Path(logs).iterdir()}
        client.wait_for_workers(2)
        calm = measure(rows_of(folder, DaskExecutor(client), chunk_rows).moments)
    times = Counter(start for own in runs.values() for start in own)
    lost = {start for pid in killed for start in runs.get(pid, [])}
    return {
        "chunks": len(data.chunks),
        "killed_workers": len(killed),
        "chunks_run_by_killed_workers": len(lost),
        "chunks_run_again": sum(times.values()) - len(times),
        "only_lost_ones_run_again": {start for start, n in times.items() if n > 1} <= lost,
        "same_bits": found.value.gram.tobytes() == expected.gram.tobytes(),
        "wall_s": found.wall,
        "wall_without_kill_s": calm.wall,
    }


def spline_fit(folder: Path, chunk_rows: int) -> list[dict[str, Any]]:
    """A whole fit of a spline in this process and in two, and whether the networks agree."""
    rows, first = [], (0.0, 0.0, b"")
    for name, executor in {"serial": SerialExecutor(), "joblib 2": JoblibExecutor(2)}.items():
        model = SplineRegressor(max_degree=1, max_terms=TERMS, random_state=SEED)
        fit = partial(model.fit, rows_of(folder, executor, chunk_rows))
        runs = [busiest_process(fit) for _ in range(2)]
        wall, busiest = min(found.wall for found, _ in runs), min(cpu for _, cpu in runs)
        weights = b"".join(layer.weight.tobytes() for layer in model.network_.layers)
        first = first if rows else (wall, busiest, weights)
        rows.append(
            {
                "executor": name,
                "passes": model.result_.info["passes"] + 1,
                "wall_s": wall,
                "speed_up_wall": first[0] / wall,
                "busiest_cpu_s": busiest,
                "speed_up_cpu": first[1] / busiest,
                "same_bits": weights == first[2],
            }
        )
    return rows


def small_data(client: Any, repeats: int) -> list[dict[str, Any]]:
    """Wall seconds of a pass over little data by executor, and what the automatic choice takes."""
    rng = np.random.default_rng(SEED)
    found = []
    for count in (2_000, 20_000, 200_000):
        X = rng.standard_normal((count, 32))
        cases = {"serial": SerialExecutor(), "dask 2": DaskExecutor(client), "auto": AutoExecutor()}
        walls = {}
        for name, executor in cases.items():
            data = stream(X, X[:, 0], memory_limit=16 * 32 * 8 * max(count // 20, 100), executor=executor)
            data.moments()
            walls[name] = median_iqr([measure(data.moments).wall for _ in range(repeats)])[0]
        found.append({"rows": count, **{f"{name} s": wall for name, wall in walls.items()}})
    return found


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """Client of single-threaded local workers."""
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as local,
        Client(local) as client,
    ):
        yield client


def table(title: str, rows: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    """Table of records with equal keys."""
    columns = [name.replace("_", " ") for name in rows[0]]
    return {"title": title, "columns": columns, "rows": [list(row.values()) for row in rows], "notes": notes}


def main() -> None:
    """Run the four parts, record."""
    quick = parse_arguments(__doc__).quick
    repeats, count, chunk_rows = (1, 64_000, 2_000) if quick else (REPEATS, 1_024_000, 32_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, count)
        serial: dict[str, Executor] = {"serial": SerialExecutor()}
        # before any cluster: dask puts MALLOC_TRIM_THRESHOLD_ into the environment that loky inherits
        in_processes = serial | {"joblib 1": JoblibExecutor(1), "joblib 2": JoblibExecutor(2)}
        rows_of(folder, SerialExecutor(), chunk_rows).moments()  # the files into the page cache
        fitted = spline_fit(folder, chunk_rows)
        scaled = scaling(folder, in_processes, chunk_rows, repeats)
        with cluster(1) as client:
            scaled += scaling(folder, serial | {"dask 1": DaskExecutor(client)}, chunk_rows, repeats)[1:]
        with cluster(2) as client:
            scaled += scaling(folder, serial | {"dask 2": DaskExecutor(client)}, chunk_rows, repeats)[1:]
            small = small_data(client, repeats)
        killed = kills(folder, chunk_rows // 4 if not quick else chunk_rows)
    for row in (*scaled, *fitted, *small, killed):
        print(row)
    tables = [
        table("Executors: statistics pass on one and two workers, measured and modelled", scaled, NOTES),
        table("Executors: fit of a spline on one and two workers", fitted, FIT_NOTES),
        table("Executors: small data, seconds a pass", small, SMALL_NOTES),
        table("Executors: two workers, each killed once in the middle of a pass", [killed], KILL_NOTES),
    ]
    payload = {
        "seeds": [SEED],
        "scaling": scaled,
        "spline": fitted,
        "small": small,
        "kills": killed,
        "table": tables,
    }
    write_record("executors", payload, quick=quick)


if __name__ == "__main__":
    main()
