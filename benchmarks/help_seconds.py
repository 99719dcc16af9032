"""How long ``cryosentinel --help`` keeps a user waiting, beside ``terratorch --help``."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import interleaved

IDS: tuple[str, ...] = ("help_seconds",)


def _help(program: str) -> None:
    path = Path(sys.executable).with_name(program)
    subprocess.run([str(path), "--help"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(quick: bool) -> list[dict[str, Any]]:
    """Median seconds of both commands, each started afresh, in turns."""
    _help("cryosentinel")  # both are timed with their files in the page cache
    _help("terratorch")
    tasks = {name: lambda name=name: _help(name) for name in ("cryosentinel", "terratorch")}
    seconds = interleaved(tasks, rounds=1 if quick else 5)
    ours, peer = (statistics.median(seconds[name]) for name in tasks)
    return [
        {
            "id": "help_seconds",
            "what": "command line help",
            "ours": ours,
            "peer": peer,
            "peer_name": "TerraTorch's command",
            "unit": "s",
            "ratio": peer / ours,
            "goal": "at most 0.5 s",
        }
    ]
