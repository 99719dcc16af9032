"""Peak memory of predicting a large scene: bands of rows against TerraTorch's tiled inference, the same network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

IDS: tuple[str, ...] = ("scene_memory_vs_terratorch",)

SIDE, QUICK_SIDE = 3660, 448
OVERLAP = 32

_COMMON = """
import json, re, sys, tempfile, time
import numpy as np, rasterio, torch

def resident(field):  # kB, of this program alone
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

path, overlap = sys.argv[1], int(sys.argv[2])
from cryosentinel.models.segmenter import SegmenterConfig, build_segmenter
from cryosentinel.sensors import PUBLISHED_STATISTICS

torch.manual_seed(0)
config = SegmenterConfig(decoder="UNetDecoder", decoder_channels=(64, 32, 16, 16), head_channels=())
network = build_segmenter(config, PUBLISHED_STATISTICS).eval()
with torch.inference_mode():  # what the first pass allocates for good belongs to the loaded model
    network({name: torch.ones(1, n, 224, 224) for name, n in (("S2L2A", 12), ("S1GRD", 2), ("DEM", 1))})
"""

_OURS = """
from cryosentinel.mapping.scene import Options, predict_scene

before, start = resident("VmRSS"), time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    options = Options(flips=1, overlap=overlap, batch_size=4, precision="32-true")
    predict_scene(network, path, folder, options=options, progress=False)
"""

#: As its documentation shows it: the scene in memory, windows of the same size and stride, batches of the same size.
_PEER = """
from terratorch.tasks.tiled_inference import tiled_inference

before, start = resident("VmRSS"), time.perf_counter()
with rasterio.open(path) as source:
    scene = torch.from_numpy(source.read())[None]

def forward(x, **_):
    return network({"S2L2A": x[:, :12], "S1GRD": x[:, 12:14], "DEM": x[:, 14:]})[:, None]

with torch.inference_mode():
    logits = tiled_inference(forward, scene, out_channels=1, crop=224, stride=224 - overlap, delta=0, batch_size=4)
    water = (torch.sigmoid(logits) >= 0.5).numpy()
"""

_REPORT = """
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": (resident("VmHWM") - before) * 1024}))
"""


def _write_scene(path: Path, height: int, width: int) -> None:
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 15, "height": height, "width": width, "tiled": True,
               "crs": "EPSG:32643", "transform": from_origin(500_000, 4_800_000, 10, 10)}  # fmt: skip
    with rasterio.open(path, "w", **profile) as sink:
        for top in range(0, height, 256):
            rows = min(256, height - top)
            bands = rng.integers(100, 4000, (15, rows, width)).astype(np.float32)
            bands[12:14] = rng.normal(-12, 4, (2, rows, width))
            sink.write(bands, window=Window(0, top, width, rows))


def run(quick: bool) -> list[dict[str, Any]]:
    """Each in a process of its own; peak resident memory above the loaded network, and seconds."""
    side = QUICK_SIDE if quick else SIDE
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        _write_scene(path, side, side)
        for name, program in (("ours", _OURS), ("peer", _PEER)):
            done = subprocess.run(
                [sys.executable, "-c", _COMMON + program + _REPORT, str(path), str(OVERLAP)], check=True, text=True,
                capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            found[name] = json.loads(done.stdout.splitlines()[-1])
    ours, peer = (found[name]["bytes"] / 2**30 for name in ("ours", "peer"))
    what = (
        f"peak memory above the loaded network (TerraMind tiny), scene of {side} x {side} x 15, windows of 224 px "
        f"every {224 - OVERLAP}, batches of 4, float32 ({found['ours']['seconds']:.0f} s; TerraTorch "
        f"{found['peer']['seconds']:.0f} s, without files)"
    )
    return [
        {"id": IDS[0], "what": what, "ours": ours, "peer": peer, "peer_name": "TerraTorch tiled inference",
         "unit": "GiB", "ratio": peer / ours, "goal": 4}
    ]  # fmt: skip
