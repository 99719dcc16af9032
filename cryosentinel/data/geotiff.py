"""The 15-band GeoTIFF: twelve Sentinel-2 bands, VV, VH and elevation, in that order, on one grid.

Written as float32, which holds every uint16 reflectance, every float32 backscatter and every int16 elevation exactly.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.data.pixels import S1_LIMIT_DB, Chip, valid_mask
from cryosentinel.errors import InputError
from cryosentinel.files import replacing
from cryosentinel.geo import chip_grid
from cryosentinel.sensors import BAND_COUNT, DEM_NODATA, DEM_RANGE, MODALITIES, S2_NODATA

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

BAND_NAMES = tuple(band for bands in MODALITIES.values() for band in bands)
S2_COUNT, S1_COUNT = len(MODALITIES["S2L2A"]), len(MODALITIES["S1GRD"])
TAGS = ("chip_id", "region", "lake_id", "split", "snapshot_year", "lat", "lon")


@dataclass(frozen=True, eq=False)
class Raster:
    """The arrays of a 15-band GeoTIFF, in a chip's types and units, with where they lie.

    Attributes:
        s2: (12, H, W) uint16, reflectance x 10,000, 0 in all bands where there is no data.
        s1: (2, H, W) float32, dB, not a number where there is no data.
        dem: (1, H, W) int16, metres, -32768 where there is no data.
        crs, transform: of the grid, as rasterio gives them.
        tags: the file's own tags.
    """

    s2: np.ndarray
    s1: np.ndarray
    dem: np.ndarray
    crs: CRS
    transform: Affine
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def valid(self) -> np.ndarray:
        """(H, W) bool, see :func:`cryosentinel.data.pixels.valid_mask`."""
        return valid_mask(self.s2, self.s1, self.dem)


def check_geotiff(source: DatasetReader) -> None:
    """Refuse an open raster that is not a 15-band chip or scene.

    Raises:
        InputError: it has a wrong number of bands, no coordinate reference system or no transform.
    """
    if source.count != BAND_COUNT:
        raise InputError(
            f"{source.name} has {source.count} bands; {BAND_COUNT} are needed, in this order: {', '.join(BAND_NAMES)}."
        )
    if source.crs is None:
        raise InputError(
            f"{source.name} has no coordinate reference system; assign the right one first, "
            "for example with gdal_edit.py -a_srs EPSG:32643."
        )
    if source.transform.is_identity:
        raise InputError(f"{source.name} has no geotransform; write it again with its position on the ground.")


def band_order(source: DatasetReader, expected: Sequence[str]) -> list[int] | None:
    """The numbers of a raster's bands in the order of ``expected``, as their descriptions say.

    Args:
        source: open raster of as many bands.
        expected: names of :data:`BAND_NAMES`.

    Returns:
        Numbers from 1; None where the bands lie in that order or their descriptions say nothing.

    Raises:
        InputError: two bands have one name, or some are named and stand where another one belongs.
    """
    names = {name.upper(): name for name in expected} | {"DEM": "elevation"}
    said = [names.get(re.sub(r"^B(\d)$", r"B0\1", (text or "").strip().upper())) for text in source.descriptions]
    twice = next((name for name in said if name and said.count(name) > 1), None)
    if twice:
        raise InputError(f"Two bands of {source.name} are described as {twice}; correct the descriptions.")
    if all(said):
        order = [said.index(name) + 1 for name in expected]
        return order if order != sorted(order) else None
    for number, (name, needed) in enumerate(zip(said, expected, strict=True), start=1):
        if name not in (None, needed):
            raise InputError(
                f"Band {number} of {source.name} is described as {name} where {needed} belongs; describe all bands, or "
                f"put them in this order: {', '.join(expected)}."
            )
    return None


def split_bands(bands: np.ndarray, nodata: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A 15-band array to a chip's three arrays, with no data written as the chips write it.

    Args:
        bands: (15, H, W), any numeric type.
        nodata: the file's declared value for no data. In Sentinel-2 it counts where all twelve bands hold it (one
            band may well be 0 in deep shadow), elsewhere where any band does.

    Returns:
        (12, H, W) uint16, (2, H, W) float32, (1, H, W) int16.
    """
    raw2, raw1 = bands[:S2_COUNT], bands[S2_COUNT : S2_COUNT + S1_COUNT].astype(np.float32)
    raw3 = bands[S2_COUNT + S1_COUNT :]
    gone2 = ~np.isfinite(raw2).all(axis=0)
    gone3 = ~np.isfinite(raw3)
    if nodata is not None and np.isfinite(nodata):
        gone2 |= (raw2 == nodata).all(axis=0)
        raw1[raw1 == np.float32(nodata)] = np.nan
        gone3 |= raw3 == nodata
    limits2, limits3 = np.iinfo(np.uint16), np.iinfo(np.int16)
    s2 = np.where(gone2, S2_NODATA[0], np.clip(np.rint(raw2), limits2.min, limits2.max)).astype(np.uint16)
    dem = np.where(gone3, limits3.min, np.clip(np.rint(raw3), limits3.min, limits3.max)).astype(np.int16)
    assert limits3.min <= DEM_NODATA[0]
    return s2, raw1, dem


def read_geotiff(path: str | os.PathLike[str], window: Window | None = None) -> Raster:
    """Read a 15-band GeoTIFF, or a window of it.

    Args:
        path: the file.
        window: rasterio window; None for the whole.

    Raises:
        InputError: there is no such file, it is not a raster, is truncated, has a wrong number of bands or no
            coordinate reference system, or its values are not in a chip's units.
    """
    import rasterio
    from rasterio.errors import RasterioError, RasterioIOError

    if not Path(path).exists():
        raise InputError(f"There is no raster {path}; check the path.")
    try:
        source = rasterio.open(path)
    except RasterioIOError as error:
        raise InputError(f"{path} is not a raster that can be read ({error}); make it again.") from None
    with source:
        check_geotiff(source)
        try:
            bands = source.read(band_order(source, BAND_NAMES), window=window)
        except (RasterioError, ValueError) as error:
            raise InputError(
                f"The pixels of {path} cannot be read ({error}); the file is truncated, make it again."
            ) from None
        transform = source.transform if window is None else source.window_transform(window)
        s2, s1, dem = split_bands(bands, source.nodata)
        optical = bands[:S2_COUNT]
        check_units(path, optical if source.nodata is None else optical[optical != source.nodata], s1)
        return Raster(s2, s1, dem, source.crs, transform, dict(source.tags()))


def check_units(
    path: str | os.PathLike[str], optical: np.ndarray, s1: np.ndarray, dem: np.ndarray | None = None, way_out: str = ""
) -> None:
    """Refuse values that are not in a chip's units: reflectance as 0..1, linear backscatter, bands in another order.

    Args:
        path: of the file, for the message.
        optical: reflectances as they were read, those of pixels without data left out or not finite.
        s1: backscatter, not a number where there is no data.
        dem: elevations where there are data, for a scene; a chip's may be anything.
        way_out: how the user has linear power converted.

    Raises:
        InputError: a modality is not in a chip's units.
    """
    some = optical[np.isfinite(optical) & (optical > 0)]
    # A share, not the largest: one broken pixel does not make fractions into digital numbers.
    if some.size and np.count_nonzero(some > 2) <= some.size / 100:
        reached = np.percentile(some, 99)
        raise InputError(f"The Sentinel-2 bands of {path} reach only {reached:.3g}; they must be reflectance x 10,000.")
    radar, heights = s1[np.isfinite(s1)], np.zeros(1) if dem is None else dem
    if radar.size and radar.min() >= 0 and radar.max() > 0:
        raise InputError(
            f"The Sentinel-1 bands of {path} are nowhere below 0; they must be in dB, not linear power{way_out}."
        )
    if np.abs(radar).max(initial=0) > S1_LIMIT_DB or heights.min() < DEM_RANGE[0] or heights.max() > DEM_RANGE[1]:
        raise InputError(
            f"The bands of {path} are not in the order Sentinel-2 (12), VV, VH, elevation, or not in dB and metres: "
            f"radar reaches {radar.min():.4g} to {radar.max():.4g}, elevation {heights.min()} to {heights.max()}."
        )


def write_geotiff(
    path: str | os.PathLike[str], chip: Chip | Raster, crs: Any = None, transform: Affine | None = None
) -> None:
    """Write a chip (without its mask) or a raster as a 15-band float32 GeoTIFF, atomically.

    Args:
        path: ends in ``.tif``.
        chip: what to write; the metadata of a chip become tags.
        crs, transform: the grid; left out, a raster's own, and for a chip the one that follows from its centre.

    Raises:
        InputError: a chip has no centre and no grid was given.
    """
    import rasterio

    tags = {name: getattr(chip, name) for name in TAGS} if isinstance(chip, Chip) else dict(chip.tags)
    if isinstance(chip, Raster):
        crs, transform = crs or chip.crs, transform or chip.transform
    elif crs is None or transform is None:
        if chip.lat is None or chip.lon is None:
            raise InputError(
                f"Chip {chip.chip_id!r} has no lat and lon, so its grid is unknown; pass crs and transform."
            )
        height, width = chip.mask.shape
        if height != width:
            raise InputError(f"Chip {chip.chip_id!r} is {height} x {width} pixels, not square; pass crs and transform.")
        epsg, transform = chip_grid(chip.lat, chip.lon, height)
        crs = f"EPSG:{epsg}"
    bands = np.concatenate([chip.s2, chip.s1, chip.dem]).astype(np.float32)
    profile = {"driver": "GTiff", "dtype": "float32", "compress": "deflate", "predictor": 3, "crs": crs}
    with (
        replacing(path) as part,
        rasterio.open(
            part, "w", count=BAND_COUNT, height=bands.shape[1], width=bands.shape[2], transform=transform, **profile
        ) as target,
    ):
        target.write(bands)
        target.descriptions = BAND_NAMES
        target.update_tags(**{name: str(value) for name, value in tags.items() if value not in (None, "")})
