"""Shards converted once into memory-mapped files, shared by every worker, rank and process that reads the dataset.

A cache entry is a folder beside nothing else: ``pixels.npy`` (one record a chip: the arrays as they are on disk, and
the valid mask) and ``index.parquet`` (one row a chip). Its name carries a digest of the shard, so a changed shard
misses its old entry and is converted anew. An entry appears by one rename, so a kill leaves none or a whole one; a file
lock makes a second process wait for the first instead of repeating its work.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from cryosentinel.data.pixels import LAYOUT, Chip
from cryosentinel.data.sanity import THRESHOLDS, agreement, column
from cryosentinel.data.shards import iter_shard, missing_columns, open_shard
from cryosentinel.errors import InputError
from cryosentinel.files import replacing

VERSION = 1  # of the entry's layout; part of the digest
PIXELS, INDEX = "pixels.npy", "index.parquet"
_TAIL = struct.Struct("<I4s")  # a Parquet file ends in the footer's length and its magic number


def default_cache_dir(root: Path) -> Path:
    """Where a dataset's cache goes when no folder is given.

    Inside the dataset (``<root>/.cache/chips``), so that it goes when the dataset goes; where the dataset cannot be
    written (a shared, read-only copy), a folder of the user's cache, one for each dataset by the hash of its path.
    """
    if os.access(root, os.W_OK):
        return root / ".cache" / "chips"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
    return home / "cryosentinel" / "chips" / name


def shard_digest(path: Path) -> str:
    """Changes when a shard does: its size, its time of change, and the digest of its Parquet footer.

    Raises:
        InputError: the file is gone or too short to be Parquet.
    """
    try:
        status = path.stat()
        with open(path, "rb") as handle:
            handle.seek(max(status.st_size - _TAIL.size, 0))
            tail = handle.read()
            length = _TAIL.unpack(tail)[0] if len(tail) == _TAIL.size else 0
            handle.seek(max(status.st_size - _TAIL.size - length, 0))
            footer = handle.read(min(length, status.st_size))
    except OSError as error:
        raise InputError(f"The shard {path} cannot be read ({error.strerror}); check the path.") from None
    text = f"{VERSION}|{status.st_size}|{status.st_mtime_ns}|".encode()
    return hashlib.sha256(text + footer).hexdigest()[:16]


def entry_of(cache_dir: Path, name: str, shard: Path) -> Path:
    """The cache entry of a shard: ``<cache>/<region>--<year>--shard_000-<digest>``."""
    return cache_dir / f"{_key(name)}-{shard_digest(shard)}"


def _key(name: str) -> str:
    return name.removesuffix(".parquet").replace("/", "--")


def cache_shard(name: str, shard: Path, cache_dir: Path) -> Path:
    """Convert a shard unless its entry is there already.

    Args:
        name: the shard's path below the dataset's root, with forward slashes.
        shard: its path.
        cache_dir: where entries are kept.

    Returns:
        The entry's folder.

    Raises:
        InputError: the shard is corrupt, or mixes chips of different sizes.
        OSError: the cache cannot be written (full disk); nothing half-written is left.
    """
    entry = entry_of(cache_dir, name, shard)
    if entry.is_dir():
        return entry
    lock = cache_dir / ".locks" / _key(name)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # let go by the system when its holder dies
        if entry.is_dir():  # another process made it while this one waited
            return entry
        # Under the lock nobody else writes this shard's entries: what lies there is stale, or a killed conversion's.
        for old in [*cache_dir.glob(f"{_key(name)}-*"), *cache_dir.glob(f".{_key(name)}-*")]:
            shutil.rmtree(old, ignore_errors=True)
        with replacing(entry) as part:
            part.mkdir(parents=True)
            _write_entry(name, shard, part)
    return entry


def _write_entry(name: str, shard: Path, folder: Path) -> None:
    with open_shard(shard) as source:
        count, missing = source.metadata.num_rows, missing_columns(source)
    rows: list[dict[str, Any]] = []
    records: np.memmap | None = None
    for row, chip in enumerate(iter_shard(shard, warn=False)):
        if records is None:
            records = np.lib.format.open_memmap(folder / PIXELS, "w+", _record_type(chip.mask.shape), (count,))
        if chip.mask.shape != records.dtype["mask"].shape:
            raise InputError(
                f"Row {row} of the shard {shard} is {_size(chip.mask.shape)} pixels and the rows before are "
                f"{_size(records.dtype['mask'].shape)}; a shard holds chips of one size."
            )
        record = records[row]
        for field in LAYOUT:
            record[field] = getattr(chip, field)
        valid = chip.valid
        record["valid"] = valid
        rows.append(_index_row(name, row, chip, valid, missing))
    if records is None:
        raise InputError(f"The shard {shard} holds no chips; remove it or build it again.")
    records.flush()
    pd.DataFrame(rows).to_parquet(folder / INDEX, index=False)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _record_type(shape: tuple[int, ...]) -> np.dtype:
    fields = [(name, dtype, (bands, *shape) if bands else shape) for name, (dtype, bands) in LAYOUT.items()]
    return np.dtype([*fields, ("valid", "?", shape)])


def _index_row(name: str, row: int, chip: Chip, valid: np.ndarray, missing: list[str]) -> dict[str, Any]:
    share = float((chip.mask > 0).mean())
    values: dict[str, Any] = {
        "chip_id": chip.chip_id,
        "region": chip.region,
        "year": chip.snapshot_year,
        "lat": np.nan if chip.lat is None else chip.lat,
        "lon": np.nan if chip.lon is None else chip.lon,
        "lake_id": chip.lake_id,
        "water_frac": share,  # counted, not copied: the sampler and the filter go by it
        "stated_water_frac": np.nan if "water_frac" in missing else chip.water_frac,
        "valid_frac": float(valid.mean()),
        "published_split": chip.split,
        "shard": name,
        "row": row,
    }
    for threshold, (iou, water) in zip(THRESHOLDS, agreement(chip.s2, chip.mask), strict=True):
        values[column(threshold, "iou")], values[column(threshold, "water")] = iou, water
    return values
