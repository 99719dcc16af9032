"""What an ingest may be told, and how the services name what it reads. All fields are plain types."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import date

from cryosentinel.errors import ConfigError

#: Sentinel-2 band -> names of its asset, in lower case: the band's own (Planetary Computer; Copernicus Data Space adds
#: the resolution), then the common name (Earth Search).
S2_ASSETS: dict[str, tuple[str, ...]] = {
    "B01": ("b01", "coastal", "b01_60m", "b01_20m"),
    "B02": ("b02", "blue", "b02_10m"),
    "B03": ("b03", "green", "b03_10m"),
    "B04": ("b04", "red", "b04_10m"),
    "B05": ("b05", "rededge1", "b05_20m"),
    "B06": ("b06", "rededge2", "b06_20m"),
    "B07": ("b07", "rededge3", "b07_20m"),
    "B08": ("b08", "nir", "b08_10m"),
    "B8A": ("b8a", "nir08", "b8a_20m"),
    "B09": ("b09", "nir09", "b09_60m"),
    "B11": ("b11", "swir16", "b11_20m"),
    "B12": ("b12", "swir22", "b12_20m"),
}
SCL_ASSETS = ("scl", "scl_20m")
S1_ASSETS: dict[str, tuple[str, ...]] = {"VV": ("vv",), "VH": ("vh",)}
DEM_ASSETS = ("data", "elevation", "dem")

#: Collections that a service may hold, the preferred one first.
S2_COLLECTIONS = ("sentinel-2-l2a", "sentinel-2-c1-l2a")
S1_COLLECTIONS = ("sentinel-1-rtc", "sentinel-1-grd")
DEM_COLLECTIONS = ("cop-dem-glo-30", "cop-dem-glo-30-dged-cog")


@dataclass(frozen=True)
class Settings:
    """How chips are chosen and built.

    Attributes:
        s2_collection, s1_collection, dem_collection: names at the service; where left out, the first of the usual ones
            that it holds.
        season, fallback: first and last day (MM-DD) of the late-summer composite, and of the scenes that fill in where
            summer is not enough.
        max_cloud: percent: scenes above it are not looked at, chips of which more stays hidden are skipped.
        max_scenes: Sentinel-2 acquisitions that a window is composed of at most, the least cloudy ones.
        radar_days: days between a chip's Sentinel-2 and Sentinel-1 acquisitions at most.
        speckle: side in pixels (odd) of a Lee filter over linear backscatter; 0 for none.
        min_valid: share of a chip's pixels that all three modalities must hold.
        background: chips without a lake for each chip with one, drawn near them; None takes every chip of the box.
        window: strides a side of the windows that are read at once.
        chips_per_shard: at most.
        limit: chips in all at most (a trial), None for all.
        retries: times that a failed request is repeated.
    """

    s2_collection: str | None = None
    s1_collection: str | None = None
    dem_collection: str | None = None
    season: tuple[str, str] = ("08-01", "09-30")
    fallback: tuple[str, str] = ("10-01", "10-31")
    max_cloud: float = 30.0
    max_scenes: int = 8
    radar_days: int = 7
    speckle: int = 0
    min_valid: float = 0.7
    background: float | None = 0.25
    window: int = 16
    chips_per_shard: int = 128
    limit: int | None = None
    retries: int = 4

    def __post_init__(self) -> None:
        for name in ("season", "fallback"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            self.days(name, 2023)
        bounds = {
            "max_cloud": (0, 100),
            "max_scenes": (1, 100),
            "radar_days": (0, 60),
            "speckle": (0, 31),
            "min_valid": (0, 1),
            "window": (1, 64),
            "chips_per_shard": (1, 1000),
            "retries": (0, 20),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; give {low} to {high}.")
        if self.speckle and self.speckle % 2 == 0:
            raise ConfigError(f"speckle is {self.speckle}; the filter's side is odd, such as 5, or 0 for none.")
        if self.background is not None and not 0 <= self.background <= 100:
            raise ConfigError(f"background is {self.background}; give 0 to 100 empty chips for each lake chip.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; give at least 1 chip.")

    def days(self, name: str, year: int) -> tuple[date, date]:
        """First and last day of ``season`` or ``fallback`` in a year.

        Raises:
            ConfigError: it is not two days of one year in order.
        """
        days = getattr(self, name)
        try:
            first, last = (date.fromisoformat(f"{year}-{day}") for day in days)
        except (TypeError, ValueError):
            raise ConfigError(f"{name} is {days}; give two days as MM-DD, such as 08-01 and 09-30.") from None
        if first > last:
            raise ConfigError(f"{name} runs from {days[0]} to {days[1]}; the first day must come first.")
        return first, last


def fingerprint(**what: object) -> str:
    """SHA-256 of everything that decides which chips come out."""
    plain = {key: asdict(value) if isinstance(value, Settings) else value for key, value in what.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()
