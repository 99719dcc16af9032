"""Milliseconds a window of mapping a scene, from the open raster to the written one: what a plan is made from."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

IDS: tuple[str, ...] = ("scene_window", "scene_window_large")

SIDES = {"scene_window": (672, 1120), "scene_window_large": (224, 672)}
QUICK = (224, 336)


def run(quick: bool) -> list[dict[str, Any]]:
    """One pass a window (no flips), half overlap, float32; the median of three runs."""
    import statistics

    from benchmarks.published_model import model_name, published_run
    from benchmarks.scene_memory import _write_scene
    from cryosentinel.errors import InputError
    from cryosentinel.mapping.product import default_weights
    from cryosentinel.mapping.scene import Options, predict_scene
    from cryosentinel.models.checkpoint import load_segmenter
    from cryosentinel.models.segmenter import SegmenterConfig, build_segmenter
    from cryosentinel.sensors import PUBLISHED_STATISTICS

    rows = []
    for name in IDS[:1] if quick else IDS:
        if name == "scene_window":
            try:
                network, which = load_segmenter(default_weights()), "the packaged network"
            except InputError:
                config = SegmenterConfig(decoder="UNetDecoder", decoder_channels=(64, 48, 32, 24), head_channels=())
                network, which = build_segmenter(config, PUBLISHED_STATISTICS), "TerraMind tiny, random weights"
        else:
            published = published_run()
            network = build_segmenter(published.model, PUBLISHED_STATISTICS)
            which = f"{model_name(published)}, the published configuration, random weights"
        network = network.eval()
        height, width = QUICK if quick else SIDES[name]
        options, seconds = Options(flips=1, precision="32-true"), []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scene.tif"
            _write_scene(path, height, width)
            for turn in range(1 if quick else 3):
                begun = time.perf_counter()
                made = predict_scene(network, path, Path(folder) / str(turn), options=options, progress=False)
                seconds.append(time.perf_counter() - begun)
        windows = made["windows"]["run"]
        import torch

        what = f"a window of 224 px, one pass, float32, {torch.get_num_threads()} threads: {which}; {windows} windows"
        rows.append({"id": name, "what": what, "ours": 1000 * statistics.median(seconds) / windows, "peer": None,
                     "peer_name": "", "unit": "ms", "ratio": None, "goal": None})  # fmt: skip
    return rows
