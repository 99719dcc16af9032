"""Sentinel-1 GRD as it would see the cover: geometry of the slopes, layover, shadow, wind on water, speckle.

Backscatter is gamma nought of the material times the area that a resolution cell illuminates, without radiometric
terrain correction: for a slope p along the look direction and an incidence angle t this is
(1 + p tan t) / (1 - p / tan t) times the flat one (the projected facet over the foreshortened range cell; Ulander 1996,
IEEE TGRS 34; Small 2011, IEEE TGRS 49). Where the denominator vanishes there is layover; where the numerator does, or a
ridge stands between, radar shadow, of which only the noise floor is left.

Cross-polarised light comes from volumes and rough ground: it depends less on the slope (by the power 0.65 here), and
its texture is partly its own, so that VV and VH agree at 90 m as they do in real chips (correlation 0.6 to 0.95).

Detected products hold 4.4 looks (ESA S-1 product specification), their speckle correlated between neighbours (20 m
resolution on 10 m pixels: 0.55 here, 0.6 in real chips); then a Lee filter of 5 x 5 pixels (Lee 1980, IEEE TPAMI 2), as
users apply it. Assumed: the look along image rows when layover is smeared, noise floors of -24 and -28 dB.
"""

from __future__ import annotations

import numpy as np

from cryosentinel.sensors import MODALITIES
from cryosentinel.simulate.acquisition import Acquisition
from cryosentinel.simulate.cover import Cover
from cryosentinel.simulate.ground import Ground, smooth
from cryosentinel.simulate.materials import BACKSCATTER, Material
from cryosentinel.simulate.noise import exponential, fractal, gradient_noise, key

NOISE_FLOOR_DB = (-24.0, -28.0)
_SPECKLE = (0.2, 0.6, 0.2)  # 1 / (0.2^2 + 0.6^2 + 0.2^2)^2 = 5.2 looks of neighbours that agree
LOOKS = 5.2
_LEE = (0.2,) * 5
_SLOPE_POWER = (1.0, 0.65)
_SMEAR = (0.1, 0.2, 0.4, 0.2, 0.1)


def lee(power: np.ndarray) -> np.ndarray:
    """Lee filter: towards the local mean where the local variation is speckle alone. (H, W) linear, float32."""
    mean = smooth(power, _LEE)
    variance = np.maximum(smooth(power * power, _LEE) - mean * mean, np.float32(1e-12))
    signal = np.maximum(variance - mean * mean * np.float32(1 / LOOKS), 0) / np.float32(1 + 1 / LOOKS)
    return mean + signal / variance * (power - mean)


def make_radar(ground: Ground, cover: Cover, year: int, scene: Acquisition) -> np.ndarray:
    """Backscatter of a window on a scene's date.

    Returns:
        (2, H, W) float32, VV and VH in dB, on the outer window.
    """
    g, rows, cols = ground, ground.outer.rows, ground.outer.cols
    azimuth = scene.look_azimuth
    tan = np.float32(np.tan(np.radians(scene.incidence)))
    rise = g.dz_col * np.float32(np.sin(np.radians(azimuth))) - g.dz_row * np.float32(np.cos(np.radians(azimuth)))
    flat = cover.water | (cover.material == Material.FROZEN_LAKE)
    rise[flat] = 0
    area = np.maximum(1 + rise * tan, 0.05) / np.maximum(1 - rise / tan, 0.20)
    hidden = g.shadow(azimuth + 180.0, 90.0 - scene.incidence)
    hidden[flat & (g.steep < 12)] *= 0.3
    area *= 1 - hidden

    patchy = gradient_noise(rows, cols, 18, key(g.seed, g.epsg, "backscatter"))
    patchy = 0.8 * patchy + 0.6 * gradient_noise(rows, cols, 70, key(g.seed, g.epsg, "moisture", year))
    own = 3.2 * fractal(rows, cols, 90, key(g.seed, g.epsg, "volume"), octaves=3, gain=0.8)
    own[flat] = 0
    # Wind: calm to fresh over tens of kilometres, gusts over hundreds of metres.
    wind = 0.5 + 0.28 * gradient_noise(rows, cols, 700, key(g.seed, g.epsg, "wind", year))
    wind += 0.10 * gradient_noise(rows, cols, 40, key(g.seed, g.epsg, "gusts", year))
    wind = np.clip(wind, 0, 1)
    standing = (cover.material == Material.LAKE) | (cover.material == Material.RESERVOIR)

    s1 = np.empty((2, g.outer.height, g.outer.width), np.float32)
    for band, name in enumerate(MODALITIES["S1GRD"]):
        db = BACKSCATTER[:, band][cover.material] + BACKSCATTER[:, 2][cover.material] * patchy
        db += np.where(standing, (9.0 - 3.0 * band) * (wind - 0.25), 0).astype(np.float32)
        db += np.float32(band) * own
        power = np.float32(10.0) ** (db * np.float32(0.1)) * area ** np.float32(_SLOPE_POWER[band])
        power = smooth(power, _SMEAR, axes=(1,)) + np.float32(10 ** (NOISE_FLOOR_DB[band] / 10))
        speckle = smooth(exponential(rows, cols, key(g.seed, g.epsg, "speckle", year, name)), _SPECKLE)
        s1[band] = 10 * np.log10(lee(power * speckle))
    return s1
