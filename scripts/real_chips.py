"""Score the shipped weights on real chips, and write book/real_chips.json, which the book quotes.

``python scripts/real_chips.py TERRAMESH [BIGEARTHNET]``: TERRAMESH holds S2L2A, S1RTC, DEM and LULC with GeoTIFFs of
the same names; BIGEARTHNET the unpacked folders BigEarthNet-S1-Example and BigEarthNet-S2-Example of
bigearthnet-common's wheel. The chips take no part in training or in any choice, and stay where they are: only figures
are written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cryosentinel.errors import CryoSentinelError, InputError
from cryosentinel.files import sha256, write_json
from cryosentinel.indices import mndwi
from cryosentinel.mapping.landcover import TERRAMESH_CLASSES
from cryosentinel.sensors import S2_BANDS

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "book" / "real_chips.json"
MNDWI_WATER = 0.3


def probability(segmenter: Any, s2: np.ndarray, s1: np.ndarray, dem: np.ndarray | None) -> np.ndarray:
    """Probability of lake, (H, W), four flips; a chip without elevation goes without, and small ones are mirrored."""
    import torch

    from cryosentinel.data.chips import clean
    from cryosentinel.models.tta import flip_logits

    used = ["S2L2A", "S1GRD", *(["DEM"] if dem is not None else [])]
    arrays = clean(s2, s1, np.zeros((1, *s2.shape[1:]), np.float32) if dem is None else dem)
    height, width = s2.shape[1:]
    pad = [(0, 0), *((0, max(128 - n, 0) or -n % 32) for n in (height, width))]
    batch = {
        name: torch.from_numpy(np.pad(np.asarray(a, np.float32), pad, mode="reflect"))[None]
        for name, a in zip(("S2L2A", "S1GRD", "DEM"), arrays, strict=True)
        if name in used
    }
    with torch.inference_mode():
        logits = flip_logits(lambda b: segmenter(b, used), batch, 4)
    return torch.sigmoid(logits)[0, :height, :width].numpy()


def row(chip: str, source: str, where: str, p: np.ndarray, water: np.ndarray) -> dict[str, Any]:
    """A row of the record: shares of the pixels of a place that are called lake, and that MNDWI calls water."""
    return {
        "chip": chip, "source": source, "where": where, "pixels": int(p.size),
        "called_lake": round(float((p >= 0.5).mean()), 4), "mean_probability": round(float(p.mean()), 4),
        "mndwi_water": round(float(water.mean()), 4),
    }  # fmt: skip


def terramesh(folder: Path, segmenter: Any) -> list[dict[str, Any]]:
    """One row a land cover of each chip."""
    import rasterio

    rows = []
    for path in sorted((folder / "S2L2A").glob("*.tif")):
        s2, s1, dem, cover = (
            rasterio.open(folder / kind / path.name).read() for kind in ("S2L2A", "S1RTC", "DEM", "LULC")
        )
        p, water = probability(segmenter, s2, s1, dem), mndwi(s2) > MNDWI_WATER
        for code in np.unique(cover):
            at = cover[0] == code
            rows.append(
                row(path.stem, "TerraMesh", TERRAMESH_CLASSES.get(int(code), f"class {code}"), p[at], water[at])
            )
    return rows


def bigearthnet(folder: Path, segmenter: Any) -> list[dict[str, Any]]:
    """One row a pair, under its labels; pairs have no elevation model."""
    import rasterio
    from rasterio.enums import Resampling

    radar = {}
    for place in sorted((folder / "BigEarthNet-S1-Example").iterdir()):
        meta = json.loads((place / f"{place.name}_labels_metadata.json").read_text(encoding="utf-8"))
        radar[meta["corresponding_s2_patch"]] = [place / f"{place.name}_{band}.tif" for band in ("VV", "VH")]
    rows = []
    for place in sorted((folder / "BigEarthNet-S2-Example").iterdir()):
        labels = json.loads((place / f"{place.name}_labels_metadata.json").read_text(encoding="utf-8"))["labels"]
        shape = (120, 120)
        s2 = np.stack(
            [
                rasterio.open(place / f"{place.name}_{band}.tif").read(
                    1, out_shape=shape, resampling=Resampling.bilinear
                )
                for band in S2_BANDS
            ]
        )
        s1 = np.stack([rasterio.open(path).read(1) for path in radar[place.name]])
        p = probability(segmenter, s2, s1, None)
        rows.append(row(place.name, "BigEarthNet, no elevation", "; ".join(labels), p, mndwi(s2) > MNDWI_WATER))
    return rows


def main(words: list[str]) -> int:
    """Run the script; errors end in a sentence."""
    try:
        if not words or not all(Path(word).is_dir() for word in words):
            raise InputError(
                "name the folder of TerraMesh chips, and, where there is one, that of BigEarthNet's examples"
            )
        from cryosentinel.mapping.product import default_weights
        from cryosentinel.models.checkpoint import load_segmenter

        weights = default_weights()
        segmenter = load_segmenter(weights).eval()
        rows = terramesh(Path(words[0]), segmenter)
        if len(words) > 1:
            rows += bigearthnet(Path(words[1]), segmenter)
    except CryoSentinelError as error:
        print(f"real_chips: {error}", file=sys.stderr)
        return 2
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    made = {"commit": commit.strip(), "date": datetime.now(UTC).date().isoformat(), "command": "scripts/real_chips.py"}
    write_json(OUT, {**made, "weights": weights.name, "sha256": sha256(weights), "chips": rows})
    for r in rows:
        where = f"{r['source']:<26} {r['chip'][:34]:<34} {r['where'][:40]:<40}"
        print(f"{where} {r['called_lake']:7.1%} {r['mndwi_water']:7.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
