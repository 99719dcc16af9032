"""The dataset card: what a dataset holds, where it comes from and what it lacks, counted from the dataset itself."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cryosentinel.data.shards import SHARD_SCHEMA, read_shard_metadata
from cryosentinel.data.split import BUFFER, BUFFER_DEGREES, FINETUNE_BLOCK_SIZE, SPLITS, assign_splits
from cryosentinel.data.store import find_shards
from cryosentinel.files import write_text
from cryosentinel.paths import SHARDS, STATISTICS_FILE
from cryosentinel.sensors import INVENTORY_YEARS, S1_FILL_DB, S2_BANDS

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

NOTES = {
    "chip_id": "unique name of the chip",
    "region": "region of High Mountain Asia",
    "lake_id": "lake of the inventory that the chip was cut for; empty for a chip without one",
    "split": "older lake-level split; the block split below overrides it",
    "snapshot_year": "year of the images",
    "lat": "centre, degrees, WGS 84; the grid is the UTM zone of the centre, 10 m pixels",
    "lon": "as `lat`",
    "water_frac": "share of the mask's pixels that are lake",
    "s2_bytes": f"uint16 (12, H, W), surface reflectance x 10,000: {', '.join(S2_BANDS)}; 0 in all bands: no data",
    "s1_bytes": "float32 (2, H, W), backscatter in dB: VV, VH; not finite: no data",
    "dem_bytes": "int16 (1, H, W), elevation in metres; at or beyond +-32,000: no data",
    "mask_bytes": "uint8 (H, W), 1 = glacial lake, 0 = not",
}


def write_card(
    root: str | os.PathLike[str],
    name: str,
    summary: str,
    licence: str,
    provenance: Sequence[str],
    gaps: Sequence[str],
    tags: Sequence[str] = (),
    block_size: float = FINETUNE_BLOCK_SIZE,
    buffer: float = BUFFER_DEGREES,
    buffer_rule: str = "edge",
) -> Path:
    """Write ``<root>/README.md``, a dataset card in the hub's form (YAML front matter, then Markdown).

    Args:
        root: folder of the dataset; its shards' metadata are read, not their pixels.
        name: title.
        summary: a paragraph on what the dataset is.
        licence: an identifier of the hub, such as "apache-2.0" or "cc-by-4.0".
        provenance: one sentence a source.
        gaps: one sentence a known gap. What can be counted (chips without a centre, missing regions and years) is
            added.
        tags: of the hub, beside the usual ones.
        block_size, buffer, buffer_rule: of the split that is counted.

    Returns:
        The card's path.

    Raises:
        InputError: there is no dataset, or a shard is corrupt.
    """
    root = Path(root)
    shards = find_shards(root)
    chips = pd.DataFrame([row for path in shards.values() for row in read_shard_metadata(path)])
    chips["split"] = ""
    placed = chips["lat"].notna() & chips["lon"].notna()
    chips.loc[placed, "split"] = assign_splits(
        chips.loc[placed, "lat"], chips.loc[placed, "lon"], block_size, buffer, rule=buffer_rule
    )
    size = sum(path.stat().st_size for path in shards.values())
    parts = [
        _front_matter(name, licence, len(chips), tags),
        f"# {name}\n\n{summary.strip()}\n",
        f"{len(chips):,} chips in {len(shards)} shards, {size / 1e9:.2f} GB.\n",
        _files(root),
        _schema(),
        _counts(chips, block_size, buffer, buffer_rule),
        _section("Provenance", provenance),
        _section("Known gaps", [*gaps, *_countable_gaps(chips)]),
        f"## Licence\n\n`{licence}`\n",
    ]
    write_text(root / "README.md", "\n".join(parts))
    return root / "README.md"


def _front_matter(name: str, licence: str, count: int, tags: Sequence[str]) -> str:
    from huggingface_hub import DatasetCardData

    values = DatasetCardData(
        pretty_name=name,
        license=licence,
        task_categories=["image-segmentation"],
        size_categories=[next((label for limit, label in SIZES if count < limit), "n>1M")],
        tags=list(dict.fromkeys(["glacial-lakes", "sentinel-1", "sentinel-2", "dem", "high-mountain-asia", *tags])),
        configs=[{"config_name": "default", "data_files": SHARDS}],
    )
    return f"---\n{values.to_yaml()}\n---\n"


def _files(root: Path) -> str:
    stats = (root / STATISTICS_FILE).is_file()
    lines = ["## Files", "", "- `<region>/<year>/shard_NNN.parquet`: a few hundred chips each, one row group."]
    if stats:
        lines.append(f"- `{STATISTICS_FILE}`: mean and standard deviation of every band over valid pixels.")
    return "\n".join([*lines, ""])


def _schema() -> str:
    rows = [
        f"| `{field.name}` | {field.type} | {NOTES.get(field.name, _shape(field.name))} |" for field in SHARD_SCHEMA
    ]
    invalid = (
        "A pixel without data in any modality is invalid for loss, metrics and area; the network sees Sentinel-1 "
        f"filled with {S1_FILL_DB:g} dB there. Bytes are in C order, little endian."
    )
    return "\n".join(["## Columns", "", "| column | type | content |", "| --- | --- | --- |", *rows, "", invalid, ""])


def _shape(name: str) -> str:
    return f"shape of `{name.removesuffix('_shape')}_bytes`"


def _counts(chips: pd.DataFrame, block_size: float, buffer: float, rule: str) -> str:
    years = sorted(chips["snapshot_year"].unique())
    regions = chips.groupby(["region", "snapshot_year"]).size().unstack(fill_value=0)
    lakes = chips[chips["water_frac"] > 0].groupby("region").size()
    lines = ["## Chips by region and year", "", _row(["region", *map(str, years), "all", "with lake"])]
    lines.append(_row(["---"] * (len(years) + 3)))
    for region, row in regions.iterrows():
        lines.append(_row([region, *(str(row.get(y, 0)) for y in years), str(row.sum()), str(lakes.get(region, 0))]))
    total = [str(int((chips["snapshot_year"] == year).sum())) for year in years]
    lines.append(_row(["all", *total, str(len(chips)), str(int(lakes.sum()))]))
    kinds = [*SPLITS, BUFFER]
    lines += [
        "", "## Chips by region and split", "",
        f"Hash blocks of {block_size:g} degrees, chips within {buffer:g} degrees of "
        f"{'a block edge' if rule == 'edge' else 'a block of another split'} left out (`buffer`).", "",
        _row(["region", *kinds]), _row(["---"] * (len(kinds) + 1)),
    ]  # fmt: skip
    counted: Mapping[Any, int] = Counter(zip(chips["region"], chips["split"], strict=True))
    for region in regions.index:
        lines.append(_row([region, *(str(counted.get((region, kind), 0)) for kind in kinds)]))
    lines.append(_row(["all", *(str(int((chips["split"] == kind).sum())) for kind in kinds)]))
    return "\n".join([*lines, ""])


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _countable_gaps(chips: pd.DataFrame) -> list[str]:
    gaps = []
    nowhere = int((chips["lat"].isna() | chips["lon"].isna()).sum())
    if nowhere:
        gaps.append(f"{nowhere} chips have no `lat` and `lon` and belong to no split.")
    uncounted = int(chips["water_frac"].isna().sum())
    if uncounted:
        gaps.append(f"{uncounted} chips state no `water_frac`.")
    held = chips.groupby("region")["snapshot_year"].unique()
    years = set(chips["snapshot_year"])
    for region, has in held.items():
        missing = sorted(years - set(has))
        if missing:
            gaps.append(f"`{region}` has no chips of {', '.join(map(str, missing))}.")
    later = sorted(year for year in years if year > INVENTORY_YEARS[0] and year not in INVENTORY_YEARS)
    if later:
        gaps.append(
            f"Labels are of the inventory years {' and '.join(map(str, INVENTORY_YEARS))}, so the images of "
            f"{', '.join(map(str, later))} may show lakes that have grown, shrunk or drained since or until then."
        )
    return gaps


def _section(title: str, sentences: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {sentence}" for sentence in sentences or ["None known."]), ""])
