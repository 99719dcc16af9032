"""The published model really takes training steps here: the large one, random weights, its configuration as it stands.

The steps run in a process of their own, so that its peak memory is that of the steps (and of the libraries under
them). Losses must be numbers, and every part of the network must have moved.

    python -m benchmarks.large_step [--tiny]
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

IDS: tuple[str, ...] = ("large_step_seconds", "large_step_memory")
ROOT = Path(__file__).resolve().parents[1]
#: UperNet normalises one pooled value a channel over the batch, so one chip alone cannot be trained on.
BATCH, STEPS = 2, 3


def measure(model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Build the model and take steps, in this process.

    Args:
        model: what is to differ from the published model.

    Raises:
        RuntimeError: a loss is not a number, or a part of the network stands still.
    """
    from benchmarks.accelerator import peak_resident_gib
    from benchmarks.published_model import CONFIG, Training, model_name, published_run, synthetic_batch
    from cryosentinel.sensors import CHIP_SIZE

    run = published_run(model)
    training, batch = Training(run), synthetic_batch(BATCH, CHIP_SIZE)
    training.remember(batch)
    before, seconds, losses = training.values(), [], []
    for _ in range(STEPS):
        begun = time.perf_counter()
        losses.append(training.step(batch))  # raises where the loss is not a number
        seconds.append(time.perf_counter() - begun)
    still = [part for part, moved in training.parts_moved(before).items() if not moved]
    if still:
        raise RuntimeError(f"After {STEPS} steps {', '.join(still)} of {model_name(run)} stand where they stood.")
    return {
        "what": f"a training step of {CONFIG.name}, random weights, {training.parameters / 1e6:.0f} M parameters "
        f"({model_name(run)}), {training.precision.name}, {BATCH} chips of {CHIP_SIZE} px on the CPU",
        "seconds": statistics.median(seconds),
        "gib": peak_resident_gib(),
        "losses": losses,
    }


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure in a process of its own; ``quick`` takes the tiny model."""
    command = [sys.executable, "-m", "benchmarks.large_step", *(["--tiny"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"losses of the {STEPS} steps: {', '.join(f'{loss:.3f}' for loss in found['losses'])}", flush=True)
    common = {"peer": None, "peer_name": "", "ratio": None, "goal": None}
    return [
        {
            "id": "large_step_seconds",
            "what": f"{found['what']}; median of {STEPS}",
            "ours": found["seconds"],
            "unit": "s",
            **common,
        },
        {
            "id": "large_step_memory",
            "what": f"{found['what']}; peak resident memory of the process",
            "ours": found["gib"],
            "unit": "GiB",
            **common,
        },
    ]


if __name__ == "__main__":
    from benchmarks.published_model import TINY

    print(json.dumps(measure(TINY if "--tiny" in sys.argv else None)))
