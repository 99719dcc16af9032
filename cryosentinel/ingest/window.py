"""One window, from the service to finished chips: the unit of work, of which a run forgets none that is done.

It needs nothing but its arguments, so that a worker on another machine can do it, and gives back what it made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from cryosentinel.data import sanity
from cryosentinel.data.chips import Chip, impossible_value
from cryosentinel.ingest.composite import Composite, compose
from cryosentinel.ingest.dem import read_dem
from cryosentinel.ingest.grid import Cell, Window, centres
from cryosentinel.ingest.inventory import burn, label_of
from cryosentinel.ingest.reading import ServiceDownError, gdal, signer
from cryosentinel.ingest.search import Found, when
from cryosentinel.ingest.sentinel1 import ENOUGH, Pass, passes, read_pass
from cryosentinel.ingest.settings import Settings
from cryosentinel.sensors import PIXEL_SIZE_M

KEPT, SERVER_DOWN = "kept", "server_down"
NO_S2, CLOUD, NO_S1, NO_DEM, INVALID = "no_sentinel2", "cloud", "no_sentinel1", "no_dem", "too_few_valid_pixels"


@dataclass(frozen=True)
class Task:
    """All that a worker needs for a window."""

    window: Window
    region: str
    year: int
    stac: str
    settings: Settings
    found: Found
    outlines: list[tuple[str, bytes]]


@dataclass
class Result:
    """What became of a window.

    Attributes:
        chips: the chips that were built.
        rows: one a planned chip: what became of it and what it was made of.
        broken: what could not be read.
        failure: why the window has to be done again, a sentence; "" for a window that is done.
    """

    chips: list[Chip] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    failure: str = ""


def build_window(task: Task) -> Result:
    """Build the chips of a window. A server that stays down is the window's failure, not the run's."""
    try:
        with gdal(task.settings.retries):
            return _build(task)
    except ServiceDownError as error:
        return Result(failure=str(error))


def _build(task: Task) -> Result:
    from affine import Affine
    from odc.geo.geobox import GeoBox

    window, settings, result = task.window, task.settings, Result()
    west, _, _, north = window.bounds
    geobox = GeoBox(window.shape, Affine(PIXEL_SIZE_M, 0, west, 0, -PIXEL_SIZE_M, north), f"EPSG:{window.epsg}")
    sign = signer(task.stac)

    optical = _optical(task, geobox, sign, result)
    dem, broken = read_dem(task.found.dem, geobox, settings, sign) if optical else (np.zeros(0), [])
    result.broken += broken
    radar = _Radar(task, geobox, sign, result)
    burned, names = burn(task.outlines, window)

    for cell in window.cells:
        at = window.slices(cell)
        label, lake = label_of(burned[at], names)
        lat, lon = (float(v[0]) for v in centres(cell.epsg, np.array([cell.i]), np.array([cell.j])))
        row: dict[str, Any] = {
            "chip_id": cell.chip_id(task.region, task.year),
            "status": "",
            "lat": lat,
            "lon": lon,
            "lake_id": lake,
            "water_frac": float(label.mean()),
        }
        result.rows.append(row)
        composite = optical.get(cell)
        if composite is None:
            row["status"] = NO_S2 if not task.found.s2 else CLOUD
            continue
        source = composite.source[at]
        used, counts = np.unique(source[source >= 0], return_counts=True)
        main = int(used[counts.argmax()])
        row |= {
            "s2_scenes": " ".join(composite.scenes[n][0] for n in used),
            "s2_date": composite.scenes[main][1].isoformat(),
            "s2_offset": composite.scenes[main][2],
            "s2_clear": float((source >= 0).mean()),
        }
        s1 = radar.nearest(at, composite.scenes[main][1])
        if s1 is None:
            row["status"] = NO_S1
            continue
        overpass, backscatter = s1
        row |= {
            "s1_item": overpass.name,
            "s1_date": overpass.day.isoformat(),
            "s1_days": abs((overpass.day - composite.scenes[main][1]).days),
            "s1_direction": overpass.direction,
            "s1_orbit": overpass.orbit,
        }
        chip = Chip(
            s2=np.ascontiguousarray(composite.s2[(slice(None), *at)]),
            s1=np.ascontiguousarray(backscatter[(slice(None), *at)]),
            dem=np.ascontiguousarray(dem[(slice(None), *at)]),
            mask=label,
            chip_id=row["chip_id"],
            region=task.region,
            snapshot_year=task.year,
            lat=lat,
            lon=lon,
            lake_id=lake,
        )
        row["valid_frac"] = float(chip.valid.mean())
        problem = impossible_value(vars(chip))
        if (chip.dem <= -32_000).mean() > 1 - settings.min_valid:
            row["status"] = NO_DEM
        elif problem:
            row["status"] = f"impossible: {problem}"
        elif row["valid_frac"] < settings.min_valid:
            row["status"] = INVALID
        else:
            row["status"] = KEPT
            for threshold, (iou, water) in zip(sanity.THRESHOLDS, sanity.agreement(chip.s2, chip.mask), strict=True):
                row[sanity.column(threshold, "iou")], row[sanity.column(threshold, "water")] = iou, water
            result.chips.append(chip)
    return result


def _optical(task: Task, geobox: Any, sign: Any, result: Result) -> dict[Cell, Composite]:
    """The composite of each chip that is clear enough: of summer, else of summer with the fallback's scenes added."""
    window, settings = task.window, task.settings
    first, last = settings.days("season", task.year)
    season = [item for item in task.found.s2 if first <= when(item).date() <= last]
    later = [item for item in task.found.s2 if not first <= when(item).date() <= last]
    summer = compose(season, geobox, window.needed(), settings, sign)
    result.broken += summer.broken

    def clear(composite: Composite, cell: Cell) -> bool:
        share = float((composite.source[window.slices(cell)] >= 0).mean())
        return share > 0 and share >= 1 - settings.max_cloud / 100

    chosen = {cell: summer for cell in window.cells if clear(summer, cell)}
    hidden = [cell for cell in window.cells if cell not in chosen]
    if hidden and later:
        needed = np.zeros(window.shape, bool)
        for cell in hidden:
            needed[window.slices(cell)] = True
        autumn = compose(later, geobox, needed & (summer.source < 0), settings, sign)
        result.broken += autumn.broken
        added = autumn.source >= 0
        both = Composite(
            np.where(added, autumn.s2, summer.s2),
            np.where(added, autumn.source + len(summer.scenes), summer.source).astype(np.int16),
            summer.scenes + autumn.scenes,
        )
        chosen |= {cell: both for cell in hidden if clear(both, cell)}
    return chosen


class _Radar:
    """The passes over a window, each read once and only when a chip asks for it."""

    def __init__(self, task: Task, geobox: Any, sign: Any, result: Result) -> None:
        self.passes = passes(task.found.s1)
        self.task, self.geobox, self.sign, self.result = task, geobox, sign, result
        self.read: dict[int, np.ndarray] = {}

    def nearest(self, at: tuple[slice, slice], day: date) -> tuple[Pass, np.ndarray] | None:
        """The pass nearest in time that shows (almost) all of a chip, else the one within reach that shows most."""
        settings = self.task.settings
        near = [
            (abs((p.day - day).days), n)
            for n, p in enumerate(self.passes)
            if abs((p.day - day).days) <= settings.radar_days
        ]
        best: tuple[float, int] | None = None
        for _, n in sorted(near):
            if n not in self.read:
                self.read[n], broken = read_pass(self.passes[n], self.geobox, settings, self.sign)
                self.result.broken += broken
            share = float(np.isfinite(self.read[n][(slice(None), *at)]).all(axis=0).mean())
            if best is None or share > best[0]:
                best = share, n
            if share >= ENOUGH:
                break
        if best is None or best[0] < settings.min_valid:
            return None
        return self.passes[best[1]], self.read[best[1]]
