"""Elevation: geographic one-degree tiles side by side, gaps."""

from __future__ import annotations

import ingest_world as world
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from shapely.geometry import box, mapping

from cryosentinel.ingest import Service
from cryosentinel.ingest.dem import read_dem

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
ARC_SECOND = 1 / 3600


def plane(lon, lat):
    """Metres; about as steep as the ground is."""
    return 3000 + 20_000 * (lon - 77) - 15_000 * (lat - 43.2)


def test_tiles_meet_without_a_seam_and_a_missing_one_is_no_data(tmp_path):
    south, side = 43.1, 0.1
    items = []
    with world.serve(tmp_path) as files:
        for west in (76.9, 77.0):
            centres = (np.arange(360) + 0.5) * ARC_SECOND
            values = plane((west + centres)[None, :], (south + side - centres)[:, None]).astype(np.float32)
            world.write_cog(tmp_path / files.unique / f"{west}.tif", values, 4326, west, south + side, ARC_SECOND)
            items.append({
                "type": "Feature", "stac_version": "1.0.0", "id": f"dem{west}", "links": [], "collection": "dem",
                "bbox": [west, south, west + side, south + side], "properties": {"datetime": "2021-04-22T00:00:00Z"},
                "geometry": mapping(box(west, south, west + side, south + side)),
                "assets": {"DEM": {"href": f"{files.url}/{files.unique}/{west}.tif"}},
            })  # fmt: skip
        x, y = Transformer.from_crs(4326, world.EPSG, always_xy=True).transform(77.0, 43.15)
        grid = GeoBox((224, 224), Affine(10, 0, round(x) - 1120, 0, -10, round(y) + 1120), f"EPSG:{world.EPSG}")
        service = Service("here", files.stac, {})
        dem, broken = read_dem(items, grid, world.FAST, service)
        gone = {**items[1], "assets": {"DEM": {"href": f"{files.url}/{files.unique}/none.tif"}}}
        alone, missing = read_dem([items[0], gone], grid, world.FAST, service)
        assert read_dem([{**items[1], "assets": {}}], grid, world.FAST, service)[1] == ["dem77.0 (no asset DEM)"]
    cols, rows = np.meshgrid(np.arange(224) + 0.5, np.arange(224) + 0.5)
    east, north = grid.affine.c + 10 * cols, grid.affine.f - 10 * rows
    lon, lat = Transformer.from_crs(world.EPSG, 4326, always_xy=True).transform(east, north)
    assert not broken
    # A pixel's width at the seam may lean on one tile alone: half a second of arc of slope at most.
    assert np.abs(dem[0] - plane(lon, lat)).max() <= 4
    assert np.abs(dem[0] - plane(lon, lat))[:, :100].max() <= 1
    assert missing and (alone[0][:, 120:] == -32_768).all() and (alone[0][:, :100] > 0).all()
