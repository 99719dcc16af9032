"""Flips only where the first pass is undecided, on simulated chips of a seed that nothing was trained or tuned on."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

IDS: tuple[str, ...] = ("adaptive_tta_forwards",)

SEED, CHIPS, QUICK_CHIPS = 4711, 120, 8


def run(quick: bool) -> list[dict[str, Any]]:
    """Passes a chip of the packaged network, and what global IoU loses against four flips of every chip.

    Raises:
        InputError: the package comes without weights.
    """
    import numpy as np

    from cryosentinel.data.store import ChipStore
    from cryosentinel.evaluation.evaluate import chip_batches
    from cryosentinel.evaluation.predictors import ModelPredictor
    from cryosentinel.mapping.product import default_weights
    from cryosentinel.models.checkpoint import load_segmenter
    from cryosentinel.simulate import PRESETS, TruthStore, simulate

    network = load_segmenter(default_weights())
    passes = [0]
    network.register_forward_hook(lambda _, __, logits: passes.__setitem__(0, passes[0] + len(logits)))
    adaptive, plain = (ModelPredictor(network, precision="32-true", adaptive=each) for each in (True, False))
    counts = np.zeros((2, 2))  # way -> pixels of intersection and union with the truth
    number = forwards = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "chips"
        simulate(root, replace(PRESETS["quick"].scaled(QUICK_CHIPS if quick else CHIPS), seed=SEED), workers=1)
        store, truth = ChipStore(root), TruthStore(root)
        for chips, batch in chip_batches(store, range(len(store)), 8):
            lake = np.stack([truth[chip.chip_id].lake > 0 for chip in chips])
            valid = np.stack([chip.valid for chip in chips])
            for way, predict in enumerate((adaptive, plain)):
                passes[0] = 0
                water = (predict(batch) >= 0.5) & valid
                forwards += passes[0] if predict is adaptive else 0
                counts[way] += (water & lake).sum(), (water | lake & valid).sum()
            number += len(chips)
    lost = float(counts[1, 0] / counts[1, 1] - counts[0, 0] / counts[0, 1])
    what = (
        f"passes a chip, {number} simulated chips of an unseen seed, packaged network at 0.5; global IoU against the "
        f"truth falls by {lost:+.5f} from {counts[1, 0] / counts[1, 1]:.4f}"
    )
    ours = forwards / number
    return [
        {"id": IDS[0], "what": what, "ours": ours, "peer": 4, "peer_name": "four flips of every chip", "unit": "passes",
         "ratio": 4 / ours, "goal": "2, IoU within 0.001"}
    ]  # fmt: skip
