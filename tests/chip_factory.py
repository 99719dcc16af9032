"""Random chips for the tests: no physics, only the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryosentinel.data.chips import Chip, write_shard


def make_chip(seed: int = 0, size: int = 32, lake: bool = True, **fields) -> Chip:
    """A chip of noise, with a lake of a quarter of its width in one corner that MNDWI sees."""
    rng = np.random.default_rng([seed, size])
    s2 = rng.integers(500, 4000, (12, size, size)).astype(np.uint16)
    mask = np.zeros((size, size), np.uint8)
    if lake:
        mask[: size // 2, : size // 4] = 1
    s2[2], s2[10] = np.where(mask, 2000, 800), np.where(mask, 200, 2500)
    values = {
        "s2": s2,
        "s1": rng.normal(-12, 4, (2, size, size)).astype(np.float32),
        "dem": rng.integers(3000, 5000, (1, size, size)).astype(np.int16),
        "mask": mask,
        "chip_id": f"chip_{seed:05d}",
        "region": "ile_alatau",
        "snapshot_year": 2021,
        "lat": float(rng.uniform(42.0, 45.0)),
        "lon": float(rng.uniform(75.0, 79.0)),
        "lake_id": f"lake_{seed}" if lake else "",
        "split": "train",
    }
    return Chip(**{**values, **fields})


def write_dataset(root: Path, shards: int = 2, chips: int = 12, size: int = 32, **fields) -> list[Chip]:
    """A dataset of two regions, one year each; every third chip has no lake. Returns the chips in index order."""
    made = []
    for number in range(shards):
        region = ("ile_alatau", "tien_shan_full")[number % 2]
        some = [make_chip(100 * number + k, size, lake=k % 3 > 0, region=region, **fields) for k in range(chips)]
        write_shard(root / region / "2021" / f"shard_{number // 2:03d}.parquet", some)
        made.append((region, number // 2, some))
    return [chip for _, _, some in sorted(made, key=lambda item: item[:2]) for chip in some]
