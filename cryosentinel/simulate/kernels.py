"""The loops that NumPy cannot take in one piece, compiled (and kept on disk between runs).

Plain scalar code without fast-math: a value depends on its own operands only, in a fixed order, so that any window and
any number of workers give the same bits.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit


@njit(cache=True)
def perlin(
    gy: np.ndarray, gx: np.ndarray, jy: np.ndarray, jx: np.ndarray, fy: np.ndarray, fx: np.ndarray
) -> np.ndarray:
    """Gradient noise from lattice gradients.

    Args:
        gy, gx: (h, w) float32 components of the gradients at the lattice's nodes.
        jy, jx: (H,), (W,) integers, the node before each row and column.
        fy, fx: (H,), (W,) float32, the position between nodes, 0 to 1.

    Returns:
        (H, W) float32.
    """
    out = np.empty((len(jy), len(jx)), np.float32)
    one = np.float32(1)
    smooth_x = fx * fx * fx * (fx * (fx * np.float32(6) - np.float32(15)) + np.float32(10))
    for r in range(len(jy)):
        y, i = fy[r], jy[r]
        smooth_y = y * y * y * (y * (y * np.float32(6) - np.float32(15)) + np.float32(10))
        for c in range(len(jx)):
            x, j = fx[c], jx[c]
            a = gy[i, j] * y + gx[i, j] * x
            b = gy[i, j + 1] * y + gx[i, j + 1] * (x - one)
            d = gy[i + 1, j] * (y - one) + gx[i + 1, j] * x
            e = gy[i + 1, j + 1] * (y - one) + gx[i + 1, j + 1] * (x - one)
            top = a + smooth_x[c] * (b - a)
            bottom = d + smooth_x[c] * (e - d)
            out[r, c] = top + smooth_y * (bottom - top)
    return out


@njit(cache=True)
def flood_order(cost: np.ndarray, row: int, col: int, most: int) -> np.ndarray:
    """The order in which water that rises from one pixel reaches the others (a priority flood).

    Args:
        cost: (H, W) float32, how hard each pixel is to flood.
        row, col: where the water rises.
        most: pixels to flood at most; the outermost ring is never flooded.

    Returns:
        (H, W) int64: 1 for the first pixel, 0 where the flood did not come. The first n pixels are connected by edges,
        for every n.
    """
    height, width = cost.shape
    order = np.zeros((height, width), np.int64)
    seen = np.zeros((height, width), np.bool_)
    heap = [(cost[row, col], row * width + col)]
    seen[row, col] = True
    count = 0
    while len(heap) > 0 and count < most:
        _, at = heapq.heappop(heap)
        r, c = at // width, at % width
        count += 1
        order[r, c] = count
        for step in range(4):
            i = r + (step == 0) - (step == 1)
            j = c + (step == 2) - (step == 3)
            if 0 < i < height - 1 and 0 < j < width - 1 and not seen[i, j]:
                seen[i, j] = True
                heapq.heappush(heap, (cost[i, j], i * width + j))
    return order


@njit(cache=True)
def _sine(turns: np.float32) -> np.float32:
    """sin(2 pi turns) to a thousandth: a parabola, and its square to mend it. No library function, so no surprises."""
    t = turns - np.float32(np.floor(turns + np.float32(0.5)))
    s = t * (np.float32(8) - np.float32(16) * abs(t))
    return s * (np.float32(0.775) + np.float32(0.225) * abs(s))


@njit(cache=True)
def furrows(
    point_y: np.ndarray,
    point_x: np.ndarray,
    at_y: np.ndarray,
    at_x: np.ndarray,
    fy: np.ndarray,
    fx: np.ndarray,
    across_row: np.ndarray,
    across_col: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Waves across a direction, each from its own point of a jittered lattice, blended where points are near.

    Args:
        point_y, point_x: (h, w) float32, each lattice cell's point within the cell, 0.15 to 0.85.
        at_y, at_x: (H,), (W,) integers, the lattice cell of each row and column; its neighbours exist.
        fy, fx: (H,), (W,) float32, the position within the cell, 0 to 1.
        across_row, across_col: (H, W) float32, unit vector across which the waves run.

    Returns:
        The wave and its derivative in phase, (H, W) float32, within [-1, 1].
    """
    wave = np.empty(across_row.shape, np.float32)
    wave_d = np.empty(across_row.shape, np.float32)
    radius = np.float32(1 / 1.15**2)
    for r in range(len(at_y)):
        for c in range(len(at_x)):
            cosine, sine, weights = np.float32(0), np.float32(0), np.float32(1e-6)
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    i, j = at_y[r] + dy, at_x[c] + dx
                    py = fy[r] - np.float32(dy) - point_y[i, j]
                    px = fx[c] - np.float32(dx) - point_x[i, j]
                    weight = np.float32(1) - (py * py + px * px) * radius
                    if weight > 0:
                        weight *= weight
                        phase = py * across_row[r, c] + px * across_col[r, c]
                        cosine += weight * _sine(phase + np.float32(0.25))
                        sine -= weight * _sine(phase)
                        weights += weight
            wave[r, c] = cosine / weights
            wave_d[r, c] = sine / weights
    return wave, wave_d


@njit(cache=True)
def modal_colour(
    material: np.ndarray,
    texture: np.ndarray,
    texture_std: np.ndarray,
    fields: np.ndarray,
    modes: np.ndarray,
    spectra: np.ndarray,
) -> np.ndarray:
    """Reflectance of the ground: each material's spectrum, brighter or darker by its texture, changed by the modes.

    Args:
        material: (H, W) codes; texture: (H, W) standardised; texture_std: of ln reflectance, one a material.
        fields: (modes, H, W), how much of each mode there is.
        modes: (materials, modes, bands), change of ln reflectance for one unit.
        spectra: (materials, bands).

    Returns:
        (bands, H, W) float32.
    """
    bands = spectra.shape[1]
    out = np.empty((bands, *material.shape), np.float32)
    for r in range(material.shape[0]):
        for c in range(material.shape[1]):
            m = material[r, c]
            level = texture[r, c] * texture_std[m]
            for b in range(bands):
                change = level
                for n in range(len(fields)):
                    change += fields[n, r, c] * modes[m, n, b]
                out[b, r, c] = spectra[m, b] * np.exp(change)
    return out
