"""The ground under a window: elevation with its lakes, glaciers, slopes, and shadows for any direction of light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cryosentinel.sensors import PIXEL_SIZE_M
from cryosentinel.simulate.noise import gradient_noise, key, normal
from cryosentinel.simulate.terrain import POST_M, POST_PX, relief, upsample
from cryosentinel.simulate.water import Lake, lakes_in, overlap

BLOCK_PX = 6  # the coarsest sampling: 60 m bands
MARGIN_PX = 24  # around a window: blurs, resampling and slopes reach at most this far
SHADOW_POSTS = 50  # shadows reach at most 1.5 km


@dataclass(frozen=True)
class Window:
    """A window of the world in absolute pixels: row = -northing / 10 m, column = easting / 10 m of the corner."""

    row: int
    col: int
    height: int
    width: int

    @property
    def rows(self) -> np.ndarray:
        """(height,) rows of the window's pixels."""
        return np.arange(self.row, self.row + self.height)

    @property
    def cols(self) -> np.ndarray:
        """(width,) columns of the window's pixels."""
        return np.arange(self.col, self.col + self.width)

    def grown(self, margin: int, multiple: int) -> Window:
        """At least ``margin`` pixels more on each side, with edges on multiples of ``multiple`` absolute pixels."""
        top, left = ((v - margin) // multiple * multiple for v in (self.row, self.col))
        bottom = -(-(self.row + self.height + margin) // multiple) * multiple
        right = -(-(self.col + self.width + margin) // multiple) * multiple
        return Window(top, left, bottom - top, right - left)

    def within(self, outer: Window) -> tuple[slice, slice]:
        """This window's pixels as slices into an outer window."""
        r, c = self.row - outer.row, self.col - outer.col
        return slice(r, r + self.height), slice(c, c + self.width)


@dataclass
class Ground:
    """What does not change from year to year, on a window grown by a margin (``outer``). Arrays (H, W) float32.

    Attributes:
        outer: the window of the arrays.
        z: elevation of the surface, m; lakes are flat at their level as of the elevation model's date.
        dz_row, dz_col: its derivatives (m per m, towards growing row = south and growing column = east).
        steep: slope, degrees.
        height, axis, ela, glacier, green: see :class:`terrain.Relief`, at 10 m.
        lakes: lakes that meet the window.
        posts: (h, w) elevation at 30 m posts over a wider window, for shadows.
        post_row, post_col: the first post.
    """

    seed: int
    epsg: int
    outer: Window
    z: np.ndarray
    dz_row: np.ndarray
    dz_col: np.ndarray
    steep: np.ndarray
    height: np.ndarray
    axis: np.ndarray
    ela: np.ndarray
    glacier: np.ndarray
    green: np.ndarray
    lakes: list[Lake]
    posts: np.ndarray
    post_row: int
    post_col: int

    def shadow(self, azimuth: float, elevation: float) -> np.ndarray:
        """Share of each pixel in cast shadow of a distant light.

        Args:
            azimuth: direction towards the light, degrees clockwise from north.
            elevation: its height above the horizon, degrees.

        Returns:
            (H, W) float32 in [0, 1] on the outer window.
        """
        step_row, step_col = -np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth))
        drop = POST_M * np.tan(np.radians(elevation))
        pad = SHADOW_POSTS + 1
        h, w = (n - 2 * pad for n in self.posts.shape)
        edge = np.full((h, w), -np.inf, np.float32)
        for d in range(1, SHADOW_POSTS + 1):
            y, x = d * step_row, d * step_col
            i, j = int(np.floor(y)), int(np.floor(x))
            ty, tx = np.float32(y - i), np.float32(x - j)
            a = self.posts[pad + i : pad + i + h + 1, pad + j : pad + j + w + 1]
            across = a[:, :-1] + tx * (a[:, 1:] - a[:, :-1])
            np.maximum(edge, across[:-1] + ty * (across[1:] - across[:-1]) - np.float32(d * drop), out=edge)
        at_pixels = upsample(edge, self.post_row + pad, self.post_col + pad, self.outer.rows, self.outer.cols)
        # Half a metre per metre of depth: a penumbra, and no noise on flat ground.
        return np.clip((at_pixels - self.z) * np.float32(0.2), 0, 1)


def make_ground(seed: int, epsg: int, window: Window) -> Ground:
    """The ground of a window."""
    outer = window.grown(MARGIN_PX, BLOCK_PX)
    # Posts for the outer window, two more for the cubic, and the reach of shadows around them.
    pad = SHADOW_POSTS + 1 + 3
    post_rows = np.arange(outer.row // POST_PX - pad, (outer.row + outer.height) // POST_PX + pad)
    post_cols = np.arange(outer.col // POST_PX - pad, (outer.col + outer.width) // POST_PX + pad)
    r = relief(seed, epsg, post_rows, post_cols)
    rows, cols = outer.rows, outer.cols
    first = int(post_rows[0]), int(post_cols[0])

    def at_pixels(a: np.ndarray) -> np.ndarray:
        return upsample(a, *first, rows, cols)

    z = at_pixels(r.z)
    # Boulders, gullies, small moraines: what 30 m posts do not carry, rougher where it is steep.
    rough = 1.3 * gradient_noise(rows, cols, 7, key(seed, epsg, "rough")) * np.clip(at_pixels(r.height), 0.08, 1)

    posts = r.z.copy()
    around = Window(first[0] * POST_PX, first[1] * POST_PX, len(post_rows) * POST_PX, len(post_cols) * POST_PX)
    lakes = lakes_in(seed, epsg, around.row, around.col, around.height, around.width)
    z += rough
    # The banks of all first, then the water of each: a neighbour's bank does not rise out of a lake.
    for lake, water_only in [*((one, False) for one in lakes), *((one, True) for one in lakes if one.kind != "flat")]:
        weight, target = lake.ground
        if water_only:
            weight = np.where(weight == 1, weight, np.float32(0))
        here, there = overlap(lake, outer.row, outer.col, outer.height, outer.width)
        if here[0].start < here[0].stop and here[1].start < here[1].stop:
            z[here] += weight[there] * (target[there] - z[here])
        # The same at the posts, which lie at pixels 3 k + 1.
        i0, i1 = -(-(lake.row0 - 1) // POST_PX), (lake.row0 + weight.shape[0] - 2) // POST_PX
        j0, j1 = -(-(lake.col0 - 1) // POST_PX), (lake.col0 + weight.shape[1] - 2) // POST_PX
        i0, i1 = max(i0, first[0]), min(i1, int(post_rows[-1]))
        j0, j1 = max(j0, first[1]), min(j1, int(post_cols[-1]))
        if i0 <= i1 and j0 <= j1:
            at = (
                slice(i0 * POST_PX + 1 - lake.row0, i1 * POST_PX + 2 - lake.row0, POST_PX),
                slice(j0 * POST_PX + 1 - lake.col0, j1 * POST_PX + 2 - lake.col0, POST_PX),
            )
            part = posts[i0 - first[0] : i1 + 1 - first[0], j0 - first[1] : j1 + 1 - first[1]]
            part += weight[at] * (target[at] - part)

    dz_row, dz_col = np.gradient(z, np.float32(PIXEL_SIZE_M))
    steep = np.degrees(np.arctan(np.hypot(dz_row, dz_col)))
    inside = [
        lake
        for lake in lakes
        if all(s.start < s.stop for s in overlap(lake, outer.row, outer.col, outer.height, outer.width)[0])
    ]
    return Ground(
        seed, epsg, outer, z, dz_row, dz_col, steep,
        at_pixels(r.height), at_pixels(r.axis), at_pixels(r.ela), at_pixels(r.glacier), at_pixels(r.green),
        inside, posts, *first,
    )  # fmt: skip


def elevation_model(ground: Ground) -> np.ndarray:
    """Elevation as Copernicus DEM GLO-30 gives it: means over 30 m, a little noise, resampled to 10 m.

    The relative vertical error of the product is below 2 m on slopes under 20 % and below 4 m beyond (90 %; Airbus,
    Copernicus DEM Product Handbook): standard deviations of 1.2 m and 2.4 m, half of it in the post, half over some
    150 m. The product's editing of water bodies is left out: lakes are as noisy as other flat ground.

    Returns:
        (H, W) int16 metres on the outer window; the outermost two posts are not reliable.
    """
    outer = ground.outer
    h, w = outer.height // POST_PX, outer.width // POST_PX
    means = ground.z.reshape(h, POST_PX, w, POST_PX).mean(axis=(1, 3))
    rows, cols = np.arange(h) + outer.row // POST_PX, np.arange(w) + outer.col // POST_PX
    noise = 0.8 * normal(rows, cols, key(ground.seed, ground.epsg, "dem"))
    noise += gradient_noise(rows, cols, 5, key(ground.seed, ground.epsg, "dem-broad"))
    tilted = np.hypot(*(d.reshape(h, POST_PX, w, POST_PX).mean(axis=(1, 3)) for d in (ground.dz_row, ground.dz_col)))
    means += noise * (1 + np.clip(tilted * 2.5, 0, 1))
    return np.rint(resample(means, POST_PX, outer)).astype(np.int16)


def resample(blocks: np.ndarray, factor: int, outer: Window) -> np.ndarray:
    """Bilinear interpolation of block means back to pixels; edges repeat.

    Args:
        blocks: (H / factor, W / factor) float32.
        factor: pixels a block; ``outer`` starts on a multiple of it.

    Returns:
        (H, W) float32.
    """

    def along_rows(a: np.ndarray, n: int) -> np.ndarray:
        at = (np.arange(n) + 0.5) / factor - 0.5
        i = np.floor(at).astype(int)
        t = (at - i).astype(np.float32)[:, None]
        low, high = np.clip(i, 0, len(a) - 1), np.clip(i + 1, 0, len(a) - 1)
        start = np.take(a, low, axis=0)
        return start + t * (np.take(a, high, axis=0) - start)

    half = along_rows(blocks, outer.height)
    return np.ascontiguousarray(along_rows(np.ascontiguousarray(half.T), outer.width).T)


def smooth(a: np.ndarray, kernel: tuple[float, ...], axes: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Separable filter with a short kernel along the given axes, float32."""
    for axis in axes:
        a = ndimage.correlate1d(a, kernel, axis=axis, output=np.float32, mode="nearest")
    return a
