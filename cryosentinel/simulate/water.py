"""Lakes: where water would collect, how large, and how they change.

The world is divided into cells of 5.4 km; the lakes of a cell are drawn from the cell's own key, so a cell can be made
alone and in any order, and every lake lies inside its cell with the ground it shapes. A lake is an order of flooding:
each pixel of its patch holds the lake area (ha) at which water reaches it, so that its outline at any date is one
comparison, outlines of a growing lake are nested, and each is one connected piece.

Standing water is of one kind for the sensors: sediment, dissolved matter, algae, depth and ice are drawn from one
distribution for glacial lakes, reservoirs and ponds. What differs is where a body lies (ice, valley floor), its size
and its dam. Basins that filled with sediment (kind "flat": outwash plains, former lakes) are shaped as lakes are, and
hold no water: an elevation model alone cannot tell them from lakes.

Reservoirs and ponds are about 3.5 % of the standing water everywhere. High Mountain Asia has some 1,800 hydropower
projects, planned ones included, on some 32,000 lakes; how many of them hold water in a reservoir is assumed: about one
in five.

Sizes follow the outlines mapped by ICIMOD over the Hindu Kush Himalaya (median 5.2 ha, 5 to 95 % 0.75 to 57 ha: close
to a log-normal with mean 1.73 and deviation 1.29 of ln ha). Rates of growth are assumed, in the range reported for High
Mountain Asia (Shugar et al. 2020, Nature Climate Change 10: half as many lakes more in 28 years, hence about one in
eight appeared after the elevation model's date; Zhang et al. 2023, Nature Communications 14): lakes in touch with ice
grow, ponds on the ice come and go, others hardly change.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import ndimage

from cryosentinel.indices import slope
from cryosentinel.sensors import PIXEL_SIZE_M
from cryosentinel.simulate.kernels import flood_order
from cryosentinel.simulate.materials import Material
from cryosentinel.simulate.noise import Draw, gradient_noise, key, uniform
from cryosentinel.simulate.terrain import POST_M, POST_PX, Relief, climate, relief, upsample

CELL_POSTS = 180
CELL_PX = CELL_POSTS * POST_PX  # 540: 5.4 km
_PAD = 30  # posts around a cell: neighbourhoods of the search
DEM_DATE = 2013.5  # TanDEM-X flew from 2010 to 2015: the elevation model knows the lakes of then

GLACIAL = ("proglacial", "moraine", "cirque", "supraglacial")
OTHER = ("reservoir", "pond")  # standing water that is no glacial lake
#: kind -> (share among glacial lakes, mean and standard deviation of ln area in ha)
_SIZES: dict[str, tuple[float, float, float]] = {
    "proglacial": (0.32, 2.15, 1.25),
    "moraine": (0.22, 1.95, 1.15),
    "cirque": (0.30, 1.70, 1.15),
    "supraglacial": (0.16, 0.45, 0.85),
}
_LAKES_A_CELL = 4.0  # 0.14 a km2; half of the ground near glaciers of High Mountain Asia has far fewer
_RESERVOIRS_A_LAKE, _PONDS_A_LAKE = 0.012, 0.015
_FLATS_A_CELL = 10.0  # set for a share of flat ground between that of Baltoro and that around Icelandic lakes
_MAX_AREA_HA = 320.0
_FLOORS = {"0": Material.GRAVEL, "1": Material.SOIL, "2": Material.MEADOW, "3": Material.WET_GROUND}
_REACH = 2.8  # times its area as drawn that a lake can reach, by growth or by an inventory's mistake


@dataclass(frozen=True, eq=False)
class Lake:
    """One body of standing water.

    Attributes:
        lake_id: longitude and latitude of its deepest point in the manner of GLIMS, unique in the world.
        kind: one of :data:`GLACIAL`, "reservoir" or "pond" (water, but no glacial lake), or "flat" (a filled basin).
        row, col: deepest point, absolute pixels.
        row0, col0: first pixel of the patch.
        area_at: (h, w) float32, lake area in ha at which the pixel is flooded; infinity where never.
        level: elevation of the surface, m.
        area_ha: area in 2020 as drawn.
        growth: relative change a year.
        appears, drains: dates (years), -infinity and infinity where it always was and stays.
        drained_to: share of the area that stays after it drained.
        flour, dissolved, algae, brown: see :func:`cryosentinel.simulate.materials.water_reflectance`.
        deepest: greatest depth, m.
        frozen: tendency to keep ice in late summer, 0 to 1.
        moraine: height of the dam around it, m.
        floor: material of a flat.
        tilt: slope of a flat towards south and east, m per m.
        wall: (h, w) bool, where a reservoir's dam can stand.
    """

    lake_id: str
    kind: str
    row: int
    col: int
    row0: int
    col0: int
    area_at: np.ndarray
    level: float
    area_ha: float
    growth: float
    appears: float
    drains: float
    drained_to: float
    flour: float = 3.0
    dissolved: float = 0.1
    algae: float = 1.0
    brown: float = 1.0
    deepest: float = 15.0
    frozen: float = 0.0
    moraine: float = 0.0
    floor: int = 0
    tilt: tuple[float, float] = (0.0, 0.0)
    wall: np.ndarray | None = None

    @property
    def glacial(self) -> bool:
        """Whether it is a glacial lake."""
        return self.kind in GLACIAL

    @cached_property
    def dam(self) -> np.ndarray:
        """(h, w) bool on the patch: the dam of a reservoir, a strip of two pixels along its straight side."""
        if self.wall is None:
            return np.zeros(self.area_at.shape, bool)
        return self.wall & ndimage.binary_dilation(self.area_at <= self.area_ha, iterations=3)

    def ice_share(self, year: int) -> float:
        """Share of its area under ice in late summer of a year."""
        cold = 0.38 + 0.62 * Draw("frozen", self.lake_id, year).uniform()
        return float(np.clip(0.9 * (self.frozen - cold) / 0.25, 0.0, 0.9))

    def area(self, date: float) -> float:
        """Lake area in ha at a date (decimal year), 0 when it is not there."""
        if date < self.appears or self.kind == "flat":
            return 0.0
        wobble = 0.02 * np.sin(2.4 * date + self.col)  # years differ by a little, for all alike
        area = self.area_ha * np.exp(self.growth * (min(date, self.drains) - 2020.0) + wobble)
        if np.isfinite(self.appears):
            area *= min(1.0, 0.4 + 0.25 * (date - self.appears))
        if date >= self.drains:
            area *= self.drained_to
        return float(area)

    def mask(self, date: float) -> np.ndarray:
        """(h, w) bool on the patch: water at a date."""
        return self.area_at <= self.area(date)

    @cached_property
    def ground(self) -> tuple[np.ndarray, np.ndarray]:
        """How the lake shapes the ground: weight 0..1 and target elevation (m), each (h, w) float32 on the patch.

        Flat inside the outline that the elevation model saw, a bank that rises from it on some sides and is a plain on
        others, and the dam around.
        """
        water = self.area_at <= self.area_ha if self.kind == "flat" else self.mask(DEM_DATE)
        if not water.any():
            return np.zeros(self.area_at.shape, np.float32), np.zeros(self.area_at.shape, np.float32)
        away = ndimage.distance_transform_edt(~water).astype(np.float32) * np.float32(PIXEL_SIZE_M)
        reach = float(np.clip(16.0 * np.sqrt(self.area_ha * 1e4) ** 0.5, 120.0, 330.0))
        t = np.clip(1 - away / reach, 0, 1)
        weight = t * t * (3 - 2 * t)
        crest = 40.0 + 0.08 * reach
        h, w = water.shape
        rows, cols = np.arange(self.row0, self.row0 + h), np.arange(self.col0, self.col0 + w)
        # Inflows build plains: the bank rises on part of the shore only.
        rise = gradient_noise(rows, cols, max(0.35 * h, 12.0), key("bank", self.lake_id))
        bank = np.clip(0.14 * rise, 0.0, 0.3) * away + self.moraine * np.exp(
            -(((away - crest) / (0.6 * crest)) ** 2)
        ).astype(np.float32)
        south, east = self.tilt
        target = (
            np.where(water, 0, bank) + self.level + (south * (rows - self.row)[:, None] + east * (cols - self.col)) * 10
        )
        return weight, target.astype(np.float32)


def _candidates(kind: str, r: Relief, z_low: np.ndarray, steep: np.ndarray, ice_near: np.ndarray) -> np.ndarray:
    """(h, w) bool: posts where a lake of a kind can lie."""
    below_ela = r.ela - r.z
    hollow = z_low > r.z
    if kind == "proglacial":
        return (r.glacier < 0.0) & (ice_near < 12) & (steep < 17) & hollow
    if kind == "moraine":
        return (r.glacier < -0.3) & (ice_near > 8) & (ice_near < 40) & (steep < 15) & hollow
    if kind == "cirque":
        return (r.glacier < -0.2) & (below_ela < 750) & (steep < 18) & (np.abs(r.axis) > 350) & hollow
    if kind == "supraglacial":
        return (r.glacier > 0.15) & (below_ela > 20) & (steep < 12)
    if kind == "reservoir":
        return (r.glacier < -0.5) & (ice_near > 35) & (np.abs(r.axis) < 150) & (steep < 12)
    return (r.glacier < -0.5) & (ice_near > 20) & (steep < 9) & hollow  # pond


def _flooding(kind: str, z: np.ndarray, rows: np.ndarray, cols: np.ndarray, area: float, k: int) -> np.ndarray:
    """Area in ha at which each pixel of a patch is flooded; the deepest point is the patch's middle."""
    radius = np.sqrt(area * 1e4 / np.pi) / PIXEL_SIZE_M  # pixels
    middle = len(rows) // 2
    dy = (rows - rows[middle]).astype(np.float32)[:, None]
    dx = (cols - cols[middle]).astype(np.float32)[None, :]
    rise = (z - z[middle, middle]) / np.float32(0.10 * (radius * PIXEL_SIZE_M + 60))
    cost = np.hypot(dy, dx) / np.float32(radius) + np.maximum(rise, 0) + 0.7 * np.maximum(-rise, 0)
    cost += 0.22 * gradient_noise(rows, cols, max(1.1 * radius, 4.0), k)
    cost += 0.07 * gradient_noise(rows, cols, max(0.3 * radius, 2.5), k + 1)
    if kind == "reservoir":
        cost += 8.0 * (_downstream(z, rows, cols, middle) > 0.45 * radius)
    pixel_ha = PIXEL_SIZE_M**2 / 1e4
    reach = 1.0 if kind == "flat" else _REACH
    order = flood_order(cost.astype(np.float32), middle, middle, int(reach * area / pixel_ha) + 9)
    return np.where(order > 0, order * np.float32(pixel_ha), np.float32(np.inf)).astype(np.float32)


def _downstream(z: np.ndarray, rows: np.ndarray, cols: np.ndarray, middle: int) -> np.ndarray:
    """Distance in pixels down the valley from a patch's middle: a dam is a straight line across it."""
    fall_row, fall_col = (-float(np.mean(d)) for d in np.gradient(z))
    norm = max(float(np.hypot(fall_row, fall_col)), 1e-6)
    return ((rows - rows[middle])[:, None] * fall_row + (cols - cols[middle])[None, :] * fall_col) / norm


def _history(kind: str, draw: Draw) -> dict[str, float]:
    """Growth, birth and death of a lake."""
    growth = {
        "proglacial": draw.normal(0.028, 0.022),
        "moraine": draw.normal(0.006, 0.010),
        "cirque": draw.normal(0.002, 0.006),
        "supraglacial": draw.normal(0.010, 0.050),
        "reservoir": draw.normal(0.0, 0.015),
        "pond": draw.normal(0.0, 0.010),
        "flat": 0.0,
    }[kind]
    appears, drains = -np.inf, np.inf
    fate = draw.uniform()
    young = {"supraglacial": 0.45, "proglacial": 0.13, "moraine": 0.04}.get(kind, 0.0)
    gone = {"supraglacial": 0.10, "moraine": 0.02, "proglacial": 0.02}.get(kind, 0.0)
    date = draw.uniform(0, 1)
    if fate < young:
        appears = DEM_DATE + date * 8.7
    elif fate < young + gone:
        drains = 2017.8 + date * 4.4
    return {
        "growth": float(np.clip(growth, -0.08, 0.12)),
        "appears": appears,
        "drains": drains,
        "drained_to": draw.uniform(0.1, 0.35),
    }


def _wanted(draw: Draw, density: np.ndarray) -> list[tuple[str, float]]:
    """Kind and area in ha of each body that is drawn for a cell; not all of them find room.

    Args:
        draw: of the cell.
        density: of lakes at the cell's posts, see :class:`cryosentinel.simulate.terrain.Climate`.
    """
    lakes_here = _LAKES_A_CELL * float(density.mean())
    wanted: list[tuple[str, float]] = []
    for _ in range(draw.poisson(lakes_here)):
        kind = draw.choice({name: size[0] for name, size in _SIZES.items()})
        wanted.append((kind, float(np.exp(draw.normal(*_SIZES[kind][1:])))))
    for kind, mean_number, mean, deviation in (
        ("reservoir", _RESERVOIRS_A_LAKE * lakes_here, 2.3, 0.8),
        ("pond", _PONDS_A_LAKE * lakes_here, 0.9, 0.9),
        ("flat", _FLATS_A_CELL, 2.3, 1.1),
    ):
        for _ in range(draw.poisson(mean_number)):
            wanted.append((kind, float(np.exp(draw.normal(mean, deviation)))))
    return wanted


def _posts(cell: int) -> np.ndarray:
    """The posts of a row or column of cells, padded."""
    return np.arange(cell * CELL_POSTS - _PAD, (cell + 1) * CELL_POSTS + _PAD)


def may_hold(kinds: Collection[str], seed: int, epsg: int, cell_row: int, cell_col: int) -> bool:
    """Whether a body of these kinds is drawn for a cell, told without making its ground."""
    rows, cols = (_posts(cell) * POST_PX + 1.0 for cell in (cell_row, cell_col))
    wanted = _wanted(Draw(seed, epsg, "cell", cell_row, cell_col), climate(epsg, rows, cols).lakes)
    return any(kind in kinds for kind, _ in wanted)


@lru_cache(maxsize=48)
def cell_lakes(seed: int, epsg: int, cell_row: int, cell_col: int) -> tuple[Lake, ...]:
    """All lakes, ponds and reservoirs of a cell (cell indices: absolute pixel // 540)."""
    from pyproj import Transformer

    post_rows, post_cols = _posts(cell_row), _posts(cell_col)
    r = relief(seed, epsg, post_rows, post_cols)
    draw = Draw(seed, epsg, "cell", cell_row, cell_col)
    steep = slope(ndimage.gaussian_filter(r.z, 1.0, truncate=3), POST_M)
    z_low = ndimage.gaussian_filter(r.z, 6.0, truncate=3)
    # Distance to glacier ice in posts; ice beyond the padded cell does not count.
    ice = r.glacier > 0
    ice_near = ndimage.distance_transform_edt(~ice) if ice.any() else np.full(ice.shape, 999.0)
    # Shores are smoother than gullies: sediment fills the small ones.
    bowl = ndimage.gaussian_filter(r.z, 2.5, truncate=3)
    luck = uniform(post_rows, post_cols, key(seed, epsg, "luck"))
    suits = 0.5 * luck - steep / 20 + 0.35 * np.tanh((z_low - r.z) / 25)

    wanted = _wanted(draw, r.lakes)
    to_lonlat = Transformer.from_crs(epsg, 4326, always_xy=True)
    # The same rock feeds the waters of a place.
    at_px = np.array([post_rows[len(post_rows) // 2] * POST_PX]), np.array([post_cols[len(post_cols) // 2] * POST_PX])
    place = tuple(float(gradient_noise(*at_px, 1700, key(seed, epsg, "waters", n))[0, 0]) for n in range(4))
    lakes: list[Lake] = []
    taken: np.ndarray = np.zeros(r.z.shape, bool)
    inside = np.zeros(r.z.shape, bool)
    # Large ones first: they find the room they need.
    for number, (kind, area) in enumerate(sorted(wanted, key=lambda pair: -pair[1])):
        area = float(np.clip(area, 0.3, _MAX_AREA_HA))
        radius = np.sqrt(area * 1e4 / np.pi) / PIXEL_SIZE_M
        half = int(2.3 * radius + 22)
        margin = half // POST_PX + 2
        inside[:] = False
        inside[_PAD + margin : -_PAD - margin, _PAD + margin : -_PAD - margin] = True
        # What fills with sediment lay where lakes lie, or is a plain along the valley.
        where = draw.choice({"proglacial": 3, "moraine": 3, "cirque": 2, "pond": 2}) if kind == "flat" else kind
        room = inside & ~taken & _candidates(where, r, z_low, steep, ice_near)
        if not room.any():
            continue
        at = int(np.argmax(np.where(room, suits, -np.inf)))
        i, j = divmod(at, r.z.shape[1])
        row, col = int(post_rows[i]) * POST_PX + 1, int(post_cols[j]) * POST_PX + 1
        reach = (1.5 * radius + 8) / POST_PX
        down, right = np.arange(taken.shape[0]) - i, np.arange(taken.shape[1]) - j
        taken |= np.add.outer(down**2, right**2) < (reach + 4) ** 2
        rows, cols = np.arange(row - half, row + half + 1), np.arange(col - half, col + half + 1)
        z = upsample(bowl, int(post_rows[0]), int(post_cols[0]), rows, cols)
        k = key(seed, epsg, "lake", cell_row, cell_col, number)
        area_at = _flooding(kind, z, rows, cols, area, k)
        one = Draw(seed, epsg, "lake", cell_row, cell_col, number)
        lon, lat = to_lonlat.transform((col + 0.5) * PIXEL_SIZE_M, -(row + 0.5) * PIXEL_SIZE_M)
        lakes.append(
            Lake(
                lake_id=f"GL{round(lon * 1000):06d}E{round(lat * 1000):05d}N",
                kind=kind,
                row=row,
                col=col,
                row0=int(rows[0]),
                col0=int(cols[0]),
                area_at=area_at,
                level=float(np.percentile(z[area_at <= area], 35)),
                area_ha=area,
                **_optics(place, one),
                frozen=float(np.clip((z[half, half] - r.ela[i, j] + 800) / 900, 0, 1)),
                moraine=one.uniform(4, 18) if where in ("moraine", "proglacial") else one.uniform(0, 3),
                floor=int(_FLOORS[one.choice({"0": 5, "1": 2, "2": 2, "3": 1})]) if kind == "flat" else 0,
                tilt=(0.006 * one.normal(), 0.006 * one.normal()) if kind == "flat" else (0.0, 0.0),
                wall=_wall(z, rows, cols, radius) if kind == "reservoir" else None,
                **_history(kind, one),
            )
        )
    return tuple(lakes)


def _wall(z: np.ndarray, rows: np.ndarray, cols: np.ndarray, radius: float) -> np.ndarray:
    down = _downstream(z, rows, cols, len(rows) // 2) - 0.45 * radius
    return (down > 0) & (down <= 2)


def _optics(place: Sequence[float], draw: Draw) -> dict[str, float]:
    """What a body's water holds, whatever its kind: from clear to milky, around what is usual at the place."""
    flour, dissolved, algae, brown = place
    return {
        "flour": float(np.exp(np.clip(3.0 + 0.8 * flour + 1.4 * draw.normal(), -1.0, 6.2))),
        "dissolved": float(np.exp(-2.6 + 0.6 * dissolved + 0.6 * draw.normal())),
        "algae": float(np.exp(0.2 + 0.5 * algae + 0.7 * draw.normal())),
        "brown": float(np.exp(0.45 * brown + 0.25 * draw.normal())),
        "deepest": float(np.exp(2.3 + 0.7 * draw.normal())),
    }


def lakes_in(seed: int, epsg: int, row: int, col: int, height: int, width: int) -> list[Lake]:
    """Lakes whose patch meets a window (absolute pixels), in an order that does not depend on the window."""
    found = []
    for i in range(row // CELL_PX, (row + height - 1) // CELL_PX + 1):
        for j in range(col // CELL_PX, (col + width - 1) // CELL_PX + 1):
            for lake in cell_lakes(seed, epsg, i, j):
                h, w = lake.area_at.shape
                if lake.row0 < row + height and row < lake.row0 + h and lake.col0 < col + width and col < lake.col0 + w:
                    found.append(lake)
    return found


def overlap(lake: Lake, row: int, col: int, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a lake's patch meets a window: slices into the window and into the patch."""
    h, w = lake.area_at.shape
    top, bottom = max(row, lake.row0), min(row + height, lake.row0 + h)
    left, right = max(col, lake.col0), min(col + width, lake.col0 + w)
    return (
        (slice(top - row, bottom - row), slice(left - col, right - col)),
        (slice(top - lake.row0, bottom - lake.row0), slice(left - lake.col0, right - lake.col0)),
    )
