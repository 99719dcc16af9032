"""The Copernicus DEM on a group of chips: its one-degree tiles side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cryosentinel.ingest.reading import read, side_by_side
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

    def load(tile: Item) -> np.ndarray:
        values = read(tile, ["DEM"], geobox, service, settings.retries)["DEM"]
        return np.where((values > DEM_NODATA[0]) & (values < DEM_NODATA[1]), values, np.nan)[None]

    dem, broken = side_by_side(sorted(items, key=lambda item: item["id"]), load, (1, *geobox.shape))
    return np.where(np.isnan(dem), -32_768, np.rint(dem)).astype(np.int16), broken
