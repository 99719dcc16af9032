"""Where a chip lies, and its identifier. The published format stores only a centre; the grid follows from it."""

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


def chip_id(region: str, epsg: int, row: int, col: int, year: int) -> str:
    """The identifier of a chip on the UTM grid: ``<region>_<zone>_<easting>_<northing>_<year>``.

    Args:
        region: name of the region.
        epsg: of the UTM zone.
        row, col: of the chip's upper left pixel; pixel (0, 0) has its upper left corner at easting and northing 0, and
            rows count southwards, so that they are negative.
        year: of the images.

    Returns:
        Easting and northing of the upper left corner are given in pixels of 10 m: ``ile_alatau_43N_06720_478240_2022``.
    """
    zone = f"{epsg % 100:02d}{'N' if epsg < 32700 else 'S'}"
    return f"{region}_{zone}_{col:05d}_{-row:06d}_{year}"


def chip_corner(chip: str) -> tuple[int, int, int]:
    """EPSG code, row and column of the upper left pixel: the inverse of :func:`chip_id`."""
    zone, col, row = chip.split("_")[-4:-1]
    return (32600 if zone[-1] == "N" else 32700) + int(zone[:-1]), -int(row), int(col)


def place_id(chip: str) -> str:
    """What the identifiers of a place's chips of all years have in common: the chip's without the year."""
    return chip.rsplit("_", 1)[0]
