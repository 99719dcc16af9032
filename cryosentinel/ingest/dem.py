"""The Copernicus DEM on a window: its one-degree tiles side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cryosentinel.ingest.reading import BrokenAssetError, asset_key, read_item
from cryosentinel.ingest.search import Item
from cryosentinel.ingest.settings import DEM_ASSETS, Settings
from cryosentinel.sensors import DEM_NODATA


def read_dem(
    items: Sequence[Item], geobox: Any, settings: Settings, sign: Callable[[str], str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Elevation of a window.

    Returns:
        (1, H, W) int16 metres, -32768 where there is none; and what could not be read.

    Raises:
        ServiceDownError: a server fails in spite of the retries.
    """
    dem = np.full(geobox.shape, np.nan, np.float32)
    broken: list[str] = []
    for item in sorted(items, key=lambda item: item["id"]):
        if np.isfinite(dem).all():
            break
        key = asset_key(item, DEM_ASSETS)
        try:
            if key is None:
                raise BrokenAssetError(f"{item['id']} (no asset {' or '.join(DEM_ASSETS)})")
            options: dict[str, Any] = {"dtype": "float32", "nodata": float("nan"), "resampling": "bilinear"}
            tile = read_item(item, {"dem": key}, geobox, retries=settings.retries, sign=sign, **options)["dem"]
        except BrokenAssetError as error:
            broken.append(str(error))
            continue
        tile = np.where((tile > DEM_NODATA[0]) & (tile < DEM_NODATA[1]), tile, np.nan)
        dem = np.where(np.isfinite(dem), dem, tile)
    return np.where(np.isfinite(dem), np.rint(dem), -32_768).astype(np.int16)[None], broken
