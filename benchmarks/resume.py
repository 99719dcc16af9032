"""Kill training with SIGKILL at random moments and compare the finished run with one that was left alone.

Each attempt starts ``cryosentinel fit`` on simulated-format chips, kills it after a random time, and starts it again
until it is done; weights, averages, optimiser, schedule, callbacks and the log must then be equal to the last bit.

    python -m benchmarks.resume [--points 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IDS: tuple[str, ...] = ("resume_points",)
ROOT = Path(__file__).resolve().parents[1]
EPOCHS, SIZE = 3, 128


def write_chips(root: Path, count: int = 24) -> None:
    """Chips of noise with a lake that the index sees, spread over split blocks."""
    import numpy as np

    from cryosentinel.data.chips import Chip, write_shard

    chips = []
    for k in range(count):
        rng = np.random.default_rng(k)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        if k % 3:
            mask[10 : 20 + 2 * k, 30:80] = 1
        s2 = rng.integers(500, 4000, (12, SIZE, SIZE)).astype(np.uint16)
        s2[2], s2[10] = np.where(mask, 2000, 800), np.where(mask, 200, 2500)
        chips.append(
            Chip(
                s2=s2,
                s1=rng.normal(-12, 4, (2, SIZE, SIZE)).astype(np.float32),
                dem=rng.integers(3000, 5000, (1, SIZE, SIZE)).astype(np.int16),
                mask=mask,
                chip_id=f"chip_{k:03d}",
                region="ile_alatau",
                snapshot_year=2021,
                lat=float(rng.uniform(42, 45)),
                lon=float(rng.uniform(75, 79)),
            )
        )
    write_shard(root / "ile_alatau" / "2021" / "shard_000.parquet", chips)


def write_config(path: Path, data: Path) -> None:
    """A small U-Net with batch statistics and dropout, all augmentations, a checkpoint every four steps."""
    import yaml

    config = {
        "run_name": "resume",
        "data": {"root": str(data), "batch_size": 2, "buffer": 0.0, "augment": {"mosaic_p": 0.2}},
        "model": {"architecture": "smp_unet", "encoder_name": "mobilenet_v2"},
        "optim": {"lr": 1e-3, "layer_decay": 1.0, "backbone_mult": 1.0, "swa": {"start": 0.5, "lr": 1e-4}},
        "validation": {"flips": 2},
        "checkpoints": {"snapshot_last": 2, "every_n_steps": 4},
        "trainer": {"max_epochs": EPOCHS, "accelerator": "cpu", "threads": 1, "progress_bar": False},
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def start(config: Path, run: Path) -> subprocess.Popen[bytes]:
    """The command, in its own process."""
    words = [sys.executable, "-m", "cryosentinel", "fit", "--config", str(config), "--run_dir", str(run)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(config: Path, run: Path) -> float:
    """Run to the end.

    Returns:
        seconds.

    Raises:
        RuntimeError: the command failed.
    """
    began = time.monotonic()
    process = start(config, run)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode()[-2000:])
    return time.monotonic() - began


def contents(run: Path) -> dict[str, Any]:
    """What must be equal: every checkpoint without Lightning's counters of restarts, and the log."""
    from cryosentinel.models.checkpoint import load_checkpoint

    found: dict[str, Any] = {"metrics.csv": (run / "logs" / "metrics.csv").read_text(encoding="utf-8")}
    for path in sorted((run / "checkpoints").glob("[!.]*.ckpt")):
        checkpoint = load_checkpoint(path)
        checkpoint.pop("loops", None)
        checkpoint.get("callbacks", {}).get("RunFiles", {}).pop("seconds", None)
        found[path.name] = checkpoint
    return found


def equal(one: Any, two: Any) -> bool:
    """To the last bit, through all containers."""
    import torch

    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def try_points(points: int, seed: int) -> dict[str, int]:
    """Kill at ``points`` random moments, some of them twice in one run.

    Returns:
        how many runs came out equal, of how many, and how many kills hit a process that was still at work.
    """
    draw = random.Random(seed)
    equal_runs = runs = kills = 0
    with tempfile.TemporaryDirectory() as folder:
        config, data = Path(folder) / "config.yaml", Path(folder) / "data"
        write_chips(data)
        write_config(config, data)
        finish(config, Path(folder) / "warm")  # fills the cache of converted shards
        seconds = finish(config, Path(folder) / "whole")
        whole = contents(Path(folder) / "whole")
        while kills < points:
            run = Path(folder) / f"run_{runs}"
            for _ in range(draw.choice((1, 1, 2))):
                process = start(config, run)
                try:
                    process.wait(draw.uniform(0.15, 1.0) * seconds)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
            finish(config, run)
            same = equal(whole, contents(run))
            equal_runs, runs = equal_runs + same, runs + 1
            at = f"{kills} of {points} kills"
            print(f"run {runs}: {'equal' if same else 'DIFFERS'} ({at})", flush=True)
    return {"equal": equal_runs, "runs": runs, "kills": kills}


def run(quick: bool) -> list[dict[str, Any]]:
    """The share of killed runs that end equal to the last bit."""
    result = try_points(4 if quick else 20, seed=0)
    return [
        {
            "id": "resume_points",
            "what": f"runs killed with SIGKILL at random moments ({result['kills']} kills) that end bit for bit as the "
            "uninterrupted run",
            "ours": result["equal"],
            "peer": result["runs"],
            "peer_name": "runs tried",
            "unit": "runs",
            "ratio": round(result["equal"] / result["runs"], 3),
            "goal": 1,
        }
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    outcome = try_points(given.points, given.seed)
    print(f"{outcome['equal']} of {outcome['runs']} runs equal after {outcome['kills']} kills")
    sys.exit(outcome["equal"] != outcome["runs"])
