"""What an ingest says about itself: index, sanity-filter table, statistics, dataset card."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cryosentinel.data import sanity
from cryosentinel.data.card import write_card
from cryosentinel.data.chips import iter_shard
from cryosentinel.data.split import assign_splits
from cryosentinel.data.stats import RunningStatistics
from cryosentinel.data.store import find_shards
from cryosentinel.files import replacing
from cryosentinel.ingest.group import KEPT
from cryosentinel.paths import STATISTICS_FILE
from cryosentinel.sensors import Statistics

INDEX_FILE, SANITY_FILE = "index.parquet", "sanity_report.csv"


@dataclass(frozen=True)
class IngestResult:
    """What an ingest made.

    Attributes:
        root: the dataset.
        folder: ``<root>/<region>/<year>``: shards, ``index.parquet``, ``sanity_report.csv``, ``ingest.json``.
        index: one row a planned chip: chip_id, status ("kept", or why there is no chip), shard, row, lat, lon, lake_id,
            water_frac, and what it was made of (s2_scenes, s2_date, s2_offset, s2_clear, s1_item, s1_date, s1_days,
            s1_direction, s1_orbit, s1_product, s1_backscatter, valid_frac, sanity and its figures at both MNDWI
            thresholds).
        sanity: the filter's report table, a row a threshold.
        broken: what could not be read of items that were left out.
        notes: what contradicts its metadata or cannot be right, and which radar products are mixed.
    """

    root: Path
    folder: Path
    index: pd.DataFrame
    sanity: pd.DataFrame
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def chips(self) -> int:
        """How many chips were written."""
        return int((self.index["status"] == KEPT).sum())

    def summary(self) -> str:
        """A few lines for a terminal."""
        counts = self.index["status"].value_counts()
        skipped = ", ".join(f"{n} {status}" for status, n in counts.items() if status != KEPT)
        lines = [f"{self.chips} of {len(self.index)} planned chips in {self.folder}"]
        if skipped:
            lines.append(f"skipped: {skipped}")
        if self.broken:
            lines.append(f"{len(self.broken)} items left out because they could not be read: {self.broken[0]}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, "", self.sanity.T.to_string()])


def make_index(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The index of planned chips, with the sanity filter's verdict at its default threshold on those built."""
    columns = [
        "chip_id", "status", "shard", "row", "lat", "lon", "lake_id", "water_frac", "valid_frac",
        "s2_scenes", "s2_date", "s2_offset", "s2_clear", "s1_item", "s1_date", "s1_days", "s1_direction", "s1_orbit",
        "s1_product", "s1_backscatter",
        *(sanity.column(threshold, what) for threshold in sanity.THRESHOLDS for what in ("iou", "water")),
    ]  # fmt: skip
    index = pd.DataFrame(list(rows)).reindex(columns=columns)
    kept = (index["status"] == KEPT).to_numpy()
    verdict = np.full(len(index), "", object)
    figures = [sanity.column(sanity.DEFAULT_THRESHOLD, what) for what in ("iou", "water")]
    iou, water = (index[name].to_numpy(dtype=float)[kept] for name in figures)
    verdict[kept] = sanity.reasons(iou, water, index["water_frac"].to_numpy(dtype=float)[kept])
    return index.assign(sanity=verdict)


def write_index(folder: Path, index: pd.DataFrame) -> pd.DataFrame:
    """Write index and sanity table into a region and year's folder; returns the table."""
    with replacing(folder / INDEX_FILE) as part:
        index.to_parquet(part, index=False)
    table = sanity.sanity_report(index[index["status"] == KEPT])
    with replacing(folder / SANITY_FILE) as part:
        table.to_csv(part)
    return table


def write_statistics(root: Path) -> Statistics | None:
    """Statistics of the training split of all shards below a root; None where it has no valid pixel."""
    running = RunningStatistics()
    for path in find_shards(root).values():
        for chip in iter_shard(path, warn=False):
            if chip.lat is not None and chip.lon is not None and assign_splits([chip.lat], [chip.lon])[0] == "train":
                running.add(chip.s2, chip.s1, chip.dem, chip.valid)
    if not running.count:
        warnings.warn(
            f"No chip of {root} lies in the training split, so {STATISTICS_FILE} is not written; the published "
            "statistics hold until more is ingested.",
            stacklevel=2,
        )
        return None
    statistics = running.result()
    statistics.write(root / STATISTICS_FILE)
    return statistics


def mixed_radar(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on radar products that a dataset mixes, and on the published chips', which are another one."""
    products = sorted({product for record in records for product in record.get("s1_products", ())})
    sentences = []
    if len(products) > 1:
        sentences.append(
            f"The chips mix radar products ({', '.join(products)}), whose levels differ by decibels: train on one of "
            "them, or tell them apart by the column s1_product of each index.parquet."
        )
    if any(product.startswith("RTC") for product in products):
        sentences.append(
            "Published chips hold Sentinel-1 GRD: beside terrain-corrected backscatter (RTC) TerraMind's own "
            "pretraining means differ by 1.7 dB (VV) and 3.0 dB (VH), so do not mix them, and "
            "use the statistics of this dataset."
        )
    return sentences


def _provenance(record: Mapping[str, Any]) -> str:
    """A sentence or two on what one ingest was made of."""
    s, names, services = record["settings"], record["collections"], record["services"]

    def source(modality: str) -> str:
        return f"`{' and '.join(names[modality])}` of {services[modality]}"

    outlines = ", ".join(record["inventory"]) or "no inventory: every label is empty, and says nothing"
    year = f", those of {record['inventory_year']}" if record["inventory_year"] else ""
    return (
        f"`{record['region']}` {record['year']}: Sentinel-2 L2A ({source('s2')}), composed pixel by pixel of the "
        f"clearest acquisitions from {s['season'][0]} to {s['season'][1]} (where needed also {s['fallback'][0]} to "
        f"{s['fallback'][1]}), at most {s['max_scenes']} of at most {s['max_cloud']:g} % cloud; scene classes "
        f"{', '.join(map(str, s['hidden_classes']))} hidden and clouds grown by {s['cloud_buffer']} pixels; the +1000 "
        f"offset of newer baselines removed (column `s2_offset`). Sentinel-1 ({source('s1')}; "
        f"{' and '.join(record.get('s1_products', ())) or 'no chips'}) of the pass nearest in time, at most "
        f"{s['radar_days']} days off{', Lee filter' if s['speckle'] else ', no speckle filter'}; elevation "
        f"{source('dem')}; outlines: {outlines}{year}."
    )


def write_dataset_card(root: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the dataset card, from the records of all ingests below a root.

    Returns:
        What it says on mixed radar products.
    """
    skipped = sum(record["planned"] - record["chips"] for record in records)
    mixed = mixed_radar(records)
    gaps = [f"{skipped} planned chips could not be built; the index.parquet beside the shards says why."]
    write_card(
        root,
        name="Glacial-lake chips from Sentinel-1, Sentinel-2 and the Copernicus DEM",
        summary="Chips of 224 x 224 pixels of 10 m, cut on a grid with half overlap in the UTM zone of their centre, "
        "with the lake outlines of an inventory as labels.",
        licence="other",
        provenance=[
            *map(_provenance, records),
            "Contains modified Copernicus Sentinel data; the elevation is the Copernicus DEM (GLO-30). Terms of the "
            "inventory are its authors'.",
        ],
        gaps=[*mixed, *(gaps if skipped else [])],
        tags=["sentinel-1", "stac"],
    )
    return mixed
