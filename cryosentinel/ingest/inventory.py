"""Lake outlines: any inventory that geopandas reads, checked at the door, the nearest year's, rasterised."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.ingest.grid import SIDE, STEP_M, Box, Cell, ChipGroup, inside, zones
from cryosentinel.ingest.reading import first_line
from cryosentinel.sensors import PIXEL_SIZE_M

YEAR_COLUMNS = ("year", "inventory_year", "inv_year", "snapshot_year", "year_", "yr")
ID_COLUMNS = ("lake_id", "lakeid", "glake_id", "gl_id", "glid", "gl_code", "id", "fid", "objectid")


def nearest_year(years: Iterable[int], snapshot: int) -> int:
    """The inventory year nearest to a snapshot; of two as near the later one (2019 takes 2022, not 2016)."""
    return min(years, key=lambda year: (abs(year - snapshot), -year))


def _column(frame: Any, names: Sequence[str]) -> str | None:
    lower = {str(name).lower(): name for name in frame.columns if name != frame.geometry.name}
    return next((lower[name] for name in names if name in lower), None)


def _read(path: Path, box: Box) -> Any:
    """The polygons of one file that meet the box: columns lake_id, year (0 where unknown) and geometry in EPSG:4326."""
    import geopandas
    import shapely
    from shapely.geometry import box as rectangle

    if not path.exists():
        raise InputError(f"There is no inventory {path}; check the path.")
    try:
        read = geopandas.read_parquet if path.suffix.lower() in (".parquet", ".geoparquet") else geopandas.read_file
        frame = read(path)
    except Exception as error:  # a driver of any format may fail in its own way
        raise InputError(f"The inventory {path} cannot be read ({first_line(error)}); give a vector file.") from None
    if not isinstance(frame, geopandas.GeoDataFrame) or not len(frame):
        raise InputError(f"The inventory {path} holds no outlines; give a file of polygons.")
    if frame.crs is None:
        raise InputError(f"The inventory {path} states no coordinate system; write it again with one (EPSG:4326).")
    outlines = frame.geometry
    there = outlines[~(outlines.isna() | outlines.is_empty)]
    polygons = there[there.geom_type.isin(["Polygon", "MultiPolygon", "GeometryCollection"])]
    if not len(polygons):
        found = ", ".join(sorted(set(there.geom_type))) or "only empty geometries"
        raise InputError(f"The inventory {path} holds no polygons ({found}); give the lakes' outlines.")
    low_x, low_y, high_x, high_y = polygons.total_bounds
    if frame.crs.is_geographic and (low_x < -180.1 or high_x > 180.1 or low_y < -90.1 or high_y > 90.1):
        raise InputError(
            f"The inventory {path} claims {frame.crs.to_string()}, but its coordinates reach "
            f"{max(high_x, high_y):.0f}: they are not degrees; write it again with the coordinate system that it is in."
        )
    polygons = polygons.to_crs(4326)
    if not np.isfinite(polygons.total_bounds).all():
        raise InputError(
            f"The inventory {path} claims {frame.crs.to_string()}, but its coordinates lie outside that system; write "
            "it again with the coordinate system that it is in."
        )
    polygons = polygons[polygons.intersects(rectangle(*box).buffer(0.05))]
    # A repaired outline may carry stray lines: only its areas count.
    repaired = polygons.make_valid()
    areas = [shapely.union_all([p for p in shapely.get_parts(g) if p.geom_type.endswith("Polygon")]) for g in repaired]
    chosen = frame.loc[polygons.index]
    ids, years = _column(frame, ID_COLUMNS), _column(frame, YEAR_COLUMNS)
    named = re.search(r"(?<!\d)(19|20)\d\d(?!\d)", path.stem)
    whole = int(named[0]) if named else 0
    return geopandas.GeoDataFrame(
        {
            "lake_id": [str(v) for v in (chosen[ids] if ids is not None else chosen.index)],
            "year": [_year(v, whole) for v in (chosen[years] if years is not None else [whole] * len(chosen))],
        },
        geometry=areas,
        crs=4326,
    ).loc[lambda f: ~f.geometry.is_empty]


def _year(value: Any, otherwise: int) -> int:
    """A year from an integer, a text or a date."""
    found = re.search(r"(?:19|20)\d\d", str(value))
    return int(found[0]) if found else otherwise


def read_inventory(paths: Sequence[str | os.PathLike[str]], snapshot: int, box: Box) -> Any:
    """The outlines of the inventory year nearest to a snapshot, of one file or several.

    A year comes from a column (``year``, ``inv_year``, ...) or else from the file's name. Empty outlines are left out,
    invalid ones repaired.

    Args:
        paths: files of any format that geopandas reads, in any coordinate system.
        snapshot: year of the images.
        box: west, south, east, north in degrees; outlines outside are left out.

    Returns:
        GeoDataFrame in EPSG:4326: lake_id (string), year (0 where none is stated), geometry.

    Raises:
        InputError: a file is missing or unreadable, holds no polygons, states no coordinate system or a wrong one.
    """
    import pandas as pd

    if not paths:
        raise InputError("No inventory is given; give a file of lake outlines.")
    lakes = pd.concat([_read(Path(path), box) for path in paths], ignore_index=True)
    if not len(lakes):
        return lakes
    return lakes[lakes["year"] == nearest_year(set(lakes["year"]), snapshot)].reset_index(drop=True)


def no_inventory() -> Any:
    """The outlines of an inventory that holds none."""
    import geopandas

    return geopandas.GeoDataFrame({"lake_id": [], "year": []}, geometry=[], crs=4326)


def lake_cells(lakes: Any, region: str, box: Box) -> set[Cell]:
    """The chips that a lake touches."""
    import shapely

    cells: set[Cell] = set()
    if not len(lakes):
        return cells
    for epsg in zones(box):
        west = (epsg % 100 - 1) * 6.0 - 180
        # A chip belongs to the zone of its centre and may reach a little beyond it.
        here = lakes.cx[west - 0.05 : west + 6.05, :]
        outlines = here.geometry.to_crs(epsg).to_numpy()
        for outline in outlines:
            x0, y0, x1, y1 = outline.bounds
            i = np.arange(np.floor(-y1 / STEP_M) - SIDE + 1, np.floor(-y0 / STEP_M) + 1).astype(int)
            j = np.arange(np.floor(x0 / STEP_M) - SIDE + 1, np.floor(x1 / STEP_M) + 1).astype(int)
            grid = np.stack(np.meshgrid(i, j, indexing="ij"), axis=-1).reshape(-1, 2)
            grid = grid[inside(region, box, epsg, *grid.T)]
            boxes = shapely.box(*np.array([Cell(epsg, a, b).box for a, b in grid.tolist()]).reshape(-1, 4).T)
            cells.update(Cell(epsg, a, b) for a, b in grid[shapely.intersects(boxes, outline)].tolist())
    return cells


def burn(outlines: Sequence[tuple[str, bytes]], group: ChipGroup) -> tuple[np.ndarray, list[str]]:
    """Rasterise outlines on the pixels of a group of chips, every pixel that one touches.

    Args:
        outlines: lake_id and outline (well-known binary, in the group's projection).

    Returns:
        (H, W) int32: 0 where there is no lake, else 1 + the lake's position in the list of identifiers returned. Where
        lakes overlap the later one counts.
    """
    import shapely
    from affine import Affine
    from rasterio import features

    west, _, _, north = group.bounds
    names = [name for name, _ in outlines]
    if not names:
        return np.zeros(group.shape, np.int32), names
    burned = features.rasterize(
        [(shapely.from_wkb(outline), n + 1) for n, (_, outline) in enumerate(outlines)],
        out_shape=group.shape,
        transform=Affine(PIXEL_SIZE_M, 0, west, 0, -PIXEL_SIZE_M, north),
        all_touched=True,
        dtype="int32",
    )
    return burned, names


def outlines_of(lakes: Any, group: ChipGroup) -> list[tuple[str, bytes]]:
    """The lakes that meet a group, clipped to a little more than it, in its projection: what :func:`burn` takes."""
    import shapely

    west, south, east, north = group.degrees()
    near = lakes.iloc[
        lakes.sindex.query(shapely.box(west - 0.01, south - 0.01, east + 0.01, north + 0.01))
    ].sort_index()
    if not len(near):
        return []
    x0, y0, x1, y1 = group.bounds
    frame = shapely.box(x0 - 100, y0 - 100, x1 + 100, y1 + 100)
    clipped = shapely.intersection(near.geometry.to_crs(group.epsg).to_numpy(), frame)
    return [
        (name, shapely.to_wkb(outline))
        for name, outline in zip(near["lake_id"], clipped, strict=True)
        if not outline.is_empty and outline.area > 0
    ]


def label_of(burned: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, str]:
    """A chip's mask, (H, W) uint8, and the identifier of the lake with most pixels in it ("" for none)."""
    counts = np.bincount(burned.ravel(), minlength=1)
    counts[0] = 0
    return (burned > 0).astype(np.uint8), names[int(counts.argmax()) - 1] if counts.any() else ""
