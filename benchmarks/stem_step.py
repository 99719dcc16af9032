"""What the all-band stem costs: a training step of TerraMind tiny with it, against the same network without."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

IDS: tuple[str, ...] = ("stem_step",)
BATCH, SIZE = 8, 224


def run(quick: bool) -> list[dict[str, Any]]:
    """Time both in turns: forward, backward, no optimiser; the minimum of several."""
    import torch

    from cryosentinel.models.segmenter import SegmenterConfig, build_segmenter
    from cryosentinel.sensors import MODALITIES, PUBLISHED_STATISTICS

    plain = SegmenterConfig(decoder="UNetDecoder", decoder_channels=(64, 48, 32, 24), head_channels=())
    models = {
        "ours": build_segmenter(replace(plain, stem_channels=(64, 32)), PUBLISHED_STATISTICS).train(),
        "peer": build_segmenter(plain, PUBLISHED_STATISTICS).train(),
    }
    torch.manual_seed(0)
    batch = {name: 1000 * torch.rand(BATCH, len(bands), SIZE, SIZE) for name, bands in MODALITIES.items()}
    best = dict.fromkeys(models, float("inf"))
    for _ in range(3 if quick else 8):
        for name, model in models.items():
            start = time.perf_counter()
            model(batch).square().mean().backward()
            best[name] = min(best[name], time.perf_counter() - start)
            model.zero_grad()
    ours, peer = (1000 * best[name] for name in ("ours", "peer"))
    return [
        {
            "id": "stem_step",
            "what": f"forward and backward of TerraMind tiny with the all-band stem and without, batch {BATCH}, {SIZE} "
            f"px (the stem adds {ours / peer - 1:.0%}; a fifth at most is wanted)",
            "ours": round(ours, 1),
            "peer": round(peer, 1),
            "peer_name": "the same network without a stem",
            "unit": "ms",
            "ratio": round(peer / ours, 2),
            "goal": 0.83,
        }
    ]
