"""The published Parquet shard: a few hundred chips in one file, arrays as raw bytes beside their shapes.

Columns: ``chip_id, region, lake_id, split`` (string), ``snapshot_year`` (integer), ``lat, lon, water_frac`` (float),
``s2_bytes, s1_bytes, dem_bytes, mask_bytes`` (binary: C order, little endian) and ``s2_shape ... mask_shape`` (list of
integers). Some published shards lack ``lat`` and ``lon``, or ``water_frac``: they are read, what is missing is said.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryosentinel.data.pixels import LAYOUT, Chip, impossible_value
from cryosentinel.errors import InputError
from cryosentinel.files import replacing

SHARD_SCHEMA = pa.schema(
    [
        ("chip_id", pa.string()),
        ("region", pa.string()),
        ("lake_id", pa.string()),
        ("split", pa.string()),
        ("snapshot_year", pa.int64()),
        ("lat", pa.float64()),
        ("lon", pa.float64()),
        ("water_frac", pa.float64()),
        *((f"{name}_bytes", pa.binary()) for name in LAYOUT),
        *((f"{name}_shape", pa.list_(pa.int64())) for name in LAYOUT),
    ]
)
METADATA = tuple(SHARD_SCHEMA.names[:8])
OPTIONAL = ("lat", "lon", "water_frac", "split", "lake_id")
BATCH_ROWS = 16  # decoded at a time: about 30 MB of 224-pixel chips


def _text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)


def _binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _integers(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return listed and pa.types.is_integer(kind.value_type)


def _accepts(name: str) -> tuple[Callable[[pa.DataType], bool], str]:
    """The test that a column's type must pass (other writers widen types: large strings, 32-bit integers)."""
    if name.endswith("_bytes"):
        return _binary, "binary"
    if name.endswith("_shape"):
        return _integers, "a list of integers"
    if name == "snapshot_year":
        return pa.types.is_integer, "an integer"
    return (_number, "a number") if name in ("lat", "lon", "water_frac") else (_text, "a string")


def open_shard(path: str | os.PathLike[str]) -> pq.ParquetFile:
    """Open a shard and check its columns.

    Returns:
        The Parquet file, to be closed by the caller (it is a context manager).

    Raises:
        InputError: there is no such file, it is truncated or not Parquet, or a column is missing or of a wrong type.
    """
    path = Path(path)
    try:
        shard = pq.ParquetFile(path, page_checksum_verification=True)  # where the writer left checksums
    except FileNotFoundError:
        raise InputError(f"There is no shard {path}; check the path.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"The shard {path} is truncated or not a Parquet file ({_first_line(error)}); fetch or build it again."
        ) from None
    schema = shard.schema_arrow
    for name in SHARD_SCHEMA.names:
        if name not in schema.names:
            if name in OPTIONAL:
                continue
            shard.close()
            raise InputError(f"The shard {path} has no column {name!r}; it is not in the published format.")
        accepts, wanted = _accepts(name)
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not accepts(kind):
            shard.close()
            raise InputError(f"The column {name!r} of the shard {path} holds {kind}; it must hold {wanted}.")
    return shard


def missing_columns(shard: pq.ParquetFile) -> list[str]:
    """The optional columns that a shard lacks."""
    return [name for name in OPTIONAL if name not in shard.schema_arrow.names]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _metadata(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The metadata of one row: None for a missing number, "" for a missing text."""
    values: dict[str, Any] = {name: record.get(name) for name in METADATA}
    for name in ("chip_id", "region", "snapshot_year"):
        if values[name] in (None, ""):
            raise InputError(f"{where} has no {name}; build the shard again.")
    for name in ("lake_id", "split"):
        values[name] = values[name] or ""
    for name in ("lat", "lon", "water_frac"):
        if values[name] is not None and math.isnan(values[name]):
            values[name] = None  # pandas writes a missing number as not a number
    return values


def _array(name: str, record: dict[str, Any], where: str) -> np.ndarray:
    dtype, bands = LAYOUT[name]
    raw, shape = record[f"{name}_bytes"], record[f"{name}_shape"]
    if raw is None or shape is None:
        raise InputError(f"{where} has no {name}; build the shard again.")
    shape = tuple(shape)
    if len(shape) != (3 if bands else 2) or any(n is None or n < 1 for n in shape) or (bands and shape[0] != bands):
        wanted = f"[{bands}, H, W]" if bands else "[H, W]"
        raise InputError(f"{where} gives {name} the shape {list(shape)}; it must be {wanted}.")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"{where} holds {len(raw)} bytes of {name}, and {dtype.name} of shape {list(shape)} takes "
            f"{math.prod(shape) * dtype.itemsize}; the shard is corrupt or of another version."
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _chip(record: dict[str, Any], where: str) -> Chip:
    arrays = {name: _array(name, record, where) for name in LAYOUT}
    for name, array in arrays.items():
        if array.shape[-2:] != arrays["mask"].shape:
            raise InputError(
                f"{where} has {name} of shape {list(array.shape)} beside a mask of {list(arrays['mask'].shape)}; "
                "all arrays of a chip share one grid."
            )
    fields = {**arrays, **_metadata(record, where)}
    problem = impossible_value(fields)
    if problem:
        raise InputError(f"{where} {problem}.")
    return Chip(**fields)


def iter_shard(path: str | os.PathLike[str], batch_rows: int = BATCH_ROWS, warn: bool = True) -> Iterator[Chip]:
    """Read a shard's chips one after the other, decoding a few rows at a time.

    A missing optional column is said once a shard, as a warning, unless ``warn`` is off. The arrays are read-only
    views of the decoded bytes.

    Raises:
        InputError: as :func:`open_shard`; or a row is corrupt or holds an impossible value (names file and row).
    """
    path = Path(path)
    row = 0
    with open_shard(path) as shard:
        missing = missing_columns(shard)
        if missing and warn:
            warnings.warn(f"The shard {path} lacks {', '.join(missing)}; its chips are read without.", stacklevel=2)
        columns = [name for name in SHARD_SCHEMA.names if name not in missing]
        batches = shard.iter_batches(batch_size=batch_rows, columns=columns)
        while True:
            try:
                records = next(batches).to_pylist()
            except StopIteration:
                return
            except (pa.ArrowException, OSError, ValueError) as error:
                raise InputError(
                    f"The shard {path} cannot be decoded from row {row} on ({_first_line(error)}); "
                    "fetch or build it again."
                ) from None
            for record in records:
                yield _chip(record, f"Row {row} of the shard {path}")
                row += 1


def read_shard(path: str | os.PathLike[str]) -> list[Chip]:
    """Read all chips of a shard into memory (about 1.8 MB a chip of 224 pixels).

    Raises:
        InputError: see :func:`iter_shard`.
    """
    return list(iter_shard(path))


def read_shard_metadata(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The metadata of every row (no pixels), the fields of :class:`Chip`; what is missing is None.

    Raises:
        InputError: see :func:`iter_shard`.
    """
    with open_shard(path) as shard:
        columns = [name for name in METADATA if name in shard.schema_arrow.names]
        try:
            records = shard.read(columns=columns).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"The shard {path} cannot be decoded ({_first_line(error)}); fetch or build it again."
            ) from None
    rows = []
    for row, record in enumerate(records):
        where = f"Row {row} of the shard {path}"
        fields = _metadata(record, where)
        problem = impossible_value(fields)
        if problem:
            raise InputError(f"{where} {problem}.")
        rows.append(fields)
    return rows


def write_shard(path: str | os.PathLike[str], chips: Iterable[Chip]) -> None:
    """Write chips as one shard in the published schema: one row group, zstd, atomically.

    The bytes depend on the chips alone (and on the version of pyarrow), so equal chips give equal files.

    Raises:
        InputError: a chip holds an impossible value.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SHARD_SCHEMA.names}
    for chip in chips:
        chip.check_values()
        for name in METADATA:
            columns[name].append(getattr(chip, name))
        for name in LAYOUT:
            array = getattr(chip, name)
            columns[f"{name}_bytes"].append(array.tobytes())
            columns[f"{name}_shape"].append(list(array.shape))
    # A column at a time, so that no more than one of them is held twice.
    table = pa.table([pa.array(columns.pop(each.name), each.type) for each in SHARD_SCHEMA], schema=SHARD_SCHEMA)
    with replacing(path) as part:
        pq.write_table(
            table,
            part,
            row_group_size=max(len(table), 1),
            compression="zstd",
            use_dictionary=["region", "lake_id", "split"],
            write_statistics=list(METADATA),
            write_page_checksum=True,  # else a flipped bit in the pixels may decode to other pixels
        )
