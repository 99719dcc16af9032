"""A small simulated scene behind a loopback STAC service, for the tests of ingest."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio import features

from cryosentinel.data.chips import Chip, read_shard
from cryosentinel.ingest import Settings
from cryosentinel.ingest.loopback import Loopback, make_item, serve_files, serve_stac
from cryosentinel.sensors import S2_BANDS
from cryosentinel.simulate.field import render_scene

EPSG, LEFT, TOP, SIDE, SEED, YEAR = 32643, 1120.0 * 600, 1120.0 * 4280, 448, 7, 2023
REGION = "ile_alatau"
FAST = Settings(background=None, retries=1)  # every chip of the box; failures end soon
CLEAR, CLOUD = 5, 9  # scene classification


@functools.lru_cache(maxsize=1)
def scene() -> dict[str, np.ndarray]:
    """448 x 448 simulated pixels, four strides a side: nine chips."""
    layers = render_scene(EPSG, LEFT, TOP, SIDE, SIDE, YEAR, SEED)
    assert layers["mask"].any(), "the scene must show a lake"
    return layers


def box(strides: int = 4, first: int = 0, epsg: int = EPSG, left: float = LEFT, top: float = TOP) -> tuple[float, ...]:
    """The degrees that hold the centres of the chips of ``strides`` strides a side, and no others."""
    transformer = Transformer.from_crs(epsg, 4326, always_xy=True)
    step, edge = 1120.0, 400.0
    west, north = left + (first + 1) * step - edge, top - (first + 1) * step + edge
    reach = (strides - 2) * step + 2 * edge
    corners = transformer.transform([west, west + reach] * 2, [north, north, north - reach, north - reach])
    return min(corners[0]), min(corners[1]), max(corners[0]), max(corners[1])


def s2_item(
    files: Any,
    name: str = "S2B_43TFH_20230825_0_L2A",
    day: str = "2023-08-25",
    s2: np.ndarray | None = None,
    scl: np.ndarray | None = None,
    offset: int = 0,
    earth_search: bool = False,
    properties: dict[str, Any] | None = None,
    **grid: Any,
) -> dict[str, Any]:
    """A Sentinel-2 item. ``offset`` is added to the digital numbers that hold data."""
    s2 = scene()["s2"] if s2 is None else s2
    scl = np.full(s2.shape[1:], CLEAR, np.uint8) if scl is None else scl
    raw = np.where((s2 == 0).all(axis=0), 0, s2.astype(np.int64) + offset).astype(np.uint16)
    common = ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "swir16")
    names = (*common, "swir22") if earth_search else S2_BANDS
    bands = dict(zip(names, raw, strict=True)) | {"scl" if earth_search else "SCL": scl}
    baseline = {"s2:processing_baseline": "05.09" if offset else "02.14"}
    stated = {"platform": "sentinel-2b", "eo:cloud_cover": 3.0, **baseline, **(properties or {})}
    where = {"epsg": EPSG, "left": LEFT, "top": TOP, **grid}
    return make_item(files, "sentinel-2-l2a", name, f"{day}T05:36:41Z", bands, properties=stated, nodata=0, **where)


def s1_item(
    files: Any, name: str = "S1A_RTC_20230828", day: str = "2023-08-28", s1: np.ndarray | None = None, **grid: Any
) -> dict[str, Any]:
    """A terrain-corrected Sentinel-1 item in linear power."""
    db = scene()["s1"] if s1 is None else s1
    power = (10 ** (db.astype(np.float64) / 10)).astype(np.float32)
    stated = {"platform": "sentinel-1a", "sat:orbit_state": "descending", "sat:relative_orbit": 63}
    where = {"epsg": EPSG, "left": LEFT, "top": TOP, **grid}
    bands = {"vv": power[0], "vh": power[1]}
    moment = f"{day}T00:58:00Z"
    return make_item(files, "sentinel-1-rtc", name, moment, bands, properties=stated, nodata=float("nan"), **where)


def dem_item(files: Any, name: str = "DEM_N43_E077", dem: np.ndarray | None = None, **grid: Any) -> dict[str, Any]:
    """An elevation item."""
    where = {"epsg": EPSG, "left": LEFT, "top": TOP, **grid}
    elevation = (scene()["dem"] if dem is None else dem)[0].astype(np.float32)
    return make_item(files, "cop-dem-glo-30", name, "2021-04-22T00:00:00Z", {"data": elevation}, **where)


def inventory(path: Path, mask: np.ndarray | None = None, **columns: Any) -> Path:
    """The scene's label as outlines, a little inside its pixels so that all_touched burns just these."""
    mask = scene()["mask"] if mask is None else mask
    transform = Affine(10, 0, LEFT, 0, -10, TOP)
    shapes = [shapely.geometry.shape(g) for g, v in features.shapes(mask, mask=mask > 0, transform=transform) if v]
    inside = geopandas.GeoSeries(shapes, crs=EPSG).buffer(-0.5, join_style="mitre")
    frame = geopandas.GeoDataFrame({"lake_id": [f"L{n}" for n in range(len(shapes))]}, geometry=inside, crs=EPSG)
    frame.assign(**columns).to_crs(4326).to_file(path, driver="GeoJSON")
    return path


@contextlib.contextmanager
def service(folder: Path, *makers: Any) -> Iterator[Loopback]:
    """A loopback service over what ``makers`` (functions of the file server) make; one clear scene by default."""
    (folder / "files").mkdir(parents=True)
    with serve_files(folder / "files") as files:
        items = [maker(files) for maker in makers or (s2_item, s1_item, dem_item)]
        with serve_stac(files, items) as running:
            yield running


def chips_of(root: Path) -> list[Chip]:
    """All chips of a dataset."""
    return [chip for path in sorted(root.glob("*/*/shard_*.parquet")) for chip in read_shard(path)]


def cut(chip: Chip, layers: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """What the simulator has where a chip lies, by the name of the chip."""
    layers = scene() if layers is None else layers
    col, row = (int(v) for v in chip.chip_id.split("_")[-3:-1])
    at = slice(int(TOP / 10) - row, int(TOP / 10) - row + 224), slice(col - int(LEFT / 10), col - int(LEFT / 10) + 224)
    return {name: layers[name][(..., *at)] for name in ("s2", "s1", "dem", "mask")}


def assert_equal(chips: Sequence[Chip], layers: dict[str, np.ndarray] | None = None) -> None:
    """Chips are the simulated ones within a digital number (and a thousandth of a decibel)."""
    assert chips
    for chip in chips:
        wanted = cut(chip, layers)
        assert np.abs(chip.s2.astype(int) - wanted["s2"]).max() <= 1
        np.testing.assert_allclose(chip.s1, wanted["s1"], atol=1e-3)
        assert np.abs(chip.dem.astype(int) - wanted["dem"]).max() <= 1
        np.testing.assert_array_equal(chip.mask, wanted["mask"])
