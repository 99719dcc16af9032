"""Where a chip lies. The published format stores only a chip's centre; the grid follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryosentinel.sensors import CHIP_SIZE, PIXEL_SIZE_M

if TYPE_CHECKING:
    from affine import Affine


def utm_epsg(lat: float, lon: float) -> int:
    """EPSG code of the UTM zone (WGS 84) that holds a point. Norway's and Svalbard's exceptions do not matter here."""
    zone = int((lon + 180.0) // 6.0) % 60 + 1
    return (32600 if lat >= 0 else 32700) + zone


def chip_grid(lat: float, lon: float, size: int = CHIP_SIZE, pixel_size: float = PIXEL_SIZE_M) -> tuple[int, Affine]:
    """The grid of a chip from its centre.

    Args:
        lat, lon: centre, degrees, WGS 84.
        size: pixels a side.
        pixel_size: metres.

    Returns:
        EPSG code of the centre's UTM zone, and the affine transform from (column, row) to (easting, northing). The
        corner is rounded to the millimetre: a centre's latitude and longitude do not carry more.
    """
    from affine import Affine
    from pyproj import Transformer

    epsg = utm_epsg(lat, lon)
    easting, northing = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    half = size * pixel_size / 2
    return epsg, Affine(pixel_size, 0, round(easting - half, 3), 0, -pixel_size, round(northing + half, 3))
