"""Asking a STAC service what it holds, with bounded retries, and sharing the answer out over windows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from cryosentinel.errors import HubError
from cryosentinel.ingest.grid import Box, Window
from cryosentinel.ingest.settings import DEM_COLLECTIONS, S1_COLLECTIONS, S2_COLLECTIONS, Settings

PAGE = 100  # items a page of an answer
SEARCH_DEGREES = 2.0  # windows within a square of this side share one search
_RETRIED = (429, 500, 502, 503, 504)

Item = dict[str, Any]


@dataclass
class Found:
    """The items over a window, as STAC JSON with only the assets that are read.

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


def open_service(url: str, settings: Settings) -> Any:
    """Connect to a STAC API.

    Raises:
        HubError: the service cannot be reached, or the address is not a STAC API's.
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
    try:
        return Client.open(url, stac_io=StacApiIO(max_retries=retry, timeout=60))
    except Exception as error:  # requests, urllib3, json and pystac fail each in their own way
        raise HubError(
            f"The STAC service {url} cannot be reached ({_reason(error)}); check the address and the network."
        ) from None


def _reason(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return text[:160] or type(error).__name__


def collections(client: Any, settings: Settings) -> dict[str, str]:
    """The collections to read: "s2", "s1" and "dem" -> name.

    Raises:
        HubError: the service lacks one, or does not answer.
    """
    try:
        held = sorted(collection.id for collection in client.get_collections())
    except Exception as error:
        raise HubError(
            f"The STAC service {client.self_href} does not list its collections ({_reason(error)})."
        ) from None
    names = {}
    for key, usual, option in (
        ("s2", S2_COLLECTIONS, settings.s2_collection),
        ("s1", S1_COLLECTIONS, settings.s1_collection),
        ("dem", DEM_COLLECTIONS, settings.dem_collection),
    ):
        wanted = (option,) if option else usual
        found = next((name for name in wanted if name in held), None)
        if found is None:
            raise HubError(
                f"The STAC service {client.self_href} holds no collection {' or '.join(wanted)}; it has "
                f"{', '.join(held[:12]) or 'none'}; name one with {key}_collection."
            )
        names[key] = found
    return names


def _search(client: Any, collection: str, box: Box, days: tuple[date, date] | None, cloud: float | None) -> list[Item]:
    options: dict[str, Any] = {}
    if days is not None:
        options["datetime"] = f"{days[0]}T00:00:00Z/{days[1]}T23:59:59Z"
    if cloud is not None and client.conforms_to("QUERY"):
        options["query"] = {"eo:cloud_cover": {"lte": cloud}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about extensions that the service does not declare
            search = client.search(collections=[collection], bbox=list(box), limit=PAGE, **options)
            return list(search.items_as_dicts())
    except Exception as error:
        raise HubError(
            f"The STAC service {client.self_href} failed while searching {collection} ({_reason(error)}); run the same "
            "command again to go on."
        ) from None


def _pruned(item: Item, keys: Iterable[str]) -> Item:
    """An item with only the assets that are read: it travels to the workers."""
    wanted = tuple(keys)
    assets = {key: asset for key, asset in item["assets"].items() if key.lower().startswith(wanted)}
    return {**item, "assets": assets, "links": []}


def newest(items: Iterable[Item]) -> list[Item]:
    """Of a scene that was processed several times only the newest version, by tile, satellite and second."""
    best: dict[tuple, tuple[tuple[str, str, str], Item]] = {}
    for item in items:
        p = item["properties"]
        tile = p.get("grid:code") or p.get("s2:mgrs_tile") or tuple(round(v, 2) for v in item["bbox"])
        projection = p.get("proj:code") or p.get("proj:epsg")
        key = (tile, projection, p.get("platform"), when(item).replace(microsecond=0))
        version = (_baseline(p), str(p.get("s2:generation_time") or p.get("created") or ""), item["id"])
        if key not in best or version > best[key][0]:
            best[key] = version, item
    return [item for _, item in best.values()]


def _baseline(properties: dict[str, Any]) -> str:
    return str(properties.get("s2:processing_baseline") or properties.get("processing:version") or "")


def search_windows(
    client: Any, names: dict[str, str], windows: Sequence[Window], year: int, settings: Settings
) -> dict[int, Found]:
    """What the service holds over each window: three searches for all windows of a 2-degree square.

    Returns:
        Window number -> items over it.

    Raises:
        HubError: the service fails in spite of the retries.
    """
    from tqdm import tqdm

    squares: dict[tuple[int, int], list[Window]] = {}
    for window in windows:
        west, south, east, north = window.degrees()
        key = int((west + east) / 2 // SEARCH_DEGREES), int((south + north) / 2 // SEARCH_DEGREES)
        squares.setdefault(key, []).append(window)
    found: dict[int, Found] = {}
    for members in tqdm(squares.values(), desc="Search", unit="square", disable=len(squares) < 2):
        boxes = [window.degrees() for window in members]
        lows, highs = zip(*((b[:2], b[2:]) for b in boxes), strict=True)
        box = (min(b[0] for b in lows), min(b[1] for b in lows), max(b[0] for b in highs), max(b[1] for b in highs))
        everything = _search_square(client, names, box, year, settings)
        for window, own in zip(members, boxes, strict=True):
            found[window.number] = Found(
                **{name: [item for item in items if _meets(item, own)] for name, items in vars(everything).items()}
            )
    return found


def _search_square(client: Any, names: dict[str, str], box: Box, year: int, settings: Settings) -> Found:
    season, fallback = settings.days("season", year), settings.days("fallback", year)
    cloudy = settings.max_cloud
    s2 = [
        item
        for item in _search(client, names["s2"], box, (min(season + fallback), max(season + fallback)), cloudy)
        if any(a <= when(item).date() <= b for a, b in (season, fallback)) and cloud_cover(item) <= cloudy
    ]
    s1: list[Item] = []
    if s2:
        near = timedelta(days=settings.radar_days)
        days = [when(item).date() for item in s2]
        s1 = _search(client, names["s1"], box, (min(days) - near, max(days) + near), None)
    dem = _search(client, names["dem"], box, None, None)
    return Found(
        s2=[_pruned(item, ("b", "r", "g", "nir", "swir", "coastal", "scl")) for item in newest(s2)],
        s1=[_pruned(item, ("v", "schema-calibration")) for item in s1],
        dem=[_pruned(item, ("data", "elevation", "dem")) for item in dem],
    )


def _meets(item: Item, box: Box) -> bool:
    """Whether an item's footprint meets a box; an item without one is taken by its bbox."""
    from shapely.geometry import box as rectangle
    from shapely.geometry import shape

    geometry = item.get("geometry")
    outline = shape(geometry) if geometry else rectangle(*item["bbox"])
    return bool(outline.intersects(rectangle(*box)))
