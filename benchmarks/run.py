"""Run every benchmark script (or those named), then regenerate the documentation's tables and figures.

python benchmarks/run.py [--quick] [--stale] [name ...]

With ``--stale`` those are left out whose record was measured with the present code: after an interruption, or
after a change of one script, it runs the rest.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from common import peers_python

FOLDER = Path(__file__).resolve().parent
PAGES = ("tables", "figures", "losses", "choosing")
BESIDE_PEERS = {"box_qp"}  # scripts that import peers themselves
NOT_BENCHMARKS = {
    *PAGES,
    "common",
    "peer_code",
    "run",
    "sampling_runs",
    "ternary_rivals",
}


def scripts(names: list[str]) -> list[Path]:
    """The scripts to run, sorted; unknown names end the program with the list of known ones."""
    known = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem not in NOT_BENCHMARKS}
    unknown = sorted(set(names) - set(known))
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}")
    return [known[name] for name in names or known]


def is_stale(script: Path) -> bool:
    """Whether a script has no record, or one of other code: packages, ``common.py``, the script itself."""
    path = FOLDER / "results" / f"{script.stem}.json"
    if not path.exists():
        return True
    commit = json.loads(path.read_text())["environment"]["commit"]
    if not commit or commit.endswith("-dirty"):
        return True
    code = ["liftopt", "solvers", "benchmarks/common.py", f"benchmarks/{script.name}"]
    command = ["git", "-C", str(FOLDER.parent), "diff", "--quiet", commit, "--", *code]
    return subprocess.run(command, check=False, capture_output=True).returncode != 0


def main() -> int:
    """Run, summarise, and return 1 if a script failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="passed on to every script")
    parser.add_argument("--stale", action="store_true", help="leave out what the present code has measured")
    arguments = parser.parse_args()
    outcome: list[tuple[str, int, float, float]] = []
    for script in scripts(arguments.names):
        if arguments.stale and not is_stale(script):
            continue
        print(f"== {script.stem}", flush=True)
        start, cpu = time.perf_counter(), cpu_of_children()
        python = peers_python() if script.stem in BESIDE_PEERS else None
        command = [python or sys.executable, str(script), *(["--quick"] if arguments.quick else [])]
        code = subprocess.run(command, check=False).returncode
        outcome.append((script.stem, code, time.perf_counter() - start, cpu_of_children() - cpu))
    if not arguments.quick:
        for page in PAGES:
            subprocess.run([sys.executable, str(FOLDER / f"{page}.py")], check=True)
    print(f"\n{'benchmark':<32}{'wall s':>9}{'CPU s':>9}  outcome")
    for name, code, wall, cpu in outcome:
        print(f"{name:<32}{wall:>9.1f}{cpu:>9.1f}  {'ok' if code == 0 else f'failed with exit code {code}'}")
    print(f"{'all':<32}{sum(row[2] for row in outcome):>9.1f}{sum(row[3] for row in outcome):>9.1f}")
    return int(any(code for _, code, *_ in outcome))


def cpu_of_children() -> float:
    """CPU seconds of the processes that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
