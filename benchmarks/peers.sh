#!/bin/sh
# A virtual environment apart from ours with the peers of the benchmarks: comparison packages may change the
# versions of ours. Run a script with .venv-peers/bin/python benchmarks/<claim>.py
set -eu
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv .venv-peers
.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[torch]" "daqp==0.11.0"
.venv-peers/bin/python -m pip list
