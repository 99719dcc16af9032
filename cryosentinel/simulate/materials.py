"""What covers the ground, its reflectance in the twelve Sentinel-2 bands and its backscatter.

Reflectance: rounded from the shapes and levels in the USGS Spectral Library 7 (Kokaly et al. 2017: granite, schist,
soils, grasses), the ECOSTRESS library (Meerdink et al. 2019: rocks, snow), snow and ice of Wiscombe and Warren 1980,
Warren 1982 and Painter et al. 2012 (light-absorbing dust), ice and debris of Naegeli et al. 2017 and Casey et al. 2012,
and lakes of Mobley 1994 (clear) and of turbid glacial lakes in Matta et al. 2017 and Dörnhöfer and Oppelt 2016. The
numbers are levels read off such sources and rounded, not samples of them; the variability is assumed.

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
    FROZEN_LAKE = 13  # glacial lake under ice
    RIVER = 14
    RESERVOIR = 15  # and natural ponds: standing water that is no glacial lake
    WET_GROUND = 16


WATER = (Material.LAKE, Material.FROZEN_LAKE, Material.RIVER, Material.RESERVOIR)

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
        ],  # lake (clear; see TURBID)
        [0.300, 0.320, 0.318, 0.295, 0.268, 0.235, 0.212, 0.195, 0.170, 0.140, 0.045, 0.035],  # frozen lake
        [0.085, 0.100, 0.128, 0.128, 0.118, 0.098, 0.090, 0.085, 0.078, 0.072, 0.050, 0.040],  # river
        [0.050, 0.055, 0.060, 0.035, 0.025, 0.015, 0.013, 0.012, 0.010, 0.010, 0.008, 0.006],  # reservoir
        [0.032, 0.040, 0.062, 0.060, 0.090, 0.155, 0.180, 0.190, 0.200, 0.200, 0.150, 0.090],  # wet ground
    ],
    dtype=np.float32,
)

#: Water full of glacial flour; mixed with the clear spectrum by turbidity.
TURBID = np.array(
    [0.128, 0.165, 0.202, 0.190, 0.178, 0.146, 0.138, 0.128, 0.110, 0.092, 0.024, 0.018], dtype=np.float32
)
#: Optically thick cloud over land (water and ice droplets absorb in the short-wave infrared).
CLOUD = np.array([0.480, 0.490, 0.490, 0.490, 0.500, 0.500, 0.505, 0.505, 0.500, 0.420, 0.360, 0.280], dtype=np.float32)

#: Standard deviation of ln reflectance within a material (texture; assumed).
TEXTURE = np.array(
    [0.17, 0.17, 0.14, 0.15, 0.14, 0.15, 0.18, 0.20, 0.08, 0.16, 0.22, 0.18, 0.05, 0.16, 0.15, 0.05, 0.20], np.float32
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
