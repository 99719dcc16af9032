"""Turn the last standard study into book/standard_metrics.json, which is committed and which the book quotes.

``python scripts/standard.py [STUDY]`` after ``make study PRESET=standard``; STUDY is outputs/study by default.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryosentinel.errors import CryoSentinelError, InputError
from cryosentinel.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "make study PRESET=standard"


def standard_record(study: Path, commit: str) -> dict[str, object]:
    """The record of a standard run: command, commit, date, metrics, and the seconds of its stages.

    Args:
        study: folder with metrics.json and timings.json.
        commit: that the run was made at.

    Raises:
        InputError: the folder holds no standard run, or one mixed with another preset.
    """
    timings = read_json(study / "timings.json")
    presets = {stage["preset"] for stage in timings.values()}
    if presets != {"standard"}:
        found = ", ".join(sorted(presets)) or "nothing"
        raise InputError(f"{study} holds stages of {found}, not of a standard run alone; run {COMMAND} first.")
    metrics = study / "metrics.json"
    return {
        "command": COMMAND,
        "commit": commit,
        "date": datetime.fromtimestamp(metrics.stat().st_mtime, UTC).date().isoformat(),
        "seconds": {name: stage["seconds"] for name, stage in timings.items()},
        "metrics": read_json(metrics),
    }


def main(argv: list[str]) -> int:
    """Write book/standard_metrics.json."""
    study = Path(argv[0]) if argv else ROOT / "outputs" / "study"
    git = ["git", "-C", str(ROOT)]
    changed = subprocess.run([*git, "status", "--porcelain", "cryosentinel", "configs", "notebooks"],
                             capture_output=True, text=True, check=True).stdout  # fmt: skip
    try:
        if changed:
            raise InputError("The package, a configuration or a notebook differs from its commit; commit it first.")
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        write_json(ROOT / "book" / "standard_metrics.json", standard_record(study, commit))
    except CryoSentinelError as error:
        print(f"standard: {error}", file=sys.stderr)
        return 2
    print(f"{study} -> {ROOT / 'book' / 'standard_metrics.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
