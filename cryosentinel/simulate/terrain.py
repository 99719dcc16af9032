"""Relief, climate and glaciers: pointwise functions of place on a lattice of 30 m posts.

The relief is a sum of gradient noises, arranged as mountains are: a slow regional base, a network of U-shaped valleys
along the zero lines of a noise of several kilometres, and ridges whose height grows with the height above the valley
floor (the multifractal idea of Musgrave, Kolb and Mace 1989). Amplitudes are set so that slopes at 90 m agree with
SRTM over the Karakoram. It has no drainage network; lakes are put where it is low and concave (:mod:`.lakes`).

Regional elevation, equilibrium line (ELA) and greenness are rounded from the literature on High Mountain Asia (ELA:
e.g. Sakai et al. 2015, The Cryosphere 9; Yao et al. 2012, Nature Climate Change 2); relief and lake density are
assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from scipy import ndimage

from cryosentinel.sensors import PIXEL_SIZE_M, REGIONS
from cryosentinel.simulate.kernels import furrows
from cryosentinel.simulate.noise import fractal, gradient_noise, key, uniform

POST_PX = 3  # 30 m posts, in 10 m pixels
POST_M = POST_PX * PIXEL_SIZE_M
_TENT = np.array([1, 2, 3, 2, 1], np.float32) / 9
_NODE_PX = 2000  # climate is interpolated between nodes 20 km apart

#: region -> mean elevation (m), relief (m), ELA above the mean elevation (m), greenness 0..1, lake density (1 = usual).
CLIMATE: dict[str, tuple[float, float, float, float, float]] = {
    "hindu_kush": (4250.0, 1130.0, 800.0, 0.25, 0.9),
    "pamir": (4450.0, 1000.0, 715.0, 0.15, 1.0),
    "karakoram": (4700.0, 1020.0, 650.0, 0.15, 1.0),
    "western_himalaya": (4450.0, 1180.0, 750.0, 0.30, 1.0),
    "central_himalaya": (4600.0, 1200.0, 740.0, 0.35, 1.1),
    "eastern_himalaya": (4450.0, 1180.0, 770.0, 0.45, 1.2),
    "hengduan_nyainqentanglha": (4350.0, 1120.0, 690.0, 0.45, 1.2),
    "tibetan_plateau": (4950.0, 780.0, 670.0, 0.15, 0.8),
    "tien_shan_full": (3650.0, 1080.0, 665.0, 0.35, 0.9),
    "ile_alatau": (3450.0, 1120.0, 630.0, 0.45, 1.0),
    "zhetysu_alatau": (3350.0, 1030.0, 610.0, 0.45, 0.9),
}


@dataclass
class Climate:
    """What varies slowly from region to region, each (H, W) float32 (or a scalar array).

    Attributes:
        elevation: mean elevation, m.
        relief: height of the ridges above the valleys, m.
        ela: equilibrium line above the mean elevation, m.
        green: greenness, 0 (bare) to 1 (meadows and shrubs).
        lakes: lake density, 1 = usual.
    """

    elevation: np.ndarray
    relief: np.ndarray
    ela: np.ndarray
    green: np.ndarray
    lakes: np.ndarray


@lru_cache(maxsize=4096)
def _climate_node(epsg: int, row: int, col: int) -> np.ndarray:
    """The five values of :data:`CLIMATE` at a node: regions' boxes weighted by nearness of their centres."""
    from pyproj import Transformer

    to_lonlat = Transformer.from_crs(epsg, 4326, always_xy=True)
    lon, lat = to_lonlat.transform(col * _NODE_PX * PIXEL_SIZE_M, -row * _NODE_PX * PIXEL_SIZE_M)
    total, weights = np.zeros(5), 0.0
    for region, values in CLIMATE.items():
        west, south, east, north = REGIONS[region]
        # Distance to the box's centre in units of its half-size: small boxes rule inside themselves.
        u = (lon - (west + east) / 2) / ((east - west) / 2)
        v = (lat - (south + north) / 2) / ((north - south) / 2)
        size = (east - west) * (north - south)
        weight = np.exp(-1.5 * (u * u + v * v)) / size + 1e-9 / (1 + u * u + v * v)
        total += weight * np.array(values)
        weights += weight
    return (total / weights).astype(np.float32)


def climate(epsg: int, rows: np.ndarray, cols: np.ndarray) -> Climate:
    """Climate at (H,) rows and (W,) columns in absolute pixels, bilinear between nodes."""
    y, x = np.asarray(rows, np.float64) / _NODE_PX, np.asarray(cols, np.float64) / _NODE_PX
    iy, ix = np.floor(y).astype(int), np.floor(x).astype(int)
    ty, tx = (y - iy).astype(np.float32)[:, None], (x - ix).astype(np.float32)[None, :]
    r0, c0 = iy.min(), ix.min()
    nodes = np.array(
        [[_climate_node(epsg, int(r), int(c)) for c in range(c0, ix.max() + 2)] for r in range(r0, iy.max() + 2)]
    )
    jy, jx = iy - r0, ix - c0
    values = []
    for node in np.ascontiguousarray(np.moveaxis(nodes, -1, 0)):
        down = node[jy] + ty * (node[jy + 1] - node[jy])
        left = np.take(down, jx, axis=1)
        values.append(left + tx * (np.take(down, jx + 1, axis=1) - left))
    return Climate(*values)


@dataclass
class Relief:
    """The ground without lakes, at (H, W) posts, float32.

    Attributes:
        z: elevation, m.
        height: height above the valley network, 0 on a valley's axis to 1 on the ridges between.
        axis: signed distance to the nearest valley axis, m (reliable up to about 1 km).
        ela: elevation of the equilibrium line, m.
        glacier: above 0 where there is glacier ice; about 1 per 400 m of elevation.
        green, lakes: see :class:`Climate`.
    """

    z: np.ndarray
    height: np.ndarray
    axis: np.ndarray
    ela: np.ndarray
    glacier: np.ndarray
    green: np.ndarray
    lakes: np.ndarray

    def crop(self, rows: slice, cols: slice) -> Relief:
        """The same at a part of the posts."""
        return Relief(*(np.ascontiguousarray(getattr(self, f.name)[rows, cols]) for f in fields(self)))


def _glacier(
    large: np.ndarray, base: np.ndarray, relief_m: np.ndarray, ela: np.ndarray, height: np.ndarray, hanging: np.ndarray
) -> np.ndarray:
    """Ice where it is high or faces north, and in valleys below high ground: tongues reach under the ELA."""
    zy, zx = np.gradient(large, POST_M)
    steep = np.hypot(zy, zx)
    # Rows grow southwards: a slope that falls northwards has elevation growing with the row.
    northness = zy / np.maximum(steep, 0.05)
    fed = 1 / (1 + np.exp(-(base + 0.33 * relief_m - ela) / 90))
    cirque = 1 / (1 + np.exp(-(large + 330 - ela) / 80))
    glacier = (large - ela) / 330 + 0.5 * northness * np.minimum(steep, 1)
    glacier += 2.4 * (1 - height) * fed + 1.3 * hanging * cirque
    return glacier - np.maximum(steep - 0.8, 0) * 2.0


def gullies(rows: np.ndarray, cols: np.ndarray, dz_row: np.ndarray, dz_col: np.ndarray, k: int) -> np.ndarray:
    """Furrows and spurs that run down the slope, (H, W) float32, about -1 to 1 on steep ground and 0 on flat.

    Waves across the slope's direction, each patch with its own phase, blended over a jittered lattice, three octaves
    that bend around the larger ones (the erosion texture of R. Skovbo Johansen and F. Michelon).

    Args:
        rows, cols: (H,), (W,) absolute pixels.
        dz_row, dz_col: (H, W) slope of the ground, m per m.
        k: a key.
    """
    total = np.zeros(dz_row.shape, np.float32)
    along_row, along_col = dz_row.copy(), dz_col.copy()
    for octave, wavelength in enumerate((64.0, 33.0, 17.0)):
        y, x = np.asarray(rows, np.float64) / wavelength, np.asarray(cols, np.float64) / wavelength
        iy, ix = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
        lattice = np.arange(iy.min() - 1, iy.max() + 2), np.arange(ix.min() - 1, ix.max() + 2)
        # A point within the middle 0.7 of each lattice cell: what lies two cells away is at least 1.15 away.
        point_y = np.float32(0.15) + uniform(*lattice, k + 2 * octave) * np.float32(0.7)
        point_x = np.float32(0.15) + uniform(*lattice, k + 2 * octave + 1) * np.float32(0.7)
        norm = np.maximum(np.hypot(along_row, along_col), np.float32(1e-3))
        # Across the slope; flat ground has no direction and gets no waves.
        across_row, across_col = -along_col / norm, along_row / norm
        fy, fx = (y - iy).astype(np.float32), (x - ix).astype(np.float32)
        at_y, at_x = iy - lattice[0][0], ix - lattice[1][0]
        wave, wave_d = furrows(point_y, point_x, at_y, at_x, fy, fx, across_row, across_col)
        gain = np.float32(0.55**octave)
        total += gain * np.minimum(norm / np.float32(0.55), 1) * wave
        # The next octave sees the slope of this one.
        along_row += gain * np.float32(0.55) * wave_d * across_row
        along_col += gain * np.float32(0.55) * wave_d * across_col
    return total


def relief(seed: int, epsg: int, post_rows: np.ndarray, post_cols: np.ndarray) -> Relief:
    """Relief at posts.

    Args:
        seed, epsg: world and zone.
        post_rows, post_cols: (H,), (W,) consecutive absolute post indices (pixel index // 3); a post lies at the centre
            of its three by three pixels.
    """
    pad = 6  # derivatives of smoothed derivatives
    rows = np.arange(post_rows[0] - pad, post_rows[-1] + pad + 1) * POST_PX + 1.0
    cols = np.arange(post_cols[0] - pad, post_cols[-1] + pad + 1) * POST_PX + 1.0
    c = climate(epsg, rows, cols)

    def k(name: str) -> int:
        return key(seed, epsg, "relief", name)

    regional = gradient_noise(rows, cols, 4200, k("regional"))
    base = c.elevation + 430 * regional
    valleys = fractal(rows, cols, 620, k("valleys"), octaves=3, gain=0.42)
    # U-shaped cross-section: flat floor, steepest at half height, rounding off.
    height = 1 - np.exp(-(valleys * valleys) * np.float32(1 / 0.55**2))
    # Sediment fills the floors, here a little, there much: outwash plains and terraces are flat across the valley.
    fill = np.clip(0.135 + 0.10 * gradient_noise(rows, cols, 2100, k("fill")), 0.0, 0.3)
    filled = fill + np.float32(0.02) * np.logaddexp(0, (height - fill) * np.float32(1 / 0.02)).astype(np.float32)
    # Tributary valleys and cirques hang in the flanks.
    hanging = np.exp(-((fractal(rows, cols, 240, k("tributaries"), octaves=2, gain=0.4) / 0.42) ** 2)) * height
    mask = 0.04 + 0.96 * np.minimum((filled - fill) * np.float32(1.15), 1)  # sediment buries what lies under it
    # The distance to a zero line is a sharp edge: ridges.
    crests = 1 - np.abs(fractal(rows, cols, 260, k("crests"), octaves=3, gain=0.5))
    large = base + c.relief * (filled - 0.42 - 0.24 * hanging) + c.relief * 0.13 * mask * crests
    ela = c.elevation + c.ela + 30 + 270 * regional
    glacier = _glacier(large, base, c.relief, ela, height, hanging)
    glacier += 0.22 * gradient_noise(rows, cols, 90, k("glacier"))

    # Over 150 m: on a sharp crest the slope has no direction.
    dy, dx = (
        ndimage.correlate1d(ndimage.correlate1d(d, _TENT, axis=0), _TENT, axis=1) for d in np.gradient(large, POST_M)
    )
    detail = gullies(rows, cols, dy, dx, k("gullies")) + 0.22 * fractal(rows, cols, 75, k("rough"), octaves=3, gain=0.6)
    # Ice buries the rock's relief.
    buried = 1 / (1 + np.exp(-6 * glacier))
    z = large + c.relief * mask * 0.09 * detail * (1 - 0.85 * buried)

    zy, zx = np.gradient(z, POST_M)
    glacier -= np.maximum(np.hypot(zy, zx) - 0.85, 0) * 2.5
    dy, dx = np.gradient(valleys, POST_M)
    axis = valleys / np.maximum(np.hypot(dy, dx), 2e-4)
    inner = (slice(pad, -pad), slice(pad, -pad))
    result = Relief(z, height, axis, ela, glacier, c.green, c.lakes)
    return result.crop(*inner)


def upsample(posts: np.ndarray, post_row: int, post_col: int, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Cubic (Catmull-Rom) interpolation from posts to pixels; posts must reach two beyond the pixels on every side.

    Args:
        posts: (h, w) float32 at consecutive posts, the first being (post_row, post_col).
        rows, cols: (H,), (W,) consecutive absolute pixels.

    Returns:
        (H, W) float32.
    """

    def along_rows(a: np.ndarray, first: int, index: np.ndarray) -> np.ndarray:
        at = (index - 1) / POST_PX
        i = np.floor(at).astype(int)
        t = (at - i).astype(np.float32)[:, None]
        j = i - first
        p0, p1, p2, p3 = (np.take(a, j + d, axis=0) for d in (-1, 0, 1, 2))
        return p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))

    half = along_rows(posts, post_row, rows)
    return np.ascontiguousarray(along_rows(np.ascontiguousarray(half.T), post_col, cols).T)
