"""What covers the ground, its reflectance in the twelve Sentinel-2 bands and its backscatter.

Reflectance: rounded from the shapes and levels in the USGS Spectral Library 7 (Kokaly et al. 2017: granite, schist,
soils, grasses), the ECOSTRESS library (Meerdink et al. 2019: rocks, snow), snow and ice of Wiscombe and Warren 1980,
Warren 1982 and Painter et al. 2012 (light-absorbing dust), ice and debris of Naegeli et al. 2017 and Casey et al. 2012,
and rivers of Dörnhöfer and Oppelt 2016. The numbers are levels read off such sources and rounded, not samples of them.
What varies from place to place follows smooth modes (:data:`MODES`): their shapes are those of the absorptions named
there, their sizes are set so that the chips' colours have as many dimensions as real Sentinel-2 chips have (see
:func:`cryosentinel.simulate.difficulty.colour_variance`).

Standing water of every kind, glacial or not, is one optical model (:func:`water_reflectance`): what tells a reservoir
from a glacial lake is where it lies, not its colour.

Backscatter: gamma nought at C band in the range of Ulaby and Dobson 1989 (soil, rock, grass, shrub, dry and wet snow),
Nagler and Rott 2000 (wet snow), Scharien et al. and Barzycka et al. 2019 (glacier ice, firn); levels are assumed within
those ranges.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Material(IntEnum):
    """Codes of the material map."""

    BRIGHT_ROCK = 0  # granite, gneiss, limestone
    DARK_ROCK = 1  # slate, schist, basalt
    SCREE = 2
    TILL = 3  # moraine
    GRAVEL = 4  # outwash plain, river bed
    SOIL = 5  # dry soil and steppe
    MEADOW = 6
    SHRUB = 7
    SNOW = 8
    WET_SNOW = 9  # late-summer firn
    ICE = 10
    DEBRIS_ICE = 11
    LAKE = 12  # glacial lake, open water
    FROZEN_LAKE = 13  # standing water of any kind under ice
    RIVER = 14
    RESERVOIR = 15  # and natural ponds: open standing water that is no glacial lake
    WET_GROUND = 16


WATER = (Material.LAKE, Material.FROZEN_LAKE, Material.RIVER, Material.RESERVOIR)

#: Centres of the Sentinel-2 bands.
WAVELENGTH_NM = np.array([443.0, 492.0, 560.0, 665.0, 704.0, 741.0, 783.0, 833.0, 865.0, 945.0, 1614.0, 2202.0])
#: Surface reflectance, one row a material in the order of :class:`Material`, one column a band of ``sensors.S2_BANDS``.
SPECTRA = np.array(
    [
        # B01   B02    B03    B04    B05    B06    B07    B08    B8A    B09    B11    B12
        [0.110, 0.140, 0.190, 0.230, 0.255, 0.275, 0.290, 0.300, 0.310, 0.310, 0.370, 0.330],  # bright rock
        [0.060, 0.070, 0.092, 0.110, 0.122, 0.132, 0.142, 0.150, 0.162, 0.165, 0.245, 0.222],  # dark rock
        [0.090, 0.112, 0.150, 0.185, 0.205, 0.222, 0.235, 0.245, 0.255, 0.255, 0.335, 0.295],  # scree
        [0.088, 0.108, 0.145, 0.175, 0.193, 0.207, 0.220, 0.230, 0.238, 0.238, 0.305, 0.270],  # till
        [0.110, 0.130, 0.165, 0.195, 0.212, 0.225, 0.235, 0.243, 0.250, 0.250, 0.305, 0.270],  # gravel
        [0.065, 0.085, 0.128, 0.180, 0.210, 0.235, 0.255, 0.272, 0.288, 0.285, 0.390, 0.325],  # dry soil, steppe
        [0.032, 0.042, 0.076, 0.080, 0.125, 0.230, 0.275, 0.295, 0.310, 0.310, 0.255, 0.155],  # meadow
        [0.022, 0.028, 0.048, 0.040, 0.080, 0.180, 0.215, 0.235, 0.245, 0.245, 0.160, 0.080],  # shrub
        [0.720, 0.745, 0.735, 0.720, 0.705, 0.685, 0.660, 0.640, 0.605, 0.530, 0.105, 0.090],  # snow
        [0.400, 0.420, 0.418, 0.405, 0.385, 0.360, 0.335, 0.315, 0.285, 0.230, 0.045, 0.038],  # firn, wet and dusty
        [0.235, 0.252, 0.258, 0.245, 0.228, 0.205, 0.188, 0.175, 0.157, 0.132, 0.046, 0.036],  # bare ice, dirty
        [0.075, 0.092, 0.125, 0.150, 0.163, 0.173, 0.182, 0.190, 0.196, 0.197, 0.245, 0.218],  # debris-covered ice
        [
            0.050,
            0.052,
            0.050,
            0.026,
            0.018,
            0.012,
            0.011,
            0.010,
            0.008,
            0.008,
            0.006,
            0.005,
        ],  # lake: see water_reflectance
        [0.300, 0.320, 0.318, 0.295, 0.268, 0.235, 0.212, 0.195, 0.170, 0.140, 0.045, 0.035],  # frozen lake
        [0.085, 0.100, 0.128, 0.128, 0.118, 0.098, 0.090, 0.085, 0.078, 0.072, 0.050, 0.040],  # river
        [0.050, 0.052, 0.050, 0.026, 0.018, 0.012, 0.011, 0.010, 0.008, 0.008, 0.006, 0.005],  # as a lake
        [0.032, 0.040, 0.062, 0.060, 0.090, 0.155, 0.180, 0.190, 0.200, 0.200, 0.150, 0.090],  # wet ground
    ],
    dtype=np.float32,
)

#: Optically thick cloud over land (water and ice droplets absorb in the short-wave infrared).
CLOUD = np.array([0.480, 0.490, 0.490, 0.490, 0.500, 0.500, 0.505, 0.505, 0.500, 0.420, 0.360, 0.280], dtype=np.float32)

#: Standard deviation of ln reflectance within a material (texture; assumed).
TEXTURE = np.array(
    [0.10, 0.10, 0.08, 0.09, 0.08, 0.09, 0.11, 0.12, 0.05, 0.10, 0.13, 0.11, 0.00, 0.10, 0.07, 0.00, 0.12], np.float32
)

#: Gamma nought in dB (VV, VH) on ground that faces the radar at 40 degrees, and its texture (dB, standard deviation).
BACKSCATTER = np.array(
    [
        [-7.5, -15.5, 1.0],  # bright rock
        [-7.5, -15.5, 1.0],  # dark rock
        [-6.5, -14.5, 1.0],  # scree: rough
        [-7.5, -15.5, 1.0],  # till
        [-11.0, -19.0, 1.2],  # gravel
        [-12.0, -20.0, 1.2],  # dry soil
        [-10.5, -17.5, 1.0],  # meadow
        [-8.5, -14.0, 1.0],  # shrub
        [-11.0, -18.5, 1.5],  # snow, refrozen firn below
        [-17.5, -25.0, 1.5],  # wet snow absorbs
        [-10.0, -18.0, 1.5],  # ice
        [-7.0, -14.5, 1.2],  # debris on ice
        [-20.0, -27.5, 0.0],  # water: wind decides, see radar
        [-13.5, -21.5, 1.5],  # lake ice
        [-15.5, -23.5, 1.5],  # river: rough and mixed with bars
        [-20.0, -27.5, 0.0],  # reservoir
        [-13.0, -20.0, 1.2],  # wet ground
    ],
    dtype=np.float32,
)

_LAND = np.array(
    [
        # B01   B02    B03    B04    B05    B06    B07    B08    B8A    B09    B11    B12
        [-0.60, -0.55, -0.30, 0.22, 0.26, 0.26, 0.20, 0.05, -0.05, -0.05, 0.22, 0.18],  # ferric oxides: blue, 0.86 um
        [0.05, 0.05, 0.05, 0.00, -0.05, 0.00, 0.00, 0.00, 0.05, 0.10, 0.25, -0.45],  # clay and carbonate: 2.2 um
        [-0.05, -0.05, -0.10, -0.15, -0.18, -0.20, -0.23, -0.25, -0.27, -0.35, -0.48, -0.58],  # moisture
        [-0.35, -0.40, -0.10, -0.60, -0.15, 0.35, 0.45, 0.45, 0.43, 0.36, -0.05, -0.30],  # sparse plants and lichen
        [0.20, 0.15, 0.10, 0.15, 0.15, 0.05, -0.15, -0.32, -0.44, -0.44, 0.15, 0.20],  # ferrous iron: 1 um
    ],
    np.float32,
)
_FROZEN = np.array(
    [
        [-0.90, -0.75, -0.50, -0.25, -0.20, -0.12, -0.10, -0.08, -0.05, 0.00, 0.05, 0.05],  # dust
        [0.00, 0.00, -0.03, -0.10, -0.15, -0.25, -0.35, -0.42, -0.50, -0.65, -0.90, -1.00],  # grain size
        [-0.05, -0.05, -0.10, -0.20, -0.30, -0.45, -0.50, -0.60, -0.70, -0.80, -0.30, -0.30],  # melt water
        [0.10, 0.05, 0.35, -0.10, -0.35, -0.10, -0.05, 0.00, 0.00, 0.00, 0.00, 0.00],  # snow algae and cryoconite
        [0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.10, 0.20, 0.60, -0.60],  # debris between: clay
    ],
    np.float32,
)
#: By band: the published chips spread more in the visible than equal modes would.
_SPREAD = np.array([1.5, 1.45, 1.45, 1.4, 1.4, 1.25, 1.15, 1.0, 0.88, 0.82, 0.79, 0.69], np.float32)
_ON_ICE = (Material.SNOW, Material.WET_SNOW, Material.ICE, Material.FROZEN_LAKE)
_OPEN_WATER = (Material.LAKE, Material.RIVER, Material.RESERVOIR)
#: (material, mode, band): change of ln reflectance for one unit of a mode. Five modes of the ground, five of snow and
#: ice; open water has its own model.
MODES = _SPREAD * np.stack(
    [0.0 * _LAND if m in _OPEN_WATER else 0.215 * _FROZEN if m in _ON_ICE else 0.31 * _LAND for m in Material]
).astype(np.float32)

#: Absorption of pure water (1/m) at the band centres: Pope and Fry 1997 to 704 nm, Kou et al. 1993 beyond.
_WATER_ABSORPTION = np.array([0.0071, 0.0145, 0.062, 0.43, 0.70, 2.6, 2.2, 3.5, 4.6, 30.0, 620.0, 1700.0])
_BOTTOM = np.array([0.08, 0.095, 0.125, 0.15, 0.16, 0.17, 0.18, 0.185, 0.19, 0.19, 0.20, 0.18])  # wet till


def water_reflectance(
    flour: np.ndarray, dissolved: np.ndarray, algae: np.ndarray, brown: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Reflectance of open standing water (Lee et al. 1998, 2002, Applied Optics: backscattering over absorption).

    Specific coefficients are rounded from the ranges of Gordon and Morel 1983 and Babin et al. 2003; those of glacial
    flour, which scatters much and absorbs little, from the spectra of Himalayan lakes in Matta et al. 2017.

    Args:
        flour: (n,) suspended sediment, g/m3.
        dissolved: (n,) absorption of dissolved organic matter at 443 nm, 1/m.
        algae: (n,) chlorophyll a, mg/m3.
        brown: (n,) absorption of the flour against scattering, 0.5 (grey) to 2 (brown): its mineralogy.
        depth: (n,) m.

    Returns:
        (12, n) float32, without what the surface reflects.
    """
    at = WAVELENGTH_NM[:, None]
    green = np.exp(-(((at - 440) / 45.0) ** 2)) + 0.5 * np.exp(-(((at - 672) / 14.0) ** 2))
    absorption = _WATER_ABSORPTION[:, None] + dissolved * np.exp(-0.014 * (at - 443)) + 0.05 * algae**0.7 * green
    absorption = absorption + 0.016 * flour * brown * np.exp(-0.011 * (at - 443))
    scattering = 0.0024 * (500 / at) ** 4.3 + 0.016 * flour * (560 / at) ** 0.3 + 0.0012 * algae * (560 / at)
    u = scattering / (absorption + scattering)
    below = (0.089 + 0.125 * u) * u
    through = np.exp(-2.2 * (absorption + scattering) * depth)
    below = below * (1 - through) + _BOTTOM[:, None] / np.pi * through
    return (np.pi * 0.5 * below / (1 - 1.5 * below)).astype(np.float32)
