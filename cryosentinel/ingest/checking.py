"""What an ingest would use, found out in seconds: one item and one pixel of each modality."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import date
from urllib.parse import urlsplit

import numpy as np

from cryosentinel.errors import HubError
from cryosentinel.ingest.grid import Box
from cryosentinel.ingest.reading import BrokenAssetError, read, require
from cryosentinel.ingest.search import Catalogue, Item, cloud_cover, grid_epsg, open_catalogues, search_box, when
from cryosentinel.ingest.sentinel1 import in_decibels, product_of
from cryosentinel.ingest.sentinel2 import stated_conversion
from cryosentinel.ingest.services import ASSETS, SENSORS, find_services
from cryosentinel.ingest.settings import Settings

TRIED = 3  # items a modality at most
DEGREES = 0.2  # a side of the box that is searched: a few items tell enough


@dataclass(frozen=True)
class Checked:
    """One modality, tried.

    Attributes:
        modality: "s2", "s1" or "dem".
        service, collections: that would be read.
        items: over the middle of the box in the season.
        item, day: the one that was tried.
        host: of its files.
        says: how its numbers would be taken.
        pixel: one of them.
        seconds: for search and pixel.
    """

    modality: str
    service: str
    collections: tuple[str, ...]
    items: int
    item: str
    day: date
    host: str
    says: str
    pixel: float
    seconds: float

    def __str__(self) -> str:
        pixel = "no data there" if _empty(self.modality, self.pixel) else f"pixel {self.pixel:g}"
        return (
            f"{SENSORS[self.modality]}: {self.service}, {' then '.join(self.collections)}; {self.items} here, "
            f"tried {self.item} of {self.day} at {self.host}: {self.says}; {pixel} ({self.seconds:.1f} s)"
        )


def check(box: Box, year: int, service: str, settings: Settings | None = None, **own: str | None) -> list[Checked]:
    """Try each modality's service on one item over the middle of a box, and on one of its pixels.

    Args:
        box: west, south, east, north in degrees.
        year: of the images.
        service: name or address for all modalities.
        settings: of the ingest.
        own: ``s2_service``, ``s1_service``, ``dem_service`` where a modality comes from another service.

    Returns:
        One record a modality.

    Raises:
        ConfigError, HubError, InputError: what an ingest would end with.
    """
    settings = settings or Settings(retries=1)
    services = find_services(service, {m: own.get(f"{m}_service") for m in SENSORS}, settings.collections)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_x, half_y = (min(DEGREES, side) / 2 for side in (box[2] - box[0], box[3] - box[1]))
    middle = x - half_x, y - half_y, x + half_x, y + half_y
    begun = time.monotonic()
    catalogues = open_catalogues(services, settings)
    found = search_box(catalogues, middle, year, settings)
    searched = (time.monotonic() - begun) / len(services)
    results = []
    for modality, catalogue in catalogues.items():
        items: list[Item] = getattr(found, modality)
        if not items:
            raise catalogue.nothing(f"around {y:.2f} N {x:.2f} E", year)
        begun = time.monotonic()
        name = {"s2": "B03", "s1": "VV", "dem": "DEM"}[modality]
        broken = ""
        for item in sorted(items, key=lambda item: (cloud_cover(item), item["id"]))[:TRIED]:
            try:
                require(item, ASSETS[modality])
                pixel = _pixel(item, name, (x, y), catalogue, settings)
                break
            except BrokenAssetError as error:  # an ingest would leave it out and take the next
                broken = broken or str(error)
        else:
            raise HubError(f"{catalogue.service.name} has no item here that can be read: {broken}.")
        seconds = time.monotonic() - begun + searched
        host, says = urlsplit(item["assets"][name]["href"]).netloc, _says(item, modality, name, pixel)
        source = catalogue.service.name, catalogue.collections, len(items), item["id"], when(item).date(), host
        results.append(Checked(modality, *source, says, pixel, seconds))
    return results


def _empty(modality: str, pixel: float) -> bool:
    return not np.isfinite(pixel) or (modality == "s2" and pixel == 0)


def _pixel(item: Item, name: str, place: tuple[float, float], catalogue: Catalogue, settings: Settings) -> float:
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer

    from cryosentinel.geo import utm_epsg

    west, south, east, north = item["bbox"]
    lon, lat = float(np.clip(place[0], west, east)), float(np.clip(place[1], south, north))
    epsg = grid_epsg(item) or utm_epsg(lat, lon)
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    grid = GeoBox((1, 1), Affine(10, 0, x // 10 * 10, 0, -10, y // 10 * 10), f"EPSG:{epsg}")
    return float(read(item, [name], grid, catalogue.service, settings.retries, resampling="nearest")[name][0, 0])


def _says(item: Item, modality: str, name: str, pixel: float) -> str:
    if modality == "s2":
        stated = stated_conversion(item, name)
        if stated is None:
            return "states no offset, which its pixels will have to tell"
        return f"offset {stated.offset:g} to subtract, as stated; the pixels of each scene are asked too"
    if modality == "s1":
        product, convention = product_of(item)
        unit = "dB" if in_decibels(item, name, np.array([pixel])) else "linear power"
        unit = "unit not told by it" if _empty(modality, pixel) else unit
        return f"{product} {convention}, {unit}, EPSG:{grid_epsg(item)}"
    return "metres"
