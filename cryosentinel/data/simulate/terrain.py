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

from cryosentinel.data.simulate.noise import fractal, gradient_noise, key
from cryosentinel.sensors import PIXEL_SIZE_M, REGIONS

POST_PX = 3  # 30 m posts, in 10 m pixels
POST_M = POST_PX * PIXEL_SIZE_M
_NODE_PX = 2000  # climate is interpolated between nodes 20 km apart

#: region -> mean elevation (m), relief (m), ELA above the mean elevation (m), greenness 0..1, lake density (1 = usual).
CLIMATE: dict[str, tuple[float, float, float, float, float]] = {
    "hindu_kush": (4350.0, 1250.0, 650.0, 0.25, 0.9),
    "pamir": (4600.0, 1100.0, 550.0, 0.15, 1.0),
    "karakoram": (4900.0, 1500.0, 450.0, 0.15, 1.0),
    "western_himalaya": (4650.0, 1300.0, 600.0, 0.30, 1.0),
    "central_himalaya": (4850.0, 1350.0, 650.0, 0.35, 1.1),
    "eastern_himalaya": (4700.0, 1300.0, 600.0, 0.45, 1.2),
    "hengduan_nyainqentanglha": (4600.0, 1250.0, 550.0, 0.45, 1.2),
    "tibetan_plateau": (5100.0, 800.0, 600.0, 0.15, 0.8),
    "tien_shan_full": (3750.0, 1150.0, 450.0, 0.35, 0.9),
    "ile_alatau": (3550.0, 1200.0, 450.0, 0.45, 1.0),
    "zhetysu_alatau": (3450.0, 1100.0, 400.0, 0.45, 0.9),
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
    ty, tx = (y - iy).astype(np.float32)[:, None, None], (x - ix).astype(np.float32)[None, :, None]
    r0, c0 = iy.min(), ix.min()
    nodes = np.array(
        [[_climate_node(epsg, int(r), int(c)) for c in range(c0, ix.max() + 2)] for r in range(r0, iy.max() + 2)]
    )
    jy, jx = iy - r0, ix - c0
    a, b = nodes[np.ix_(jy, jx)], nodes[np.ix_(jy, jx + 1)]
    c, d = nodes[np.ix_(jy + 1, jx)], nodes[np.ix_(jy + 1, jx + 1)]
    top = a + tx * (b - a)
    values = top + ty * ((c + tx * (d - c)) - top)
    return Climate(*(np.ascontiguousarray(values[..., i]) for i in range(5)))


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


def relief(seed: int, epsg: int, post_rows: np.ndarray, post_cols: np.ndarray) -> Relief:
    """Relief at posts.

    Args:
        seed, epsg: world and zone.
        post_rows, post_cols: (H,), (W,) consecutive absolute post indices (pixel index // 3); a post lies at the centre
            of its three by three pixels.
    """
    pad = 2  # for the derivatives below
    rows = np.arange(post_rows[0] - pad, post_rows[-1] + pad + 1) * POST_PX + 1.0
    cols = np.arange(post_cols[0] - pad, post_cols[-1] + pad + 1) * POST_PX + 1.0
    c = climate(epsg, rows, cols)

    def k(name: str) -> int:
        return key(seed, epsg, "relief", name)

    regional = gradient_noise(rows, cols, 2600, k("regional"))
    base = c.elevation + 260 * regional
    valleys = fractal(rows, cols, 620, k("valleys"), octaves=3, gain=0.42)
    # U-shaped cross-section: flat floor, steepest at half height, rounding off.
    squared = (valleys * valleys) * np.float32(1 / 0.55**2)
    height = 1 - np.exp(-squared)
    ridges = fractal(rows, cols, 150, k("ridges"), octaves=4, gain=0.52)
    crests = 1 - np.abs(gradient_noise(rows, cols, 210, k("crests")))
    mask = 0.10 + 0.90 * height
    z = base + c.relief * (height - 0.45)
    z += c.relief * mask * (0.115 * ridges + 0.12 * crests)

    dy, dx = np.gradient(valleys, POST_M)
    axis = valleys / np.maximum(np.hypot(dy, dx), 2e-4)

    zy, zx = np.gradient(z, POST_M)
    steep = np.hypot(zy, zx)
    # Rows grow southwards: a slope that falls northwards has elevation growing with the row.
    northness = zy / np.maximum(steep, 0.05)
    ela = c.elevation + c.ela + 120 * regional
    tongue = (1 - height) / (1 + np.exp(-(base + 0.35 * c.relief - ela) / 120))
    glacier = (z - ela) / 400 + 0.45 * northness * np.minimum(steep, 1) + 2.3 * tongue
    glacier -= np.maximum(steep - 0.75, 0) * 3.0
    glacier += 0.30 * gradient_noise(rows, cols, 90, k("glacier")) - 0.15
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
