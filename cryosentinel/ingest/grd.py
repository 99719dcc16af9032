"""Sentinel-1 GRD as ESA delivers it: amplitudes in the radar's own geometry, calibrated by the product's table.

Not terrain-corrected: over mountains pixels lie where the ellipsoid's surface would put them, up to kilometres off. An
RTC collection is better wherever there is one; the index of a dataset says which product each chip has.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np

from cryosentinel.ingest.reading import BrokenAssetError, patiently
from cryosentinel.ingest.search import Item

_CALIBRATION = "schema-calibration-{}"  # at Planetary Computer and Earth Search alike
_GCPS = 16  # nearest ones: over a window the geometry is smooth, over a frame it is not
_MARGIN = 64  # pixels around the window in the radar's geometry


def wants_calibration(item: Item, keys: Mapping[str, str]) -> bool:
    """Whether an item is a plain GRD: it has calibration tables, and no projection."""
    properties = item["properties"]
    projected = properties.get("proj:code") or properties.get("proj:epsg")
    return not projected and all(_CALIBRATION.format(key.lower()) in item["assets"] for key in keys.values())


def calibration_table(document: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sigma-nought table of a calibration annotation.

    Returns:
        Lines (n,), pixels (m,), and the amplitude that is one, (n, m).

    Raises:
        ValueError: the document is not such an annotation.
    """
    try:
        vectors = ElementTree.fromstring(document).findall(".//calibrationVector")
        lines = [int(v.findtext("line", "")) for v in vectors]
        columns = [np.array(v.findtext("pixel", "").split(), float) for v in vectors]
        values = [np.array(v.findtext("sigmaNought", "").split(), float) for v in vectors]
    except ElementTree.ParseError as error:
        raise ValueError(f"the calibration is not XML: {error}") from None
    if not lines or not columns[0].size:
        raise ValueError("the calibration holds no vectors")
    pixels = columns[0]
    return np.array(lines), pixels, np.array([np.interp(pixels, c, v) for c, v in zip(columns, values, strict=True)])


def sigma_nought(
    amplitude: np.ndarray, row: int, col: int, table: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Amplitudes to linear sigma nought: (DN / A)^2, A interpolated in the table (ESA, S-1 radiometric calibration).

    Args:
        amplitude: (H, W) digital numbers, 0 where there is no data.
        row, col: of the upper left pixel in the product.
        table: see :func:`calibration_table`.

    Returns:
        (H, W) float32, not a number where there is no data.
    """
    lines, pixels, values = table
    cols = np.arange(col, col + amplitude.shape[1])
    across = np.array([np.interp(cols, pixels, v) for v in values])
    at = np.interp(np.arange(row, row + amplitude.shape[0]), lines, np.arange(len(lines)))
    low = np.minimum(at.astype(int), max(len(lines) - 2, 0))
    high, part = np.minimum(low + 1, len(lines) - 1), (at - low)[:, None]
    scale = across[low] * (1 - part) + across[high] * part
    return np.where(amplitude > 0, np.square(amplitude / scale), np.nan).astype(np.float32)


def read_grd(item: Item, keys: Mapping[str, str], geobox: Any, retries: int, sign: Any = None) -> dict[str, np.ndarray]:
    """Linear sigma nought of a GRD on a grid.

    Args:
        item: STAC JSON with the files and their calibration annotations.
        keys: band -> key of its asset.
        geobox: grid to read on.
        retries: times that a failure of a server is waited out.
        sign: turns an address into a signed one.

    Returns:
        band -> (H, W) float32, not a number where there is no data.

    Raises:
        BrokenAssetError: a file is missing or cannot be decoded.
        ServiceDownError: a server fails in spite of the retries.
    """
    bands = {}
    for band, key in keys.items():
        addresses = [item["assets"][name]["href"] for name in (key, _CALIBRATION.format(key.lower()))]
        image, annotation = [sign(address) if sign else address for address in addresses]
        if not annotation.startswith("http"):
            raise BrokenAssetError(f"{item['id']} (its calibration at {annotation} is not served over HTTP)")

        def read(image: str = image, annotation: str = annotation) -> np.ndarray:
            with urllib.request.urlopen(annotation, timeout=60) as answer:
                table = calibration_table(answer.read())
            return _read_image(image, table, geobox)

        bands[band] = patiently(read, item["id"], [image, annotation], retries)
    return bands


def _read_image(address: str, table: tuple[np.ndarray, np.ndarray, np.ndarray], geobox: Any) -> np.ndarray:
    import rasterio
    from pyproj import Transformer
    from rasterio.control import GroundControlPoint
    from rasterio.transform import GCPTransformer
    from rasterio.warp import Resampling, reproject

    height, width = geobox.shape
    result = np.full((height, width), np.nan, np.float32)
    with rasterio.open(address) as source:
        points, crs = source.gcps
        if not points:
            raise ValueError("the image has neither a projection nor ground control points")
        # The window's outline in the radar's geometry.
        edge = np.linspace(0, 1, 9)
        x = np.concatenate([edge, edge, 0 * edge, 0 * edge + 1]) * width
        y = np.concatenate([0 * edge, 0 * edge + 1, edge, edge]) * height
        east, north = geobox.affine * (x, y)
        lon, lat = Transformer.from_crs(geobox.crs.epsg, crs, always_xy=True).transform(east, north)
        centre = np.array([np.mean(lon), np.mean(lat)])
        near = sorted(points, key=lambda p: (p.x - centre[0]) ** 2 + (p.y - centre[1]) ** 2)[:_GCPS]
        with GCPTransformer(near) as transformer:
            rows, cols = (np.asarray(v) for v in transformer.rowcol(lon, lat, op=float))
        top, left = max(int(rows.min()) - _MARGIN, 0), max(int(cols.min()) - _MARGIN, 0)
        bottom = min(int(rows.max()) + _MARGIN, source.height)
        right = min(int(cols.max()) + _MARGIN, source.width)
        if top >= bottom or left >= right:
            return result
        amplitude = source.read(1, window=((top, bottom), (left, right)))
    moved = [GroundControlPoint(row=p.row - top, col=p.col - left, x=p.x, y=p.y, z=p.z) for p in near]
    reproject(
        sigma_nought(amplitude, top, left, table),
        result,
        gcps=moved,
        src_crs=crs,
        src_nodata=np.nan,
        dst_transform=geobox.affine,
        dst_crs=str(geobox.crs),
        dst_nodata=np.nan,
        resampling=Resampling.bilinear,
    )
    return result
