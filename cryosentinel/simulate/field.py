"""A window of the world in a year: everything the sensors see there, the label, and what is true."""

from __future__ import annotations

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.sensors import PIXEL_SIZE_M
from cryosentinel.simulate.acquisition import acquisition, granules
from cryosentinel.simulate.cover import make_cover
from cryosentinel.simulate.ground import Ground, Window, elevation_model, make_ground
from cryosentinel.simulate.labels import make_labels
from cryosentinel.simulate.noise import key
from cryosentinel.simulate.optics import make_optics
from cryosentinel.simulate.radar import make_radar

_GAP_PERIOD_PX = {"s2": 9_000, "s1": 11_000}  # swath edges lie this far apart
_GAP_PX = 26


def swath_gap(seed: int, epsg: int, window: Window, year: int, sensor: str) -> np.ndarray:
    """(H, W) bool: pixels between two swaths, where the sensor has no data. Strips, slanted as orbits are."""
    period = _GAP_PERIOD_PX[sensor]
    slant = 4 if sensor == "s2" else -5
    # In integers, so that every window agrees.
    position = window.cols[None, :] * slant + window.rows[:, None] + key(seed, epsg, "swath", sensor, year) % 100_000
    return position % (period * abs(slant)) < _GAP_PX * abs(slant)


def render_year(ground: Ground, window: Window, year: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All layers of a window whose ground is made (see :func:`render_scene`), and its bodies of standing water.

    Returns:
        The layers, and (H, W) uint16: 0, or 1 + the number in ``ground.lakes`` of the body that a pixel shows.
    """
    shape = (window.height, window.width)
    layers: dict[str, np.ndarray] = {
        "s2": np.empty((12, *shape), np.uint16),
        "s1": np.empty((2, *shape), np.float32),
        "dem": elevation_model(ground)[window.within(ground.outer)][None].copy(),
        "mask": make_labels(ground.seed, ground.epsg, window, year)[0],
        **{name: np.empty(shape, np.uint8) for name in ("truth", "material", "cloud", "terrain_shadow")},
    }
    body = np.empty(shape, np.uint16)
    for row, col, part in granules(window):  # hardly ever more than one
        scene = acquisition(ground.seed, ground.epsg, row, col, year)
        cover = make_cover(ground, year, scene)
        optics = make_optics(ground, cover, year, scene)
        s1 = make_radar(ground, cover, year, scene)
        here, there = part.within(window), part.within(ground.outer)
        for name, layer in (
            ("s2", optics.s2), ("s1", s1), ("truth", cover.lake), ("material", cover.material),
            ("cloud", optics.cloud), ("terrain_shadow", optics.shadow),
        ):  # fmt: skip
            layers[name][(..., *here)] = layer[(..., *there)]
        body[here] = cover.body[there]
    layers["s2"][:, swath_gap(ground.seed, ground.epsg, window, year, "s2")] = 0
    layers["s1"][:, swath_gap(ground.seed, ground.epsg, window, year, "s1")] = np.nan
    return layers, body


def pixel_window(left: float, top: float, width: int, height: int) -> Window:
    """The window of absolute pixels whose upper left corner is (left, top) in metres.

    Raises:
        InputError: the corner is not on the 10 m grid, or the window is empty.
    """
    if width < 1 or height < 1:
        raise InputError(f"A window of {width} x {height} pixels is empty; give at least 1 x 1.")
    col, row = left / PIXEL_SIZE_M, -top / PIXEL_SIZE_M
    if abs(col - round(col)) > 1e-3 or abs(row - round(row)) > 1e-3:
        raise InputError(f"The corner ({left}, {top}) is not on the 10 m grid; round it to multiples of 10 m.")
    return Window(round(row), round(col), height, width)


def render_scene(
    epsg: int, left: float, top: float, width: int, height: int, year: int, seed: int
) -> dict[str, np.ndarray]:
    """Any window of the simulated world.

    Args:
        epsg: UTM zone (326xx).
        left, top: upper left corner, m, on the 10 m grid.
        width, height: pixels. Memory grows with the area (about 300 bytes a pixel): cut large scenes into windows,
            which agree with each other pixel for pixel.
        year: of the images; labels come from the inventory that :func:`cryosentinel.sensors.inventory_year` gives.
        seed: of the world.

    Returns:
        ``s2`` (12, H, W) uint16, ``s1`` (2, H, W) float32 dB, ``dem`` (1, H, W) int16, ``mask`` (H, W) uint8 label;
        and what is true: ``truth`` (glacial lake at the image's date), ``material`` (:class:`Material`), ``cloud``
        (0 clear, 1 cloud, 2 cloud shadow), ``terrain_shadow``, each (H, W) uint8.

    Raises:
        InputError: the corner is off the grid, the window is empty, or ``epsg`` is no northern UTM zone.
    """
    if not 32601 <= epsg <= 32660:
        raise InputError(f"EPSG:{epsg} is not a northern UTM zone; give 32601 to 32660.")
    window = pixel_window(left, top, width, height)
    return render_year(make_ground(seed, epsg, window), window, year)[0]
