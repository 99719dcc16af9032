"""HTTP requests and bytes that an ingest takes, beside odc-stac with the defaults of its libraries, one load a chip.

Both build the same chips from the same stand-in of a service (a STAC API, COGs over HTTP with byte ranges, see
tests/stac_server.py), each in a process of its own whose caches are empty. The scenes are a simulated one repeated over
a square, with bands at the resolutions of Sentinel-2; the peer is told which scenes to load, so that only reading is
compared. A third row holds the bytes against those of the files' blocks that the chips lie on, each once: what no
reader of whole blocks can go below. The last is the peak memory of a process that builds one full group of chips.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the stand-in is no part of the package

IDS: tuple[str, ...] = ("stac_requests", "stac_bytes", "stac_bytes_needed", "stac_memory")

EPSG, LEFT, TOP, SEED, YEAR = 32643, 1120.0 * 600, 1120.0 * 4280, 7, 2023
BLOCK = 512  # pixels a side of a COG's blocks, as most services write them
COARSE = {"B01": 6, "B05": 2, "B06": 2, "B07": 2, "B8A": 2, "B09": 6, "B11": 2, "B12": 2}


def _scenes(files: Any, strides: int) -> list[dict[str, Any]]:
    """One clear Sentinel-2 scene, one Sentinel-1 pass and an elevation tile of ``strides`` x 112 pixels a side."""
    import ingest_world as world

    from cryosentinel.sensors import S2_BANDS
    from cryosentinel.simulate.field import render_scene

    world.BLOCK = BLOCK
    tile = render_scene(EPSG, LEFT, TOP, 336, 336, YEAR, SEED)
    side = strides * 112

    def over(a: np.ndarray) -> np.ndarray:
        return np.tile(a, (-(-side // 336),) * 2)[:side, :side]

    bands = {
        name: over(band)[:: COARSE.get(name, 1), :: COARSE.get(name, 1)] + np.uint16(1000)
        for name, band in zip(S2_BANDS, tile["s2"], strict=True)
    }
    bands["SCL"] = np.full((side // 2, side // 2), 5, np.uint8)
    power = [over((10 ** (band / 10)).astype(np.float32)) for band in tile["s1"]]
    height = over(tile["dem"][0]).astype(np.float32)
    stated = {"eo:cloud_cover": 1.0, "s2:processing_baseline": "05.09"}
    return [
        world.make_item(
            files, "pc-s2", "sentinel-2-l2a", "S2", f"{YEAR}-08-25T05:36:41Z", bands, properties=stated, nodata=0
        ),
        world.make_item(
            files, "pc-s1", "sentinel-1-rtc", "S1", f"{YEAR}-08-27T00:58:00Z", {"vv": power[0], "vh": power[1]}
        ),
        world.make_item(files, "pc-dem", "cop-dem-glo-30", "DEM", "2021-04-22T00:00:00Z", {"data": height}),
    ]


def _lakes(path: Path, strides: int) -> None:
    """Lakes of 300 m, one in every square of eight strides and each a little elsewhere in it."""
    import geopandas
    import shapely

    draw = np.random.default_rng(0)
    squares = [(i, j) for i in range(0, strides - 3, 8) for j in range(0, strides - 3, 8)]
    corners = [draw.uniform(1.5, 3.0, 2) + place for place in squares]
    shapes = [shapely.box(x, y - 300, x + 300, y) for x, y in ((LEFT + b * 1120, TOP - a * 1120) for a, b in corners)]
    geopandas.GeoDataFrame(geometry=shapes, crs=EPSG).to_crs(4326).to_file(path, driver="GPKG")


def ours(stac: str, folder: str) -> None:
    """Ingest."""
    from cryosentinel.ingest import ingest

    box = json.loads((Path(folder) / "box.json").read_text(encoding="utf-8"))
    ingest("square", YEAR, stac, Path(folder) / "out", Path(folder) / "lakes.gpkg", box, progress=False)


def peer(stac: str, folder: str) -> None:
    """The chips of that ingest by odc-stac as it comes, a load of each collection for each chip."""
    import odc.stac
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from pystac_client import Client

    from cryosentinel.sensors import S2_BANDS

    client = Client.open(stac)
    bands = {"sentinel-2-l2a": [*S2_BANDS, "SCL"], "sentinel-1-rtc": ["vv", "vh"], "cop-dem-glo-30": ["data"]}
    items = {name: list(client.search(collections=[name]).items()) for name in bands}
    for left, top in _corners(Path(folder)):
        grid = GeoBox((224, 224), Affine(10, 0, left, 0, -10, top), f"EPSG:{EPSG}")
        for collection, wanted in bands.items():
            data = odc.stac.load(items[collection], bands=wanted, geobox=grid, resampling="bilinear")
            assert all(np.isfinite(data[band].values).all() for band in wanted)


def memory(stac: str, folder: str) -> None:
    """Build every chip of the scenes with one worker, and print the process's peak memory in bytes."""
    import resource

    from cryosentinel.ingest import ingest

    box = json.loads((Path(folder) / "box.json").read_text(encoding="utf-8"))
    ingest("full", YEAR, stac, Path(folder) / "full", bbox=box, workers=1, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def measure_memory(strides: int) -> tuple[int, int]:
    """Peak memory of a full group, bytes, and its chips."""
    import ingest_world as world

    with tempfile.TemporaryDirectory() as name, world.serve(Path(name) / "files") as files:
        (Path(name) / "box.json").write_text(json.dumps(world.box(strides)), encoding="utf-8")
        files.hold(*_scenes(files, strides))
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stac_requests", "memory", files.stac, name]
        root = Path(__file__).parents[1]
        said = subprocess.run(command, check=True, cwd=root, stdout=subprocess.PIPE, text=True).stdout
        return int(said.split()[-1]), (strides - 1) ** 2


def _corners(folder: Path) -> list[tuple[float, float]]:
    """Upper left corner in metres of each chip that was built."""
    import pandas as pd

    index = pd.read_parquet(folder / "out" / "square" / str(YEAR) / "index.parquet")
    places = [name.split("_")[-3:-1] for name in index.loc[index["status"] == "kept", "chip_id"]]
    return [(int(col) * 10.0, int(row) * 10.0) for col, row in places]


def needed_bytes(folder: Path, root: Path) -> int:
    """Compressed bytes of all blocks that a chip touches, each once."""
    import rasterio

    corners, total = _corners(folder), 0
    for path in root.rglob("*.tif"):
        with rasterio.open(path) as source:
            high, wide = source.block_shapes[0]
            blocks: set[tuple[int, int]] = set()
            for x, y in corners:
                (left, top), (right, bottom) = ~source.transform * (x, y), ~source.transform * (x + 2240, y - 2240)
                blocks |= {
                    (i, j)
                    for i in range(int(top // high), int(-(-bottom // high)))
                    for j in range(int(left // wide), int(-(-right // wide)))
                }
            total += sum(int(source.get_tag_item(f"BLOCK_SIZE_{j}_{i}", "TIFF", bidx=1) or 0) for i, j in blocks)
    return total


def measure(strides: int) -> dict[str, dict[str, float]]:
    """Requests, bytes and seconds of both, the number of chips and the bytes that they need."""
    import ingest_world as world
    from pyproj import Transformer

    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, world.serve(Path(name) / "files") as files:
        folder = Path(name)
        transformer = Transformer.from_crs(EPSG, 4326, always_xy=True)
        west, south = transformer.transform(LEFT + 1100, TOP - (strides - 1) * 1120 + 20)
        east, north = transformer.transform(LEFT + (strides - 1) * 1120 - 20, TOP - 1100)
        (folder / "box.json").write_text(json.dumps([west, south, east, north]), encoding="utf-8")
        _lakes(folder / "lakes.gpkg", strides)
        files.hold(*_scenes(files, strides))
        for task in ("ours", "peer"):
            files.clear()
            begun = time.perf_counter()
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stac_requests", task, files.stac, name]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
            seconds = time.perf_counter() - begun
            requests, size = files.count()
            results[task] = {"requests": requests, "bytes": size, "seconds": seconds}
        results["ours"] |= {"chips": len(_corners(folder)), "needed": needed_bytes(folder, files.root)}
    return results


def run(quick: bool) -> list[dict[str, Any]]:
    """Both counts; they are the same in every run."""
    results = measure(strides=10 if quick else 36)
    peak, full = measure_memory(strides=5 if quick else 25)
    mine, other, chips = results["ours"], results["peer"], int(results["ours"]["chips"])
    common = {"peer_name": "odc-stac and GDAL defaults, one load a chip"}
    return [
        {
            "id": "stac_requests",
            "what": f"HTTP requests of an ingest of {chips} chips",
            "ours": mine["requests"],
            "peer": other["requests"],
            "unit": "requests",
            "ratio": other["requests"] / mine["requests"],
            "goal": "a third of the requests",
            **common,
        },
        {
            "id": "stac_bytes",
            "what": f"bytes that an ingest of {chips} chips receives",
            "ours": mine["bytes"] / 1e6,
            "peer": other["bytes"] / 1e6,
            "unit": "MB",
            "ratio": other["bytes"] / mine["bytes"],
            "goal": None,
            **common,
        },
        {
            "id": "stac_bytes_needed",
            "what": f"bytes that an ingest of {chips} chips receives, beside those that it needs",
            "ours": mine["bytes"] / 1e6,
            "peer": mine["needed"] / 1e6,
            "peer_name": "the blocks that the chips lie on, each once",
            "unit": "MB",
            "ratio": mine["needed"] / mine["bytes"],
            "goal": "at most 1.1 times the bytes (0.91)",
        },
        {
            "id": "stac_memory",
            "what": f"peak memory of an ingest whose group holds {full} chips, one worker",
            "ours": peak / 1e6,
            "peer": None,
            "peer_name": "",
            "unit": "MB",
            "ratio": None,
            "goal": None,
        },
    ]


if __name__ == "__main__":
    {"ours": ours, "peer": peer, "memory": memory}[sys.argv[1]](*sys.argv[2:])
