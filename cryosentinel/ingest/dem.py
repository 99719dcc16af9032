"""The Copernicus DEM on a group of chips: its one-degree tiles side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cryosentinel.ingest.reading import BrokenAssetError, read
from cryosentinel.ingest.search import Item
from cryosentinel.ingest.services import Service
from cryosentinel.ingest.settings import Settings
from cryosentinel.sensors import DEM_NODATA


def read_dem(items: Sequence[Item], geobox: Any, settings: Settings, service: Service) -> tuple[np.ndarray, list[str]]:
    """Elevation of a group.

    Returns:
        (1, H, W) int16 metres, -32768 where there is none; and what could not be read.

    Raises:
        ServiceDownError: a server fails in spite of the retries.
        AccessDeniedError: the service refuses its files.
    """
    dem, broken = np.full(geobox.shape, np.nan, np.float32), []
    options: dict[str, Any] = {"dtype": "float32", "nodata": float("nan"), "resampling": "bilinear"}
    for tile in sorted(items, key=lambda item: item["id"]):
        try:
            if "DEM" not in tile["assets"]:
                raise BrokenAssetError(f"{tile['id']} (no asset of elevation)")
            values = read(tile, ["DEM"], geobox, service, settings.retries, **options)["DEM"]
        except BrokenAssetError as error:
            broken.append(str(error))
            continue
        held = np.isnan(dem) & (values > DEM_NODATA[0]) & (values < DEM_NODATA[1])
        dem[held] = values[held]
    return np.where(np.isnan(dem), -32_768, np.rint(dem)).astype(np.int16)[None], broken
