"""Sentinel-2 as it would see the cover: light, shadow, haze, cloud, sharpness and noise of each band.

Sen2Cor corrects L2A for the slope of the ground with an elevation model of about 90 m; it cannot for what is finer,
nor for cast shadow (Louis et al. 2016, ESA SP-740): the same is done here, with 85 % of the correction reached.

Skylight above 4 km is mostly Rayleigh's, so its share falls with the fourth power of the wavelength; slopes around add
some light of all colours. Shadows are therefore blue, and look like water to an index of green over infrared.

Assumed: one sun a zone and year (August, about 10:45 local time: 53 to 65 degrees high between 45 and 27 north),
Lambertian ground, levels of haze and cloud.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryosentinel.sensors import REFLECTANCE_SCALE, S2_BANDS
from cryosentinel.simulate.cover import Cover
from cryosentinel.simulate.ground import Ground, resample, smooth
from cryosentinel.simulate.materials import CLOUD, SPECTRA, TEXTURE, TURBID, Material
from cryosentinel.simulate.noise import Draw, fractal, gradient_noise, key, normal

#: Pixels (10 m) a sample of the band's native grid.
SAMPLING = np.array([6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 2, 2])
_WAVELENGTH_NM = np.array([443, 492, 560, 665, 704, 741, 783, 833, 865, 945, 1614, 2202])
#: Light that reaches ground in cast shadow, as a share of the light on flat ground: sky and opposite slopes.
DIFFUSE = (0.13 * (443 / _WAVELENGTH_NM) ** 4 + 0.018).astype(np.float32)
CORRECTED = 0.85  # share of the slope's effect that the terrain correction removes
_COARSE = (1 / 9,) * 9  # 90 m
#: Reflectance that a unit of haze adds: what the atmospheric correction leaves (assumed).
HAZE = np.array([0.020, 0.017, 0.014, 0.011, 0.010, 0.009, 0.008, 0.007, 0.007, 0.006, 0.003, 0.002], np.float32)
#: Noise of a sample, constant and relative part (signal-to-noise of 50 to 170 at reference radiance, Gascon et al.
#: 2017, Remote Sensing 9).
NOISE_FLOOR, NOISE_SHARE = 0.0012, 0.012
_PSF = (0.16, 0.68, 0.16)  # modulation transfer of about 0.36 at Nyquist in each direction
CLOUD_HEIGHT_M = 1400.0


@dataclass
class Optics:
    """Sentinel-2 on the outer window.

    Attributes:
        s2: (12, H, W) uint16.
        cloud: (H, W) uint8, 0 clear, 1 cloud, 2 cloud shadow.
        shadow: (H, W) uint8, 1 = terrain shadow (cast, or turned away from the sun).
    """

    s2: np.ndarray
    cloud: np.ndarray
    shadow: np.ndarray


def sun(seed: int, epsg: int, year: int) -> tuple[float, float]:
    """Azimuth and elevation of the sun in degrees."""
    draw = Draw(seed, epsg, "sun", year)
    return draw.uniform(138, 156), draw.uniform(54, 62)


def facing_sun(dz_row: np.ndarray, dz_col: np.ndarray, azimuth: float, elevation: float) -> np.ndarray:
    """Cosine of the angle between the ground's normal and the sun, negative where it is turned away."""
    high, flat = np.sin(np.radians(elevation)), np.cos(np.radians(elevation))
    east, south = np.float32(np.sin(np.radians(azimuth)) * flat), np.float32(-np.cos(np.radians(azimuth)) * flat)
    return (np.float32(high) - dz_col * east - dz_row * south) / np.sqrt(1 + dz_row**2 + dz_col**2)


def clouds(ground: Ground, year: int, azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of residual clouds and of their shadows, each (H, W) float32 in [0, 1]."""
    rows, cols = ground.outer.rows, ground.outer.cols

    def opacity(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        weather = gradient_noise(rows, cols, 2200, key(ground.seed, ground.epsg, "weather", year))
        shape = fractal(rows, cols, 130, key(ground.seed, ground.epsg, "cloud", year), octaves=5, gain=0.6)
        return np.clip((shape + 1.1 * weather - 2.75) * np.float32(1.6), 0, 1)

    reach = CLOUD_HEIGHT_M / np.tan(np.radians(elevation)) / 10.0
    # A pixel lies in the shadow of the cloud that stands from it towards the sun.
    shifted = opacity(rows - reach * np.cos(np.radians(azimuth)), cols + reach * np.sin(np.radians(azimuth)))
    return opacity(rows, cols), shifted


def make_optics(ground: Ground, cover: Cover, year: int) -> Optics:
    """Sentinel-2 L2A of a window in late August of ``year``."""
    g, rows, cols = ground, ground.outer.rows, ground.outer.cols
    azimuth, elevation = sun(g.seed, g.epsg, year)
    zenith_cos = np.sin(np.radians(elevation))
    facing = facing_sun(g.dz_row, g.dz_col, azimuth, elevation)
    flat = cover.water | (cover.material == Material.FROZEN_LAKE)
    modelled = facing_sun(smooth(g.dz_row, _COARSE), smooth(g.dz_col, _COARSE), azimuth, elevation)
    modelled = np.maximum(1 + CORRECTED * (modelled / np.float32(zenith_cos) - 1), 0.4)
    facing = np.where(flat, np.float32(zenith_cos), facing)
    cast = g.shadow(azimuth, elevation)
    cast[flat] *= (g.steep[flat] < 12) | (cast[flat] > 0.99)
    modelled[flat] = 1
    cloud, cloud_shadow = clouds(g, year, azimuth, elevation)
    direct = np.maximum(facing, 0) / np.float32(zenith_cos) * (1 - cast) * (1 - 0.75 * cloud_shadow * (1 - cloud))

    texture = fractal(rows, cols, 24, key(g.seed, g.epsg, "texture"), octaves=4, gain=0.75)
    texture = 0.9 * texture + 0.45 * gradient_noise(rows, cols, 160, key(g.seed, g.epsg, "texture-broad"))
    # Years differ in dust and moisture a little, place by place.
    texture += 0.35 * gradient_noise(rows, cols, 60, key(g.seed, g.epsg, "texture", year))
    tilt = 0.07 * gradient_noise(rows, cols, 75, key(g.seed, g.epsg, "tilt"))
    # Ice is white and weathered or wet and blue: its colour varies most.
    tilt[cover.material == Material.ICE] *= 3
    tilt[flat] = 0
    brightness = np.exp(TEXTURE[cover.material] * texture)
    standing = (cover.material == Material.LAKE) | (cover.material == Material.RESERVOIR)
    silt = np.where(standing, np.clip(cover.turbid + 0.08 * texture, 0, 1), 0).astype(np.float32)
    haze = np.exp(0.45 * gradient_noise(rows, cols, 900, key(g.seed, g.epsg, "haze", year)) - 0.3)

    s2 = np.empty((len(S2_BANDS), g.outer.height, g.outer.width), np.uint16)
    for band, name in enumerate(S2_BANDS):
        ground_reflectance = SPECTRA[:, band][cover.material]
        ground_reflectance += silt * (TURBID[band] - ground_reflectance)
        ground_reflectance *= brightness * (1 + tilt * np.float32((band - 5.5) / 5.5))
        light = ((1 - DIFFUSE[band]) * direct + DIFFUSE[band]) / modelled
        r = ground_reflectance * light + HAZE[band] * haze
        r += cloud * (CLOUD[band] * (0.85 + 0.15 * cloud) - r)
        r = smooth(r, _PSF)
        factor = int(SAMPLING[band])
        k = key(g.seed, g.epsg, "noise", year, name)
        if factor > 1:
            h, w = g.outer.height // factor, g.outer.width // factor
            r = r.reshape(h, factor, w, factor).mean(axis=(1, 3))
            at = np.arange(h) + g.outer.row // factor, np.arange(w) + g.outer.col // factor
        else:
            at = rows, cols
        r += normal(*at, k) * (NOISE_FLOOR + NOISE_SHARE * r)
        if factor > 1:
            r = resample(r, factor, g.outer)
        # No digital number is 0 where there is data: 0 in all bands means nodata.
        s2[band] = np.clip(np.rint(r * REFLECTANCE_SCALE), 1, 65535).astype(np.uint16)
    mask = np.where(cloud > 0.25, 1, np.where(cloud_shadow > 0.25, 2, 0)).astype(np.uint8)
    return Optics(s2, mask, ((cast > 0.5) | (facing <= 0)).astype(np.uint8))
