"""Aligned rasters of the three sensors become one 15-band GeoTIFF, the layout that prediction takes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryosentinel.data.geotiff import band_order, check_units
from cryosentinel.data.offset import check_offset
from cryosentinel.errors import InputError
from cryosentinel.files import replacing
from cryosentinel.sensors import BAND_COUNT, MODALITIES, S2_NODATA

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


def check_modality(source: DatasetReader, modality: str, first: DatasetReader) -> None:
    """Refuse an open raster that does not hold a modality's bands on the grid of the first raster.

    Raises:
        InputError: it has a wrong number of bands, no coordinate reference system, or another grid.
    """
    bands = MODALITIES[modality]
    if source.count != len(bands):
        raise InputError(
            f"{source.name} has {source.count} bands; {modality} needs {len(bands)}, in this order: {', '.join(bands)}."
        )
    if source.crs is None:
        raise InputError(f"{source.name} has no coordinate reference system; assign one (gdal_edit.py -a_srs).")
    # A hundredth of a pixel: rasters that were warped together differ by rounding only.
    aligned = source.transform.almost_equals(first.transform, precision=abs(first.transform.a) / 100)
    if source.crs != first.crs or source.shape != first.shape or not aligned:
        raise InputError(f"{source.name} is not on the grid of {first.name}; warp it to the same CRS, extent and size.")


def subtract_offset(optical: np.ndarray, offset: int) -> np.ndarray:
    """Sentinel-2 less an offset, at least 1, so that no pixel with data becomes one without.

    Args:
        optical: (12, ...) digital numbers; pixels that are 0 in all bands hold no data and stay so.
        offset: digital numbers.
    """
    return np.where((optical == 0).all(0), 0, np.maximum(optical - offset, 1))


def to_db(power: np.ndarray) -> np.ndarray:
    """Linear backscatter to decibels, float32; not a number where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(power > 0, 10 * np.log10(power), np.nan).astype(np.float32)


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

    arrays = []
    with contextlib.ExitStack() as stack:
        first = None
        for name, path in zip(MODALITIES, (s2, s1, dem), strict=True):
            try:
                source = stack.enter_context(rasterio.open(path))
                first = source if first is None else first
                check_modality(source, name, first)
                array = source.read(band_order(source, MODALITIES[name])).astype(np.float32)
            except rasterio.errors.RasterioIOError as error:
                raise InputError(f"{path} cannot be read as a raster ({error}); check the path and the file.") from None
            if source.nodata is not None:
                _mark_nodata(name, array, source.nodata)
            arrays.append(array)
        assert first is not None
        crs, (height, width), transform = first.crs, first.shape, first.transform
    optical, radar, elevation = arrays
    check_offset(optical, str(s2), s2_offset)
    if s2_offset:
        optical = subtract_offset(optical, s2_offset)
    if s1_linear and (radar < 0).any():
        raise InputError(f"{s1} holds values below 0, which linear power never is; it is in dB: leave --s1_linear out.")
    if s1_linear:
        radar = to_db(radar)
    bands = np.concatenate([optical, radar, elevation])
    check_units(f"{s2}, {s1}", optical, radar)
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
