"""The sufficient statistic of a study: per chip, how often each probability was predicted on lake and on background.

Two histograms a chip, 200 bins wide, hold everything that a threshold score needs. Bin k is [k/200, (k+1)/200), p = 1
falls in the last, and a pixel is water at threshold k/200 when p >= k/200, so that a threshold on a multiple of 1/200
splits the bins without a rest: scores from the table equal scores from the pixels, for every such threshold.

Edges are the float32 numbers nearest to k/200, as ``probability >= 0.7`` compares them in NumPy and torch.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.files import replacing

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1  # of the table's layout; another one is refused
BINS = 200
#: (201,) float32, bin k is EDGES[k] <= p < EDGES[k + 1], the last bin closed.
EDGES = (np.arange(BINS + 1) / BINS).astype(np.float32)
INVALID = 255  # in a stored probability map: the pixel has no valid data, so no prediction is recorded

_KEYS = ("chip_id", "region", "year", "lat", "lon", "block", "n_valid")
COLUMNS = (*_KEYS, "lake", "background")
_METADATA = b"cryosentinel_scores"


def threshold_bin(threshold: float) -> int:
    """The first bin that is water at a threshold.

    Args:
        threshold: a multiple of 1/200 in 0..0.995.

    Raises:
        ConfigError: the threshold lies between two edges, so that the histograms cannot tell its score.
    """
    k = round(float(threshold) * BINS) if np.isfinite(threshold) else -1
    if not 0 <= k < BINS or abs(threshold * BINS - k) > 1e-6:
        raise ConfigError(
            f"The threshold {threshold} is not a multiple of {1 / BINS} in 0..{1 - 1 / BINS}; choose one."
        )
    return k


def probability_bins(probability: np.ndarray) -> np.ndarray:
    """The bin of each probability, exact at every edge: ``bins >= k`` equals ``probability >= np.float32(k / 200)``.

    Args:
        probability: float32 (other floating types are cast), any shape, 0..1.

    Returns:
        uint8 of the same shape, 0..199.

    Raises:
        InputError: a probability is not a number or outside 0..1.
    """
    probability = np.asarray(probability, dtype=np.float32)
    if probability.size == 0:
        return np.zeros(probability.shape, np.uint8)
    # Not a number makes the minimum not a number, and the comparison false.
    if not (probability.min() >= 0 and probability.max() <= 1):
        raise InputError(
            "The prediction holds values that are not probabilities (outside 0..1, or not a number); "
            "check the model's weights and the chip's input."
        )
    # A float32 edge is k/200 rounded: off by at most 12/25 of a unit in the last place, because 200 k/200 has
    # residues modulo 25 only. Half a unit added (one bit below float32's last, exact in float64) puts every edge at or
    # above k/200 and leaves every number below the edge below it. Product and sum are exact in float64.
    # The floor of 2^-100 keeps zeros away from subnormal numbers, which are slow to multiply.
    exact = np.array(np.maximum(probability, np.float32(2.0**-100)), dtype=np.float64)
    exact.view(np.int64)[...] |= 1 << 28
    exact *= BINS
    bins = exact.astype(np.uint8)
    return np.minimum(bins, BINS - 1, out=bins)


@functools.cache
def _counter() -> Callable[..., None]:
    import numba

    def count(bins: np.ndarray, label: np.ndarray, valid: np.ndarray, out: np.ndarray) -> None:
        # Four copies in turn: most pixels fall in the same bin, and a counter that waits for itself is slow.
        for i in range(bins.size):
            out[i & 3, valid[i] * (1 + label[i]), bins[i]] += 1

    return numba.njit(nogil=True)(count)


def chip_histograms(bins: np.ndarray, label: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of one chip's probability over valid lake and valid background pixels.

    Args:
        bins: (H, W) uint8 from :func:`probability_bins`; pixels marked :data:`INVALID` must be invalid in ``valid``.
        label: (H, W), lake where non-zero.
        valid: (H, W) bool.

    Returns:
        lake and background, (200,) int64 each; their sum over both is the number of valid pixels.

    Raises:
        InputError: the shapes differ.
    """
    if not bins.shape == label.shape == valid.shape:
        raise InputError(
            f"Prediction {bins.shape}, label {label.shape} and valid mask {valid.shape} must have one shape; "
            "the prediction belongs to other chips or another chip size."
        )
    out = np.zeros((4, 3, 256), np.uint32)
    lake = np.ascontiguousarray(label != 0).reshape(-1).view(np.uint8)
    usable = np.ascontiguousarray(valid, dtype=bool).reshape(-1).view(np.uint8)
    _counter()(np.ascontiguousarray(bins).reshape(-1), lake, usable, out)
    total = out.sum(axis=0, dtype=np.int64)
    return total[2, :BINS], total[1, :BINS]


class ScoreBuilder:
    """Builds a score table chip by chip.

    Args:
        index: one row a chip with chip_id, region, year, lat, lon; a store's index.
        blocks: (len(index),) strings, the split block of each chip: what a bootstrap resamples.
    """

    def __init__(self, index: pd.DataFrame, blocks: np.ndarray) -> None:
        self._index, self._blocks = index, np.asarray(blocks)
        self._rows: list[int] = []
        self._lake: list[np.ndarray] = []
        self._background: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: int, bins: np.ndarray, label: np.ndarray, valid: np.ndarray) -> None:
        """Count one chip: its position in the index, and arrays as in :func:`chip_histograms`."""
        lake, background = chip_histograms(bins, label, valid)
        self._rows.append(int(row))
        self._lake.append(lake.astype(np.int32))
        self._background.append(background.astype(np.int32))

    def table(self) -> pd.DataFrame:
        """The score table, one row a chip, in the order in which they were added."""
        import pandas as pd

        table = self._index.iloc[self._rows][["chip_id", "region", "year", "lat", "lon"]].reset_index(drop=True)
        table = table.astype({"year": "int64", "lat": "float64", "lon": "float64"})
        table["block"] = self._blocks[self._rows].astype(object)
        table["n_valid"] = np.array(
            [a.sum() + b.sum() for a, b in zip(self._lake, self._background, strict=True)], dtype=np.int64
        )
        table["lake"] = pd.Series(self._lake, dtype=object)
        table["background"] = pd.Series(self._background, dtype=object)
        return table


def histograms(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Lake and background histograms of a score table as two (N, 200) int64 arrays."""
    if not len(table):
        return np.zeros((0, BINS), np.int64), np.zeros((0, BINS), np.int64)
    return tuple(np.stack(table[name].to_numpy()).astype(np.int64) for name in ("lake", "background"))  # type: ignore


def write_scores(path: str | os.PathLike[str], table: pd.DataFrame, about: Mapping[str, Any] | None = None) -> None:
    """Write a score table as Parquet, atomically.

    Args:
        path: destination.
        table: columns :data:`COLUMNS`.
        about: what the table was made from (checkpoint digest, flips, reference, ...); comes back as
            ``table.attrs`` from :func:`read_scores`. Plain JSON types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table[list(_KEYS)], preserve_index=False)
    for name, values in zip(("lake", "background"), histograms(table), strict=True):
        flat = pa.array(values.reshape(-1), type=pa.int32())
        arrow = arrow.append_column(name, pa.FixedSizeListArray.from_arrays(flat, BINS))
    metadata = {**(about if about is not None else table.attrs), "version": VERSION, "bins": BINS}
    arrow = arrow.replace_schema_metadata({_METADATA: json.dumps(metadata).encode()})
    with replacing(path) as part:
        pq.write_table(arrow, part, compression="zstd")


def read_scores(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a score table and check that it can be one.

    Returns:
        The table; ``attrs`` holds what it was made from.

    Raises:
        InputError: missing, truncated, not a score table, of another version; a chip is in it twice; or histograms that
            do not add up to the valid pixels.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    again = "run the evaluation again"
    if not path.is_file():
        raise InputError(f"There is no score table {path}; {again}.")
    try:
        arrow = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"The score table {path} cannot be read ({reason}); {again}.") from None
    if "cause" in arrow.column_names or "area_ha" in arrow.column_names:
        raise InputError(
            f"{path} is a table of causes or lakes; give the per_chip table beside it, and it is read too."
        )
    if missing := [name for name in COLUMNS if name not in arrow.column_names]:
        raise InputError(f"The score table {path} lacks the columns {', '.join(missing)}; {again}.")
    try:
        metadata = json.loads((arrow.schema.metadata or {}).get(_METADATA, b"{}"))
        if (version := metadata.get("version", VERSION)) != VERSION:
            raise InputError(
                f"The score table {path} is of version {version}, and this program reads {VERSION}; {again}."
            )
        if empty := [name for name in COLUMNS if arrow.column(name).null_count]:
            raise ValueError(f"values of {', '.join(empty)} are missing")
        table = arrow.select(list(_KEYS)).to_pandas()
        counted = np.zeros(len(table), np.int64)
        for name in ("lake", "background"):
            column = arrow.column(name).combine_chunks()
            lengths = np.diff(np.asarray(column.offsets)) if hasattr(column, "offsets") else [column.type.list_size]
            if column.null_count or (np.asarray(lengths) != BINS).any():
                raise ValueError(f"{name} must hold {BINS} counts a chip")
            values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), BINS)
            if values.dtype.kind not in "iu" or (values.size and values.min() < 0):
                raise ValueError(f"{name} must hold counts")
            counted += values.sum(axis=1, dtype=np.int64)
            table[name] = pd.Series(list(values), dtype=object)
        if (counted != table["n_valid"].to_numpy()).any():
            raise ValueError("the histograms do not add up to n_valid")
        if (twice := table.duplicated(["chip_id", "region", "year"])).any():
            raise ValueError(f"it holds the chip {table.loc[twice, 'chip_id'].iloc[0]!r} twice")
    except (ValueError, AttributeError, TypeError, pa.ArrowException) as error:
        raise InputError(f"The score table {path} is damaged ({error}); {again}.") from None
    table.attrs.update(metadata)
    return table
