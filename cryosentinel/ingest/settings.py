"""What an ingest may be told. All fields are plain types."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, is_dataclass
from datetime import date

from cryosentinel.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """How chips are chosen and built.

    Attributes:
        s2_collection, s1_collection, dem_collection: names at the service; where left out, those of the table of
            services.
        season, fallback: first and last day (MM-DD) of the late-summer composite, and of the scenes that fill in where
            summer is not enough.
        max_cloud: percent: scenes above it are not looked at, chips of which more stays hidden in summer take the
            fallback's scenes as well.
        max_hidden: percent: chips of which more stays hidden after that are skipped.
        max_scenes: Sentinel-2 acquisitions that a group of chips is composed of at most, the least cloudy ones.
        hidden_classes: classes of Sen2Cor's scene classification that hide the ground: 1 saturated or defective,
            3 cloud shadow, 8 and 9 cloud, 10 thin cirrus. Without 1 and 10 more of a bright glacier stays in.
        cloud_buffer: pixels by which hidden clouds (8, 9, 10) grow: their edges are missed by the classification.
        radar_days: days between a chip's Sentinel-2 and Sentinel-1 acquisitions at most.
        radar_shift: metres by which a pass may look displaced against the relief before it is refused; 0 for any.
        speckle: side in pixels (odd) of a Lee filter over linear backscatter; 0 for none.
        min_valid: share of a chip's pixels that all three modalities must hold.
        side_by_side: every chip side by side that meets the box, whatever its centre and labels, as a mosaic needs
            them; by default chips overlap by half and have their centre in the box.
        background: chips without a lake for each chip with one, drawn near them; None takes every chip of the box.
        group: strides a side of the squares whose chips are read together. Memory grows with its square, requests fall:
            see the chapter on ingest.
        chips_per_shard: at most; a shard is put together in memory.
        limit: chips in all at most (a trial), None for all.
        retries: times that a failed request is repeated, with waits that double.
    """

    s2_collection: str | None = None
    s1_collection: str | None = None
    dem_collection: str | None = None
    season: tuple[str, str] = ("08-01", "09-30")
    fallback: tuple[str, str] = ("10-01", "10-31")
    max_cloud: float = 30.0
    max_hidden: float = 30.0
    max_scenes: int = 8
    hidden_classes: tuple[int, ...] = (1, 3, 8, 9, 10)
    cloud_buffer: int = 6
    radar_days: int = 7
    radar_shift: float = 150.0
    speckle: int = 0
    min_valid: float = 0.7
    side_by_side: bool = False
    background: float | None = 0.25
    group: int = 24
    chips_per_shard: int = 64
    limit: int | None = None
    retries: int = 4

    def __post_init__(self) -> None:
        for name in ("season", "fallback", "hidden_classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("season", "fallback"):
            self.days(name, 2023)
        bounds = {
            "max_cloud": (0, 100),
            "max_hidden": (0, 100),
            "max_scenes": (1, 100),
            "cloud_buffer": (0, 100),
            "radar_days": (0, 60),
            "radar_shift": (0, 2_000),
            "speckle": (0, 31),
            "min_valid": (0, 1),
            "group": (1, 64),
            "chips_per_shard": (1, 1000),
            "retries": (0, 20),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; give {low} to {high}.")
        if not set(self.hidden_classes) <= set(range(1, 12)):
            raise ConfigError(
                f"hidden_classes is {self.hidden_classes}; give classes of 1 to 11 (0 is no data anyway)."
            )
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

    @property
    def collections(self) -> dict[str, str | None]:
        """Modality -> collection chosen by hand."""
        return {"s2": self.s2_collection, "s1": self.s1_collection, "dem": self.dem_collection}


def digest(**what: object) -> str:
    """SHA-256 of everything that decides which chips come out."""

    def plain(value: object) -> object:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    return hashlib.sha256(json.dumps(what, sort_keys=True, default=plain).encode()).hexdigest()
