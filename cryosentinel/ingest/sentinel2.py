"""The Sentinel-2 composite: of every pixel the clearest acquisition in which it is clear.

The scene classification of all candidates is read first; it alone decides which pixel comes from which scene, so that
bands are read only of scenes that are used and only where they are. Acquisitions are taken in the order of how much of
the group they show clear: where one is clear throughout, the composite is that acquisition, pixel for pixel.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from cryosentinel.data.offset import offset_state
from cryosentinel.ingest.reading import BrokenAssetError, read, require
from cryosentinel.ingest.search import Item, cloud_cover, grid_epsg, version, when
from cryosentinel.ingest.services import ASSETS, Service
from cryosentinel.ingest.settings import Settings
from cryosentinel.sensors import BASELINE_OFFSET, REFLECTANCE_SCALE, S2_BANDS

#: Scene classification of Sen2Cor.
NO_DATA, CLOUD_SHADOW, CLOUDS = 0, 3, (8, 9, 10)
MIN_SHARE = 0.0005  # of the group's pixels: a scene that adds less is not worth twelve requests
SAMPLE = 100_000  # pixels that are looked at to judge the offset
#: Pixels a side that are looked at at least, where the group has them: a gap between clouds that is bright throughout
#: (snow) looks as if it carried the offset; of its surroundings something is dark. Blocks are fetched whole anyway.
JUDGED = 240


@dataclass
class Composite:
    """Reflectance of a group of chips.

    Attributes:
        s2: (12, H, W) uint16, 0 in all bands where no scene is clear.
        source: (H, W) int16: position in ``scenes``, -1 where there is none.
        scenes: identifier, date and offset removed (digital numbers) of each scene in use.
        broken: what could not be read of scenes that were left out.
        notes: scenes whose metadata their pixels contradict.
    """

    s2: np.ndarray
    source: np.ndarray
    scenes: list[tuple[str, date, int]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Conversion:
    """What turns digital numbers into reflectance x 10,000: times ``factor``, minus ``offset``.

    Attributes:
        factor, offset: of one band.
        never: no offset was ever added: a processing baseline before 04.00.
    """

    factor: float
    offset: float
    never: bool = False


def stated_conversion(item: Item, name: str) -> Conversion | None:
    """What an item says of a band's digital numbers; None where it says nothing of the offset.

    In the order of trust: a service that has removed the offset says so; the asset's own scale and offset (also of
    STAC 1.1); the processing baseline, of which 04.00 and later add 1,000.
    """
    properties, asset = item["properties"], item["assets"][name]
    band: dict[str, Any] = next(iter(asset.get("raster:bands") or asset.get("bands") or [{}]), {})
    holders = (
        (band, "scale", "offset"),
        (band, "raster:scale", "raster:offset"),
        (asset, "raster:scale", "raster:offset"),
    )
    scale, offset = next(((h[s], h.get(o)) for h, s, o in holders if h.get(s) is not None), (None, None))
    factor = float(scale) * REFLECTANCE_SCALE if scale not in (None, 0, 1) else 1.0
    baseline = _baseline(item)
    never = baseline is not None and baseline < 4
    applied = properties.get("earthsearch:boa_offset_applied", properties.get("s2:boa_offset_applied"))
    if applied is True or str(applied).lower() == "true":
        return Conversion(factor, 0.0, never)
    if offset is not None:
        return Conversion(factor, round(-float(offset) * (REFLECTANCE_SCALE if scale != 1 else 1.0), 6), never)
    return None if baseline is None else Conversion(factor, 0.0 if never else float(BASELINE_OFFSET), never)


def _baseline(item: Item) -> float | None:
    """Processing baseline, as stated or as in the product's name."""
    properties = item["properties"]
    stated = properties.get("s2:processing_baseline") or properties.get("processing:version")
    found = re.search(r"\d+(\.\d+)?", str(stated)) if stated else None
    if found:
        return float(found[0])
    product = re.search(r"_N(\d\d)(\d\d)_", str(properties.get("s2:product_uri") or "") + "|" + item["id"] + "_")
    return float(f"{product[1]}.{product[2]}") if product else None


def settle_offset(item: Item, conversion: Conversion | None, numbers: np.ndarray) -> tuple[float, str]:
    """The offset to subtract, by what an item states and by what its pixels show.

    Args:
        item: for messages.
        conversion: see :func:`stated_conversion`.
        numbers: (12, n) digital numbers.

    Returns:
        The offset, and a note where pixels contradict the statement ("" where they do not).

    Raises:
        BrokenAssetError: neither says which it is, or they contradict each other and it cannot be settled.
    """
    # Limits are those of reflectance x 10,000. An offset that nothing states is looked for in the numbers as they are.
    state = offset_state(numbers if conversion is None else numbers * np.float32(conversion.factor))
    stated = None if conversion is None else conversion.offset
    if stated is None:
        if state == "unknown":
            raise BrokenAssetError(f"{item['id']} (neither its metadata nor its pixels tell the +1000 offset)")
        return (float(BASELINE_OFFSET) if state == "carried" else 0.0), ""
    if stated > 0 and state == "removed":
        return (
            0.0,
            f"{item['id']}: its metadata say to subtract {stated:g}, but its dark pixels show that it is not there",
        )
    if stated == 0 and state == "carried" and conversion is not None and not conversion.never:
        raise BrokenAssetError(
            f"{item['id']} (its metadata say that the +1000 offset is removed, but its values begin near 1000)"
        )
    return stated, ""


def reflectance(raw: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """Digital numbers to reflectance x 10,000, uint16: 0 stays 0 (no data), and data does not fall below 1.

    Args:
        raw: digital numbers, any shape.
        factor, offset: see :class:`Conversion`.
    """
    if factor == 1.0 and offset == 0.0 and raw.dtype == np.uint16:
        return raw
    values = raw.astype(np.float32) * np.float32(factor) - np.float32(offset)
    return np.where(raw > 0, np.clip(np.rint(values), 1, 65_535), 0).astype(np.uint16)


def _acquisition(item: Item) -> tuple[str, str]:
    """Tiles and datastrips of one overpass share satellite and day."""
    return str(item["properties"].get("platform", "")).lower(), when(item).date().isoformat()


def clear_pixels(classes: np.ndarray, settings: Settings) -> np.ndarray:
    """(H, W) bool: pixels whose class shows the ground and which are not at the edge of a cloud."""
    from scipy.ndimage import maximum_filter

    hidden = np.isin(classes, settings.hidden_classes)
    clouds = hidden & np.isin(classes, CLOUDS)
    if settings.cloud_buffer and clouds.any():
        hidden |= maximum_filter(clouds, 2 * settings.cloud_buffer + 1)
    return (classes != NO_DATA) & ~hidden


def choose(
    classes: Sequence[np.ndarray],
    acquisitions: Sequence[object],
    needed: np.ndarray,
    settings: Settings,
) -> np.ndarray:
    """Which scene each pixel comes from.

    A shadow that every scene shows is the terrain's, or dark water taken for one, and no cloud's: such a pixel comes
    from the first scene that holds it, provided that two acquisitions agree.

    Args:
        classes: (H + 2 m, W + 2 m) scene classification of each scene with a margin around, from which clouds grow into
            the group; in the order to prefer within an acquisition.
        acquisitions: the acquisition of each scene.
        needed: (H, W) bool, pixels that matter.
        settings: what hides the ground.

    Returns:
        (H, W) int16 position in ``classes`` or -1.
    """
    margin = (len(classes[0]) - len(needed)) // 2
    inner = tuple(slice(margin, margin + side) for side in needed.shape)
    clear = [clear_pixels(c, settings)[inner] for c in classes]
    classes = [c[inner] for c in classes]
    shown: dict[object, int] = {}
    for acquisition in acquisitions:
        members = [c for c, a in zip(clear, acquisitions, strict=True) if a == acquisition]
        shown.setdefault(acquisition, int((np.logical_or.reduce(members) & needed).sum()))
    order = sorted(range(len(classes)), key=lambda n: -shown[acquisitions[n]])  # stable: the given order decides ties
    source = np.full(needed.shape, -1, np.int16)
    for n in order:
        new = clear[n] & needed & (source < 0)
        if new.sum() >= max(1, MIN_SHARE * needed.sum()):
            source[new] = n
    if len(shown) > 1:
        shadow = np.logical_and.reduce([(c == CLOUD_SHADOW) | (c == NO_DATA) for c in classes])
        seen = np.sum([
            np.logical_or.reduce([c == CLOUD_SHADOW for c, a in zip(classes, acquisitions, strict=True) if a == each])
            for each in shown
        ], axis=0)  # fmt: skip
        for n in order:
            new = shadow & (seen > 1) & (classes[n] == CLOUD_SHADOW) & needed & (source < 0)
            if (source == n).any():
                source[new] = n
    return source


def compose(items: Sequence[Item], geobox: Any, needed: np.ndarray, settings: Settings, service: Service) -> Composite:
    """Compose a group of chips.

    Args:
        items: Sentinel-2 L2A scenes over it, STAC JSON.
        geobox: its grid.
        needed: (H, W) bool, pixels that matter.
        settings: of the ingest.
        service: where the files are.

    Raises:
        ServiceDownError: a server fails in spite of the retries.
        AccessDeniedError: the service refuses its files.
    """
    result = Composite(np.zeros((len(S2_BANDS), *needed.shape), np.uint16), np.full(needed.shape, -1, np.int16))
    classes: list[np.ndarray] = []
    scenes: list[Item] = []
    around = geobox.pad(settings.cloud_buffer) if settings.cloud_buffer else geobox

    def look(item: Item) -> bool:
        """Take a scene whose classification can be read; of one that is broken its next version."""
        try:
            require(item, ASSETS["s2"])
            found = read(
                item, ["SCL"], around, service, settings.retries, dtype="uint8", nodata=NO_DATA, resampling="nearest"
            )
        except BrokenAssetError as error:
            result.broken.append(str(error))
            return look_at_next(item)
        classes.append(found["SCL"])
        scenes.append(item)
        return True

    def look_at_next(item: Item) -> bool:
        return any(look({**other, "versions": item["versions"][1:]}) for other in item.get("versions", [])[:1])

    seen: set[object] = set()
    for item in _candidates(items, geobox.crs.epsg):
        if len(seen) == settings.max_scenes and _acquisition(item) not in seen:
            break
        if look(item):
            seen.add(_acquisition(item))
    broken: set[int] = set()
    used: dict[int, tuple[np.ndarray, int]] = {}
    while True:
        alive = [n for n in range(len(scenes)) if n not in broken]
        if not alive:
            return result
        chosen = choose([classes[n] for n in alive], [_acquisition(scenes[n]) for n in alive], needed, settings)
        source = np.where(chosen >= 0, np.array(alive, np.int16)[chosen], -1)
        try:
            for n in np.unique(source[source >= 0]).tolist():
                here = source == n
                if n not in used or (~used[n][0] & here).any():
                    offset, note = _fill(result.s2, scenes[n], here, geobox, settings, service)
                    used[n] = here, offset
                    result.notes += [note] if note else []
            break
        except BrokenAssetError as error:  # its pixels go to the scenes after it
            result.broken.append(str(error))
            broken.add(n)
            look_at_next(scenes[n])
            result.s2[:, source == n] = 0
    for n in np.unique(source[source >= 0]).tolist():
        result.source[source == n] = len(result.scenes)
        result.scenes.append((scenes[n]["id"], when(scenes[n]).date(), used[n][1]))
    result.source[(result.s2 == 0).all(axis=0)] = -1
    result.s2[:, result.source < 0] = 0
    return result


def _candidates(items: Sequence[Item], epsg: int) -> list[Item]:
    """Scenes, the least cloudy acquisition first; of one those on the group's own grid first, then the newest ones."""
    cloud: dict[tuple[str, str], list[float]] = {}
    for item in items:
        cloud.setdefault(_acquisition(item), []).append(cloud_cover(item))
    best = sorted(cloud, key=lambda a: (sum(cloud[a]) / len(cloud[a]), a))
    newest = sorted(items, key=version, reverse=True)
    return sorted(newest, key=lambda item: (best.index(_acquisition(item)), grid_epsg(item) != epsg))


def _judged(used: np.ndarray, size: int) -> slice:
    """Rows (or columns) to read around those that are used, of ``size`` in all.

    Edges on multiples of 6 pixels: bands of 20 and 60 m are resampled alike, however a group is cut.
    """
    wider = max(0, JUDGED - (used[-1] + 1 - used[0])) // 2
    begin = max(0, min(used[0] - wider, size - JUDGED)) // 6 * 6
    return slice(begin, min(-(-max(used[-1] + 1 + wider, begin + JUDGED) // 6) * 6, size))


def _fill(
    s2: np.ndarray, item: Item, where: np.ndarray, geobox: Any, settings: Settings, service: Service
) -> tuple[int, str]:
    """Read the bands of a scene where it is used, a box around it, and copy them there.

    Returns:
        The offset removed, and a note, see :func:`settle_offset`.
    """
    box = tuple(_judged(np.flatnonzero(where.any(axis=axis)), where.shape[1 - axis]) for axis in (1, 0))
    inner = where[box]
    step = max(1, inner.size // SAMPLE)
    samples = {}

    def put(band: str, numbers: np.ndarray) -> None:
        samples[band] = numbers.reshape(-1)[::step].copy()
        s2[S2_BANDS.index(band)][box][inner] = numbers[inner]

    # Digital numbers go to their place band by band, so that no band is held twice; reflectance is made there.
    read(item, S2_BANDS, geobox[box], service, settings.retries, dtype="uint16", nodata=0, take=put)
    conversions = [stated_conversion(item, band) for band in S2_BANDS]
    offset, note = settle_offset(item, conversions[1], np.stack([samples[band] for band in S2_BANDS]))
    for n, conversion in enumerate(conversions):
        factor = conversion.factor if conversion else 1.0
        s2[n][box][inner] = reflectance(s2[n][box][inner], factor, offset)
    return round(offset), note
