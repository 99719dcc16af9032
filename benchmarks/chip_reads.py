"""Random single chips a second: the memory-mapped store, TerraTorch's datasets, and an LRU of decoded shards."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cryosentinel.data.chips import Chip, clean, read_shard, valid_mask, write_shard
from cryosentinel.geo import chip_grid
from cryosentinel.paths import SHARDS
from cryosentinel.sensors import CHIP_SIZE, MODALITIES

IDS: tuple[str, ...] = ("chip_reads_vs_terratorch", "chip_reads_vs_cached_parquet")
SHARD = 50  # chips a shard: the published have 370, which only makes a miss of the LRU dearer
Read = Callable[[int], Any]


def stand_in(count: int) -> list[Chip]:
    """Chips of the published size and types; smooth fields with noise, which compress about as images do."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 6, CHIP_SIZE, dtype=np.float32)
    field = np.sin(ramp)[:, None] * np.cos(ramp)[None]
    chips = []
    for k in range(count):
        noise = rng.standard_normal((15, CHIP_SIZE, CHIP_SIZE), dtype=np.float32)
        s2 = (1800 + 900 * np.roll(field, k, 1) + 60 * noise[:12]).astype(np.uint16)
        chips.append(
            Chip(
                s2=s2,
                s1=(-12 + 4 * field + noise[12:14]).astype(np.float32),
                dem=(4000 + 500 * field + 3 * noise[14:]).astype(np.int16),
                mask=(np.roll(field, k, 0) > 0.8).astype(np.uint8),
                chip_id=f"chip_{k:06d}",
                region="ile_alatau",
                snapshot_year=2022,
                lat=43.0 + 0.001 * k,
                lon=77.0,
            )
        )
    return chips


def write_all(folder: Path, chips: list[Chip]) -> None:
    """The same chips as shards, as 15-band GeoTIFFs and as one GeoTIFF a modality, the latter two not compressed."""
    import rasterio

    for start in range(0, len(chips), SHARD):
        write_shard(
            folder / "chips" / "ile_alatau" / "2022" / f"shard_{start // SHARD:03d}.parquet", chips[start:][:SHARD]
        )
    for chip in chips:
        _, transform = chip_grid(chip.lat or 0.0, chip.lon or 0.0)
        arrays = {"S2L2A": chip.s2, "S1GRD": chip.s1, "DEM": chip.dem, "mask": chip.mask[None]}
        arrays["stack"] = np.concatenate([chip.s2, chip.s1, chip.dem]).astype(np.float32)
        for name, array in arrays.items():
            path = folder / name / f"{chip.chip_id}.tif"
            path.parent.mkdir(exist_ok=True)
            with rasterio.open(
                path, "w", driver="GTiff", count=len(array), height=CHIP_SIZE, width=CHIP_SIZE, dtype=array.dtype,
                crs="EPSG:32643", transform=transform,
            ) as target:  # fmt: skip
                target.write(array)


def our_reader(folder: Path) -> Read:
    """Chips as tensors from the store."""
    from cryosentinel.data.dataset import ChipDataset, ChipStore

    return ChipDataset(ChipStore(folder / "chips")).__getitem__


def terratorch_readers(folder: Path) -> dict[str, Read]:
    """Its two generic datasets: one file a modality (as its TerraMind examples have it), and one stacked file."""
    from terratorch.datasets import GenericMultimodalSegmentationDataset, GenericNonGeoSegmentationDataset

    names = list(MODALITIES)
    several = GenericMultimodalSegmentationDataset(
        data_root={name: folder / name for name in names},
        label_data_root=folder / "mask",
        num_classes=2,
        image_grep=dict.fromkeys(names, ".tif"),
        label_grep=".tif",
        image_modalities=names,
        rgb_indices={"S2L2A": [3, 2, 1]},
    )
    stacked = GenericNonGeoSegmentationDataset(
        data_root=folder / "stack",
        label_data_root=folder / "mask",
        num_classes=2,
        image_grep="*.tif",
        label_grep="*.tif",
        rgb_indices=[3, 2, 1],
    )
    return {"a file a modality": several.__getitem__, "one stacked file": stacked.__getitem__}


def lru_reader(folder: Path, shards: int) -> Read:
    """A loader that decodes a shard when it first needs a chip of it, and keeps the last ``shards`` decoded ones."""
    import torch

    paths = sorted((folder / "chips").glob(SHARDS))
    decoded = lru_cache(maxsize=shards)(read_shard)

    def read(i: int) -> dict[str, Any]:
        chip = decoded(paths[i // SHARD])[i % SHARD]
        valid = valid_mask(chip.s2, chip.s1, chip.dem)
        images = zip(MODALITIES, clean(chip.s2, chip.s1, chip.dem), strict=True)
        batch = {name: torch.from_numpy(array.astype(np.float32)) for name, array in images}
        return {**batch, "label": torch.from_numpy(chip.mask.astype(np.float32)), "valid": torch.from_numpy(valid)}

    return read


def rates(readers: dict[str, Read], count: int, reads: int, rounds: int) -> dict[str, float]:
    """Chips per second of each reader, in turns, on the same shuffled chips: the median of the rounds."""
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {name: [] for name in readers}
    for k in range(rounds):
        order = rng.permutation(count)[:reads].tolist()
        names = list(readers)
        for name in names[k % len(names) :] + names[: k % len(names)]:
            start = time.perf_counter()
            for i in order:
                readers[name](i)
            found[name].append(len(order) / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in found.items()}


def check_equal(ours: Read, lru: Read, several: Read, count: int) -> None:
    """All readers must deliver the same chip."""
    import torch

    for i in range(0, count, max(count // 5, 1)):
        a, b, c = ours(i), lru(i), several(i)
        for name in MODALITIES:
            torch.testing.assert_close(a[name], b[name])
            torch.testing.assert_close(a[name], c["image"][name].float())
        torch.testing.assert_close(a["label"], b["label"])


def run(quick: bool) -> list[dict[str, Any]]:
    """Every reader on the same chips on the same disk, all of them in the system's file cache."""
    import torch

    count, reads, rounds = (100, 30, 3) if quick else (400, 200, 7)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one loader worker
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_all(folder, stand_in(count))
            ours, terratorch = our_reader(folder), terratorch_readers(folder)
            shards = -(-count // SHARD)
            warm, cold = lru_reader(folder, shards), lru_reader(folder, max(shards // 4, 1))
            check_equal(ours, warm, terratorch["a file a modality"], count)
            for i in range(count):  # fill the caches
                ours(i), warm(i)
            against = rates({"ours": ours, **terratorch}, count, min(reads, 100), rounds)
            cached = rates({"ours": ours, "lru": warm}, count, reads, rounds)
            collapsed = rates({"ours": ours, "lru": cold}, count, min(reads, 30), 1)
    finally:
        torch.set_num_threads(threads)
    best = max(terratorch, key=against.__getitem__)
    return [
        {
            "id": "chip_reads_vs_terratorch",
            "what": f"Random single chips of {count} as float32 tensors, warm file cache; GeoTIFFs not compressed",
            "ours": against["ours"],
            "peer": against[best],
            "peer_name": f"TerraTorch generic dataset, {best} (its faster way)",
            "unit": "chips/s",
            "ratio": against["ours"] / against[best],
            "goal": 15,
        },
        {
            "id": "chip_reads_vs_cached_parquet",
            "what": f"Random single chips of {count}, all shards decoded in the peer's LRU (with a quarter of them "
            f"there the peer falls to {collapsed['lru']:.0f} and ours stays at {collapsed['ours']:.0f})",
            "ours": cached["ours"],
            "peer": cached["lru"],
            "peer_name": "LRU of decoded Parquet shards",
            "unit": "chips/s",
            "ratio": cached["ours"] / cached["lru"],
            "goal": 2,
        },
    ]  # fmt: skip
