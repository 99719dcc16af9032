"""What is true of a simulated dataset, read back by chip. Only evaluation opens it; training never does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cryosentinel.data.chips import Chip
from cryosentinel.data.split import assign_splits
from cryosentinel.data.store import ChipStore
from cryosentinel.errors import InputError
from cryosentinel.files import replacing
from cryosentinel.paths import SHARDS, truth_folder

LAKES_FILE = "lakes.parquet"
LAYERS = ("truth", "material", "cloud", "terrain_shadow", "body")
BODY = pa.struct([("lake_id", pa.string()), ("kind", pa.string()), ("area_ha", pa.float64()), ("frozen", pa.float64())])
SCHEMA = pa.schema(
    [
        ("chip_id", pa.string()),
        ("shape", pa.list_(pa.int64())),
        *((f"{layer}_bytes", pa.binary()) for layer in LAYERS),
        ("label_error", pa.string()),
        ("bodies", pa.list_(BODY)),
    ]
)


@dataclass(frozen=True)
class Body:
    """A body of standing water that a chip shows.

    Attributes:
        lake_id: the same in every chip and year.
        kind: "proglacial", "moraine", "cirque" or "supraglacial" (glacial lakes), "reservoir" or "pond" (others).
        area_ha: of the whole body at the image's date, beyond the chip's edge too.
        frozen: share of it under ice.
    """

    lake_id: str
    kind: str
    area_ha: float
    frozen: float


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of one chip. Arrays (H, W) uint8.

    Attributes:
        lake: 1 = glacial lake at the image's date.
        material: codes of :class:`cryosentinel.simulate.Material`.
        cloud: 0 clear, 1 cloud, 2 cloud shadow.
        terrain_shadow: 1 = in the shadow of the terrain.
        label_error: the gravest error of the chip's label: "", "shifted", "oversized", "undersized", "missing" or
            "false" (a lake that is none).
        body: 0, or 1 + the position in ``bodies`` of the standing water that a pixel shows.
        bodies: standing water in sight.
    """

    lake: np.ndarray
    material: np.ndarray
    cloud: np.ndarray
    terrain_shadow: np.ndarray
    label_error: str
    body: np.ndarray
    bodies: tuple[Body, ...] = ()


def write_truth_shard(path: str | os.PathLike[str], truths: dict[str, Truth]) -> None:
    """Write the truth of a shard's chips (chip id -> truth), atomically."""
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for chip_id, truth in truths.items():
        columns["chip_id"].append(chip_id)
        columns["shape"].append(list(truth.lake.shape))
        layers = (truth.lake, truth.material, truth.cloud, truth.terrain_shadow, truth.body)
        for layer, array in zip(LAYERS, layers, strict=True):
            columns[f"{layer}_bytes"].append(np.ascontiguousarray(array, np.uint8).tobytes())
        columns["label_error"].append(truth.label_error)
        columns["bodies"].append([asdict(body) for body in truth.bodies])
    with replacing(path) as part:
        pq.write_table(pa.table(columns, schema=SCHEMA), part, row_group_size=16, compression="zstd")


class TruthStore(Mapping[str, Truth]):
    """The truth of a simulated dataset: ``TruthStore(root)[chip_id] -> Truth``.

    Opens the folder ``<root>-truth`` beside the dataset. Chip ids are indexed at once, arrays are read when asked for
    (a row group of 16 chips at a time, of which the last is kept).

    Raises:
        InputError: the folder is missing or one of its shards is corrupt.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.folder = truth_folder(root)
        paths = sorted(self.folder.glob(SHARDS))
        if not paths:
            raise InputError(
                f"There is no truth in {self.folder}; only simulated datasets have one, beside them under the same "
                "name with -truth: simulate the dataset again, or score against its labels."
            )
        self._where: dict[str, tuple[Path, int, int]] = {}
        for path in paths:
            try:
                with pq.ParquetFile(path) as shard:
                    for group in range(shard.num_row_groups):
                        ids = shard.read_row_group(group, columns=["chip_id"]).column("chip_id").to_pylist()
                        self._where.update({chip_id: (path, group, row) for row, chip_id in enumerate(ids)})
            except (pa.ArrowException, OSError, KeyError) as error:
                raise InputError(f"The truth shard {path} is corrupt ({error}); simulate the dataset again.") from None
        self._kept: tuple[tuple[Path, int], dict[str, list]] | None = None

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, chip_id: object) -> bool:
        return chip_id in self._where

    def __getitem__(self, chip_id: str) -> Truth:
        try:
            path, group, row = self._where[chip_id]
        except KeyError:
            raise InputError(f"The truth in {self.folder} has no chip {chip_id!r}; it belongs to other data.") from None
        if self._kept is None or self._kept[0] != (path, group):
            try:
                with pq.ParquetFile(path) as shard:
                    self._kept = ((path, group), shard.read_row_group(group).to_pydict())
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"The truth shard {path} is corrupt ({error}); simulate the dataset again.") from None
        columns = self._kept[1]
        height, width = columns["shape"][row]
        arrays = {}
        for layer in LAYERS:
            array = np.frombuffer(columns[f"{layer}_bytes"][row], np.uint8)
            if array.size != height * width:
                raise InputError(f"The truth of chip {chip_id!r} in {path} is corrupt; simulate the dataset again.")
            arrays["lake" if layer == "truth" else layer] = array.reshape(height, width)
        bodies = tuple(Body(**body) for body in columns["bodies"][row])
        return Truth(**arrays, label_error=columns["label_error"][row], bodies=bodies)

    def lakes(self) -> pd.DataFrame:
        """The standing water around the chips' places, see :func:`cryosentinel.simulate.places.standing_water`."""
        try:
            return pd.read_parquet(self.folder / LAKES_FILE)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.folder / LAKES_FILE} cannot be read ({error}); simulate the dataset again."
            ) from None


def chips_with_truth(
    root: str | os.PathLike[str], split: str | None = None, every: int = 1
) -> Iterator[tuple[Chip, Truth]]:
    """Chips of a simulated dataset with their truth, in the order of the shards.

    Args:
        root: of the dataset.
        split: of the published finetune split (0.15 degree blocks); all chips, also the buffer's, when None.
        every: take one chip in so many.
    """
    store, truths = opened(root)
    rows = np.arange(len(store))
    if split is not None:
        rows = rows[assign_splits(store.index["lat"], store.index["lon"]) == split]
    for row in rows[::every].tolist():
        chip = store[row]
        yield chip, truths[chip.chip_id]


def opened(root: str | os.PathLike[str]) -> tuple[ChipStore, TruthStore]:
    """A simulated dataset and its truth, opened once however many measures are taken of it."""
    root = Path(root).absolute()
    truth = truth_folder(root)
    return _opened(root, truth.stat().st_mtime_ns if truth.is_dir() else 0)


@lru_cache(maxsize=2)
def _opened(root: Path, changed: int) -> tuple[ChipStore, TruthStore]:
    truths = TruthStore(root)
    return ChipStore(root), truths
