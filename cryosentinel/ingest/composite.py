"""The Sentinel-2 composite: of every pixel the clearest acquisition in which it is clear.

The scene classification of all candidates is read first; it alone decides which pixel comes from which scene, so that
bands are read only of scenes that are used and only where they are. Acquisitions are taken in the order of how much of
the window they show clear: where one is clear throughout, the composite is that acquisition, pixel for pixel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from cryosentinel.ingest.reading import BrokenAssetError, asset_key, read_item
from cryosentinel.ingest.search import Item, cloud_cover, when
from cryosentinel.ingest.settings import S2_ASSETS, SCL_ASSETS, Settings
from cryosentinel.sensors import BASELINE_OFFSET, REFLECTANCE_SCALE, S2_BANDS

#: Scene classification (Sen2Cor): classes that hide the ground. 1 saturated, 3 cloud shadow, 8, 9 cloud, 10 cirrus.
NO_DATA, CLOUD_SHADOW = 0, 3
HIDDEN = (1, CLOUD_SHADOW, 8, 9, 10)
MIN_SHARE = 0.0005  # of the window's pixels: a scene that adds less is not worth twelve requests


@dataclass
class Composite:
    """Reflectance of a window.

    Attributes:
        s2: (12, H, W) uint16, 0 in all bands where no scene is clear.
        source: (H, W) int16: position in ``scenes``, -1 where there is none.
        scenes: identifier, date and offset removed (digital numbers) of each scene in use.
        broken: what could not be read of scenes that were left out.
    """

    s2: np.ndarray
    source: np.ndarray
    scenes: list[tuple[str, date, int]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def offset_of(item: Item, key: str) -> tuple[float, float]:
    """What turns an asset's digital numbers into reflectance x 10,000: (factor, offset to subtract afterwards).

    In the order of trust: a service that has removed the offset says so; the asset's own scale and offset; the
    processing baseline, of which 04.00 and later add 1,000.

    Raises:
        BrokenAssetError: the item says nothing of them, so its values cannot be known.
    """
    properties = item["properties"]
    asset = item["assets"][key]
    band: dict[str, Any] = next(iter(asset.get("raster:bands") or asset.get("bands") or [{}]), {})
    scale = band.get("scale", band.get("raster:scale"))
    offset = band.get("offset", band.get("raster:offset"))
    factor = float(scale) * REFLECTANCE_SCALE if scale not in (None, 0, 1) else 1.0
    applied = properties.get("earthsearch:boa_offset_applied", properties.get("s2:boa_offset_applied"))
    if applied is True or str(applied).lower() == "true":
        return factor, 0.0
    if offset is not None and scale is not None:
        return factor, round(-float(offset) * (REFLECTANCE_SCALE if scale != 1 else 1.0), 6)
    stated = properties.get("s2:processing_baseline") or properties.get("processing:version")
    found = re.search(r"\d+(\.\d+)?", str(stated)) if stated else None
    baseline = float(found[0]) if found else None
    if baseline is None:
        product = re.search(r"_N(\d\d)(\d\d)_", str(properties.get("s2:product_uri") or "") + "|" + item["id"] + "_")
        baseline = float(f"{product[1]}.{product[2]}") if product else None
    if baseline is None:
        raise BrokenAssetError(f"{item['id']} (it states neither its processing baseline nor its offset)")
    return factor, float(BASELINE_OFFSET if baseline >= 4 else 0)


def reflectance(raw: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """Digital numbers to reflectance x 10,000, uint16: 0 stays 0 (no data), and data does not fall below 1.

    Args:
        raw: (H, W) digital numbers.
        factor, offset: see :func:`offset_of`.
    """
    if factor == 1.0 and offset == 0.0 and raw.dtype == np.uint16:
        return raw
    values = raw.astype(np.float32) * np.float32(factor) - np.float32(offset)
    return np.where(raw > 0, np.clip(np.rint(values), 1, 65_535), 0).astype(np.uint16)


def _acquisition(item: Item) -> tuple[str, str]:
    """Tiles of one overpass share satellite and day."""
    return str(item["properties"].get("platform", "")), when(item).date().isoformat()


def _same_grid(item: Item, epsg: int) -> bool:
    properties = item["properties"]
    return str(epsg) == str(properties.get("proj:code") or properties.get("proj:epsg") or "").rpartition(":")[2]


def choose(
    classes: Sequence[np.ndarray], groups: Sequence[object], needed: np.ndarray, dark: bool = True
) -> tuple[np.ndarray, list[int]]:
    """Which scene each pixel comes from.

    A shadow that every scene shows is the terrain's, or dark water taken for one, and no cloud's: such a pixel comes
    from the first scene that holds it, provided that two acquisitions agree.

    Args:
        classes: (H, W) scene classification of each scene, in the order to prefer within an acquisition.
        groups: the acquisition of each scene.
        needed: (H, W) bool, pixels that matter.
        dark: take pixels that are shadow in every scene.

    Returns:
        (H, W) int16 position in ``classes`` or -1, and the order in which scenes were taken.
    """
    clear = [(c != NO_DATA) & ~np.isin(c, HIDDEN) for c in classes]
    shown: dict[object, int] = {}
    for group in groups:
        members = [c for c, g in zip(clear, groups, strict=True) if g == group]
        shown.setdefault(group, int((np.logical_or.reduce(members) & needed).sum()))
    order = sorted(range(len(classes)), key=lambda n: -shown[groups[n]])  # stable: the given order decides ties
    source = np.full(needed.shape, -1, np.int16)
    for n in order:
        new = clear[n] & needed & (source < 0)
        if new.sum() >= max(1, MIN_SHARE * needed.sum()):
            source[new] = n
    if dark and len(shown) > 1:
        shadow = np.logical_and.reduce([(c == CLOUD_SHADOW) | (c == NO_DATA) for c in classes])
        seen = np.sum([
            np.logical_or.reduce([c == CLOUD_SHADOW for c, g in zip(classes, groups, strict=True) if g == group])
            for group in shown
        ], axis=0)  # fmt: skip
        for n in order:
            new = shadow & (seen > 1) & (classes[n] == CLOUD_SHADOW) & needed & (source < 0)
            if (source == n).any():
                source[new] = n
    return source, order


def compose(
    items: Sequence[Item],
    geobox: Any,
    needed: np.ndarray,
    settings: Settings,
    sign: Callable[[str], str] | None = None,
) -> Composite:
    """Compose a window.

    Args:
        items: Sentinel-2 L2A scenes over it, STAC JSON.
        geobox: its grid.
        needed: (H, W) bool, pixels that matter.
        settings: of the ingest.
        sign: turns an address into a signed one.

    Raises:
        ServiceDownError: a server fails in spite of the retries.
    """
    result = Composite(np.zeros((len(S2_BANDS), *needed.shape), np.uint16), np.full(needed.shape, -1, np.int16))
    epsg = geobox.crs.epsg
    classes: list[np.ndarray] = []
    scenes: list[Item] = []
    for item in _candidates(items, settings, epsg):
        try:
            key = asset_key(item, SCL_ASSETS)
            missing = [band for band, names in S2_ASSETS.items() if asset_key(item, names) is None]
            if key is None or missing:
                raise BrokenAssetError(f"{item['id']} (no asset {', '.join(missing) or 'SCL'})")
            band_keys = {band: str(asset_key(item, names)) for band, names in S2_ASSETS.items()}
            for band_key in band_keys.values():
                offset_of(item, band_key)
            options = {"dtype": "uint8", "nodata": NO_DATA, "resampling": "nearest"}
            read = read_item(item, {"SCL": key}, geobox, retries=settings.retries, sign=sign, **options)  # type: ignore[arg-type]
        except BrokenAssetError as error:
            result.broken.append(str(error))
            continue
        classes.append(read["SCL"])
        scenes.append(item)
    broken: set[int] = set()
    used: dict[int, np.ndarray] = {}
    while True:
        alive = [n for n in range(len(scenes)) if n not in broken]
        if not alive:
            return result
        chosen, _ = choose([classes[n] for n in alive], [_acquisition(scenes[n]) for n in alive], needed)
        source = np.where(chosen >= 0, np.array(alive, np.int16)[chosen], -1)
        try:
            for n in np.unique(source[source >= 0]).tolist():
                if n in used and not (~used[n] & (source == n)).any():
                    continue
                _fill(result.s2, scenes[n], source == n, geobox, settings, sign)
                used[n] = source == n
            break
        except BrokenAssetError as error:  # its pixels go to the scenes after it
            result.broken.append(str(error))
            broken.add(n)
            result.s2[:, source == n] = 0
    for n in np.unique(source[source >= 0]).tolist():
        offset = offset_of(scenes[n], str(asset_key(scenes[n], S2_ASSETS["B02"])))[1]
        result.source[source == n] = len(result.scenes)
        result.scenes.append((scenes[n]["id"], when(scenes[n]).date(), round(offset)))
    result.source[(result.s2 == 0).all(axis=0)] = -1
    result.s2[:, result.source < 0] = 0
    return result


def _candidates(items: Sequence[Item], settings: Settings, epsg: int) -> list[Item]:
    """The scenes of the least cloudy acquisitions, those on the window's own grid first."""
    cloud: dict[tuple[str, str], list[float]] = {}
    for item in items:
        cloud.setdefault(_acquisition(item), []).append(cloud_cover(item))
    best = sorted(cloud, key=lambda group: (sum(cloud[group]) / len(cloud[group]), group))[: settings.max_scenes]
    chosen = [item for item in items if _acquisition(item) in best]
    return sorted(chosen, key=lambda item: (best.index(_acquisition(item)), not _same_grid(item, epsg), item["id"]))


def _fill(s2: np.ndarray, item: Item, where: np.ndarray, geobox: Any, settings: Settings, sign: Any) -> None:
    """Read the bands of a scene where it is used, the smallest box around it, and copy them there."""
    rows, cols = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    # Edges on multiples of 6 pixels: bands of 20 and 60 m are resampled alike, however a window is cut.
    box = (
        slice(rows[0] // 6 * 6, min(rows[-1] // 6 * 6 + 6, where.shape[0])),
        slice(cols[0] // 6 * 6, min(cols[-1] // 6 * 6 + 6, where.shape[1])),
    )
    keys = {band: str(asset_key(item, names)) for band, names in S2_ASSETS.items()}
    options: dict[str, Any] = {"dtype": "uint16", "nodata": 0, "resampling": "bilinear"}
    data = read_item(item, keys, geobox[box], retries=settings.retries, sign=sign, **options)
    inner = where[box]
    for n, band in enumerate(S2_BANDS):
        s2[n][box][inner] = reflectance(data[band], *offset_of(item, keys[band]))[inner]
