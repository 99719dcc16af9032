"""Lakes as vectors: outlines of predicted or labelled water with their geodesic area."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import InputError

if TYPE_CHECKING:
    import geopandas as gpd
    from affine import Affine

MIN_AREA_HA = 0.5  # the published system's smallest trustworthy lake: 50 pixels of 10 m


def vectorise(
    water: np.ndarray, transform: Affine, epsg: int, min_area_ha: float = MIN_AREA_HA, **columns: Any
) -> gpd.GeoDataFrame:
    """Outlines of connected water (pixels that share an edge), largest first.

    Args:
        water: (H, W), lake where 1; anything else, 255 for no data included, is not.
        transform: from (column, row) to the coordinates of ``epsg``.
        epsg: code of the projection.
        min_area_ha: smaller lakes are left out.
        columns: constant columns to add, e.g. ``year=2022``.

    Returns:
        Polygons with holes in the coordinates of ``epsg``, column ``area_ha``: area on the WGS 84 ellipsoid, which a
        projected area misses by up to 0.1 % at the edge of a UTM zone.
    """
    import geopandas as gpd
    import rasterio.features
    from pyproj import Geod
    from shapely.geometry import shape

    if water.ndim != 2:
        raise InputError(f"Water is one (H, W) mask, not {water.shape}; vectorise one scene at a time.")
    mask = water == 1
    shapes = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, transform=transform)
    frame = gpd.GeoDataFrame({"geometry": [shape(outline) for outline, _ in shapes]}, geometry="geometry", crs=epsg)
    geod = Geod(ellps="WGS84")
    areas = [abs(geod.geometry_area_perimeter(g)[0]) / 10_000 for g in frame.geometry.to_crs(4326)]
    frame["area_ha"] = np.array(areas, dtype=float)
    frame = frame[frame["area_ha"] >= min_area_ha].sort_values("area_ha", ascending=False, ignore_index=True)
    return frame.assign(**columns)
