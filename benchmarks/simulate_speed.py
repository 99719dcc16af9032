"""Simulated chips a second on two processes, and that their bits do not depend on how many there are.

There is no peer: nothing else makes aligned Sentinel-1, Sentinel-2 and elevation chips of lakes with known truth.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import BenchmarkError
from cryosentinel.paths import SHARDS
from cryosentinel.simulate import PRESETS, simulate

IDS: tuple[str, ...] = ("simulate_chips_a_second",)
WORKERS = 2
GOAL = 10.0


def _digest(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.glob(SHARDS))}


def run(quick: bool) -> list[dict[str, Any]]:
    """The quick preset (the tiny one if ``quick``) with two workers; the tiny one again with one and with two."""
    with tempfile.TemporaryDirectory() as folder:
        same = [
            _digest(simulate(Path(folder) / f"tiny{workers}", PRESETS["tiny"], workers, progress=False))
            for workers in (1, WORKERS)
        ]
        if same[0] != same[1]:
            raise BenchmarkError("One and two workers give different chips.")
        preset = "tiny" if quick else "quick"
        start = time.perf_counter()
        root = simulate(Path(folder) / "timed", PRESETS[preset], WORKERS, progress=False)
        seconds = time.perf_counter() - start
        chips = sum(1 for _ in _chips(root))
    what = f"chips of the preset {preset} simulated with two workers, start of the processes included; equal bits"
    return [
        {"id": IDS[0], "what": what, "ours": chips / seconds, "peer": None, "peer_name": None, "unit": "chips/s",
         "ratio": None, "goal": GOAL}
    ]  # fmt: skip


def _chips(root: Path) -> Any:
    from cryosentinel.data.chips import read_shard_metadata

    for path in root.glob(SHARDS):
        yield from read_shard_metadata(path)
