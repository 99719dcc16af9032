"""What an ingest says about itself: index, sanity-filter table, statistics, dataset card."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
from cryosentinel.ingest.window import KEPT
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
            s1_direction, s1_orbit, valid_frac, sanity and its figures at both MNDWI thresholds).
        sanity: the filter's report table, a row a threshold.
        broken: what could not be read of items that were left out.
    """

    root: Path
    folder: Path
    index: pd.DataFrame
    sanity: pd.DataFrame
    broken: tuple[str, ...] = ()

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
        return "\n".join([*lines, "", self.sanity.T.to_string()])


def make_index(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The index of planned chips, with the sanity filter's verdict at its default threshold on those built."""
    columns = [
        "chip_id", "status", "shard", "row", "lat", "lon", "lake_id", "water_frac", "valid_frac",
        "s2_scenes", "s2_date", "s2_offset", "s2_clear", "s1_item", "s1_date", "s1_days", "s1_direction", "s1_orbit",
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


def write_dataset_card(root: Path, records: Sequence[dict[str, Any]], skipped: int) -> None:
    """The dataset card, from the records of all ingests below a root."""
    provenance = []
    for r in records:
        s = r["settings"]
        provenance.append(
            f"`{r['region']}` {r['year']}: Sentinel-2 L2A (`{r['collections']['s2']}`), composed of the clearest "
            f"acquisitions from {s['season'][0]} to {s['season'][1]} (where needed also {s['fallback'][0]} to "
            f"{s['fallback'][1]}), scenes with at most {s['max_cloud']:g} % cloud; Sentinel-1 "
            f"(`{r['collections']['s1']}`) of the pass nearest in time, at most {s['radar_days']} days off"
            f"{', Lee filter' if s['speckle'] else ', no speckle filter'}; elevation `{r['collections']['dem']}`; from "
            f"{r['stac']}; outlines of {', '.join(r['inventory'])}"
            f"{', those of ' + str(r['inventory_year']) if r['inventory_year'] else ''}."
        )
    write_card(
        root,
        name="Glacial-lake chips from Sentinel-1, Sentinel-2 and the Copernicus DEM",
        summary="Chips of 224 x 224 pixels of 10 m, cut on a grid with half overlap in the UTM zone of their centre, "
        "with the lake outlines of an inventory as labels.",
        licence="other",
        provenance=[
            *provenance,
            "Contains modified Copernicus Sentinel data; the elevation is the Copernicus DEM (GLO-30). Terms of the "
            "inventory are its authors'.",
        ],
        gaps=[f"{skipped} planned chips could not be built; the index.parquet beside the shards says why."]
        if skipped
        else [],
        tags=["sentinel-1", "stac"],
    )
