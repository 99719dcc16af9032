"""Sentinel-2 as it would see the cover: light, shadow, haze, cloud, sharpness and noise of each band.

Assumed: one sun a zone and year (late August, about 10:45 local time), Lambertian ground, no terrain correction (as in
L2A without it), diffuse light falling from 16 % of the direct light in the violet to 2 % in the short-wave infrared at
these altitudes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryosentinel.data.simulate.cover import Cover
from cryosentinel.data.simulate.ground import Ground, resample, smooth
from cryosentinel.data.simulate.materials import CLOUD, SPECTRA, TEXTURE, TURBID, Material
from cryosentinel.data.simulate.noise import Draw, fractal, gradient_noise, key, normal
from cryosentinel.sensors import REFLECTANCE_SCALE, S2_BANDS

#: Pixels (10 m) a sample of the band's native grid.
SAMPLING = np.array([6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 2, 2])
DIFFUSE = np.array([0.16, 0.14, 0.115, 0.09, 0.08, 0.07, 0.065, 0.06, 0.055, 0.05, 0.025, 0.02], np.float32)
#: Reflectance that a unit of haze adds, and the noise of a sample: constant part (signal-to-noise 50 to 170 at reference
#: radiance, Gascon et al. 2017, Remote Sensing 9).
HAZE = np.array([0.030, 0.026, 0.021, 0.017, 0.015, 0.013, 0.012, 0.011, 0.010, 0.009, 0.004, 0.003], np.float32)
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
    return draw.uniform(138, 156), draw.uniform(49, 58)


def clouds(ground: Ground, year: int, azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of residual clouds and of their shadows, each (H, W) float32 in [0, 1]."""
    rows, cols = ground.outer.rows, ground.outer.cols

    def opacity(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        weather = gradient_noise(rows, cols, 2200, key(ground.seed, ground.epsg, "weather", year))
        shape = fractal(rows, cols, 130, key(ground.seed, ground.epsg, "cloud", year), octaves=5, gain=0.6)
        return np.clip((shape + 1.0 * weather - 3.15) * np.float32(1.6), 0, 1)

    reach = CLOUD_HEIGHT_M / np.tan(np.radians(elevation)) / 10.0
    # A pixel lies in the shadow of the cloud that stands from it towards the sun.
    shifted = opacity(rows - reach * np.cos(np.radians(azimuth)), cols + reach * np.sin(np.radians(azimuth)))
    return opacity(rows, cols), shifted


def make_optics(ground: Ground, cover: Cover, year: int) -> Optics:
    """Sentinel-2 L2A of a window in late August of ``year``."""
    g, rows, cols = ground, ground.outer.rows, ground.outer.cols
    azimuth, elevation = sun(g.seed, g.epsg, year)
    zenith_cos, zenith_sin = np.sin(np.radians(elevation)), np.cos(np.radians(elevation))
    east, south = np.sin(np.radians(azimuth)) * zenith_sin, -np.cos(np.radians(azimuth)) * zenith_sin
    facing = (zenith_cos - g.dz_col * np.float32(east) - g.dz_row * np.float32(south)) / np.sqrt(
        1 + g.dz_row**2 + g.dz_col**2
    )
    flat = cover.water | (cover.material == Material.FROZEN_LAKE)
    facing = np.where(flat, np.float32(zenith_cos), facing)
    cast = g.shadow(azimuth, elevation)
    cast[flat] *= (g.steep[flat] < 12) | (cast[flat] > 0.99)
    cloud, cloud_shadow = clouds(g, year, azimuth, elevation)
    direct = np.maximum(facing, 0) / np.float32(zenith_cos) * (1 - cast) * (1 - 0.75 * cloud_shadow * (1 - cloud))

    texture = fractal(rows, cols, 24, key(g.seed, g.epsg, "texture"), octaves=4, gain=0.75)
    texture = 0.9 * texture + 0.45 * gradient_noise(rows, cols, 160, key(g.seed, g.epsg, "texture-broad"))
    # Years differ in dust and moisture a little, place by place.
    texture += 0.35 * gradient_noise(rows, cols, 60, key(g.seed, g.epsg, "texture", year))
    tilt = 0.07 * gradient_noise(rows, cols, 75, key(g.seed, g.epsg, "tilt"))
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
        light = (1 - DIFFUSE[band]) * direct + DIFFUSE[band]
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
