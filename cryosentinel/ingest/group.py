"""One group of chips, from the services to finished chips: the unit of work, of which a run forgets none that is done.

It needs nothing but its arguments, so that a worker on another machine can do it, and gives back what it made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from cryosentinel.data import sanity
from cryosentinel.data.chips import Chip, impossible_value
from cryosentinel.ingest.dem import read_dem
from cryosentinel.ingest.grid import Cell, ChipGroup, centres
from cryosentinel.ingest.inventory import burn, label_of
from cryosentinel.ingest.reading import ServiceDownError
from cryosentinel.ingest.search import Found, when
from cryosentinel.ingest.sentinel1 import ENOUGH, Pass, implausible, passes, read_pass
from cryosentinel.ingest.sentinel2 import Composite, compose
from cryosentinel.ingest.services import Service
from cryosentinel.ingest.settings import Settings
from cryosentinel.sensors import DEM_NODATA, PIXEL_SIZE_M

KEPT, SERVER_DOWN = "kept", "server_down"
NO_S2, CLOUD, NO_S1, NO_DEM, INVALID = "no_sentinel2", "cloud", "no_sentinel1", "no_dem", "too_few_valid_pixels"
#: Not the weather's fault: scenes that would have shown the chip could not be read; passes that cannot be right.
UNREADABLE, IMPLAUSIBLE_S1 = "unreadable", "implausible_sentinel1"


@dataclass(frozen=True)
class Task:
    """All that a worker needs for a group of chips.

    Attributes:
        group: its chips.
        region, year: of the chips.
        services: modality -> where its files are.
        settings: of the ingest.
        found: items over the group.
        outlines: see :func:`cryosentinel.ingest.inventory.outlines_of`.
    """

    group: ChipGroup
    region: str
    year: int
    services: Mapping[str, Service]
    settings: Settings
    found: Found
    outlines: list[tuple[str, bytes]]


@dataclass
class Result:
    """What became of a group of chips.

    Attributes:
        chips: the chips that were built, views of the group's arrays: half-overlapping chips share their pixels.
        rows: one a planned chip: what became of it and what it was made of.
        broken: what could not be read.
        notes: what contradicts its metadata, or cannot be right.
        failure: why the group has to be done again, a sentence; "" for a group that is done.
    """

    chips: list[Chip] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failure: str = ""


def build_group(task: Task) -> Result:
    """Build the chips of a group. A server that stays down is the group's failure, not the run's.

    Raises:
        AccessDeniedError: a service refuses its files, which no other group will change.
    """
    try:
        return _build(task)
    except ServiceDownError as error:
        return Result(failure=str(error))


def _build(task: Task) -> Result:
    from affine import Affine
    from odc.geo.geobox import GeoBox

    group, settings, result = task.group, task.settings, Result()
    west, _, _, north = group.bounds
    geobox = GeoBox(group.shape, Affine(PIXEL_SIZE_M, 0, west, 0, -PIXEL_SIZE_M, north), f"EPSG:{group.epsg}")

    optical = _optical(task, geobox, result)
    lost = bool(result.broken)  # scenes
    dem, broken = read_dem(task.found.dem, geobox, settings, task.services["dem"]) if optical else (np.zeros(0), [])
    result.broken += broken
    no_dem = UNREADABLE if broken else NO_DEM
    radar = _PassReader(task, geobox, dem, result)
    burned, names = burn(task.outlines, group)

    for cell in group.cells:
        at = group.slices(cell)
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
            row["status"] = UNREADABLE if lost else CLOUD if task.found.s2 else NO_S2
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
        if isinstance(s1, str):
            row["status"] = s1
            continue
        overpass, backscatter = s1
        product, convention = overpass.product
        row |= {
            "s1_item": overpass.name,
            "s1_date": overpass.day.isoformat(),
            "s1_days": abs((overpass.day - composite.scenes[main][1]).days),
            "s1_direction": overpass.direction,
            "s1_orbit": overpass.orbit,
            "s1_product": product,
            "s1_backscatter": convention,
        }
        chip = Chip(
            s2=composite.s2[(slice(None), *at)],
            s1=backscatter[(slice(None), *at)],
            dem=dem[(slice(None), *at)],
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
        if (chip.dem <= DEM_NODATA[0]).mean() > 1 - settings.min_valid:
            row["status"] = no_dem
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


def _optical(task: Task, geobox: Any, result: Result) -> dict[Cell, Composite]:
    """The composite of each chip that is clear enough: of summer, else of summer with the fallback's scenes added."""
    group, settings, service = task.group, task.settings, task.services["s2"]
    first, last = settings.days("season", task.year)
    season = [item for item in task.found.s2 if first <= when(item).date() <= last]
    later = [item for item in task.found.s2 if not first <= when(item).date() <= last]
    summer = compose(season, geobox, group.needed(), settings, service)
    result.broken += summer.broken
    result.notes += summer.notes

    def clear(composite: Composite, cell: Cell, hidden: float) -> bool:
        share = float((composite.source[group.slices(cell)] >= 0).mean())
        return share > 0 and share >= 1 - hidden / 100

    chosen = {cell: summer for cell in group.cells if clear(summer, cell, settings.max_cloud)}
    hidden = [cell for cell in group.cells if cell not in chosen]
    last_try = summer
    if hidden and later:
        needed = np.zeros(group.shape, bool)
        for cell in hidden:
            needed[group.slices(cell)] = True
        autumn = compose(later, geobox, needed & (summer.source < 0), settings, service)
        result.broken += autumn.broken
        result.notes += autumn.notes
        added = autumn.source >= 0
        last_try = Composite(
            np.where(added, autumn.s2, summer.s2),
            np.where(added, autumn.source + len(summer.scenes), summer.source).astype(np.int16),
            summer.scenes + autumn.scenes,
        )
    return chosen | {cell: last_try for cell in hidden if clear(last_try, cell, settings.max_hidden)}


class _PassReader:
    """The passes over a group, each read and checked once and only when a chip asks for it."""

    def __init__(self, task: Task, geobox: Any, dem: np.ndarray, result: Result) -> None:
        self.passes = passes(task.found.s1)
        self.task, self.geobox, self.dem, self.result = task, geobox, dem, result
        self.read: dict[int, np.ndarray | None] = {}
        self.lost = False

    def _backscatter(self, n: int) -> np.ndarray | None:
        """Of a pass; None where it cannot be right."""
        if n not in self.read:
            settings, overpass = self.task.settings, self.passes[n]
            s1, broken = read_pass(overpass, self.geobox, settings, self.task.services["s1"])
            self.result.broken += broken
            self.lost |= bool(broken)
            problem = implausible(s1, self.dem, overpass.direction, settings.radar_shift)
            if problem:
                self.result.notes.append(f"{overpass.name}: left out, {problem}")
            self.read[n] = None if problem else s1
        return self.read[n]

    def nearest(self, at: tuple[slice, slice], day: date) -> tuple[Pass, np.ndarray] | str:
        """The pass nearest in time that shows (almost) all of a chip, else the one within reach that shows most.

        Returns:
            A pass and its backscatter, or the status of a chip that none shows.
        """
        settings = self.task.settings
        days = [abs((p.day - day).days) for p in self.passes]
        best: tuple[float, int] | None = None
        wrong = False
        for n in sorted((n for n in range(len(days)) if days[n] <= settings.radar_days), key=lambda n: days[n]):
            s1 = self._backscatter(n)
            if s1 is None:
                wrong = True
                continue
            share = float(np.isfinite(s1[(slice(None), *at)]).all(axis=0).mean())
            if best is None or share > best[0]:
                best = share, n
            if share >= ENOUGH:
                break
        if best is None or best[0] < settings.min_valid:
            return IMPLAUSIBLE_S1 if wrong else UNREADABLE if self.lost else NO_S1
        found = self.read[best[1]]
        assert found is not None
        return self.passes[best[1]], found
