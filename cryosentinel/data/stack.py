"""Aligned rasters of the three sensors become one 15-band GeoTIFF, the layout that prediction takes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cryosentinel.data.geotiff import check_units
from cryosentinel.data.offset import check_offset
from cryosentinel.errors import InputError
from cryosentinel.files import replacing
from cryosentinel.sensors import BAND_COUNT, MODALITIES, S2_NODATA


def stack_rasters(
    s2: str | os.PathLike[str],
    s1: str | os.PathLike[str],
    dem: str | os.PathLike[str],
    out: str | os.PathLike[str],
    s2_offset: int | None = None,
    s1_linear: bool = False,
) -> Path:
    """Write one 15-band GeoTIFF (float32: 12 Sentinel-2 bands, VV, VH, elevation) from three rasters on one grid.

    Args:
        s2: 12 bands of Sentinel-2 L2A, B01 to B12 without B10, reflectance x 10,000.
        s1: VV and VH in dB, or linear power with ``s1_linear``.
        dem: elevation in metres.
        out: GeoTIFF to write; written beside and renamed.
        s2_offset: digital numbers to subtract from pixels that hold data: 1000 for raw L2A of processing baseline
            04.00 (2022-01-25) and later. Left out, nothing is subtracted and a scene that carries the offset is
            refused; 0 says that it does not, and is believed. See :mod:`cryosentinel.data.offset`.
        s1_linear: the radar raster holds linear power, to be turned into dB.

    Returns:
        ``out``.

    Raises:
        InputError: a raster cannot be read, has the wrong number of bands, no CRS, or another grid than ``s2``; or
            the values of ``s2`` contradict ``s2_offset``.
    """
    import rasterio

    arrays, grid = [], None
    for name, path in zip(MODALITIES, (s2, s1, dem), strict=True):
        try:
            with rasterio.open(path) as source:
                if source.count != len(MODALITIES[name]):
                    raise InputError(f"{path} has {source.count} bands; {name} needs {len(MODALITIES[name])}.")
                if source.crs is None:
                    raise InputError(f"{path} has no coordinate reference system; assign one (gdal_edit.py -a_srs).")
                here = (source.crs, source.shape, source.transform)
                if grid is None:
                    grid = here
                # A hundredth of a pixel: rasters that were warped together differ by rounding only.
                elif here[:2] != grid[:2] or not here[2].almost_equals(grid[2], precision=abs(grid[2].a) / 100):
                    raise InputError(f"{path} is not on the grid of {s2}; warp it to the same CRS, extent and size.")
                array = source.read().astype(np.float32)
                if source.nodata is not None:
                    _mark_nodata(name, array, source.nodata)
        except rasterio.errors.RasterioIOError as error:
            raise InputError(f"{path} cannot be read as a raster ({error}); check the path and the file.") from None
        arrays.append(array)
    optical, radar, elevation = arrays
    check_offset(optical, str(s2), s2_offset)
    if s2_offset:
        optical = np.where((optical == 0).all(0), 0, np.clip(optical - s2_offset, 1, None))
    if s1_linear and (radar < 0).any():
        raise InputError(f"{s1} holds values below 0, which linear power never is; it is in dB: leave --s1_linear out.")
    if s1_linear:
        with np.errstate(divide="ignore", invalid="ignore"):
            radar = np.where(radar > 0, 10 * np.log10(radar), np.nan)
    bands = np.concatenate([optical, radar, elevation])
    check_units(f"{s2}, {s1}", bands, bands[len(optical) : -1])
    assert grid is not None
    crs, (height, width), transform = grid
    profile = {
        "driver": "GTiff", "dtype": "float32", "count": BAND_COUNT, "height": height, "width": width,
        "crs": crs, "transform": transform, "compress": "deflate", "tiled": True, "blockxsize": 256, "blockysize": 256,
    }  # fmt: skip
    with replacing(out) as part, rasterio.open(part, "w", **profile) as sink:
        sink.write(bands.astype(np.float32))
        for band, description in enumerate((b for bands in MODALITIES.values() for b in bands), start=1):
            sink.set_band_description(band, description)
    return Path(out)


def _mark_nodata(name: str, array: np.ndarray, nodata: float) -> None:
    """Write a raster's own value for no data, in place, as a 15-band GeoTIFF without such a value holds it."""
    gone = (array == np.float32(nodata)) | (np.isnan(array) if np.isnan(nodata) else False)
    if name == "S2L2A":  # one band may well hold 0 in deep shadow
        array[:, gone.all(axis=0)] = S2_NODATA[0]
    else:
        array[gone] = np.nan if name == "S1GRD" else np.iinfo(np.int16).min
