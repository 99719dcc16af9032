"""Finding chips of different splits that share pixels: the split check against a tree of squares."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from benchmarks.harness import interleaved
from cryosentinel.data.split import SPLITS, assign_splits
from cryosentinel.data.split_check import SIDE_M, TOLERANCE_M, check_split
from cryosentinel.sensors import CHIP_STRIDE, PIXEL_SIZE_M, REGIONS, SNAPSHOT_YEARS

IDS: tuple[str, ...] = ("overlap_proof",)
CHIPS = 42_237  # of the published pretraining set
GRID = 32643  # UTM zone 43, 72 to 78 degrees east, holds most of Tien Shan; no chip leaves it here


def chip_centres(count: int, seed: int = 42) -> tuple[np.ndarray, np.ndarray]:
    """Chips as the published set lays them: runs of half-overlapping neighbours around lakes, in each of four years."""
    from pyproj import Transformer

    rng = np.random.default_rng(seed)
    _, south, _, north = REGIONS["tien_shan_full"]
    to_grid = Transformer.from_crs(4326, GRID, always_xy=True)
    back = Transformer.from_crs(GRID, 4326, always_xy=True)
    stride = CHIP_STRIDE * PIXEL_SIZE_M
    places = -(-count // len(SNAPSHOT_YEARS))
    lakes = -(-places // 6)
    x, y = to_grid.transform(rng.uniform(72, 77.9, lakes), rng.uniform(south, north, lakes))
    steps = np.stack(np.meshgrid([0, 1, 2], [0, 1], indexing="ij"), -1).reshape(-1, 2) * stride
    x = (np.round(x / stride) * stride)[:, None] + steps[:, 0]
    y = (np.round(y / stride) * stride)[:, None] + steps[:, 1]
    lon, lat = back.transform(x.ravel()[:places], y.ravel()[:places])
    repeats = len(SNAPSHOT_YEARS)
    return np.repeat(lat, repeats)[:count], np.repeat(lon, repeats)[:count]


def tree_of_squares(lat: np.ndarray, lon: np.ndarray, splits: np.ndarray) -> tuple[int, float]:
    """Overlapping pairs across splits and the smallest distance in metres, with shapely's tree.

    All chips are taken to lie in one UTM zone, which spares the peer what chips of two zones would cost.
    """
    import shapely
    from pyproj import Transformer

    x, y = Transformer.from_crs(4326, GRID, always_xy=True).transform(lon, lat)
    half = (SIDE_M - TOLERANCE_M) / 2  # two chips that share a narrower strip count as apart, as in ours
    squares, points = shapely.box(x - half, y - half, x + half, y + half), shapely.points(x, y)
    pairs, smallest = 0, np.inf
    for first, second in itertools.combinations(SPLITS, 2):
        few, many = sorted((np.flatnonzero(splits == first), np.flatnonzero(splits == second)), key=len)
        pairs += shapely.STRtree(squares[many]).query(squares[few], predicate="intersects").shape[1]
        nearest = shapely.STRtree(points[many]).query_nearest(points[few], return_distance=True, all_matches=False)
        smallest = min(smallest, float(nearest[1].min()))
    return pairs, smallest


def run(quick: bool) -> list[dict[str, Any]]:
    """Both answer the same question on the same chips, in turns; their answers are compared.

    All chips take part (a buffer of zero), so that overlaps exist and must be counted.
    """
    lat, lon = chip_centres(6000 if quick else CHIPS)
    splits = assign_splits(lat, lon, buffer=0.0)
    found, (pairs, smallest) = check_split(lat, lon, splits), tree_of_squares(lat, lon, splits)
    # Metres on the grid and on the ground differ by up to 0.1 %.
    if found.overlapping_pairs != pairs or abs((found.smallest_distance_m or 0) - smallest) > 1e-3 * smallest:
        raise AssertionError(f"The answers differ: {found} against {pairs} pairs, {smallest} m.")
    tasks = {"ours": lambda: check_split(lat, lon, splits), "peer": lambda: tree_of_squares(lat, lon, splits)}
    seconds = interleaved(tasks, rounds=2 if quick else 15)
    ours, peer = (float(np.median(seconds[name])) for name in tasks)
    return [
        {
            "id": "overlap_proof",
            "what": f"Overlapping chip pairs and smallest distance across splits, {len(lat):,} chips "
            f"({pairs:,} overlapping pairs found by both)",
            "ours": ours,
            "peer": peer,
            "peer_name": "shapely's STRtree, squares in one UTM zone",
            "unit": "s",
            "ratio": peer / ours,
            "goal": 1,
        }
    ]
