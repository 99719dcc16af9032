"""Spectral indices and terrain derivatives, for NumPy arrays and torch tensors alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryosentinel.sensors import PIXEL_SIZE_M, S2_BANDS


def normalised_difference(a: Any, b: Any) -> Any:
    """(a - b) / (a + b) in float32, 0 where the sum is 0.

    Args:
        a, b: reflectance of any integer or floating type and any common shape, arrays or tensors; negative values
            (which a resampled or offset-corrected product may hold) count as 0.

    Returns:
        The same kind and shape, float32, within [-1, 1].
    """
    if isinstance(a, np.ndarray):
        a, b = np.maximum(a.astype(np.float32), 0), np.maximum(b.astype(np.float32), 0)
        total = a + b
        return np.divide(a - b, total, out=np.zeros_like(total), where=total > 0)
    a, b = a.float().clamp_min(0), b.float().clamp_min(0)
    return (a - b) / (a + b).clamp_min(1e-6)


def ndwi(s2: Any) -> Any:
    """Normalised difference water index, green against near infrared (McFeeters 1996): (B03 - B08) / (B03 + B08).

    Args:
        s2: (..., 12, H, W), bands in the order of :data:`cryosentinel.sensors.S2_BANDS`.

    Returns:
        (..., H, W), float32.
    """
    return normalised_difference(s2[..., S2_BANDS.index("B03"), :, :], s2[..., S2_BANDS.index("B08"), :, :])


def mndwi(s2: Any) -> Any:
    """Modified NDWI, green against short-wave infrared (Xu 2006): (B03 - B11) / (B03 + B11).

    Args:
        s2: (..., 12, H, W), bands in the order of :data:`cryosentinel.sensors.S2_BANDS`.

    Returns:
        (..., H, W), float32.
    """
    return normalised_difference(s2[..., S2_BANDS.index("B03"), :, :], s2[..., S2_BANDS.index("B11"), :, :])


def slope(elevation: np.ndarray, pixel_size: float = PIXEL_SIZE_M) -> np.ndarray:
    """Slope in degrees from central differences.

    Args:
        elevation: (H, W) in metres, both sides at least 2.
        pixel_size: metres.
    """
    dy, dx = np.gradient(elevation.astype(np.float32), pixel_size)
    return np.degrees(np.arctan(np.hypot(dx, dy)))


def dem_shape(elevation: np.ndarray) -> np.ndarray:
    """The shape of the ground around each pixel at several scales, without its elevation.

    Args:
        elevation: (H, W) in metres, 10 m pixels.

    Returns:
        (9, H, W) float32: slope of the elevation smoothed over 30, 90 and 210 m; its standard deviation over 90 and
        210 m; its height above the mean of 150, 510 and 1010 m; the slope of the ground within 510 m.
    """
    from scipy.ndimage import uniform_filter

    z = elevation.astype(np.float64)
    mean = {size: uniform_filter(z, size, mode="nearest") for size in (3, 9, 15, 21, 51, 101)}
    slopes = {size: slope(mean[size]) for size in (3, 9, 21)}

    def deviation(size: int) -> np.ndarray:
        centred = z - mean[21]
        square = uniform_filter(centred**2, size, mode="nearest")
        return np.sqrt(np.maximum(square - uniform_filter(centred, size, mode="nearest") ** 2, 0))

    layers = [*slopes.values(), deviation(9), deviation(21), *(z - mean[size] for size in (15, 51, 101))]
    return np.stack([*layers, uniform_filter(slopes[9], 51, mode="nearest")]).astype(np.float32)
