"""Run every benchmark script (or those named), then regenerate the documentation's tables and figures.

python benchmarks/run.py [--quick] [name ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PAGES = ("tables", "figures", "losses", "choosing")
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


def main() -> int:
    """Run, summarise, and return 1 if a script failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="passed on to every script")
    arguments = parser.parse_args()
    outcome: list[tuple[str, int, float]] = []
    for script in scripts(arguments.names):
        print(f"== {script.stem}", flush=True)
        start = time.perf_counter()
        command = [sys.executable, str(script), *(["--quick"] if arguments.quick else [])]
        code = subprocess.run(command, check=False).returncode
        outcome.append((script.stem, code, time.perf_counter() - start))
    if not arguments.quick:
        for page in PAGES:
            subprocess.run([sys.executable, str(FOLDER / f"{page}.py")], check=True)
    print(f"\n{'benchmark':<32}{'seconds':>9}  outcome")
    for name, code, seconds in outcome:
        print(f"{name:<32}{seconds:>9.1f}  {'ok' if code == 0 else f'failed with exit code {code}'}")
    return int(any(code for _, code, _ in outcome))


if __name__ == "__main__":
    sys.exit(main())
