"""A small simulated scene behind stand-ins of the real STAC services, for the tests and the benchmark of ingest.

Items take properties, asset names and band metadata from items recorded at the real services where
``CRYOSENTINEL_REAL_DATA`` points to them, else from small ones with the same fields (:data:`SMALL`); places, times,
grids and links are rewritten.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio import features

from cryosentinel.data.chips import Chip, read_shard
from cryosentinel.ingest import SERVICES, Settings
from cryosentinel.sensors import S2_BANDS
from cryosentinel.simulate.field import render_scene

EPSG, LEFT, TOP, SIDE, SEED, YEAR = 32643, 1120.0 * 600, 1120.0 * 4280, 448, 7, 2023
REGION = "ile_alatau"
FAST = Settings(background=None, retries=1)  # every chip of the box; failures end soon
CLEAR, CLOUD = 5, 9  # scene classification
BLOCK = 256  # pixels a side of a COG's blocks
COMMON = (
    "coastal",
    "blue",
    "green",
    "red",
    "rededge1",
    "rededge2",
    "rededge3",
    "nir",
    "nir08",
    "nir09",
    "swir16",
    "swir22",
)
METRES = {"B01": 60, "B05": 20, "B06": 20, "B07": 20, "B8A": 20, "B09": 60, "B11": 20, "B12": 20, "SCL": 20}

#: Dialect -> recorded file, and a small item with the same fields. The last two were never recorded: Collection 1 is as
#: its older sister, CDSE as its documentation shows (STAC 1.1: projection and bands on assets).
RECORDED = {
    "pc-s2": "pc_sentinel-2-l2a.json", "pc-s1": "pc_sentinel-1-rtc.json", "pc-dem": "pc_cop-dem-glo-30.json",
    "grd": "pc_sentinel-1-grd.json", "grd-4326": "stactools_sentinel-1-grd_fake4326.json",
    "es-s2": "es_2023_a.json", "es-s2-2018": "es_offset_false_2018.json",
}  # fmt: skip
_S2 = {"eo:cloud_cover": 3.0, "s2:processing_baseline": "05.09", "s2:generation_time": "2023-08-25T09:15:41Z"}
_S1 = {"sat:orbit_state": "descending", "sat:relative_orbit": 51, "sar:product_type": "GRD", "platform": "SENTINEL-1A"}
_ES_BAND = {"nodata": 0, "data_type": "uint16", "spatial_resolution": 10, "scale": 0.0001, "offset": -0.1}
_ES: dict[str, Any] = {
    "properties": {
        **_S2, "platform": "sentinel-2b", "grid:code": "MGRS-33TWL", "proj:epsg": 32633, "s2:sequence": "0",
        "s2:datastrip_id": "S2B_OPER_MSI_L2A_DS_2BPS_20230820T124817_S20230820T094908_N05.09",
        "earthsearch:boa_offset_applied": True,
    },
    "assets": {**{name: {"raster:bands": [_ES_BAND]} for name in COMMON}, "scl": {}},
}  # fmt: skip
_GRD = {"properties": _S1, "assets": {"vv": {}, "vh": {}, "schema-calibration-vv": {}, "schema-calibration-vh": {}}}
SMALL: dict[str, dict[str, Any]] = {
    "pc-s2": {
        "properties": {
            **_S2, "platform": "Sentinel-2B", "s2:mgrs_tile": "47XML", "proj:epsg": 32647,
            "s2:datastrip_id": "S2B_OPER_MSI_L2A_DS_MSFT_20240419T123459_S20240419T095549_N05.10",
        },
        "assets": {name: {} for name in (*S2_BANDS, "SCL")},
    },
    "pc-s1": {
        "properties": {**_S1, "proj:epsg": 32633},
        "assets": {name: {"description": "Terrain-corrected gamma naught", "raster:bands": [{"nodata": -32768}]}
                   for name in ("vv", "vh")},
    },
    "pc-dem": {"properties": {"gsd": 30, "proj:epsg": 4326, "platform": "TanDEM-X"}, "assets": {"data": {}}},
    "grd": _GRD,
    "grd-4326": {**_GRD, "properties": {**_S1, "proj:epsg": 4326}},
    "es-s2": _ES,
    "es-s2-2018": {**_ES, "properties": {**_ES["properties"], "earthsearch:boa_offset_applied": False}},
    "cdse-s2": {
        "stac_version": "1.1.0",
        "properties": {
            "eo:cloud_cover": 3.0, "platform": "sentinel-2b", "processing:version": "05.09", "grid:code": "MGRS-43TFH",
            "processing:datetime": "2023-08-25T09:15:41Z", "eopf:datastrip_id":
            "S2B_OPER_MSI_L2A_DS_2BPS_20230825T091541_S20230825T053641_N05.09",
        },
        "assets": {
            f"{name}_{METRES.get(name, 10)}m": {"proj:code": "EPSG:32643", "bands": [{"name": name}]}
            | ({} if name == "SCL" else {"raster:scale": 0.0001, "raster:offset": -0.1})
            for name in (*S2_BANDS, "SCL")
        },
    },
    "cdse-dem": {
        "stac_version": "1.1.0", "properties": {"platform": "tandem-x"}, "assets": {"data": {"proj:code": "EPSG:4326"}},
    },
}  # fmt: skip


def dialect(name: str) -> dict[str, Any]:
    """A recorded item, or a small one with the same fields."""
    folder = os.environ.get("CRYOSENTINEL_REAL_DATA")
    path = Path(folder or ".") / "stac_items" / RECORDED.get(name, "none")
    if folder and path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        return found[0] if isinstance(found, list) else found
    return copy.deepcopy(SMALL[name])


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


class Files:
    """A stand-in in a process of its own, see :mod:`stac_server`, and its controls.

    Attributes:
        root: folder that it serves; files lie in subfolders of a name that no other server has: GDAL remembers what it
            read from an address, and ports are given out again.
        url: its address.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.unique = uuid.uuid4().hex[:10]
        script = Path(__file__).with_name("stac_server.py")
        self.process = subprocess.Popen([sys.executable, str(script), str(root)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.stac = f"{self.url}/stac"
        self.items: list[dict[str, Any]] = []

    def hold(self, *items: dict[str, Any]) -> None:
        """Give these items from now on, beside those before."""
        self.items += items
        (self.root / ".stac.json").write_text(json.dumps(self.items), encoding="utf-8")

    def _control(self, what: str, value: Any = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/.control/{what}", data), timeout=120) as answer:
            return json.load(answer)

    def log(self) -> list[tuple[str, str, int]]:
        """Requests so far: method, path, bytes of the answer's body."""
        return [(method, path, size) for method, path, size in self._control("log")]

    def count(self) -> tuple[int, int]:
        """Requests so far, and bytes of their answers."""
        log = self.log()
        return len(log), sum(size for _, _, size in log)

    def clear(self) -> None:
        """Forget the requests so far."""
        self._control("clear", [])

    def fail(self, match: str, status: int = 503, every: int = 1, times: int = 1_000_000, over: int = -1) -> None:
        """Answer each ``every``-th request of a file whose path holds ``match`` with a status, at most ``times``.

        Status 0 hangs up after half of a file's bytes; ``over``: only requests of more bytes than this.
        """
        rule = {"match": match, "status": status, "every": every, "times": times, "over": over}
        self._control("faults", [rule])

    def heal(self) -> int:
        """Fail no more; how often it did."""
        return sum(1_000_000 - rule["times"] for rule in self._control("faults", []))

    def protect(self, *rules: dict[str, Any]) -> None:
        """Ask for signatures or keys, see :mod:`stac_server`."""
        self._control("access", list(rules))

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(timeout=120)
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def serve(root: Path) -> Iterator[Files]:
    """A stand-in over a folder."""
    files = Files(root)
    try:
        yield files
    finally:
        files.stop()


@contextlib.contextmanager
def service(folder: Path, *makers: Any) -> Iterator[Files]:
    """A stand-in over what ``makers`` (functions of it) make; one clear scene by default."""
    with serve(folder / "files") as files:
        files.hold(*(maker(files) for maker in makers or (s2_item, s1_item, dem_item)))
        yield files


def write_cog(
    path: Path, array: np.ndarray, epsg: int, left: float, top: float, pixel: float = 10.0, nodata: float | None = None,
    driver: str = "COG",
) -> None:  # fmt: skip
    """Write one band as a COG, or as lossless JPEG 2000."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"blocksize": BLOCK, "compress": "deflate", "level": 1, "overviews": "none"}
    if driver == "JP2OpenJPEG":
        options = {"quality": 100, "reversible": "YES", "blockxsize": BLOCK, "blockysize": BLOCK}
    with rasterio.open(
        path, "w", driver=driver, height=array.shape[0], width=array.shape[1], count=1, dtype=array.dtype,
        crs=f"EPSG:{epsg}", transform=Affine(pixel, 0, left, 0, -pixel, top), nodata=nodata, **options,
    ) as target:  # fmt: skip
        target.write(array, 1)


def make_item(
    files: Files,
    kind: str,
    collection: str,
    name: str,
    moment: str,
    bands: Mapping[str, np.ndarray],
    epsg: int = EPSG,
    left: float = LEFT,
    top: float = TOP,
    properties: Mapping[str, Any] | None = None,
    nodata: float | None = None,
    bucket: str = "",
    pixel: float = 10.0,
) -> dict[str, Any]:
    """Write a scene's bands into the served folder, and describe them as an item of a dialect.

    Args:
        files: the stand-in.
        kind: dialect, a key of :data:`SMALL`.
        collection, name: of the item.
        moment: time of acquisition, RFC 3339.
        bands: asset key -> (H, W), all over one area; the largest has pixels of ``pixel`` metres (or degrees).
        epsg, left, top: of the grid.
        properties: in the place of the dialect's; None takes one away.
        nodata: of the files.
        bucket: of an ``s3://`` address; served over HTTP where empty.
        pixel: size of the finest band's.
    """
    height = max(band.shape[0] for band in bands.values())
    width = max(band.shape[1] for band in bands.values())
    base = dialect(kind)
    assets = {}
    for key, band in bands.items():
        jp2 = kind == "cdse-s2"
        place = f"{bucket + '/' if bucket else ''}{files.unique}/{collection}/{name}/{key}.{'jp2' if jp2 else 'tif'}"
        driver = "JP2OpenJPEG" if jp2 else "COG"
        write_cog(files.root / place, band, epsg, left, top, pixel * width / band.shape[1], nodata, driver)
        grid = {"proj:shape", "proj:transform", "proj:bbox", "proj:geometry"}
        asset = {k: v for k, v in base["assets"].get(key, {}).items() if k not in grid}
        if "proj:code" in asset:
            asset["proj:code"] = f"EPSG:{epsg}"
        assets[key] = {**asset, "href": f"s3://{place}" if bucket else f"{files.url}/{place}"}
    bounds = left, top - pixel * height, left + pixel * width, top
    degrees = Transformer.from_crs(epsg, 4326, always_xy=True).transform_bounds(*bounds)
    dropped = ("proj:shape", "proj:transform", "proj:bbox", "start_datetime", "end_datetime", "s2:product_uri")
    stated = {k: v for k, v in base["properties"].items() if k not in dropped}
    for key in ("proj:epsg", "proj:code"):
        if stated.get(key) not in (None, 4326):
            stated[key] = epsg if key == "proj:epsg" else f"EPSG:{epsg}"
    for key in ("s2:datastrip_id", "eopf:datastrip_id"):
        if key in stated:
            begun = moment[:19].replace("-", "").replace(":", "")
            stated[key] = f"S2B_OPER_MSI_L2A_DS_2BPS_{begun}_S{begun}_N05.09"
    for key, value in (("s2:mgrs_tile", "43TFH"), ("grid:code", "MGRS-43TFH")):
        if key in stated:
            stated[key] = value
    stated |= {"datetime": moment, **(properties or {})}
    return json.loads(json.dumps({
        "type": "Feature", "stac_version": base.get("stac_version", "1.0.0"), "stac_extensions": [], "id": name,
        "collection": collection, "bbox": list(degrees), "geometry": shapely.geometry.mapping(shapely.box(*degrees)),
        "properties": {k: v for k, v in stated.items() if v is not None}, "links": [], "assets": assets,
    }))  # fmt: skip


def s2_item(
    files: Files,
    name: str = "S2B_43TFH_20230825_0_L2A",
    day: str = "2023-08-25",
    s2: np.ndarray | None = None,
    scl: np.ndarray | None = None,
    offset: int = 0,
    kind: str = "pc-s2",
    collection: str = "sentinel-2-l2a",
    properties: dict[str, Any] | None = None,
    time: str = "05:36:41",
    **grid: Any,
) -> dict[str, Any]:
    """A Sentinel-2 item. ``offset`` is added to the digital numbers that hold data."""
    s2 = scene()["s2"] if s2 is None else s2
    scl = np.full(s2.shape[1:], CLEAR, np.uint8) if scl is None else scl
    raw = np.where((s2 == 0).all(axis=0), 0, s2.astype(np.int64) + offset).astype(np.uint16)
    keys = {
        "pc": (*S2_BANDS, "SCL"), "es": (*COMMON, "scl"), "cd": tuple(SMALL["cdse-s2"]["assets"]),
    }[kind[:2]]  # fmt: skip
    bands = dict(zip(keys, [*raw, scl], strict=True))
    baseline = {"s2:processing_baseline": "05.09" if offset else "02.14"} if kind == "pc-s2" else {}
    stated = {"eo:cloud_cover": 3.0, **baseline, **(properties or {})}
    return make_item(
        files, kind, collection, name, f"{day}T{time}Z", bands, properties=stated, nodata=None if "cd" in kind else 0,
        **grid,
    )  # fmt: skip


def s1_item(
    files: Files,
    name: str = "S1A_RTC_20230828",
    day: str = "2023-08-28",
    s1: np.ndarray | None = None,
    properties: dict[str, Any] | None = None,
    nodata: float | None = float("nan"),
    **grid: Any,
) -> dict[str, Any]:
    """A terrain-corrected Sentinel-1 item in linear power."""
    db = scene()["s1"] if s1 is None else s1
    power = (10 ** (db.astype(np.float64) / 10)).astype(np.float32)
    if nodata is not None and np.isfinite(nodata):
        power = np.where(np.isfinite(power), power, np.float32(nodata))
    options: dict[str, Any] = {"kind": "pc-s1", "collection": "sentinel-1-rtc", **grid}
    stated = {"sat:orbit_state": "descending", "sat:relative_orbit": 63, **(properties or {})}
    return make_item(
        files, name=name, moment=f"{day}T00:58:00Z", bands={"vv": power[0], "vh": power[1]}, properties=stated,
        nodata=nodata, **options,
    )  # fmt: skip


def dem_item(files: Files, name: str = "DEM_N43_E077", dem: np.ndarray | None = None, **grid: Any) -> dict[str, Any]:
    """An elevation item."""
    options: dict[str, Any] = {"kind": "pc-dem", "collection": "cop-dem-glo-30", **grid}
    elevation = (scene()["dem"] if dem is None else dem)[0].astype(np.float32)
    return make_item(files, name=name, moment="2021-04-22T00:00:00Z", bands={"data": elevation}, **options)


def inventory(path: Path, mask: np.ndarray | None = None, **columns: Any) -> Path:
    """The scene's label as outlines, a little inside its pixels so that all_touched burns just these."""
    mask = scene()["mask"] if mask is None else mask
    transform = Affine(10, 0, LEFT, 0, -10, TOP)
    shapes = [shapely.geometry.shape(g) for g, v in features.shapes(mask, mask=mask > 0, transform=transform) if v]
    inside = geopandas.GeoSeries(shapes, crs=EPSG).buffer(-0.5, join_style="mitre")
    frame = geopandas.GeoDataFrame({"lake_id": [f"L{n}" for n in range(len(shapes))]}, geometry=inside, crs=EPSG)
    frame.assign(**columns).to_crs(4326).to_file(path, driver="GeoJSON")
    return path


def pretend(monkeypatch: Any, name: str, files: Files, **changes: Any) -> None:
    """Let a service of the table live at a stand-in, with its files' S3 endpoint if it has one."""
    known = SERVICES[name]
    endpoint = files.url if known.s3_endpoint else ""
    monkeypatch.setitem(SERVICES, name, replace(known, url=files.stac, s3_endpoint=endpoint, **changes))


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
