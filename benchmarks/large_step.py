"""Steps of the published finetuning with its large model and random weights: seconds, memory, and inference of a chip.

On the GPU where there is one, else on the CPU, in the precision that suits the device. The steps must move every part
of the network. The process is a fresh one, so that its peak memory is that of the steps alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IDS: tuple[str, ...] = ("large_step_seconds", "large_step_memory", "large_inference_seconds")
ROOT = Path(__file__).resolve().parents[1]
BATCH, STEPS = 2, 3


def measure(model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Take the steps, then segment the same chips with four flips.

    Args:
        model: what is to differ from the published model.

    Raises:
        RuntimeError: a loss is not a number, or a part of the network stands still.
    """
    import torch

    from benchmarks.harness import machine, peak_resident_gib
    from benchmarks.published_model import CONFIG, Training, model_name, published_run, synthetic_batch
    from cryosentinel.evaluation.predictors import ModelPredictor
    from cryosentinel.precision import device_of
    from cryosentinel.sensors import CHIP_SIZE

    device, run = device_of("auto"), published_run(model)
    training, batch = Training(run, device), synthetic_batch(BATCH, CHIP_SIZE, device)
    training.remember(batch)
    before, seconds, losses = training.values(), [], []
    for _ in range(STEPS):
        begun = time.perf_counter()
        losses.append(training.step(batch))  # a number, so that a GPU has finished; raises where it is not one
        seconds.append(time.perf_counter() - begun)
    still = [part for part, moved in training.parts_moved(before).items() if not moved]
    if still:
        raise RuntimeError(f"After {STEPS} steps {', '.join(still)} of {model_name(run)} stand where they stood.")
    cuda = device == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else peak_resident_gib()
    predict = ModelPredictor(training.task.model, flips=4)
    inference = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        predict(batch)
        inference.append((time.perf_counter() - begun) / BATCH)
    on = torch.cuda.get_device_name() if cuda else machine()["cpu"]
    return {
        "what": f"{CONFIG.name}, random weights, {training.parameters / 1e6:.0f} M parameters ({model_name(run)}), "
        f"{training.precision.name}, {BATCH} chips of {CHIP_SIZE} px, on {on}",
        "seconds": statistics.median(seconds),
        "gib": peak,
        "inference": min(inference),
        "losses": losses,
    }


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure in a process of its own; ``quick`` takes the tiny model."""
    command = [sys.executable, "-m", "benchmarks.large_step", *(["--tiny"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"losses of the {STEPS} steps: {', '.join(f'{loss:.3f}' for loss in found['losses'])}", flush=True)
    rows = (
        ("large_step_seconds", f"a training step of {found['what']}; median of {STEPS}", found["seconds"], "s"),
        ("large_step_memory", f"training steps of {found['what']}; peak memory", found["gib"], "GiB"),
        (
            "large_inference_seconds",
            f"a chip, four flips, {found['what']}; best of {STEPS}",
            found["inference"],
            "s",
        ),
    )
    nothing = {"peer": None, "peer_name": "", "ratio": None, "goal": None}
    return [{"id": name, "what": what, "ours": ours, "unit": unit, **nothing} for name, what, ours, unit in rows]


if __name__ == "__main__":
    from benchmarks.published_model import TINY

    print(json.dumps(measure(TINY if "--tiny" in sys.argv else None)))
