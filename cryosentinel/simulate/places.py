"""Where chips are cut: blocks by quota for each split, blind to what lies there but for the lake that is sought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cryosentinel.data.split import block_bucket
from cryosentinel.errors import ConfigError
from cryosentinel.geo import utm_epsg
from cryosentinel.sensors import CHIP_SIZE, CHIP_STRIDE, HECTARE_M2, PIXEL_HA, PIXEL_SIZE_M, REGIONS
from cryosentinel.simulate.cover import IMAGE_DATE
from cryosentinel.simulate.ground import Window
from cryosentinel.simulate.noise import Draw, key
from cryosentinel.simulate.presets import SPLITS, SimulationConfig
from cryosentinel.simulate.water import CELL_PX, GLACIAL, OTHER, cell_lakes, may_hold

_Wanted = list[tuple[str, str, tuple[int, ...]]]  # (split, kind, years) of each place


@dataclass(frozen=True)
class Place:
    """Chips to cut.

    Attributes:
        region, epsg: name and UTM zone.
        kind: "lake", "background", or "buffer" (near a block edge, on a lake).
        chips: upper left corner (row, column) of each chip in absolute pixels, multiples of 112.
        years: in which they are seen.
    """

    region: str
    epsg: int
    kind: str
    chips: tuple[tuple[int, int], ...]
    years: tuple[int, ...]

    @property
    def window(self) -> Window:
        """The smallest window that holds all chips."""
        rows, cols = zip(*self.chips, strict=True)
        return Window(min(rows), min(cols), max(rows) - min(rows) + CHIP_SIZE, max(cols) - min(cols) + CHIP_SIZE)


def chip_centre(epsg: int, row: int, col: int) -> tuple[float, float]:
    """Latitude and longitude of a chip's centre from its upper left pixel."""
    from pyproj import Transformer

    half = CHIP_SIZE / 2
    easting, northing = (col + half) * PIXEL_SIZE_M, -(row + half) * PIXEL_SIZE_M
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(easting, northing)
    return float(lat), float(lon)


def standing_water(seed: int, places: Sequence[Place], year: int = 2022) -> pd.DataFrame:
    """The standing water of the cells under some places, each body once, whether a chip shows it or not.

    Returns:
        Columns lake_id, region, kind, glacial, area_ha (at the images' date, as flooded), area_2017_ha, elevation,
        compactness (4 pi area / perimeter squared of the pixel outline, smoothed by the measure of scikit-image).
    """
    from skimage.measure import perimeter_crofton

    rows = {}
    for place in places:
        window = place.window
        for i in range(window.row // CELL_PX, (window.row + window.height - 1) // CELL_PX + 1):
            for j in range(window.col // CELL_PX, (window.col + window.width - 1) // CELL_PX + 1):
                for lake in cell_lakes(seed, place.epsg, i, j):
                    if lake.kind == "flat" or lake.lake_id in rows:
                        continue
                    mask, before = lake.mask(year + IMAGE_DATE), lake.mask(2017 + IMAGE_DATE)
                    area = mask.sum() * PIXEL_SIZE_M**2
                    around = perimeter_crofton(np.pad(mask, 1), 4) * PIXEL_SIZE_M if area else np.nan
                    compact = 4 * np.pi * area / around**2 if area else np.nan
                    rows[lake.lake_id] = (
                        lake.lake_id, place.region, lake.kind, lake.glacial, area / HECTARE_M2,
                        before.sum() * PIXEL_HA, lake.level, compact,
                    )  # fmt: skip
    columns = ["lake_id", "region", "kind", "glacial", "area_ha", "area_2017_ha", "elevation", "compactness"]
    return pd.DataFrame(list(rows.values()), columns=columns)


def _contains(region: str, lat: float, lon: float) -> bool:
    west, south, east, north = REGIONS[region]
    return west <= lon <= east and south <= lat <= north


def _owner(lat: float, lon: float) -> str | None:
    """The smallest region whose box holds a point: boxes overlap, and no place is to appear twice."""

    def area(region: str) -> float:
        west, south, east, north = REGIONS[region]
        return (east - west) * (north - south)

    return min((region for region in REGIONS if _contains(region, lat, lon)), key=area, default=None)


def _blocks(config: SimulationConfig, region: str) -> Iterator[tuple[int, int, str]]:
    """Blocks of a region with their split, in an order of chance that depends on the seed."""
    west, south, east, north = REGIONS[region]
    size = config.block_size
    lat = np.arange(int(np.floor(south / size)), int(np.ceil(north / size)))
    lon = np.arange(int(np.floor(west / size)), int(np.ceil(east / size)))
    grid = np.stack(np.meshgrid(lat, lon, indexing="ij"), axis=-1).reshape(-1, 2)
    order = np.random.Generator(np.random.Philox(key=key(config.seed, "blocks", region))).permutation(len(grid))
    for i, j in grid[order].tolist():
        if _owner((i + 0.5) * size, (j + 0.5) * size) == region:
            bucket = block_bucket(i, j)
            yield i, j, "train" if bucket < 80 else "val" if bucket < 90 else "test"


def _layout(windows: int, draw: Draw) -> tuple[tuple[int, int], ...]:
    """Offsets of a place's chips in strides."""
    if windows == 2:
        return ((0, 0), (0, 1)) if draw.uniform() < 0.5 else ((0, 0), (1, 0))
    return ((0, 0), (0, 1), (1, 0), (1, 1))[:windows]


def _edge_distance(value: float, size: float) -> float:
    part = value / size - np.floor(value / size)
    return float(min(part, 1 - part) * size)


def _place(
    config: SimulationConfig, region: str, block: tuple[int, int], kind: str, years: tuple[int, ...]
) -> Place | None:
    """A place in a block, or None when it holds no lake where it was drawn, or the place would leave its block."""
    from pyproj import Transformer

    size, buffer = config.block_size, config.buffer_size
    draw = Draw(config.seed, "place", region, kind, *block)
    # Two kilometres more than the buffer, because a place is moved to its lake after it is drawn.
    inset = 0.0 if kind == "buffer" else min(buffer + 0.012, size / 2)
    lat = (block[0] * size) + draw.uniform(inset, size - inset)
    lon = (block[1] * size) + draw.uniform(inset, size - inset)
    epsg = utm_epsg(lat, lon)
    easting, northing = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    row, col = int(-northing // PIXEL_SIZE_M), int(easting // PIXEL_SIZE_M)
    if kind != "background":
        kinds = GLACIAL if config.around == "lakes" else OTHER
        cell = config.seed, epsg, row // CELL_PX, col // CELL_PX
        bodies = [body for body in cell_lakes(*cell) if body.kind in kinds] if may_hold(kinds, *cell) else []
        if not bodies:
            return None
        lake = bodies[int(draw.uniform(0, len(bodies)))]
        row, col = lake.row, lake.col
    # The lake lies anywhere in the middle half of the first chip, on the grid of the published chips.
    reach = CHIP_SIZE // 4
    row, col = (
        round((v - CHIP_SIZE / 2 + draw.uniform(-reach, reach)) / CHIP_STRIDE) * CHIP_STRIDE for v in (row, col)
    )
    chips = tuple((row + i * CHIP_STRIDE, col + j * CHIP_STRIDE) for i, j in _layout(config.windows, draw))
    near = []
    for r, c in chips:
        at = chip_centre(epsg, r, c)
        same = (int(np.floor(at[0] / size)), int(np.floor(at[1] / size))) == block
        if utm_epsg(*at) != epsg or not _contains(region, *at) or not same:
            return None
        near.append(min(_edge_distance(v, size) for v in at) < buffer)
    if all(near) if kind != "buffer" else not any(near):
        return None
    if kind != "buffer" and any(near):
        return None
    return Place(region, epsg, kind, chips, years)


def _draw_region(
    config: SimulationConfig, region: str, waiting: _Wanted, skip: int = 0
) -> tuple[list[Place], _Wanted, int]:
    """Places of one region until nothing is waited for or its blocks are used up.

    Args:
        waiting: (split, kind, years) of each place wanted.
        skip: blocks to pass over, which were looked at before.

    Returns:
        The places, what was not found, and the number of blocks looked at.
    """
    places: list[Place] = []
    waiting, looked = list(waiting), 0
    for looked, (i, j, split) in enumerate(_blocks(config, region), start=1):
        if not waiting:
            return places, [], looked - 1
        if looked <= skip:
            continue
        at = next((n for n, item in enumerate(waiting) if item[0] == split or item[1] == "buffer"), None)
        if at is not None:
            place = _place(config, region, (i, j), waiting[at][1], waiting[at][2])
            if place is not None:
                places.append(place)
                waiting.pop(at)
    return places, waiting, looked


def draw_places(config: SimulationConfig, pool: Executor | None = None) -> list[Place]:
    """All places of a dataset, in a fixed order.

    Args:
        config: what to draw.
        pool: draws the regions in parallel; the result is the same without.

    Raises:
        ConfigError: the regions hold too few blocks for the quotas.
    """
    # Regions in turn, so that each gets its share of each split.
    wanted: dict[str, _Wanted] = {region: [] for region in config.regions}
    turn, rotation = 0, Counter[str]()

    def ask(split: str, kind: str) -> None:
        nonlocal turn
        region = config.regions[turn % len(config.regions)]
        turn += 1
        first, count = rotation[region], config.years_per_place[split]
        rotation[region] += count
        years = tuple(sorted(config.years[(first + i) % len(config.years)] for i in range(count)))
        wanted[region].append((split, kind, years))

    for split in SPLITS:
        for _ in range(config.places[split]):
            ask(split, "lake")
    lakes = sum(config.places.values())
    shares = {split: config.places[split] / lakes for split in SPLITS}
    background = round(lakes * config.background / (1 - config.background))
    extra = [split for split in SPLITS for _ in range(round(background * shares[split]))]
    for split in extra:
        ask(split, "background")
    for _ in range(round((lakes + len(extra)) * config.buffer / (1 - config.buffer))):
        ask("train", "buffer")

    regions = config.regions
    run = pool.map if pool else map
    found = list(run(_draw_region, [config] * len(regions), regions, [wanted[region] for region in regions]))
    places = [place for part, _, _ in found for place in part]
    # A small region may run out of blocks of a split; what it cannot hold goes to the others.
    left = [item for _, rest, _ in found for item in rest]
    for region, (_, _, looked) in zip(regions, found, strict=True):
        if left:
            more, left, _ = _draw_region(config, region, left, looked)
            places += more
    if left:
        short = Counter(f"{kind} in {split}" for split, kind, _ in left)
        raise ConfigError(
            f"The regions {', '.join(regions)} hold too few blocks for places around {config.around}: "
            f"{', '.join(f'{n} {what}' for what, n in short.items())} not placed; lower places or add regions."
        )
    order = {region: n for n, region in enumerate(config.regions)}
    return sorted(places, key=lambda place: order[place.region])
