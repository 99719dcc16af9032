"""Turn a finished study into a record that is committed and that the book quotes.

``python scripts/record.py standard [STUDY]`` writes book/standard_metrics.json, ``quick`` book/quick_metrics.json,
``seeds`` book/seeds.json; STUDY is the last study's folder by default.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryosentinel import paths
from cryosentinel.errors import CryoSentinelError, InputError
from cryosentinel.files import read_json, write_json
from cryosentinel.study.comparison import NETWORKS

ROOT = Path(__file__).resolve().parents[1]
STUDY = "cryosentinel study --preset"


def _made(path: Path, command: str, commit: str) -> dict[str, Any]:
    day = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    return {"command": command, "commit": commit, "date": day}


def _networks(figures: Mapping[str, Any]) -> str:
    """The option that trained the networks of which there are figures."""
    trained = [name for name in NETWORKS if f"compared_{name}_test_iou" in figures]
    return f" --parameters.networks {'all' if trained == list(NETWORKS) else ','.join(trained)}" if trained else ""


def study_record(study: Path, commit: str, preset: str = "standard") -> dict[str, Any]:
    """The record of a run of a preset: command, commit, date, machine, metrics, and the seconds of its stages.

    Args:
        study: folder with metrics.json and timings.json.
        commit: that the run was made at.
        preset: whose run.

    Raises:
        InputError: the folder holds no such run, one mixed with another preset, or a standard one without its networks.
    """
    run = f"{STUDY} {preset}" + (" --parameters.networks all" if preset == "standard" else "")
    timings = read_json(study / "timings.json")
    presets = {stage["preset"] for stage in timings.values()}
    if presets != {preset}:
        found = ", ".join(sorted(presets)) or "nothing"
        raise InputError(f"{study} holds stages of {found}, not of a {preset} run alone; run {run} first.")
    metrics = read_json(study / "metrics.json")
    if preset == "standard" and "compared_soup_test_iou" not in metrics:
        raise InputError(f"{study} holds no comparison with other networks; run {run} first.")
    seconds = {name: stage["seconds"] for name, stage in timings.items()}
    machines = {"machine": "; ".join(sorted({stage["machine"] for stage in timings.values()}))}
    command = f"{STUDY} {preset}" + _networks(metrics)
    return {**_made(study / "metrics.json", command, commit), **machines, "seconds": seconds, "metrics": metrics}


def seeds_record(study: Path, commit: str) -> dict[str, Any]:
    """The record of runs with several seeds: command, commit, date, preset, seeds, and mean and spread of each figure.

    Args:
        study: folder with seeds.json.
        commit: that the runs were made at.
    """
    found = read_json(study / "seeds.json")
    seeds = ",".join(map(str, found["seeds"]))
    command = f"{STUDY} {found['preset']} --seeds {seeds}" + _networks(found["figures"])
    return {**_made(study / "seeds.json", command, commit), **found}


RECORDS: dict[str, tuple[Callable[[Path, str], dict[str, Any]], str]] = {
    "standard": (study_record, "standard_metrics.json"),
    "quick": (functools.partial(study_record, preset="quick"), "quick_metrics.json"),
    "seeds": (seeds_record, "seeds.json"),
}


def main(argv: list[str]) -> int:
    """Write a record into book/."""
    if not argv or argv[0] not in RECORDS:
        print(f"record: say which record to write: {' or '.join(RECORDS)}.", file=sys.stderr)
        return 2
    make, name = RECORDS[argv[0]]
    study = Path(argv[1]) if len(argv) > 1 else paths.study()
    git = ["git", "-C", str(ROOT)]
    changed = subprocess.run([*git, "status", "--porcelain", "cryosentinel", "notebooks"],
                             capture_output=True, text=True, check=True).stdout  # fmt: skip
    try:
        if changed:
            raise InputError("The package, a configuration or a notebook differs from its commit; commit it first.")
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        write_json(ROOT / "book" / name, make(study, commit))
    except CryoSentinelError as error:
        print(f"record: {error}", file=sys.stderr)
        return 2
    print(f"{study} -> {ROOT / 'book' / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
