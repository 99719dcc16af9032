"""A place and a year as scenes: images of a box from STAC services, side by side on the grid of its UTM zone."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.data.chips import BAND_NAMES, iter_shard
from cryosentinel.errors import InputError
from cryosentinel.files import read_json, replacing
from cryosentinel.geo import chip_corner
from cryosentinel.ingest.grid import Box, region_box, tiles
from cryosentinel.ingest.settings import Settings, digest
from cryosentinel.mapping.scene import Scene
from cryosentinel.paths import shard_path
from cryosentinel.sensors import BAND_COUNT, CHIP_SIZE, PIXEL_SIZE_M

if TYPE_CHECKING:
    import pandas as pd

#: Every tile of the box, however little of it is seen: what is hidden is no data in the mosaic.
MOSAIC = Settings(side_by_side=True, background=None, max_hidden=100, min_valid=0)
BYTES_A_PIXEL = 80  # of the disk: the chips (34) and the float32 raster (60), both compressed by a little
MAIN_TAGS = ("date", "orbit", "radar_product")


def place_name(box: Box) -> str:
    """The name of a place without one, from its middle in thousandths of a degree: E077000N43050."""
    lon, lat = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return f"{'EW'[lon < 0]}{abs(lon) * 1000:06.0f}{'NS'[lat < 0]}{abs(lat) * 1000:05.0f}"


def place_scenes(
    year: int,
    service: str,
    out: str | os.PathLike[str],
    box: Box | None = None,
    region: str = "",
    services: tuple[str | None, str | None, str | None] = (None, None, None),
    settings: Settings = MOSAIC,
    scheduler: str | None = None,
    workers: int = 2,
    progress: bool = True,
) -> list[Scene]:
    """Build the images of a box and year as 15-band GeoTIFFs, one for each UTM zone that the box meets.

    The images are those of :func:`cryosentinel.ingest.ingest`, which keeps every finished group of tiles: a run that
    was stopped goes on, and a finished one asks the service nothing.

    Args:
        year: of the images.
        service: a name of :data:`cryosentinel.ingest.services.SERVICES`, or the address of a STAC API.
        out: folder; tiles go to ``<out>/<region>/<year>``, scenes to ``<out>/<region>_<zone>_<year>.tif``.
        box: west, south, east, north in degrees; the region's own by default.
        region: a name of :data:`cryosentinel.sensors.REGIONS`, or any name together with ``box``; by default one made
            of the box's middle.
        services: of Sentinel-2, Sentinel-1 and elevation, where one comes from another service.
        settings: seasons, cloud and radar limits; ``side_by_side`` and what belongs to it are set here.
        scheduler: address of a Dask scheduler whose workers read the images; threads by default.
        workers: threads.
        progress: show progress bars, and say what was built.

    Returns:
        The scenes. Their tags say what :func:`cryosentinel.mapping.change.comparison_notes` compares: date (of most
        tiles), orbit and radar_product (of most tiles), cloud (share of pixels that stayed hidden); and s2_dates.

    Raises:
        ConfigError, InputError, HubError: see :func:`cryosentinel.ingest.ingest`; or the disk is too small.
    """
    from cryosentinel.ingest import ingest

    out = Path(out)
    region = region or (place_name(box) if box is not None else "")
    box = region_box(region, box)
    settings = replace(
        settings, side_by_side=True, background=None, max_hidden=MOSAIC.max_hidden, min_valid=MOSAIC.min_valid
    )
    _check_space(out, len(tiles(box)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*training split")  # a mosaic trains nothing
        made = ingest(
            region, year, service, out, None, box, *services, scheduler=scheduler, workers=workers, settings=settings,
            progress=progress,
        )  # fmt: skip
    if progress:
        print(*made.summary().partition("\n\n")[0].splitlines(), sep="\n", flush=True)
    index = made.index.assign(epsg=[chip_corner(name)[0] for name in made.index["chip_id"]])
    identity = digest(record=json.dumps(read_json(made.folder / "ingest.json"), sort_keys=True))
    scenes = []
    for epsg, planned in index.groupby("epsg"):
        if (planned["status"] == "kept").any():
            zone = f"{epsg % 100:02d}{'N' if epsg < 32700 else 'S'}"
            path = out / f"{region}_{zone}_{year}.tif"
            write_mosaic(path, out, region, year, planned, identity)
            scenes.append(Scene.of(path, s2_offset=0))  # ingest has removed it
    return scenes


def _check_space(out: Path, count: int) -> None:
    """Refuse a box whose images would fill the disk, before hours of reading."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    needed, free = count * CHIP_SIZE**2 * BYTES_A_PIXEL, shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"The images of this box take about {needed / 1e9:.0f} GB, and {there} has {free / 1e9:.0f} GB left; give "
            "a smaller box or another --out."
        )


def write_mosaic(path: Path, root: Path, region: str, year: int, planned: pd.DataFrame, identity: str) -> None:
    """Write the tiles of one UTM zone as a 15-band GeoTIFF, a tile at a time; one that is there already stays.

    Args:
        path: of the raster.
        root, region, year: of the shards.
        planned: rows of an ingest's index, of one zone, those without a tile included.
        identity: digest of what the tiles are made from, kept in the file's tag "images".
    """
    import rasterio
    from affine import Affine
    from rasterio.windows import Window

    if path.is_file():
        with rasterio.open(path) as source:
            if source.tags().get("images") == identity:
                return
    corners = np.array([chip_corner(name) for name in planned["chip_id"]])
    epsg, (top, left) = int(corners[0, 0]), corners[:, 1:].min(axis=0).tolist()
    height, width = (corners[:, 1:].max(axis=0) + CHIP_SIZE - (top, left)).tolist()
    # A tile of the file is a chip, so that each is compressed once; tiles that are not there read as 0: no data.
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "float32", "count": BAND_COUNT, "height": height, "width": width,
        "crs": f"EPSG:{epsg}", "compress": "deflate", "predictor": 3, "zlevel": 3, "tiled": True,
        "blockxsize": CHIP_SIZE, "blockysize": CHIP_SIZE, "BIGTIFF": "IF_SAFER", "SPARSE_OK": True,
        "transform": Affine(PIXEL_SIZE_M, 0, left * PIXEL_SIZE_M, 0, -PIXEL_SIZE_M, -top * PIXEL_SIZE_M),
    }  # fmt: skip
    kept = planned[planned["status"] == "kept"]
    wanted = set(kept["chip_id"])
    with replacing(path) as part, rasterio.open(part, "w", **profile) as sink:
        sink.update_tags(**mosaic_tags(planned), snapshot_year=year, images=identity)
        sink.descriptions = BAND_NAMES
        for number in sorted({int(n) for n in kept["shard"]}):
            for chip in iter_shard(shard_path(root, region, year, number), warn=False):
                if chip.chip_id in wanted:
                    _, row, col = chip_corner(chip.chip_id)
                    bands = np.concatenate([chip.s2, chip.s1, chip.dem]).astype(np.float32)
                    sink.write(bands, window=Window(col - left, row - top, CHIP_SIZE, CHIP_SIZE))


def mosaic_tags(planned: pd.DataFrame) -> dict[str, str]:
    """What the images of an ingest's index are: date, orbit and radar_product of most tiles, cloud, s2_dates."""
    kept = planned[planned["status"] == "kept"]
    orbit = kept["s1_direction"] + kept["s1_orbit"].map(lambda n: f" {n:.0f}" if n > 0 else "")
    columns = (kept["s2_date"], orbit, kept["s1_product"] + " " + kept["s1_backscatter"])
    most = {name: str(column.mode().iloc[0]) for name, column in zip(MAIN_TAGS, columns, strict=True)}
    cloud = 1 - float(planned["s2_clear"].fillna(0).mean())
    return {**most, "cloud": f"{max(cloud, 0):.3f}", "s2_dates": " ".join(sorted(set(kept["s2_date"])))}
