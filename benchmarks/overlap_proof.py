"""Proving that no two splits share a pixel: KD-tree over the chip centres against all pairs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cryosentinel.data.split import assign_splits
from cryosentinel.data.split_check import SplitCheck, check_split, chips_overlap, earth_centred
from cryosentinel.geo import chip_grid
from cryosentinel.sensors import CHIP_STRIDE, PIXEL_SIZE_M, REGIONS, SNAPSHOT_YEARS

IDS: tuple[str, ...] = ("overlap_proof",)
CHIPS = 42_237  # of the published pretraining set
ROWS = 256  # of the all-pairs table at a time: the whole table would take 14 GB


def chip_centres(count: int, seed: int = 42) -> tuple[np.ndarray, np.ndarray]:
    """Chips as the published set lays them: runs of half-overlapping neighbours around lakes, in each of four years."""
    from pyproj import Transformer

    rng = np.random.default_rng(seed)
    west, south, east, north = REGIONS["tien_shan_full"]
    # Zone 43 (72 to 78 degrees east) holds most of the box; neighbours of one run share a grid.
    epsg, _ = chip_grid((south + north) / 2, (west + east) / 2)
    to_grid = Transformer.from_crs(4326, epsg, always_xy=True)
    back = Transformer.from_crs(epsg, 4326, always_xy=True)
    stride = CHIP_STRIDE * PIXEL_SIZE_M
    places = -(-count // len(SNAPSHOT_YEARS))
    lakes = -(-places // 6)
    x, y = to_grid.transform(rng.uniform(max(west, 72), min(east, 78), lakes), rng.uniform(south, north, lakes))
    steps = np.stack(np.meshgrid([0, 1, 2], [0, 1], indexing="ij"), -1).reshape(-1, 2) * stride
    x = (np.round(x / stride) * stride)[:, None] + steps[:, 0]
    y = (np.round(y / stride) * stride)[:, None] + steps[:, 1]
    lon, lat = back.transform(x.ravel()[:places], y.ravel()[:places])
    repeats = len(SNAPSHOT_YEARS)
    return np.repeat(lat, repeats)[:count], np.repeat(lon, repeats)[:count]


def all_pairs(lat: np.ndarray, lon: np.ndarray, splits: np.ndarray) -> tuple[int, float]:
    """Overlapping pairs across splits and the smallest distance in metres, each chip against all later ones."""
    used = np.flatnonzero(splits != "buffer")
    lat, lon = lat[used], lon[used]
    _, code = np.unique(splits[used], return_inverse=True)
    points = earth_centred(lat, lon)
    pairs, smallest = 0, np.inf
    for start in range(0, len(points), ROWS):
        rows = slice(start, start + ROWS)
        distance = np.sqrt(((points[rows, None] - points[None, start:]) ** 2).sum(-1))
        distance[code[rows, None] == code[None, start:]] = np.inf
        smallest = min(smallest, float(distance.min()))
        a, b = np.nonzero(distance < 3200)  # beyond the diagonal of a chip nothing overlaps
        later = a < b
        pairs += int(chips_overlap(lat, lon, a[later] + start, b[later] + start).sum())
    return pairs, smallest


def run(quick: bool) -> list[dict[str, Any]]:
    """Both answer the same question on the same chips; their answers are compared.

    All chips take part in the comparison (a buffer of zero), so that overlaps exist and must be counted. The peer runs
    once (it takes a minute), ours before and after it.
    """
    lat, lon = chip_centres(6000 if quick else CHIPS)
    splits = assign_splits(lat, lon, buffer=0.0)
    check_split(lat[:100], lon[:100], splits[:100])  # scipy's import is not the proof's time

    def timed() -> tuple[float, SplitCheck]:
        start = time.perf_counter()
        found = check_split(lat, lon, splits)
        return time.perf_counter() - start, found

    before = [timed() for _ in range(5)]
    start = time.perf_counter()
    pairs, smallest = all_pairs(lat, lon, splits)
    peer = time.perf_counter() - start
    times = [seconds for seconds, _ in [*before, *(timed() for _ in range(5))]]
    found = before[0][1]
    if found.overlapping_pairs != pairs or abs((found.smallest_distance_m or 0) - smallest) > 1e-3:
        raise AssertionError(f"The proofs disagree: {found} against {pairs} pairs, {smallest} m.")
    ours = float(np.median(times))
    return [
        {
            "id": "overlap_proof",
            "what": f"Overlapping chip pairs and smallest distance across splits, {len(lat):,} chips "
            f"({pairs:,} overlapping pairs found by both)",
            "ours": ours,
            "peer": peer,
            "peer_name": "NumPy, all pairs in blocks of rows",
            "unit": "s",
            "ratio": peer / ours,
            "goal": 1000,
        }
    ]
