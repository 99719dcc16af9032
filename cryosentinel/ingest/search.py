"""Asking STAC services what they hold, and sharing the answer out over groups of chips."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from cryosentinel.errors import HubError, InputError
from cryosentinel.ingest.grid import Box, ChipGroup
from cryosentinel.ingest.reading import AccessDeniedError, first_line
from cryosentinel.ingest.services import ASSETS, SENSORS, Service
from cryosentinel.ingest.settings import Settings

PAGE = 100  # items a page of an answer
SEARCH_DEGREES = 2.0  # groups within a square of this side share one search
_RETRIED = (429, 500, 502, 503, 504)

Item = dict[str, Any]


@dataclass
class Found:
    """The items over a group of chips, as STAC JSON with only the assets that are read, by our names.

    Attributes:
        s2: of the season and of the fallback, cloudy ones left out.
        s1, dem: as their names say.
    """

    s2: list[Item] = field(default_factory=list)
    s1: list[Item] = field(default_factory=list)
    dem: list[Item] = field(default_factory=list)


def when(item: Item) -> datetime:
    """Time of acquisition, UTC."""
    properties = item["properties"]
    text = properties.get("datetime") or properties.get("start_datetime") or ""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise HubError(f"The item {item.get('id')} of the STAC service states no usable time ({text!r}).") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def cloud_cover(item: Item) -> float:
    """Percent of a scene, 0 where the item states none."""
    return float(item["properties"].get("eo:cloud_cover") or 0)


def grid_epsg(item: Item) -> int | None:
    """EPSG code of an item's own projected grid, of the item or of its assets (STAC 1.1 allows both); None without one.

    4326 stands on items whose pixels are in no grid at all, so degrees do not count.
    """
    for holder in (item["properties"], *item["assets"].values()):
        stated = str(holder.get("proj:code") or holder.get("proj:epsg") or "").rpartition(":")[2]
        if stated.isdigit() and int(stated) != 4326:
            return int(stated)
    return None


@dataclass
class Catalogue:
    """An open STAC API, and which of its collections hold a modality.

    Attributes:
        service: where it is.
        modality: "s2", "s1" or "dem".
        client: of pystac-client.
        collections: to search, the preferred one first.
    """

    service: Service
    modality: str
    client: Any
    collections: tuple[str, ...]

    def search(self, box: Box, days: tuple[date, date] | None, cloud: float | None = None) -> list[Item]:
        """Items over a box, of all collections, of a scene that they hold several times only the best version.

        Raises:
            HubError: the service fails in spite of the retries.
        """
        options: dict[str, Any] = {}
        if days is not None:
            options["datetime"] = f"{days[0]}T00:00:00Z/{days[1]}T23:59:59Z"
        if cloud is not None and self.client.conforms_to("QUERY"):
            options["query"] = {"eo:cloud_cover": {"lte": cloud}}
        found: list[Item] = []
        for collection in self.collections:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about extensions that the service does not declare
                    answer = self.client.search(collections=[collection], bbox=list(box), limit=PAGE, **options)
                    found += [_pruned(item, self.modality) for item in answer.items_as_dicts()]
            except Exception as error:
                raise _refused(self.service, error) or HubError(
                    f"The STAC service {self.service.url} failed while searching {collection} ({first_line(error)}); "
                    "run the same command again to go on."
                ) from None
        if self.modality == "s1":
            dual = [item for item in found if len(item["assets"]) == len(ASSETS["s1"])]  # others lack VV or VH
            gridded = [item for item in dual if grid_epsg(item) is not None]
            if dual and not gridded:
                refuse_ungridded(dual, self.service)
            if len(gridded) < len(dual):
                warnings.warn(
                    f"{len(dual) - len(gridded)} of {len(dual)} radar items of {self.service.name} state no map "
                    "projection and are left out.",
                    stacklevel=2,
                )
            return gridded
        return newest(found, self.collections) if self.modality == "s2" else found

    def nothing(self, where: str, year: int) -> InputError:
        """That the modality is not there."""
        return InputError(
            f"{self.service.name} holds no {SENSORS[self.modality]} acquisition ({', '.join(self.collections)}) "
            f"{where} in the season of {year} that passes the limits; check year, box, season and cloud limit, or take "
            "it from another service."
        )


def open_catalogues(services: Mapping[str, Service], settings: Settings) -> dict[str, Catalogue]:
    """Connect to the services, each once, and see which collections they hold.

    Returns:
        modality -> catalogue.

    Raises:
        HubError: a service cannot be reached, is no STAC API, or lacks the collections.
    """
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO
    from urllib3 import Retry

    retry = Retry(
        total=settings.retries,
        backoff_factor=0.2,
        status_forcelist=_RETRIED,
        allowed_methods=None,
        raise_on_status=False,
    )
    opened: dict[str, tuple[Any, list[str]]] = {}
    catalogues = {}
    for modality, service in services.items():
        if service.url not in opened:
            try:
                client = Client.open(service.url, stac_io=StacApiIO(max_retries=retry, timeout=60))
                held = sorted(collection.id for collection in client.get_collections())
            except Exception as error:  # requests, urllib3, json and pystac fail each in their own way
                raise _refused(service, error) or HubError(
                    f"The STAC service {service.url} cannot be reached ({first_line(error)}); check the address and "
                    "the network."
                ) from None
            opened[service.url] = client, held
        client, held = opened[service.url]
        option = settings.collections[modality]
        wanted = (option,) if option else service.collections[modality]
        found = tuple(name for name in wanted if name in held)
        if not found:
            raise HubError(
                f"The STAC service {service.url} holds no collection {' or '.join(wanted)}; it has "
                f"{', '.join(held[:12]) or 'none'}; name one with {modality}_collection."
            )
        catalogues[modality] = Catalogue(service, modality, client, found)
    return catalogues


def _refused(service: Service, error: Exception) -> AccessDeniedError | None:
    """That a STAC API wants to know who asks; None where that is not what failed."""
    status = getattr(error, "status_code", None)
    if status not in (401, 403):
        return None
    return AccessDeniedError(
        f"The STAC service {service.url} refuses to answer (HTTP {status}); asking again will not help: its catalogue "
        "is open only to those it knows, or it has blocked you. Take another service."
    )


def _pruned(item: Item, modality: str) -> Item:
    """An item with only the assets that are read, by our names: it travels to the workers."""
    lower = {key.lower(): asset for key, asset in item["assets"].items()}
    assets = {
        name: lower[next(key for key in keys if key in lower)]
        for name, keys in ASSETS[modality].items()
        if any(key in lower for key in keys)
    }
    return {**item, "assets": assets, "links": []}


def refuse_ungridded(items: Iterable[Item], service: Service) -> None:
    """Refuse radar in its own geometry.

    Raises:
        InputError: an item lies on no projected grid.
    """
    for item in items:
        if grid_epsg(item) is None:
            raise InputError(
                f"{item['id']} of {item.get('collection')} is radar in its own geometry (GRD, on no map projection): "
                "not calibrated, and displaced by mountains by up to kilometres. Take terrain-corrected backscatter "
                f"(RTC) instead, from another collection of {service.name} or another service: --s1_service "
                "planetary-computer."
            )


def scene_key(item: Item) -> tuple:
    """What two versions of one scene have in common: tile, projection, satellite and the datastrip's beginning.

    A datatake that was received in several datastrips covers a tile in parts, whose items may state one and the same
    time: they are different scenes.
    """
    p = item["properties"]
    tile = str(p.get("grid:code") or p.get("s2:mgrs_tile") or [round(v, 2) for v in item["bbox"]]).removeprefix("MGRS-")
    strip = re.search(r"_S(\d{8}T\d{6})", str(p.get("s2:datastrip_id") or p.get("eopf:datastrip_id") or ""))
    begin = strip[1] if strip else when(item).strftime("%Y%m%dT%H%M%S")
    return tile, grid_epsg(item), str(p.get("platform", "")).lower(), begin


def version(item: Item) -> tuple[str, str, str]:
    """Orders the versions of a scene: by processing baseline, then by time of processing."""
    p = item["properties"]
    made = p.get("s2:generation_time") or p.get("processing:datetime") or p.get("created") or ""
    return str(p.get("s2:processing_baseline") or p.get("processing:version") or ""), str(made), item["id"]


def newest(items: Iterable[Item], collections: Sequence[str]) -> list[Item]:
    """Of a scene that is there several times only one: of the first collection that has it, the newest version.

    The others wait under its key "versions", the next best first, for the case that its files are broken.
    """
    found: dict[tuple, list[Item]] = {}

    def rank(item: Item) -> tuple:
        return -collections.index(item["collection"]), version(item)

    for item in items:
        found.setdefault(scene_key(item), []).append(item)
    ranked = (sorted(versions, key=rank, reverse=True) for versions in found.values())
    return [{**best, "versions": others} for best, *others in ranked]


def search_groups(
    catalogues: Mapping[str, Catalogue], groups: Sequence[ChipGroup], year: int, settings: Settings
) -> dict[int, Found]:
    """What the services hold over each group: one search a collection for all groups of a 2-degree square.

    Returns:
        Group number -> items over it.

    Raises:
        HubError: a service fails in spite of the retries.
        InputError: the radar is not terrain-corrected.
    """
    from tqdm import tqdm

    squares: dict[tuple[int, int], list[ChipGroup]] = {}
    for group in groups:
        west, south, east, north = group.degrees()
        key = int((west + east) / 2 // SEARCH_DEGREES), int((south + north) / 2 // SEARCH_DEGREES)
        squares.setdefault(key, []).append(group)
    found: dict[int, Found] = {}
    for members in tqdm(squares.values(), desc="Search", unit="square", disable=len(squares) < 2):
        boxes = [group.degrees() for group in members]
        lows, highs = zip(*((b[:2], b[2:]) for b in boxes), strict=True)
        box = (min(b[0] for b in lows), min(b[1] for b in lows), max(b[0] for b in highs), max(b[1] for b in highs))
        everything = search_box(catalogues, box, year, settings)
        for group, own in zip(members, boxes, strict=True):
            found[group.number] = Found(
                **{name: [item for item in items if _meets(item, own)] for name, items in vars(everything).items()}
            )
    return found


def search_box(catalogues: Mapping[str, Catalogue], box: Box, year: int, settings: Settings) -> Found:
    """What the services hold over a box in the season (and fallback) of a year."""
    season, fallback = settings.days("season", year), settings.days("fallback", year)
    cloudy = settings.max_cloud
    s2 = [
        item
        for item in catalogues["s2"].search(box, (min(season + fallback), max(season + fallback)), cloudy)
        if any(a <= when(item).date() <= b for a, b in (season, fallback)) and cloud_cover(item) <= cloudy
    ]
    s1: list[Item] = []
    if s2:
        near = timedelta(days=settings.radar_days)
        days = [when(item).date() for item in s2]
        s1 = catalogues["s1"].search(box, (min(days) - near, max(days) + near))
    return Found(s2, s1, catalogues["dem"].search(box, None))


def _meets(item: Item, box: Box) -> bool:
    """Whether an item's footprint meets a box; an item without one is taken by its bbox."""
    from shapely.geometry import box as rectangle
    from shapely.geometry import shape

    geometry = item.get("geometry")
    outline = shape(geometry) if geometry else rectangle(*item["bbox"])
    return bool(outline.intersects(rectangle(*box)))
