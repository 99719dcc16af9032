"""The two loops that NumPy cannot take in one piece, compiled (and kept on disk between runs).

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
        (H, W) int64: 1 for the first pixel, 0 where the flood did not come. The first n pixels are connected (by edges),
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
