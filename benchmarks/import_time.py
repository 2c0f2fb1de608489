"""``import liftopt`` against ``import sklearn``: CPU time of a fresh interpreter, and what gets imported."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from common import ROOT, parse_arguments, write_record

HEAVY = ("torch", "cvxpy", "dask", "matplotlib", "pandas", "numba", "onnx", "rich")
STATEMENTS = {
    "nothing": "pass",
    "scikit-learn": "import sklearn.base, sklearn.utils",
    "liftopt": "import liftopt",
    "liftopt.ManifoldClassifier": "from liftopt import ManifoldClassifier",
}


def cpu_seconds(statement: str) -> float:
    """User and system time of a fresh interpreter that runs ``statement``."""
    code = (
        f"{statement}\nimport resource as r; u = r.getrusage(r.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measure in turns, record."""
    quick = parse_arguments(__doc__).quick
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(2 if quick else 11):
        for name, statement in STATEMENTS.items():
            times[name].append(cpu_seconds(statement))
    base = median(times["scikit-learn"])
    rows = [[name, median(values), median(values) / base] for name, values in times.items()]
    code = f"import liftopt, sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    payload = {
        "seeds": [],
        "times": times,
        "loaded": loaded.stdout.split(),
        "table": {
            "title": "Import time",
            "columns": ["import", "CPU s", "times scikit-learn"],
            "rows": rows,
            "notes": f"heavy packages loaded by `import liftopt`: {loaded.stdout.strip() or 'none'}",
        },
    }
    write_record("import_time", payload, quick=quick)


if __name__ == "__main__":
    main()
