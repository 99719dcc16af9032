"""The grid of chips: multiples of 112 pixels in the UTM zone of the chip's centre, and the chips read at once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from cryosentinel import geo
from cryosentinel.errors import ConfigError
from cryosentinel.ingest.settings import Settings
from cryosentinel.sensors import CHIP_SIZE, CHIP_STRIDE, PIXEL_SIZE_M, REGIONS

STEP_M = CHIP_STRIDE * PIXEL_SIZE_M
SIDE = CHIP_SIZE // CHIP_STRIDE  # strides a chip spans
BACKGROUND_REACH = 4  # strides from a lake chip within which empty ones are drawn

MAX_WASTE = 3.0  # area of a group's box to the area of its chips

Box = tuple[float, float, float, float]


@dataclass(frozen=True, order=True)
class Cell:
    """A chip's place: UTM zone, and its upper left corner in strides (rows count southwards from northing 0)."""

    epsg: int
    i: int
    j: int

    @property
    def left(self) -> float:
        """The western edge, metres."""
        return self.j * STEP_M

    @property
    def top(self) -> float:
        """The northern edge, metres."""
        return -self.i * STEP_M

    @property
    def box(self) -> Box:
        """West, south, east, north in metres."""
        return self.left, self.top - SIDE * STEP_M, self.left + SIDE * STEP_M, self.top

    def chip_id(self, region: str, year: int) -> str:
        """The identifier of this cell's chip, see :func:`cryosentinel.geo.chip_id`."""
        return geo.chip_id(region, self.epsg, self.i * CHIP_STRIDE, self.j * CHIP_STRIDE, year)


@dataclass(frozen=True)
class ChipGroup:
    """Chips that are read together, and the smallest box around them."""

    number: int
    epsg: int
    cells: tuple[Cell, ...]

    @property
    def bounds(self) -> Box:
        """West, south, east, north in metres."""
        west, south, east, north = np.array([cell.box for cell in self.cells]).T
        return float(west.min()), float(south.min()), float(east.max()), float(north.max())

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        west, south, east, north = self.bounds
        return round((north - south) / PIXEL_SIZE_M), round((east - west) / PIXEL_SIZE_M)

    def slices(self, cell: Cell) -> tuple[slice, slice]:
        """A chip's pixels in the group's box."""
        west, _, _, north = self.bounds
        row, col = round((north - cell.top) / PIXEL_SIZE_M), round((cell.left - west) / PIXEL_SIZE_M)
        return slice(row, row + CHIP_SIZE), slice(col, col + CHIP_SIZE)

    def needed(self) -> np.ndarray:
        """(H, W) bool: pixels that belong to a chip."""
        needed = np.zeros(self.shape, bool)
        for cell in self.cells:
            needed[self.slices(cell)] = True
        return needed

    def degrees(self) -> Box:
        """West, south, east, north in degrees, the box of the projected outline."""
        from pyproj import Transformer

        return Transformer.from_crs(self.epsg, 4326, always_xy=True).transform_bounds(*self.bounds)


def parse_box(text: str) -> Box:
    """A box from "west,south,east,north" in degrees, as a command line takes it.

    Raises:
        ConfigError: the text is not four numbers.
    """
    try:
        west, south, east, north = (float(part) for part in text.strip("[]() ").split(","))
    except ValueError:
        raise ConfigError(f"The box {text!r} must be four numbers: west,south,east,north in degrees.") from None
    return west, south, east, north


def region_box(region: str, bbox: Box | None) -> Box:
    """The box to ingest: the one given, or the region's own.

    Raises:
        ConfigError: the region is unknown and no box is given; or the box is not one, is empty, off the globe or across
            the antimeridian.
    """
    if not region or any(not (c.isalnum() or c in "_-") for c in region):
        raise ConfigError(f"The region's name {region!r} names a folder; use letters, digits, - and _.")
    if bbox is None:
        if region not in REGIONS:
            raise ConfigError(f"There is no region {region!r}; give a box as well, or one of {', '.join(REGIONS)}.")
        return REGIONS[region]
    if len(bbox) != 4 or not all(np.isfinite(bbox)):
        raise ConfigError(f"The box {bbox} must be four numbers: west, south, east, north in degrees.")
    west, south, east, north = (float(v) for v in bbox)
    if west > east and east >= -180 and west <= 180:
        raise ConfigError(
            f"The box {west:g},{south:g},{east:g},{north:g} crosses the antimeridian; ingest {west:g} to 180 and -180 "
            f"to {east:g} as two regions."
        )
    if not (-180 <= west < east <= 180 and -80 <= south < north <= 84):
        raise ConfigError(
            f"The box {west:g},{south:g},{east:g},{north:g} must run from west to east and south to north, within "
            "-180..180 and -80..84 degrees (UTM ends there)."
        )
    return west, south, east, north


def zones(box: Box) -> list[int]:
    """EPSG codes of the UTM zones that a box meets."""
    west, south, east, north = box
    first, last = int((west + 180) // 6), int(min((east + 180) // 6, 59))
    hemispheres = ([32700] if south < 0 else []) + ([32600] if north >= 0 else [])
    return [base + zone + 1 for base in hemispheres for zone in range(first, last + 1)]


def centres(epsg: int, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of chips' centres, (n,) each."""
    from pyproj import Transformer

    x, y = (j + SIDE / 2) * STEP_M, -(i + SIDE / 2) * STEP_M
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
    return np.asarray(lat), np.asarray(lon)


def inside(region: str, box: Box, epsg: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Which chips belong: their centre lies in box and zone, and for the last region in no other one's box."""
    lat, lon = centres(epsg, i, j)
    west, south, east, north = box
    belongs = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    belongs &= ((lon + 180) // 6 % 60 + 1 == epsg % 100) & ((lat >= 0) == (epsg < 32700))
    names = list(REGIONS)
    if region == names[-1] and box == REGIONS[region]:
        for name in names[:-1]:
            w, s, e, n = REGIONS[name]
            belongs &= ~((lon >= w) & (lon <= e) & (lat >= s) & (lat <= n))
    return belongs


def all_cells(region: str, box: Box) -> list[Cell]:
    """Every chip of a box."""
    from pyproj import Transformer

    cells = []
    for epsg in zones(box):
        zone_west = (epsg % 100 - 1) * 6.0 - 180
        clipped = (max(box[0], zone_west), box[1], min(box[2], zone_west + 6), box[3])
        bounds = Transformer.from_crs(4326, epsg, always_xy=True).transform_bounds(*clipped)
        if bounds[0] >= bounds[2]:
            continue
        i = np.arange(np.floor(-bounds[3] / STEP_M) - 1, np.ceil(-bounds[1] / STEP_M) + 1).astype(int)
        j = np.arange(np.floor(bounds[0] / STEP_M) - 1, np.ceil(bounds[2] / STEP_M) + 1).astype(int)
        grid = np.stack(np.meshgrid(i, j, indexing="ij"), axis=-1).reshape(-1, 2)
        belong = inside(region, box, epsg, *grid.T)
        cells += [Cell(epsg, a, b) for a, b in grid[belong].tolist()]
    return cells


def tiles(box: Box) -> list[Cell]:
    """Chips side by side, corners on multiples of their side, that meet a box: in each UTM zone its part of it."""
    import shapely
    from pyproj import Transformer

    cells = []
    for epsg in zones(box):
        west = (epsg % 100 - 1) * 6.0 - 180
        south, north = (0.0, 90.0) if epsg < 32700 else (-90.0, 0.0)
        part = shapely.box(*box).intersection(shapely.box(west, south, west + 6, north))
        if part.area == 0:  # the box ends at the zone's border
            continue
        # Points along the edges, not only corners: they are curves in the projection.
        to_zone = Transformer.from_crs(4326, epsg, always_xy=True)
        outline = shapely.transform(shapely.segmentize(part, 0.05), to_zone.transform, interleaved=False)
        side = SIDE * STEP_M
        x0, y0, x1, y1 = (np.array(outline.bounds) / side).tolist()
        i, j = (np.arange(np.floor(a), np.ceil(b)).astype(int) for a, b in ((-y1, -y0), (x0, x1)))
        grid = SIDE * np.stack(np.meshgrid(i, j, indexing="ij"), axis=-1).reshape(-1, 2)
        left, top = grid[:, 1] * STEP_M, -grid[:, 0] * STEP_M
        shapely.prepare(outline)
        meets = shapely.intersects(outline, shapely.box(left, top - side, left + side, top))
        cells += [Cell(epsg, a, b) for a, b in grid[meets].tolist()]
    return cells


def _rank(cell: Cell) -> str:
    return hashlib.sha1(f"{cell.epsg}|{cell.i}|{cell.j}".encode(), usedforsecurity=False).hexdigest()


def with_background(region: str, box: Box, lakes: set[Cell], ratio: float) -> set[Cell]:
    """Lake chips and ``ratio`` times as many empty ones near them, the same in every year (drawn by hash)."""
    near: dict[int, set[tuple[int, int]]] = {}
    steps = range(-BACKGROUND_REACH, BACKGROUND_REACH + 1)
    for cell in lakes:
        near.setdefault(cell.epsg, set()).update((cell.i + a, cell.j + b) for a in steps for b in steps)
    candidates = []
    for epsg, places in near.items():
        grid = np.array(sorted(places))
        candidates += [Cell(epsg, a, b) for a, b in grid[inside(region, box, epsg, *grid.T)].tolist()]
    empty = sorted((cell for cell in candidates if cell not in lakes), key=_rank)
    return lakes | set(empty[: round(ratio * len(lakes))])


def make_groups(cells: set[Cell], settings: Settings) -> list[ChipGroup]:
    """Group chips: squares of ``settings.group`` strides, in which chips that touch stay together.

    A square's groups of chips that do not touch each other become groups of their own where too much that is not
    needed lies between, else they are read as one: requests cost more than bytes.
    """
    from scipy import ndimage

    if settings.limit is not None:
        cells = set(sorted(cells)[: settings.limit])
    side = settings.group
    corners: dict[int, tuple[int, int]] = {}  # of a zone's chips: counted from there a small region stays whole
    for cell in cells:
        i, j = corners.get(cell.epsg, (cell.i, cell.j))
        corners[cell.epsg] = min(i, cell.i), min(j, cell.j)
    squares: dict[tuple[int, int, int], list[Cell]] = {}
    for cell in sorted(cells):
        i, j = corners[cell.epsg]
        squares.setdefault((cell.epsg, (cell.i - i) // side, (cell.j - j) // side), []).append(cell)
    groups: list[tuple[Cell, ...]] = []
    for (epsg, a, b), members in sorted(squares.items()):
        covered = np.zeros((side + SIDE - 1,) * 2, bool)
        i, j = corners[epsg][0] + a * side, corners[epsg][1] + b * side
        at = [(cell.i - i, cell.j - j) for cell in members]
        for row, col in at:
            covered[row : row + SIDE, col : col + SIDE] = True
        label, count = ndimage.label(covered, np.ones((3, 3)))
        parts: list[list[Cell]] = [[] for _ in range(count)]
        for cell, place in zip(members, at, strict=True):
            parts[label[place] - 1].append(cell)
        groups += _joined([tuple(part) for part in parts])
    return [ChipGroup(number, group[0].epsg, group) for number, group in enumerate(groups)]


def _joined(parts: list[tuple[Cell, ...]]) -> list[tuple[Cell, ...]]:
    """Groups of chips joined, the thriftiest pair first, as long as boxes stay within :data:`MAX_WASTE`."""

    def waste(cells: tuple[Cell, ...]) -> float:
        joined = ChipGroup(0, cells[0].epsg, cells)
        height, width = joined.shape
        covered = {(cell.i + a, cell.j + b) for cell in cells for a in range(SIDE) for b in range(SIDE)}
        return height * width / (len(covered) * CHIP_STRIDE**2)

    while len(parts) > 1:
        pairs = [(waste(parts[a] + parts[b]), a, b) for a in range(len(parts)) for b in range(a + 1, len(parts))]
        least, a, b = min(pairs)
        if least > MAX_WASTE:
            break
        both = tuple(sorted(parts[a] + parts[b]))
        parts = [*(part for n, part in enumerate(parts) if n not in (a, b)), both]
    return sorted(parts)
