"""Labels as the inventory makes them: outlines of its year, digitised from afar, sometimes wrong.

After Kumar and Vijay (doi:10.1594/PANGAEA.983845): polygons of 2016 and 2022 with up to 30 m horizontal error, burned
with all_touched as the published labels are, so that labels are a little larger than the lakes. The chips are those
before the sanity filter, so the labels are as raw as an inventory: lakes of the size class below a hectare are often
missed, some outlines are of another season, and basins that hold no water (any more) are taken for lakes. The shares of
these errors are assumed; inventories of the same mountains differ by more (Chen et al. 2021, Earth System Science Data
13, compare six).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cryosentinel.sensors import PIXEL_SIZE_M, inventory_year
from cryosentinel.simulate.cover import IMAGE_DATE
from cryosentinel.simulate.ground import Window
from cryosentinel.simulate.noise import Draw
from cryosentinel.simulate.water import Lake, lakes_in, overlap

MISSING, UNDERSIZED, OVERSIZED = 0.03, 0.015, 0.015  # shares of lakes
SMALL_HA, MISSING_SMALL = 1.0, 0.15  # of lakes below this area more are missed
FALSE = 0.04  # share of flats that are taken for lakes
SHIFTED_M = 15.0  # a shift from which a label counts as shifted
MIN_AREA_HA = 0.3  # smaller lakes are not in the inventory
#: Errors from the gravest to the mildest.
ERRORS = ("missing", "false", "undersized", "oversized", "shifted")


def _outline(lake: Lake, inventory: int, draw: Draw) -> tuple[np.ndarray | None, str]:
    """What the inventory took for the lake, on its patch (None: nothing), and the error it made."""
    fate = draw.uniform()
    if lake.kind == "flat":
        return (lake.area_at <= lake.area_ha, "false") if fate < FALSE else (None, "")
    area = lake.area(inventory + IMAGE_DATE)
    if area < MIN_AREA_HA:
        return None, ""
    missing = MISSING_SMALL if area < SMALL_HA else MISSING
    if fate < missing:
        return None, "missing"
    if fate < missing + UNDERSIZED:
        return lake.area_at <= area * draw.uniform(0.15, 0.4), "undersized"
    if fate < missing + UNDERSIZED + OVERSIZED:
        return lake.area_at <= area * draw.uniform(1.6, 2.4), "oversized"
    return lake.area_at <= area, ""


@lru_cache(maxsize=512)
def _burned(seed: int, lake: Lake, inventory: int) -> tuple[np.ndarray | None, str]:
    """The lake's label on its patch (bool) and its error. Burned once in the patch's own grid, whatever the window."""
    from rasterio import features
    from shapely import affinity
    from shapely.geometry import shape

    draw = Draw(seed, "label", lake.lake_id, inventory)
    outline, error = _outline(lake, inventory, draw)
    # Most outlines are within a pixel; one in six is further off, up to 30 m.
    far = draw.uniform() < 1 / 6
    distance = draw.uniform(15, 30) if far else draw.uniform(0, 10)
    bearing = draw.uniform(0, 2 * np.pi)
    if outline is None or not outline.any():
        return None, error
    polygons = [
        shape(geometry) for geometry, value in features.shapes(outline.astype(np.uint8), mask=outline) if value == 1
    ]
    step = distance / PIXEL_SIZE_M
    moved = [affinity.translate(p.simplify(0.8), step * np.cos(bearing), step * np.sin(bearing)) for p in polygons]
    burned = features.rasterize(moved, out_shape=outline.shape, all_touched=True, dtype="uint8").astype(bool)
    return burned, error or ("shifted" if distance >= SHIFTED_M else "")


def make_labels(seed: int, epsg: int, window: Window, year: int) -> tuple[np.ndarray, str, str]:
    """The label of a window as the inventory of an image's year gives it.

    Returns:
        (H, W) uint8 label; the gravest error among its lakes ("" for none); the id of the lake with the largest label.
    """
    label = np.zeros((window.height, window.width), np.uint8)
    errors, largest = set(), (0, "")
    for lake in lakes_in(seed, epsg, window.row, window.col, window.height, window.width):
        if not lake.glacial and lake.kind != "flat":
            continue
        burned, error = _burned(seed, lake, inventory_year(year))
        here, there = overlap(lake, window.row, window.col, window.height, window.width)
        count = 0
        if burned is not None:
            label[here] |= burned[there]
            count = int(burned[there].sum())
        touched = count > 0 or bool((lake.area_at[there] <= lake.area(year + IMAGE_DATE)).any())
        if error and touched:
            errors.add(error)
        if count:
            largest = max(largest, (count, lake.lake_id))
    return label, next((e for e in ERRORS if e in errors), ""), largest[1]
