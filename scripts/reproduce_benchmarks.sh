#!/bin/sh
# Compare the published benchmark table, or the embedded benchmark, with what this machine computes.
#
#   scripts/reproduce_benchmarks.sh --ckpt PATH|hf://owner/repo/path --data FOLDER|owner/name
#       evaluates the published checkpoint on the published chips and compares every row that they give to its
#       last published decimal, one that is missing counted as a difference, and lists the rows that they do not give;
#   scripts/reproduce_benchmarks.sh
#       says that the published checkpoint and chips were not given, and compares the embedded benchmark's last study
#       (run if there is none) with the committed record.
#
# Exit status: 0 every row agrees, 1 a row does not, 2 something could not be read. More: --help.
set -eu
cd "$(dirname "$0")/.."
python=python3
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
exec "${PYTHON:-$python}" scripts/reproduce_benchmarks.py "$@"
