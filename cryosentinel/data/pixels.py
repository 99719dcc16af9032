"""What a chip is: its arrays, its metadata, which of its pixels can be trusted, and how the rest is filled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.sensors import (
    DEM_NODATA,
    DEM_RANGE,
    MODALITIES,
    S1_FILL_DB,
    S2_NODATA,
    S2_RANGE,
)

#: Array -> (type on disk, bands). The mask has no band axis. Little-endian, as the published shards are.
LAYOUT: dict[str, tuple[np.dtype, int]] = {
    "s2": (np.dtype("<u2"), len(MODALITIES["S2L2A"])),
    "s1": (np.dtype("<f4"), len(MODALITIES["S1GRD"])),
    "dem": (np.dtype("<i2"), len(MODALITIES["DEM"])),
    "mask": (np.dtype("u1"), 0),
}

S1_LIMIT_DB = 100.0  # a finite backscatter beyond this is not in decibels: C-band stays within about -50..+30 dB
YEAR_RANGE = (2014, 2100)  # Sentinel-1A was launched in 2014


@dataclass(frozen=True, eq=False)
class Chip:
    """One labelled chip, with the values of the published format: unclipped, nodata still in place.

    Attributes:
        s2: (12, H, W) uint16, surface reflectance x 10,000, bands in the order of :data:`sensors.S2_BANDS`.
        s1: (2, H, W) float32, VV and VH in dB, not a number where there is none.
        dem: (1, H, W) int16, metres.
        mask: (H, W) uint8, 1 = glacial lake, 0 = not.
        chip_id, region, lake_id, split: as published; ``lake_id`` is empty for a chip without a lake, and ``split``
            is the older lake-level split, which the block split overrides.
        snapshot_year: of the images.
        lat, lon: centre in degrees, WGS 84; None where the shard does not hold them.
        water_frac: share of the mask's pixels that are lake; computed where the shard does not hold it.
    """

    s2: np.ndarray
    s1: np.ndarray
    dem: np.ndarray
    mask: np.ndarray
    chip_id: str
    region: str
    snapshot_year: int
    lat: float | None = None
    lon: float | None = None
    lake_id: str = ""
    split: str = ""
    water_frac: float | None = None

    def __post_init__(self) -> None:
        height_width = self.mask.shape
        for name, (dtype, bands) in LAYOUT.items():
            array = getattr(self, name)
            expected = (bands, *height_width) if bands else height_width
            if len(height_width) != 2 or array.shape != expected:
                raise InputError(
                    f"Chip {self.chip_id!r} has a {name} array of shape {array.shape} beside a mask of shape "
                    f"{height_width}; {name} must be {f'({bands}, H, W)' if bands else '(H, W)'} on the same grid."
                )
            if array.dtype != dtype:
                raise InputError(
                    f"Chip {self.chip_id!r} has a {name} array of type {array.dtype}; it must be {dtype.name}."
                )
        if self.water_frac is None:
            object.__setattr__(self, "water_frac", float((self.mask > 0).mean()) if self.mask.size else 0.0)

    @cached_property
    def valid(self) -> np.ndarray:
        """(H, W) bool, see :func:`valid_mask`."""
        return valid_mask(self.s2, self.s1, self.dem)

    def replace(self, **changes: Any) -> Chip:
        """A copy with some fields changed; ``water_frac`` follows a changed mask unless it is given too."""
        if "mask" in changes:
            changes.setdefault("water_frac", None)
        return replace(self, **changes)

    def check_values(self) -> None:
        """Refuse values that no chip can hold (coordinates off the globe, labels other than 0 and 1, ...).

        Raises:
            InputError: names the chip and the value.
        """
        problem = impossible_value(vars(self))
        if problem:
            raise InputError(f"Chip {self.chip_id!r} {problem}.")


def impossible_value(fields: Mapping[str, Any]) -> str:
    """What is impossible about a chip's values, as the end of a sentence; empty when nothing is.

    Args:
        fields: any of the fields of :class:`Chip`; those left out are not looked at.
    """
    for name, limit in (("lat", 90.0), ("lon", 180.0)):
        value = fields.get(name)
        if value is not None and not abs(value) <= limit:  # also catches not a number
            return f"has {name} {value}, which is not within {-limit:g}..{limit:g} degrees"
    share = fields.get("water_frac")
    if share is not None and not 0.0 <= share <= 1.0:
        return f"has water_frac {share}, which is not within 0..1"
    year = fields.get("snapshot_year")
    if year is not None and not YEAR_RANGE[0] <= year <= YEAR_RANGE[1]:
        return f"has snapshot_year {year}, before the satellites flew or far in the future"
    mask = fields.get("mask")
    if mask is not None and mask.size and mask.max() > 1:
        return f"has a mask value of {mask.max()}; a label is 0 or 1"
    s1 = fields.get("s1")
    # Written so that not a number (no data) passes and infinity (the logarithm of 0) does too.
    if s1 is not None and bool(np.any((s1 > S1_LIMIT_DB) & (s1 < np.inf) | (s1 < -S1_LIMIT_DB) & (s1 > -np.inf))):
        return f"has Sentinel-1 values beyond {S1_LIMIT_DB:g} dB in size; s1 must be backscatter in decibels"
    return ""


def valid_mask(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> np.ndarray:
    """Pixels that hold data in all three modalities. Call it before anything is clipped or filled.

    A pixel is invalid when all twelve Sentinel-2 bands are 0, or all are 16,000 or more (an older version of the
    dataset clipped its fill there), or any Sentinel-1 band is not finite, or the elevation is at or beyond +-32,000 m.

    Args:
        s2: (..., 12, H, W), integers, or floating with not a number for no data.
        s1: (..., 2, H, W) dB.
        dem: (..., 1, H, W) m.

    Returns:
        (..., H, W) bool.
    """
    low, high = S2_NODATA
    valid = (s2.max(axis=-3) > low) & (s2.min(axis=-3) < high)  # a comparison with not a number is False: invalid
    valid &= np.isfinite(s1).all(axis=-3)
    elevation = dem[..., 0, :, :]
    valid &= (elevation > DEM_NODATA[0]) & (elevation < DEM_NODATA[1])
    return valid


def clean(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clipped and filled copies, of the same shapes and types, finite everywhere.

    Sentinel-2 clips to 0..16,000, elevation to -500..9,000 m, and Sentinel-1 is filled with -25 dB where it is not
    finite. Take :func:`valid_mask` first: afterwards nodata can no longer be told from data.
    """
    if np.issubdtype(s2.dtype, np.floating):
        s2 = np.nan_to_num(s2, nan=S2_RANGE[0])
    if np.issubdtype(dem.dtype, np.floating):
        dem = np.nan_to_num(dem, nan=DEM_RANGE[0])
    filled = np.where(np.isfinite(s1), s1, np.asarray(S1_FILL_DB, s1.dtype))
    # uint16 cannot fall below 0, so its lower bound is left out: one pass less.
    s2 = np.minimum(s2, S2_RANGE[1]) if s2.dtype.kind == "u" else np.clip(s2, *S2_RANGE)
    return s2, filled, np.clip(dem, *DEM_RANGE)


def draw(where: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Flat indices of up to ``count`` of the pixels where ``where`` holds, drawn without replacement."""
    at = np.flatnonzero(where)
    return rng.choice(at, min(count, len(at)), replace=False)


def draw_classes(
    lake: np.ndarray, valid: np.ndarray, per_class: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Up to ``per_class`` valid lake pixels of a chip and as many others.

    Args:
        lake, valid: bool, of one shape.
        per_class: pixels of each class.
        rng: of the draw.

    Returns:
        flat indices (n,), lake first, and weights (n,): the valid pixels of its class that each one stands for.
    """
    drawn, weights = [], []
    for wanted in (valid & lake, valid & ~lake):
        taken = draw(wanted, per_class, rng)
        drawn.append(taken)
        weights.append(np.full(len(taken), np.count_nonzero(wanted) / max(len(taken), 1)))
    return np.concatenate(drawn), np.concatenate(weights)


def few_values(features: np.ndarray, count: int = 250) -> np.ndarray:
    """Features of sampled pixels with at most ``count`` values each: every value gives way to the mean of its quantile.

    For gradient boosting with sample weights: scikit-learn (1.8 and newer) finds the bins of a weighted feature by one
    sort a bin, seconds where boosting takes a tenth of one; what has no more values than bins is not sorted at all.

    Args:
        features: (n, F), finite.
        count: values to keep, fewer than the booster's 255 bins.

    Returns:
        (n, F) of the same type; thresholds learnt on it hold for the features as they were.
    """
    result = np.empty_like(features)
    for column, few in zip(features.T, result.T, strict=True):
        edges = np.unique(np.quantile(column, np.linspace(0, 1, count + 1)[1:-1]))
        quantile = np.searchsorted(edges, column)
        sums, counts = np.bincount(quantile, column), np.bincount(quantile)
        few[:] = (sums / np.maximum(counts, 1))[quantile]
    return result
