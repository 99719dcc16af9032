"""How much of the mapped water depends on where windows lie: maps at several overlaps held against the largest one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

IDS: tuple[str, ...] = ("seam_error", "seam_error_gate")

OVERLAPS = (168, 112, 64, 32)  # pixels; the first is the reference
SIZE, QUICK_SIZE = 672, 448  # pixels a side
SCENES = ((301, 2), (302, 0))  # seed and number of scenes of gate_windows with lakes in their first pixels


def run(quick: bool) -> list[dict[str, Any]]:
    """Share of the water pixels of either map that differ between an overlap and the largest; packaged network.

    One row for the overlap of ``cryosentinel map`` and one for the smaller one of a range's plan, both without gate.
    """
    import rasterio
    from affine import Affine
    from rasterio.crs import CRS

    from benchmarks.gate_windows import _scene
    from cryosentinel.data.geotiff import Raster, write_geotiff
    from cryosentinel.mapping.planning import GATE_OVERLAP
    from cryosentinel.mapping.product import default_weights
    from cryosentinel.mapping.scene import Options, predict_scene
    from cryosentinel.models.checkpoint import load_segmenter

    network, size = load_segmenter(default_weights()), QUICK_SIZE if quick else SIZE
    differs, either, windows = (dict.fromkeys(OVERLAPS, 0) for _ in range(3))
    for seed, number in SCENES[:1] if quick else SCENES:
        epsg, left, top, layers = _scene(seed, number, size)
        water = {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scene.tif"
            grid = CRS.from_epsg(epsg), Affine(10, 0, left, 0, -10, top)
            write_geotiff(path, Raster(layers["s2"], layers["s1"], layers["dem"], *grid))
            for overlap in OVERLAPS:
                options = Options(flips=1, overlap=overlap)
                made = predict_scene(network, path, Path(folder) / str(overlap), options=options, progress=False)
                windows[overlap] += made["windows"]["run"]
                with rasterio.open(made["water"]) as source:
                    water[overlap] = source.read(1) == 1
        for overlap in OVERLAPS:
            differs[overlap] += int(np.count_nonzero(water[overlap] ^ water[OVERLAPS[0]]))
            either[overlap] += int(np.count_nonzero(water[overlap] | water[OVERLAPS[0]]))
    share = {overlap: differs[overlap] / max(1, either[overlap]) for overlap in OVERLAPS}
    said = ", ".join(f"{o} px {share[o]:.2%} with {windows[o]} windows" for o in OVERLAPS[1:])
    what = (
        f"water pixels that differ from those at {OVERLAPS[0]} px overlap ({windows[OVERLAPS[0]]} windows), by overlap"
    )
    where = f"{1 if quick else len(SCENES)} simulated scenes, {size} x {size} px, {either[OVERLAPS[0]]} water pixels"
    return [
        {"id": name, "what": f"{what}: {said}; {where}; packaged network, one pass", "ours": share[overlap],
         "peer": None, "peer_name": "", "unit": "share", "ratio": None, "goal": None}
        for name, overlap in (("seam_error", Options().overlap), ("seam_error_gate", GATE_OVERLAP))
    ]  # fmt: skip
