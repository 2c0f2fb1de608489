"""Fits with one thread of the numerical libraries against all cores: what the default of one thread is worth.

Fresh processes, in turns, on the digits with 300 hidden units; wall seconds of the fit after one warming fit
on a few rows. The outcome depends on who else uses the cores: the load is recorded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median

from common import ROOT, parse_arguments, write_record

METHODS = ("manifold", "fenchel")
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

FIT = """
import sys, time, warnings
warnings.simplefilter("ignore")
from liftopt import limit_threads
from liftopt.data import load
from liftopt.methods import make_estimator
method, threads = sys.argv[1], int(sys.argv[2])
split = load("digits").split(random_state=0)
X, y = split.X_train, split.y_train
common = {"hidden_layer_sizes": (300,), "random_state": 0}
with limit_threads(threads):
    make_estimator(method, "classification", common=common | {"max_iter": 2}).fit(X[:400], y[:400])
    wall, cpu = time.perf_counter(), time.process_time()
    make_estimator(method, "classification", common=common).fit(X, y)
    print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def seconds(method: str, threads: int) -> tuple[float, float]:
    """Wall and CPU seconds of one fit in a fresh process that is free to use all cores."""
    free = {key: value for key, value in os.environ.items() if key not in _VARIABLES}
    command = [sys.executable, "-c", FIT, method, str(threads)]
    done = subprocess.run(command, cwd=ROOT, env=free, capture_output=True, text=True, check=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def main() -> None:
    """Measure in turns, record."""
    quick = parse_arguments(__doc__).quick
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    rows, runs = [], {}
    for method in METHODS[:1] if quick else METHODS:
        found: dict[int, list[tuple[float, float]]] = {1: [], cores: []}
        for _ in range(1 if quick else 3):
            for threads, values in found.items():
                values.append(seconds(method, threads))
        runs[method] = found
        wall = {threads: median(w for w, _ in values) for threads, values in found.items()}
        rows.append([method, wall[1], wall[cores], wall[cores] / wall[1]])
    payload = {
        "runs": runs,
        "load": load,
        "seeds": [0],
        "table": {
            "title": "Threads of a fit",
            "columns": ["method, digits", "1 thread, wall s", f"{cores} threads, wall s", "ratio"],
            "rows": rows,
            "notes": f"Medians in fresh processes; load of the machine at the start: {load:.1f}. Above 1 in "
            "the last column, threads make the fit slower.",
        },
    }
    write_record("threads", payload, quick=quick)


if __name__ == "__main__":
    main()
