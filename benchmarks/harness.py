"""Runs benchmark files and merges what they measured into results.json.

A benchmark file names its ids in a module constant ``IDS: tuple[str, ...]`` and defines ``run(quick: bool)``, which
returns one row an id. Ours and the peer run in turns, in the same process tree; a row holds the median or the minimum.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cryosentinel.files import write_json
from cryosentinel.precision import native_bfloat16
from cryosentinel.study.machine import processor

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results.json"
#: What a benchmark fills in; peer, ratio and goal may be None where there is nothing to compare with or to reach.
KEYS = ("id", "what", "ours", "peer", "peer_name", "unit", "ratio", "goal")


class BenchmarkError(Exception):
    """A benchmark that does not exist, or a row that does not say what it must."""


def catalogue(folder: Path = HERE) -> dict[str, str]:
    """Id -> name of its file, read without importing any of them.

    Raises:
        BenchmarkError: two files claim one id.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
            value = getattr(node, "value", None)
            if not (isinstance(target, ast.Name) and target.id == "IDS" and value is not None):
                continue
            for each in ast.literal_eval(value):
                if each in found:
                    raise BenchmarkError(f"Both {found[each]}.py and {path.name} measure {each}; rename one.")
                found[each] = path.stem
    return found


def machine() -> dict[str, Any]:
    """Where the measurement was made: processor (and whether it computes in bfloat16), cores, memory, versions."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "bf16": "native" if native_bfloat16("cpu") else "not native",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch,
    }


def check(row: Mapping[str, Any], ids: Sequence[str]) -> None:
    """Refuse a row that does not say what it must.

    Raises:
        BenchmarkError: a key is missing or unknown, the id is not the file's, or a number is not one.
    """
    missing, unknown = [key for key in KEYS if key not in row], [key for key in row if key not in KEYS]
    if missing or unknown:
        raise BenchmarkError(f"The row {row.get('id')!r} lacks {missing} and has the unknown {unknown}.")
    if row["id"] not in ids:
        raise BenchmarkError(f"The row {row['id']!r} is not among the file's ids {', '.join(ids)}.")
    for key in ("ours", "peer", "ratio"):
        value = row[key]
        if not (isinstance(value, (int, float)) and value >= 0) and (key == "ours" or value is not None):
            raise BenchmarkError(f"{key} of {row['id']} is {value!r}, not a number.")
    if (row["peer"] is None) != (row["ratio"] is None):
        raise BenchmarkError(f"{row['id']} has a ratio without a peer or a peer without a ratio.")


def merge(results: list[dict[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results with new rows in the place of old ones of the same id, sorted by id."""
    by_id = {row["id"]: dict(row) for row in [*results, *rows]}
    return [by_id[name] for name in sorted(by_id)]


def run_file(name: str, quick: bool) -> list[dict[str, Any]]:
    """Run one benchmark file and add machine and date to its rows."""
    module = importlib.import_module(f"benchmarks.{name}")
    rows = module.run(quick)
    for row in rows:
        check(row, module.IDS)
    return [{**row, "machine": machine(), "date": date.today().isoformat()} for row in rows]


def run(only: str | None = None, quick: bool = False, results: Path = RESULTS) -> None:
    """Run one benchmark, or all of them each in a process of its own, and merge what they measured.

    Args:
        only: an id; all of its file's ids are measured.
        quick: small and rough, to see that a benchmark works: printed, and kept out of the results.
        results: file to merge into, atomically.

    Raises:
        BenchmarkError: no such id, or a benchmark failed (the others still ran).
    """
    known = catalogue()
    if only is not None:
        if only not in known:
            raise BenchmarkError(f"There is no benchmark {only!r}; known are {', '.join(sorted(known))}.")
        rows = run_file(known[only], quick)
        for row in rows:
            print(line(row), flush=True)
        if not quick:
            old = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else []
            write_json(results, merge(old, rows))
        return
    first = {name: each for each, name in reversed(known.items())}
    failed = []
    for name, each in sorted(first.items()):
        command = [sys.executable, "-m", "benchmarks", "--only", each, *(["--quick"] if quick else [])]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(name)
    if failed:
        raise BenchmarkError(f"These benchmarks failed, see above: {', '.join(failed)}.")


def line(row: Mapping[str, Any]) -> str:
    """A row for the terminal."""
    text = f"{row['id']}: {row['ours']:.4g} {row['unit']}"
    if row["peer"] is not None:
        text += f", {row['peer_name']} {row['peer']:.4g} {row['unit']}: {row['ratio']:.3g} times better"
    return text + (f" (goal: {row['goal']})" if row["goal"] is not None else "")


def interleaved(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each task, in turns, so that whatever else the machine does falls on all of them alike.

    Args:
        tasks: name -> what to time.
        rounds: times that each one runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            begun = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def peak_resident_gib() -> float:
    """Largest resident set that this program has had, in GiB."""
    try:  # Linux hands ru_maxrss down from the program that started this one; VmHWM is this one's own
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**30 if sys.platform == "darwin" else 2**20)
