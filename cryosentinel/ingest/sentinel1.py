"""Sentinel-1 of the pass nearest in time: linear power to decibels, orbit direction kept, speckle filter if wanted.

Only terrain-corrected backscatter is taken: what radar in its own geometry (GRD) shows over mountains lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from cryosentinel.data.stack import to_db
from cryosentinel.ingest.reading import read, side_by_side
from cryosentinel.ingest.search import Item, when
from cryosentinel.ingest.services import ASSETS, Service
from cryosentinel.ingest.settings import Settings
from cryosentinel.sensors import MODALITIES, PIXEL_SIZE_M

LOOKS = 4.4  # equivalent number of looks of a GRD product in IW mode (ESA product specification)
ENOUGH = 0.99  # share of a chip: a pass that shows this much need not be improved on
#: Decibels within which the middle of every band lies: land and water of C-band are between about -30 and 0; numbers
#: that were never calibrated (amplitudes) come out near +33.
MEDIAN_DB = (-35.0, 10.0)
#: Against the relief: cells of 30 m, lags up to 1.2 km, a correlation worth believing, and how much better than the one
#: in place.
COARSEN, REACH, CORRELATED, BETTER = 3, 40, 0.35, 1.5
#: Azimuth of the look (right-looking, orbit inclined by 98 degrees), by the direction of flight.
LOOK_DEG = {"ascending": 78.0, "descending": 282.0}


@dataclass
class Pass:
    """Frames of one overpass.

    Attributes:
        items: its frames.
        day: of acquisition.
        direction: "ascending" or "descending", "" where no item says.
        orbit: relative orbit, -1 where no item says.
    """

    items: list[Item]
    day: date
    direction: str
    orbit: int

    @property
    def name(self) -> str:
        """The identifiers of its frames."""
        return "+".join(item["id"] for item in self.items)

    @property
    def product(self) -> tuple[str, str]:
        """See :func:`product_of`."""
        return product_of(self.items[0])


def product_of(item: Item) -> tuple[str, str]:
    """Product ("RTC", or "geocoded" where nothing says terrain-corrected) and backscatter ("gamma0", ...) of an item.

    Services state these in words: names of the item and collection, and what its assets are described as.
    """
    assets = item["assets"].values()
    words = " ".join(
        str(text)
        for text in (
            item["id"], item.get("collection"), item["properties"].get("sar:product_type"),
            *(asset.get(key, "") for asset in assets for key in ("title", "description", "href")),
        )
    ).lower()  # fmt: skip
    terrain = any(word in words for word in ("rtc", "terrain correct", "terrain-correct", "nrb"))
    kinds = (("gamma0", ("gamma",)), ("sigma0", ("sigma",)), ("beta0", ("beta",)))
    stated = next(
        (name for name, keys in kinds if any(key in words for key in keys)), "gamma0" if terrain else "unknown"
    )
    return ("RTC" if terrain else "geocoded"), stated


def passes(items: Sequence[Item]) -> list[Pass]:
    """Group frames into passes, by time."""
    groups: dict[tuple[str, str, int, str], list[Item]] = {}
    for item in sorted(items, key=lambda item: (when(item), item["id"])):
        p = item["properties"]
        direction = str(p.get("sat:orbit_state") or "").lower()
        orbit = int(p.get("sat:relative_orbit") or -1)
        key = when(item).date().isoformat(), direction, orbit, str(p.get("platform", "")).lower()
        groups.setdefault(key, []).append(item)
    return [Pass(group, date.fromisoformat(key[0]), key[1], key[2]) for key, group in groups.items()]


def lee(power: np.ndarray, side: int, looks: float = LOOKS) -> np.ndarray:
    """Lee filter (Lee 1980, IEEE TPAMI 2): towards the local mean where the local variation is speckle alone.

    Args:
        power: (H, W) linear backscatter, not a number where there is none.
        side: of the local square, pixels.
        looks: equivalent number of looks: speckle has the relative variance 1 / looks.

    Returns:
        (H, W), not a number where ``power`` is.
    """
    from scipy.ndimage import uniform_filter

    known = np.isfinite(power)
    share = np.maximum(uniform_filter(known.astype(np.float64), side), 1e-9)
    filled = np.where(known, power, 0).astype(np.float64)
    mean = uniform_filter(filled, side) / share
    variance = np.maximum(uniform_filter(filled**2, side) / share - mean**2, 0)
    speckle = mean**2 / looks
    texture = np.maximum((variance - speckle) / (1 + 1 / looks), 0)
    weight = np.divide(texture, variance, out=np.zeros_like(variance), where=variance > 0)
    return np.where(known, mean + weight * (filled - mean), np.nan).astype(np.float32)


def read_pass(overpass: Pass, geobox: Any, settings: Settings, service: Service) -> tuple[np.ndarray, list[str]]:
    """Backscatter of a pass on a group of chips: its frames side by side.

    Returns:
        (2, H, W) float32 dB, not a number where there is none; and what could not be read.

    Raises:
        ServiceDownError: a server fails in spite of the retries.
        AccessDeniedError: the service refuses its files.
    """
    shape = len(ASSETS["s1"]), *geobox.shape
    return side_by_side(overpass.items, lambda item: _read_frame(item, geobox, settings, service), shape)


def _read_frame(item: Item, geobox: Any, settings: Settings, service: Service) -> np.ndarray:
    bands = MODALITIES["S1GRD"]
    found = read(item, bands, geobox, service, settings.retries)
    frames = []
    for name in bands:
        values = found[name]
        values = np.where(values <= -9_000, np.nan, values)  # a file that states no nodata and means -9999 or -32768
        if in_decibels(item, name, values):
            values = (10 ** (values / 10)).astype(np.float32)
        frames.append(to_db(lee(values, settings.speckle) if settings.speckle else values))
    return np.stack(frames)


def in_decibels(item: Item, name: str, values: np.ndarray) -> bool:
    """Whether an asset holds decibels: by its unit, or where it states none because power is not negative."""
    asset = item["assets"][name]
    units = [str(band.get("unit") or "").lower() for band in asset.get("raster:bands") or asset.get("bands") or []]
    units.append(str(asset.get("unit") or "").lower())
    if any(units):
        return any(unit in ("db", "decibel", "decibels") for unit in units)
    known = values[np.isfinite(values)]
    return bool(known.size) and float((known < 0).mean()) > 0.5


def implausible(s1: np.ndarray, dem: np.ndarray, direction: str, most: float) -> str:
    """What cannot be about a pass, as the end of a sentence; empty when nothing is.

    Args:
        s1: (2, H, W) dB.
        dem: (1, H, W) m, -32768 for no data.
        direction: of flight.
        most: metres of displacement that are let through; 0 for any.
    """
    for name, band in zip(MODALITIES["S1GRD"], s1, strict=True):
        known = band[np.isfinite(band)]
        if known.size and not MEDIAN_DB[0] <= (middle := float(np.median(known))) <= MEDIAN_DB[1]:
            return f"its {name} lies around {middle:+.0f} dB, which is no calibrated backscatter"
    if most and direction in LOOK_DEG:
        metres, peak, here = displacement(s1[0], dem[0], direction)
        if metres > most and peak > CORRELATED and peak > BETTER * here:
            return (
                f"against the relief it looks displaced by {metres:.0f} m (correlation {peak:.2f} there, {here:.2f} in "
                "place): it is not terrain-corrected"
            )
    return ""


def displacement(db: np.ndarray, dem: np.ndarray, direction: str) -> tuple[float, float, float]:
    """How far backscatter lies from the slopes that caused it: slopes that face the radar are bright.

    Both are taken as deviations from their surroundings, and correlated at every lag by their spectra. Radiometric
    terrain correction removes most of this; then nothing correlates and nothing is said.

    Args:
        db: (H, W) dB, not a number where there is none.
        dem: (H, W) m.
        direction: of flight.

    Returns:
        Metres to the lag of the best correlation, that correlation, and the one in place (within 60 m).
    """
    from scipy.ndimage import gaussian_filter

    height, width = (n // COARSEN * COARSEN for n in db.shape)

    def coarse(a: np.ndarray) -> np.ndarray:
        return a[:height, :width].reshape(height // COARSEN, COARSEN, -1, COARSEN).mean(axis=(1, 3))

    known = coarse((np.isfinite(db) & (dem > -32_000)).astype(np.float32)) > 0.99
    down, right = np.gradient(np.where(known, coarse(dem.astype(np.float32)), 0))
    azimuth = np.radians(LOOK_DEG[direction])
    facing = right * np.sin(azimuth) - down * np.cos(azimuth)  # rises along the look: faces the radar
    known[1:-1, 1:-1] &= known[:-2, 1:-1] & known[2:, 1:-1] & known[1:-1, :-2] & known[1:-1, 2:]  # gradients at edges
    fields = []
    for a in (facing, coarse(np.nan_to_num(db, nan=0.0))):
        filled = np.where(known, a, 0)
        local = gaussian_filter(filled, 10) / np.maximum(gaussian_filter(known.astype(np.float32), 10), 1e-3)
        deviation = np.where(known, gaussian_filter(filled, 1) - local, 0)
        spread = float(np.sqrt((deviation**2).sum()))
        fields.append(np.clip(deviation / spread, -1, 1) if spread > 0 else deviation)
    shape = tuple(n + REACH for n in fields[0].shape)  # zeros around: what leaves on one side does not come back
    product = np.fft.irfft2(np.fft.rfft2(fields[1], shape) * np.conj(np.fft.rfft2(fields[0], shape)), shape)
    lags = np.roll(product, (REACH, REACH), (0, 1))[: 2 * REACH + 1, : 2 * REACH + 1]
    row, col = np.unravel_index(int(lags.argmax()), lags.shape)
    metres = float(np.hypot(row - REACH, col - REACH)) * COARSEN * PIXEL_SIZE_M
    return metres, float(lags.max()), float(lags[REACH - 2 : REACH + 3, REACH - 2 : REACH + 3].max())
