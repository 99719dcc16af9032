"""Sentinel-1 of the pass nearest in time: linear power to decibels, orbit direction kept, speckle filter if wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from cryosentinel.ingest.reading import BrokenAssetError, asset_key, read_item
from cryosentinel.ingest.search import Item, when
from cryosentinel.ingest.settings import S1_ASSETS, Settings
from cryosentinel.sensors import MODALITIES

LOOKS = 4.4  # equivalent number of looks of a GRD product in IW mode (ESA product specification)
ENOUGH = 0.99  # share of a chip: a pass that shows this much need not be improved on


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


def passes(items: Sequence[Item]) -> list[Pass]:
    """Group frames into passes, by time."""
    groups: dict[tuple[str, str, int, str], list[Item]] = {}
    for item in sorted(items, key=lambda item: (when(item), item["id"])):
        p = item["properties"]
        direction = str(p.get("sat:orbit_state") or "").lower()
        orbit = int(p.get("sat:relative_orbit") or -1)
        groups.setdefault((when(item).date().isoformat(), direction, orbit, str(p.get("platform", ""))), []).append(
            item
        )
    return [Pass(group, date.fromisoformat(key[0]), key[1], key[2]) for key, group in groups.items()]


def to_db(power: np.ndarray) -> np.ndarray:
    """Linear backscatter to decibels, float32; not a number where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(power > 0, 10 * np.log10(power), np.nan).astype(np.float32)


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


def read_pass(
    overpass: Pass, geobox: Any, settings: Settings, sign: Callable[[str], str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Backscatter of a pass on a window: its frames side by side.

    Returns:
        (2, H, W) float32 dB, not a number where there is none; and what could not be read.

    Raises:
        ServiceDownError: a server fails in spite of the retries.
    """
    s1 = np.full((len(S1_ASSETS), *geobox.shape), np.nan, np.float32)
    broken: list[str] = []
    for item in overpass.items:
        try:
            frame = _read_frame(item, geobox, settings, sign)
        except BrokenAssetError as error:
            broken.append(str(error))
            continue
        empty = ~np.isfinite(s1).all(axis=0)
        s1[:, empty] = frame[:, empty]
    return s1, broken


def _read_frame(item: Item, geobox: Any, settings: Settings, sign: Any) -> np.ndarray:
    keys = {name: asset_key(item, names) for name, names in S1_ASSETS.items()}
    missing = [name for name, key in keys.items() if key is None]
    if missing:
        raise BrokenAssetError(f"{item['id']} (no asset {', '.join(missing)})")
    from cryosentinel.ingest.grd import read_grd, wants_calibration

    found = {name: str(key) for name, key in keys.items()}
    if wants_calibration(item, found):
        power = read_grd(item, found, geobox, settings.retries, sign)
    else:
        options: dict[str, Any] = {"dtype": "float32", "nodata": float("nan"), "resampling": "bilinear"}
        power = read_item(item, found, geobox, retries=settings.retries, sign=sign, **options)
    bands = []
    for name in MODALITIES["S1GRD"]:
        values = power[name]
        values = np.where(values <= -9_000, np.nan, values)  # a file that states no nodata and means -9999 or -32768
        if in_decibels(item, found[name], values):
            values = (10 ** (values / 10)).astype(np.float32)
        bands.append(to_db(lee(values, settings.speckle) if settings.speckle else values))
    return np.stack(bands)


def in_decibels(item: Item, key: str, values: np.ndarray) -> bool:
    """Whether an asset holds decibels: by its unit, or where it states none because power is not negative."""
    asset = item["assets"][key]
    units = [str(band.get("unit") or "").lower() for band in asset.get("raster:bands") or asset.get("bands") or []]
    units.append(str(asset.get("unit") or "").lower())
    if any(units):
        return any(unit in ("db", "decibel", "decibels") for unit in units)
    known = values[np.isfinite(values)]
    return bool(known.size) and float((known < 0).mean()) > 0.5
