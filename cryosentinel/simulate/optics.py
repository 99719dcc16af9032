"""Sentinel-2 as it would see the cover: light, shadow, haze, cloud, sharpness and noise of each band.

Sen2Cor corrects L2A for the slope of the ground with an elevation model of about 90 m; it cannot for what is finer,
nor for cast shadow (Louis et al. 2016, ESA SP-740): the same is done here, with 85 % of the correction reached.

Skylight above 4 km is mostly Rayleigh's, so its share falls with the fourth power of the wavelength; slopes around add
some light of all colours. Shadows are therefore blue, and look like water to an index of green over infrared.

Colours vary by place in smooth modes (:data:`cryosentinel.simulate.materials.MODES`), fields of 15 km for the rock of a
region and of 30 to 500 m within. Pixels on a border of two materials hold a part of both. Air scatters the light of
neighbours into a pixel: real adjacency reaches a kilometre (Santer and Schmechtig 2000, Applied Optics 39); here it is
cut off at 120 m, where a shore feels most of it.

Assumed: Lambertian ground, levels of haze and cloud.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryosentinel.sensors import REFLECTANCE_SCALE, S2_BANDS
from cryosentinel.simulate.acquisition import Acquisition
from cryosentinel.simulate.cover import Cover
from cryosentinel.simulate.ground import BLOCK_PX, Ground, Window, resample, smooth
from cryosentinel.simulate.kernels import modal_colour
from cryosentinel.simulate.materials import (
    CLOUD,
    MODES,
    SPECTRA,
    TEXTURE,
    WAVELENGTH_NM,
    Material,
    water_reflectance,
)
from cryosentinel.simulate.noise import Draw, bits, fractal, gradient_noise, key, normal

#: Pixels (10 m) a sample of the band's native grid.
SAMPLING = np.array([6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 2, 2])
#: Light that reaches ground in cast shadow, as a share of the light on flat ground: sky and opposite slopes.
DIFFUSE = (0.13 * (443 / WAVELENGTH_NM) ** 4 + 0.018).astype(np.float32)
CORRECTED = 0.85  # share of the slope's effect that the terrain correction removes
_COARSE = (1 / 9,) * 9  # 90 m
#: Reflectance that a unit of haze adds: what the atmospheric correction leaves (assumed).
HAZE = np.array([0.020, 0.017, 0.014, 0.011, 0.010, 0.009, 0.008, 0.007, 0.007, 0.006, 0.003, 0.002], np.float32)
#: Noise of a sample, constant and relative part. In the visible the measured signal-to-noise ratio is 150 to 210 at
#: reference radiance, beyond 100 to 170 (Gascon et al. 2017, Remote Sensing 9); smooth water in a real chip scatters by
#: 7 to 13 digital numbers around its neighbours.
NOISE_FLOOR = np.array([0.6, 0.6, 0.6, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 1.0, 1.0, 1.0]) * 1e-3
NOISE_SHARE = np.array([6, 6, 6, 6, 8, 8, 8, 8, 8, 10, 10, 10]) * 1e-3
#: Share of a pixel's light that comes from around it: molecules and haze scatter blue most.
ADJACENCY = (0.05 * (443 / WAVELENGTH_NM) ** 2 + 0.02).astype(np.float32)
_AROUND = (0.25, 0.5, 0.25)  # of 60 m blocks
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
        return np.clip((shape + 1.1 * weather - 2.5) * np.float32(1.6), 0, 1)

    reach = CLOUD_HEIGHT_M / np.tan(np.radians(elevation)) / 10.0
    # A pixel lies in the shadow of the cloud that stands from it towards the sun.
    shifted = opacity(rows - reach * np.cos(np.radians(azimuth)), cols + reach * np.sin(np.radians(azimuth)))
    return opacity(rows, cols), shifted


def _borders(material: np.ndarray, window: Window, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels beside another material: flat indices, the neighbour that each holds a part of, and that part."""
    h, w = material.shape
    draw = bits(window.rows, window.cols, k)
    way = draw >> np.uint32(30)
    rows, cols = np.arange(h)[:, None], np.arange(w)[None, :]
    row = np.clip(rows + (way == 0) - (way == 1).astype(int), 0, h - 1)
    col = np.clip(cols + (way == 2) - (way == 3).astype(int), 0, w - 1)
    beside = (row * w + col).ravel()
    at = np.flatnonzero(material.ravel() != material.ravel()[beside])
    share = (draw.ravel()[at] & np.uint32(0xFFFF)).astype(np.float32) * np.float32(0.5 / 0xFFFF)
    return at, beside[at], share


def _standing_water(ground: Ground, cover: Cover, year: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of open standing water, and its reflectance (12, n)."""
    g = ground
    open_water = (cover.material == Material.LAKE) | (cover.material == Material.RESERVOIR)
    at = np.flatnonzero(open_water.ravel())
    # Plumes and wind rows: large lakes are smooth at 10 m.
    plume = gradient_noise(g.outer.rows, g.outer.cols, 45, key(g.seed, g.epsg, "plume", year)).ravel()[at]
    values = np.array([[b.flour, b.dissolved, b.algae, b.brown] for b in g.lakes] or np.zeros((0, 4)))
    glint = np.zeros(len(values))
    for n, body in enumerate(g.lakes):
        draw = Draw("water", body.lake_id, year)
        values[n, 0] *= np.exp(0.35 * draw.normal())
        glint[n] = 0.013 * np.exp(0.6 * draw.normal())  # skylight and sun glint, which no correction removes
    number = cover.body.ravel()[at].astype(int) - 1
    flour, dissolved, algae, brown = values[number].T
    water = water_reflectance(flour * np.exp(0.15 * plume), dissolved, algae, brown, cover.depth.ravel()[at])
    return at, water + glint[number].astype(np.float32)


def make_optics(ground: Ground, cover: Cover, year: int, scene: Acquisition) -> Optics:
    """Sentinel-2 L2A of a window on a scene's date."""
    g, rows, cols = ground, ground.outer.rows, ground.outer.cols
    azimuth, elevation = scene.sun_azimuth, scene.sun_elevation
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

    def k(*words: object) -> int:
        return key(g.seed, g.epsg, *words)

    texture = fractal(rows, cols, 24, k("texture"), octaves=4, gain=0.75)
    texture = 0.9 * texture + 0.45 * gradient_noise(rows, cols, 160, k("texture-broad"))
    # Years differ in dust and moisture a little, place by place.
    texture += 0.35 * gradient_noise(rows, cols, 60, k("texture", year))
    modes = np.stack(
        [
            gradient_noise(rows, cols, 1500, k("mode", n))
            + 1.7 * fractal(rows, cols, 50, k("mode-fine", n), octaves=5, gain=0.95)
            for n in range(MODES.shape[1])
        ]
    )
    modes[2] += 0.4 * gradient_noise(rows, cols, 80, k("mode", 2, year))  # moisture
    colour = modal_colour(cover.material, texture, TEXTURE, modes, MODES, SPECTRA)
    at_water, water = _standing_water(g, cover, year)
    colour.reshape(len(colour), -1)[:, at_water] = water
    edge, beside, part = _borders(cover.material, g.outer, k("border"))
    haze = np.exp(0.45 * gradient_noise(rows, cols, 900, k("haze", year)) - 0.3) * np.float32(scene.haze)
    h6, w6 = g.outer.height // BLOCK_PX, g.outer.width // BLOCK_PX

    s2 = np.empty((len(S2_BANDS), g.outer.height, g.outer.width), np.uint16)
    for band, name in enumerate(S2_BANDS):
        ground_reflectance = colour[band].ravel()
        ground_reflectance[edge] += part * (ground_reflectance[beside] - ground_reflectance[edge])
        light = ((1 - DIFFUSE[band]) * direct + DIFFUSE[band]) / modelled
        r = ground_reflectance.reshape(light.shape) * light
        around = smooth(r.reshape(h6, BLOCK_PX, w6, BLOCK_PX).mean(axis=(1, 3)), _AROUND)
        r += ADJACENCY[band] * (resample(around, BLOCK_PX, g.outer) - r)
        r = (r + HAZE[band] * haze) * scene.gain[band] + scene.offset[band]
        r += cloud * (CLOUD[band] * (0.85 + 0.15 * cloud) - r)
        r = smooth(r, _PSF)
        factor = int(SAMPLING[band])
        if factor > 1:
            h, w = g.outer.height // factor, g.outer.width // factor
            r = r.reshape(h, factor, w, factor).mean(axis=(1, 3))
            at = np.arange(h) + g.outer.row // factor, np.arange(w) + g.outer.col // factor
        else:
            at = rows, cols
        r += normal(*at, k("noise", year, name)) * (NOISE_FLOOR[band] + NOISE_SHARE[band] * r).astype(np.float32)
        if factor > 1:
            r = resample(r, factor, g.outer)
        # No digital number is 0 where there is data: 0 in all bands means nodata.
        s2[band] = np.clip(np.rint(r * REFLECTANCE_SCALE), 1, 65535).astype(np.uint16)
    mask = np.where(cloud > 0.25, 1, np.where(cloud_shadow > 0.25, 2, 0)).astype(np.uint8)
    return Optics(s2, mask, ((cast > 0.5) | (facing <= 0)).astype(np.uint8))
