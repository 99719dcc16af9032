"""What huge pages for tensors are worth: a training step of the study's network with them and without."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

IDS: tuple[str, ...] = ("huge_pages",)
BATCH, SIZE = 8, 128


def _step_ms(repeats: int) -> float:
    """The fastest of several steps (forward and backward, no optimiser), milliseconds."""
    import torch

    from cryosentinel import paths
    from cryosentinel.models.segmenter import build_segmenter
    from cryosentinel.sensors import MODALITIES, PUBLISHED_STATISTICS
    from cryosentinel.training.config import parse
    from cryosentinel.training.fit import build

    model = build_segmenter(build(*parse(paths.config("quick.yaml")))[0].model, PUBLISHED_STATISTICS).train()
    torch.manual_seed(0)
    batch = {name: 1000 * torch.rand(BATCH, len(bands), SIZE, SIZE) for name, bands in MODALITIES.items()}
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        model(batch).square().mean().backward()
        best = min(best, time.perf_counter() - start)
        model.zero_grad()
    return 1000 * best


def run(quick: bool) -> list[dict[str, Any]]:
    """Time both in turns, each in processes of its own, because the setting is read once; the minimum of several."""
    best = {"1": float("inf"), "0": float("inf")}
    for _ in range(1 if quick else 3):
        for setting in best:
            environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": setting}
            code = f"from benchmarks.huge_pages import _step_ms; print(_step_ms({3 if quick else 10}))"
            found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
            best[setting] = min(best[setting], float(found.stdout.split()[-1]))
    return [
        {
            "id": "huge_pages",
            "what": f"forward and backward of the quick study's network, batch {BATCH}, {SIZE} px, on huge pages",
            "ours": round(best["1"], 1),
            "peer": round(best["0"], 1),
            "peer_name": "torch's default (THP_MEM_ALLOC_ENABLE=0)",
            "unit": "ms",
            "ratio": round(best["0"] / best["1"], 2),
            "goal": None,
        }
    ]
