"""What covers the ground in a year: rock, plants, snow, ice and the water of the date."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryosentinel.simulate.acquisition import Acquisition
from cryosentinel.simulate.ground import Ground
from cryosentinel.simulate.materials import Material
from cryosentinel.simulate.noise import fractal, gradient_noise, key
from cryosentinel.simulate.water import overlap

IMAGE_DATE = 0.67  # late August, the composites' middle, as part of the year


@dataclass
class Cover:
    """Materials of a window in a year, on the ground's outer window.

    Attributes:
        material: (H, W) uint8, codes of :class:`Material`.
        lake: (H, W) uint8, 1 = glacial lake at the image's date (frozen ones too).
        body: (H, W) uint16, 0 or 1 + the number in ``Ground.lakes`` of the standing water (frozen too) of a pixel.
        depth: (H, W) float32, m, of open standing water, 0 elsewhere.
        water: (H, W) bool, open water of any kind.
    """

    material: np.ndarray
    lake: np.ndarray
    body: np.ndarray
    depth: np.ndarray
    water: np.ndarray


def make_cover(ground: Ground, year: int, scene: Acquisition) -> Cover:
    """Materials of a window on the image's date of ``year``."""
    g, rows, cols = ground, ground.outer.rows, ground.outer.cols

    def k(*words: object) -> int:
        return key(g.seed, g.epsg, "cover", *words)

    patches = fractal(rows, cols, 45, k("patches"), octaves=3)
    fine = gradient_noise(rows, cols, 6, k("fine"))
    broad = gradient_noise(rows, cols, 420, k("broad"))
    above = g.z - g.ela
    ragged = g.steep + 3.5 * patches + 1.5 * fine

    bright = broad + 0.5 * patches > -0.15
    m = np.where(bright, Material.BRIGHT_ROCK, Material.DARK_ROCK).astype(np.uint8)
    m[ragged < 41] = Material.SCREE
    ground_cover = ragged < 30
    m[ground_cover] = Material.SOIL
    plants = 2.6 * (g.green - 0.28) - (above + 850) / 500 + 0.55 * patches + 0.2 * fine - 0.35 * broad
    m[(plants > 0) & (ragged < 36)] = Material.MEADOW
    m[(plants > 1.3) & (ragged < 40)] = Material.SHRUB
    # Young till in the forefield and along the tongues.
    m[(g.glacier > -0.75 + 0.15 * patches) & (ragged < 33)] = Material.TILL
    # Valley floors: gravel and a river that winds in it; wet ground beside.
    bed = np.abs(g.axis + 35 * patches)
    m[(bed < 55 + 30 * broad) & (g.steep < 14)] = Material.GRAVEL
    m[(bed > 60) & (bed < 110) & (g.steep < 6) & (plants > -0.4)] = Material.WET_GROUND
    thread = np.abs(g.axis + 38 * gradient_noise(rows, cols, 28, k("meander")) + 6 * fine)
    river = (thread < 8 + 5 * broad) & (g.steep < 16) & (g.glacier < -0.2)
    m[river] = Material.RIVER

    snow = above - scene.snow_line + 130 * patches + 40 * fine - 9 * np.maximum(g.steep - 34, 0)
    m[snow > 450] = Material.WET_SNOW
    ice = g.glacier + 0.05 * fine > 0
    m[ice] = Material.ICE
    debris = -above / 260 + 0.7 * patches + 0.25 * fine - 0.20 + 0.4 * broad
    m[ice & (debris > 0)] = Material.DEBRIS_ICE
    m[ice & (snow > 190)] = Material.WET_SNOW
    m[(snow > 560) & (g.steep < 52)] = Material.SNOW

    lake = np.zeros(m.shape, np.uint8)
    bodies = np.zeros(m.shape, np.uint16)
    depth = np.zeros(m.shape, np.float32)
    o = g.outer
    # Where patches touch, the later one wins in every window, because lakes come in one order.
    for number, body in enumerate(g.lakes, start=1):
        here, there = overlap(body, o.row, o.col, o.height, o.width)
        part, flooded_at = m[here], body.area_at[there]
        if body.kind == "flat":
            part[(flooded_at <= body.area_ha) & (part != Material.RIVER) & ~ice[here]] = body.floor
            continue
        area = body.area(year + IMAGE_DATE)
        wet = flooded_at <= area
        if not wet.any():
            continue
        if body.kind == "reservoir":
            part[body.dam[there]] = Material.BRIGHT_ROCK  # rock fill and concrete
        part[wet] = Material.LAKE if body.glacial else Material.RESERVOIR
        kept = body.ice_share(year)
        # Ice goes first along the shore: it stays on the part that floods at small areas.
        part[wet & (flooded_at <= area * kept)] = Material.FROZEN_LAKE
        lake[here][wet] = int(body.glacial)
        bodies[here][wet] = number
        depth[here][wet] = np.maximum(body.deepest * (1 - flooded_at[wet] / np.float32(area)), 0.2)
    water = (m == Material.LAKE) | (m == Material.RESERVOIR) | (m == Material.RIVER)
    return Cover(m, lake, bodies, depth, water)
