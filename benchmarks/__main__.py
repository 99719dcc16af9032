"""Run the benchmarks: ``python -m benchmarks [--only ID]``."""

import argparse
import sys

from benchmarks.harness import BenchmarkError, run

parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure ours beside its peers.")
parser.add_argument("--only", metavar="ID", help="one benchmark; all where left out")
parser.add_argument("--quick", action="store_true", help="small and rough; printed, not kept")
options = parser.parse_args()
try:
    run(options.only, options.quick)
except BenchmarkError as error:
    sys.exit(f"benchmarks: {error}")
