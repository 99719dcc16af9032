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
    tiles = sorted((item for item in items if "DEM" in item["assets"]), key=lambda item: item["id"])
    broken = [f"{item['id']} (no asset of elevation)" for item in items if "DEM" not in item["assets"]]

    def load(chosen: Sequence[Item]) -> np.ndarray:
        options: dict[str, Any] = {"dtype": "float32", "nodata": float("nan"), "resampling": "bilinear"}
        values = read(chosen, ["DEM"], geobox, service, settings.retries, **options)["DEM"]
        return np.where((values > DEM_NODATA[0]) & (values < DEM_NODATA[1]), values, np.nan)

    dem = np.full(geobox.shape, np.nan, np.float32)
    try:
        dem = load(tiles) if tiles else dem
    except BrokenAssetError:
        for tile in tiles:  # one of them is broken: which one shows when they are read one by one
            try:
                dem = np.where(np.isfinite(dem), dem, load([tile]))
            except BrokenAssetError as error:
                broken.append(str(error))
    return np.where(np.isfinite(dem), np.rint(dem), -32_768).astype(np.int16)[None], broken
