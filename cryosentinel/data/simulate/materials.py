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
        [0.125, 0.155, 0.200, 0.235, 0.255, 0.265, 0.275, 0.280, 0.285, 0.285, 0.330, 0.300],  # bright rock
        [0.065, 0.075, 0.095, 0.110, 0.120, 0.125, 0.130, 0.135, 0.140, 0.140, 0.175, 0.165],  # dark rock
        [0.105, 0.125, 0.160, 0.190, 0.205, 0.215, 0.225, 0.230, 0.235, 0.235, 0.290, 0.265],  # scree
        [0.100, 0.120, 0.155, 0.180, 0.195, 0.205, 0.212, 0.220, 0.225, 0.225, 0.270, 0.245],  # till
        [0.120, 0.140, 0.175, 0.200, 0.215, 0.222, 0.230, 0.235, 0.240, 0.240, 0.270, 0.240],  # gravel
        [0.075, 0.095, 0.135, 0.180, 0.205, 0.225, 0.240, 0.255, 0.270, 0.265, 0.365, 0.310],  # dry soil, steppe
        [0.035, 0.045, 0.080, 0.075, 0.120, 0.235, 0.280, 0.300, 0.315, 0.315, 0.240, 0.140],  # meadow
        [0.025, 0.030, 0.050, 0.040, 0.080, 0.180, 0.215, 0.235, 0.245, 0.245, 0.160, 0.080],  # shrub
        [0.780, 0.800, 0.790, 0.775, 0.760, 0.740, 0.715, 0.695, 0.660, 0.580, 0.110, 0.095],  # snow
        [0.490, 0.510, 0.500, 0.480, 0.455, 0.425, 0.395, 0.370, 0.335, 0.270, 0.040, 0.035],  # firn, wet and dusty
        [0.290, 0.305, 0.300, 0.280, 0.260, 0.235, 0.215, 0.200, 0.180, 0.150, 0.040, 0.032],  # bare ice, dirty
        [0.085, 0.100, 0.130, 0.150, 0.160, 0.165, 0.170, 0.175, 0.178, 0.178, 0.205, 0.185],  # debris-covered ice
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
        [0.360, 0.375, 0.365, 0.335, 0.305, 0.270, 0.240, 0.220, 0.190, 0.155, 0.045, 0.035],  # frozen lake
        [0.095, 0.110, 0.135, 0.130, 0.115, 0.090, 0.082, 0.078, 0.070, 0.066, 0.045, 0.035],  # river
        [0.050, 0.055, 0.060, 0.035, 0.025, 0.015, 0.013, 0.012, 0.010, 0.010, 0.008, 0.006],  # reservoir
        [0.035, 0.043, 0.065, 0.060, 0.090, 0.155, 0.180, 0.190, 0.200, 0.200, 0.140, 0.080],  # wet ground
    ],
    dtype=np.float32,
)

#: Water full of glacial flour; mixed with the clear spectrum by turbidity.
TURBID = np.array(
    [0.120, 0.145, 0.180, 0.160, 0.135, 0.085, 0.075, 0.068, 0.055, 0.048, 0.016, 0.012], dtype=np.float32
)
#: Optically thick cloud over land (water and ice droplets absorb in the short-wave infrared).
CLOUD = np.array([0.480, 0.490, 0.490, 0.490, 0.500, 0.500, 0.505, 0.505, 0.500, 0.420, 0.360, 0.280], dtype=np.float32)

#: Standard deviation of ln reflectance within a material (texture; assumed).
TEXTURE = np.array(
    [0.20, 0.20, 0.14, 0.16, 0.14, 0.16, 0.20, 0.20, 0.08, 0.16, 0.22, 0.18, 0.05, 0.16, 0.15, 0.05, 0.20], np.float32
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
