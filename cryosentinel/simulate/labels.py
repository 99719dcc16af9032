"""Labels as the inventory makes them: outlines of its year, digitised from afar, sometimes wrong.

After Kumar and Vijay (doi:10.1594/PANGAEA.983845): polygons of 2016 and 2022 with up to 30 m horizontal error, burned
with all_touched as the published labels are, so that labels are a little larger than the lakes. The chips are those
before the sanity filter, so the labels are as raw as an inventory: lakes of the size class below a hectare are often
missed, some outlines are of another season, and basins that hold no water (any more) are taken for lakes. The shares of
these errors are assumed; inventories of the same mountains differ by more (Chen et al. 2021, Earth System Science Data
13, compare six).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cryosentinel.sensors import PIXEL_SIZE_M, inventory_year
from cryosentinel.simulate.cover import IMAGE_DATE
from cryosentinel.simulate.ground import Window
from cryosentinel.simulate.noise import Draw
from cryosentinel.simulate.water import Lake, lakes_in, overlap

SMALL_HA = 1.0  # of lakes below this area more are missed
SHIFTED_M = 15.0  # a shift from which a label counts as shifted
MIN_AREA_HA = 0.3  # smaller lakes are not in the inventory
#: Errors from the gravest to the mildest.
ERRORS = ("missing", "false", "undersized", "oversized", "shifted")


@dataclass(frozen=True)
class Shares:
    """How often the inventory errs: the shares of the published labels' errors are assumed, see the module's text.

    Attributes:
        missing, undersized, oversized: shares of lakes.
        missing_small: share of lakes below :data:`SMALL_HA` that are missed.
        false: share of flats that are taken for lakes.
    """

    missing: float = 0.03
    missing_small: float = 0.15
    undersized: float = 0.015
    oversized: float = 0.015
    false: float = 0.04

    def of(self, error: str, small: bool = False) -> float:
        """The share of an error; of "", what is left for lakes without one."""
        missing = self.missing_small if small else self.missing
        shares = {"missing": missing, "undersized": self.undersized, "oversized": self.oversized}
        return 1 - sum(shares.values()) if error == "" else {**shares, "false": self.false}[error]


NATURAL = Shares()


def _outline(lake: Lake, inventory: int, draw: Draw, shares: Shares = NATURAL) -> tuple[np.ndarray | None, str]:
    """What the inventory took for the lake, on its patch (None: nothing), and the error it made."""
    fate = draw.uniform()
    if lake.kind == "flat":
        return (lake.area_at <= lake.area_ha, "false") if fate < shares.false else (None, "")
    area = lake.area(inventory + IMAGE_DATE)
    if area < MIN_AREA_HA:
        return None, ""
    missing = shares.of("missing", area < SMALL_HA)
    if fate < missing:
        return None, "missing"
    if fate < missing + shares.undersized:
        return lake.area_at <= area * draw.uniform(0.15, 0.4), "undersized"
    if fate < missing + shares.undersized + shares.oversized:
        return lake.area_at <= area * draw.uniform(1.6, 2.4), "oversized"
    return lake.area_at <= area, ""


@lru_cache(maxsize=512)
def _burned(seed: int, lake: Lake, inventory: int, shares: Shares = NATURAL) -> tuple[np.ndarray | None, str]:
    """The lake's label on its patch (bool) and its error. Burned once in the patch's own grid, whatever the window."""
    from rasterio import features
    from shapely import affinity
    from shapely.geometry import shape

    draw = Draw(seed, "label", lake.lake_id, inventory)
    outline, error = _outline(lake, inventory, draw, shares)
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


def planted(
    seed: int, epsg: int, window: Window, year: int, shares: Shares
) -> Iterator[tuple[Lake, np.ndarray, str, float]]:
    """The label of each lake of a window under other shares of errors, to test what finds them.

    Yields:
        The lake (a flat for a false label); its label in the window, (H, W) bool; the error planted ("" for none); and
        the lake's weight: how many times as often the natural shares make the same of such a lake. Weighted sums over
        lakes estimate what natural labels would give.
    """
    for lake in lakes_in(seed, epsg, window.row, window.col, window.height, window.width):
        flat = lake.kind == "flat"
        if not lake.glacial and not flat:
            continue
        inventory = inventory_year(year)
        burned, error = _burned(seed, lake, inventory, shares)
        error = "" if error == "shifted" else error  # within the inventory's accuracy
        here, there = overlap(lake, window.row, window.col, window.height, window.width)
        label = np.zeros((window.height, window.width), bool)
        if burned is not None:
            label[here] = burned[there]
        if flat:
            weight = NATURAL.false / shares.false if error else (1 - NATURAL.false) / (1 - shares.false)
        else:
            area = lake.area(inventory + IMAGE_DATE)
            small = area < SMALL_HA
            weight = NATURAL.of(error, small) / shares.of(error, small) if area >= MIN_AREA_HA else 1.0
        yield lake, label, error, weight


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
