"""When and how the sensors saw a place: date, sun, orbit and atmosphere of one granule in one year.

Sentinel-2 is delivered in granules of 109.8 km; within one, everything here is constant, between two it differs, as do
the passes of Sentinel-1. Assumed: dates around late August, 10:45 local time, either look direction with equal chance,
fresh snow in nine scenes of twenty (which
makes the sanity filter drop about as many chips for too little overlap as for a little more).
What the atmospheric correction leaves is a haze that grows towards blue, an offset of 0.002 to 0.005 and a gain of
3 %, the order of Sen2Cor's uncertainty (Doxani et al. 2018, Remote Sensing 10: 0.005 + 5 %).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cryosentinel.sensors import PIXEL_SIZE_M
from cryosentinel.simulate.ground import Window
from cryosentinel.simulate.materials import WAVELENGTH_NM
from cryosentinel.simulate.noise import Draw

GRANULE_PX = 10_980


@dataclass(frozen=True, eq=False)
class Acquisition:
    """One granule's scene of a year.

    Attributes:
        date: part of the year.
        sun_azimuth, sun_elevation: degrees.
        look_azimuth, incidence: of the radar, degrees: eastwards for ascending, westwards for descending passes.
        snow_line: metres above the usual one.
        haze: factor of the usual haze.
        offset, gain: (12,) float32, what the atmospheric correction leaves in each band.
    """

    date: float
    sun_azimuth: float
    sun_elevation: float
    look_azimuth: float
    incidence: float
    snow_line: float
    haze: float
    offset: np.ndarray
    gain: np.ndarray


@lru_cache(maxsize=512)
def acquisition(seed: int, epsg: int, granule_row: int, granule_col: int, year: int) -> Acquisition:
    """The scene of a granule (indices: absolute pixel // 10,980) in a year."""
    from pyproj import Transformer

    draw = Draw(seed, epsg, "acquisition", granule_row, granule_col, year)
    easting, northing = ((v + 0.5) * GRANULE_PX * PIXEL_SIZE_M for v in (granule_col, -granule_row - 1))
    latitude = np.radians(Transformer.from_crs(epsg, 4326, always_xy=True).transform(easting, northing)[1])
    date = float(np.clip(draw.normal(0.65, 0.04), 0.55, 0.76))
    declination = np.radians(23.44 * np.sin(2 * np.pi * (date - 0.222)))
    hour = np.radians(15.0 * draw.uniform(-1.45, -1.0))  # 10:33 to 11:00 true solar time
    sine = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour)
    elevation = np.arcsin(sine)
    azimuth = np.pi - np.arcsin(np.cos(declination) * np.sin(-hour) / np.cos(elevation))
    blue = (WAVELENGTH_NM / 443.0) ** -1.3
    slow = np.linspace(-1, 1, len(blue))
    return Acquisition(
        date,
        float(np.degrees(azimuth)),
        float(np.degrees(elevation)),
        draw.uniform(76, 81) if draw.uniform() < 0.5 else draw.uniform(279, 284),
        draw.uniform(33, 43),
        90 * draw.normal() - (draw.uniform(150, 750) if draw.uniform() < 0.45 else 0.0),
        float(np.exp(0.4 * draw.normal())),
        (0.004 * draw.normal() * blue + 0.002 * draw.normal()).astype(np.float32),
        (1 + 0.02 * draw.normal() + 0.015 * draw.normal() * slow).astype(np.float32),
    )


def granules(window: Window) -> list[tuple[int, int, Window]]:
    """The granules that a window meets: their indices and the part of the window in each."""
    parts = []
    for i in range(window.row // GRANULE_PX, (window.row + window.height - 1) // GRANULE_PX + 1):
        for j in range(window.col // GRANULE_PX, (window.col + window.width - 1) // GRANULE_PX + 1):
            top, left = max(window.row, i * GRANULE_PX), max(window.col, j * GRANULE_PX)
            bottom = min(window.row + window.height, (i + 1) * GRANULE_PX)
            right = min(window.col + window.width, (j + 1) * GRANULE_PX)
            parts.append((i, j, Window(top, left, bottom - top, right - left)))
    return parts
