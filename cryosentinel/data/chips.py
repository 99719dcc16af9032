"""Chips and their codecs, under one name: the published Parquet shard, the 15-band GeoTIFF, and the valid mask."""

from cryosentinel.data.geotiff import BAND_NAMES, Raster, check_geotiff, read_geotiff, split_bands, write_geotiff
from cryosentinel.data.pixels import LAYOUT, Chip, clean, impossible_value, valid_mask
from cryosentinel.data.shards import (
    SHARD_SCHEMA,
    iter_shard,
    open_shard,
    read_shard,
    read_shard_metadata,
    write_shard,
)

__all__ = [
    "BAND_NAMES",
    "LAYOUT",
    "SHARD_SCHEMA",
    "Chip",
    "Raster",
    "check_geotiff",
    "clean",
    "impossible_value",
    "iter_shard",
    "open_shard",
    "read_geotiff",
    "read_shard",
    "read_shard_metadata",
    "split_bands",
    "valid_mask",
    "write_geotiff",
    "write_shard",
]
