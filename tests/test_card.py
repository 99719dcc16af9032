"""The dataset card: readable by the hub, and every count that of the shards."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from chip_factory import make_chip, write_dataset

from cryosentinel.data.card import write_card
from cryosentinel.data.chips import SHARD_SCHEMA, write_shard
from cryosentinel.data.split import assign_splits
from cryosentinel.errors import InputError


def table_rows(text: str, heading: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of the table under a heading."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


def test_the_card_counts_what_the_shards_hold(tmp_path):
    root = tmp_path / "data"
    chips = write_dataset(root, shards=2, chips=30, size=4)
    nowhere = [make_chip(900 + k, 4, lat=None, region="tien_shan_full", snapshot_year=2022) for k in range(2)]
    write_shard(root / "tien_shan_full" / "2022" / "shard_000.parquet", nowhere)
    card = write_card(
        root, "Chips: a test", "What it is.", "apache-2.0", ["Simulated."], ["No clouds."], ["simulated"],
        buffer_rule="foreign",
    )  # fmt: skip
    text = card.read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["pretty_name"] == "Chips: a test" and "simulated" in front["tags"]
    assert front["size_categories"] == ["n<1K"] and list(root.glob(front["configs"][0]["data_files"]))
    counts = table_rows(text, "Chips by region and year")
    assert counts["region"] == ["2021", "2022", "all", "with lake"]
    assert counts["ile_alatau"] == ["30", "0", "30", "20"] and counts["tien_shan_full"] == ["30", "2", "32", "22"]
    assert counts["all"] == ["60", "2", "62", "42"]
    splits = assign_splits([chip.lat for chip in chips], [chip.lon for chip in chips], rule="foreign")
    expected = [str(int(np.sum(splits == name))) for name in ("train", "val", "test", "buffer")]
    assert table_rows(text, "Chips by region and split")["all"] == expected
    assert set(SHARD_SCHEMA.names) <= {name.strip("`") for name in table_rows(text, "Columns")}
    for sentence in ("- Simulated.", "- No clouds.", "2 chips have no `lat`", "`ile_alatau` has no chips of 2022"):
        assert sentence in text
    assert "dataset_stats_v3.json" not in text  # it is not there


def test_a_folder_without_shards_gets_no_card(tmp_path):
    with pytest.raises(InputError, match="no shards"):
        write_card(tmp_path, "x", "x", "mit", [], [])
    assert not (tmp_path / "README.md").exists()
