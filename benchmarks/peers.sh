#!/bin/sh
# A virtual environment apart from ours with the peers of the benchmarks: comparison packages may change the
# versions of ours. The scripts find it by themselves, or by PEERS_PYTHON; run.py runs box_qp.py with its interpreter.
# R earth is found on the PATH (Rscript with the earth package). What cannot be installed is left out, and
# the records then say so.
set -eu
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv .venv-peers
.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[torch]" "daqp==0.11.0"
for peer in py-earth2==0.2.0 hpelm==1.0.10 pyscnn==0.0.10; do
    .venv-peers/bin/python -m pip install --quiet --constraint constraints.txt "$peer" || echo "left out: $peer"
done
.venv-peers/bin/python -m pip list
